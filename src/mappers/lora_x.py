"""LoRA-X: keep what of an update lies in the target weight's leading subspaces."""

from .projections import Filtered
from .subspace_mapper import SubspaceMapper


class LoraXMapper(SubspaceMapper):
    """``U_t U_t^T dW V_t V_t^T`` for models of the same shapes.

    Args:
        rank: Singular vectors kept of each weight, at most.
        oversampling: Columns drawn beyond ``rank`` by the randomised SVD.
        power_iterations: Of the randomised SVD.
        seed: Of its draw.

    Source: LoRA-X (Farhadzadeh et al., ICLR 2025, arXiv 2501.16559). The paper transfers only
    modules whose subspaces are alike enough; here the similarity is reported for every site,
    and none is left out.
    """

    def __init__(
        self,
        rank: int = 320,
        oversampling: int = 16,
        power_iterations: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(Filtered(), rank, oversampling, power_iterations, seed)
