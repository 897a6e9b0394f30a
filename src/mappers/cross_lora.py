"""Cross-LoRA: replace the source weight's singular vectors by the target's."""

from .projections import projection_named
from .subspace_mapper import SubspaceMapper


class CrossLoraMapper(SubspaceMapper):
    """Carries an update from the leading singular subspaces of one weight to the other's.

    Args:
        variant: ``sign_fixed`` or ``typed`` for any shapes; ``paper`` is the printed equation,
            and ``lora_x`` the filter of LoRA-X, which is the same; both take weights of one shape.
            See :mod:`~loraport.mappers.projections`.
        rank: Singular vectors kept of each weight, at most.
        oversampling: Columns drawn beyond ``rank`` by the randomised SVD.
        power_iterations: Of the randomised SVD.
        seed: Of its draw.

    Source: Cross-LoRA (Xia et al., 2025, arXiv 2508.05232), equations 1 to 7 and algorithm 1.
    """

    def __init__(
        self,
        variant: str = "sign_fixed",
        rank: int = 320,
        oversampling: int = 16,
        power_iterations: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(projection_named(variant), rank, oversampling, power_iterations, seed)
