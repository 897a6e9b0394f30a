"""Git Re-Basin: the source's units are permuted into the target's places."""

from ..alignment.permutations import LinearAssignment
from .aligned import AlignmentMapper


class RebasinMapper(AlignmentMapper):
    """Matches units one to one, by weights alone, within the exact symmetries of the models.

    Between models of the same shapes that differ by such a symmetry it is exact. Where one has
    more units on an axis, the least similar ones are left out, and of a target's additional
    units nothing is changed.

    Source: weight matching, Ainsworth, Hayase and Srinivasa, 2023 (Git Re-Basin).

    Args:
        seed: Of the order of coordinate descent.
        sweeps: Of coordinate descent, at most.
        tokens: Shared tokens by whose embeddings the residual streams are matched, at most.
    """

    def __init__(self, seed: int = 0, sweeps: int = 100, tokens: int = 8192) -> None:
        super().__init__(LinearAssignment(), seed, sweeps, tokens)
