"""Optimal transport: each unit of the target gets an average of the source's."""

from ..alignment.axis_plan import Aligner
from ..alignment.transport_plan import ExactPlan
from .aligned import AlignmentMapper

_EXACT = ExactPlan()


class OptimalTransportMapper(AlignmentMapper):
    """Matches units softly, so that every unit of both models has partners at any widths.

    What an adapter writes is averaged by the plan with columns that sum to 1, what it reads by
    the plan with rows that sum to 1. Dimensions of queries and keys keep to their rotary
    frequencies and are matched one to one.

    Source: Singh and Jaggi, 2020 (OTFusion); for transformers: Imfeld et al., 2023.

    Args:
        plan: :class:`~loraport.alignment.transport_plan.ExactPlan`, or
            :class:`~loraport.alignment.transport_plan.SinkhornPlan`.
        seed: Of the order of coordinate descent.
        sweeps: Of coordinate descent, at most.
        tokens: Shared tokens by whose embeddings the residual streams are matched, at most.
    """

    def __init__(
        self, plan: Aligner = _EXACT, seed: int = 0, sweeps: int = 100, tokens: int = 8192
    ) -> None:
        super().__init__(plan, seed, sweeps, tokens)
