"""How the heads and value dimensions inside one group of attention heads match another's."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...alignment.axis_plan import Aligner, AxisPlan
from ...alignment.unit_similarity import UnitSimilarity

_TOLERANCE = 1e-12


@dataclass(frozen=True, eq=False)
class GroupPair:
    """A group of the source and one of the target: a key-value head each, with query heads.

    Attributes:
        q: Similarity of the rows of the query heads, head by head.
        k: Of the rows of the keys.
        v: Of the rows of the values.
        o: Of the columns that read what the query heads attended to, head by head.
        rope: Which dimensions of queries and keys correspond.
    """

    q: UnitSimilarity
    k: UnitSimilarity
    v: UnitSimilarity
    o: UnitSimilarity
    rope: AxisPlan

    def of_heads(self, dims: AxisPlan) -> UnitSimilarity:
        """Return the similarity of the query heads, given the matching of value dimensions."""
        inner = torch.einsum("isjt,st->ij", self._by_head(self.q), self.rope.weights)
        inner += torch.einsum("isjt,st->ij", self._by_head(self.o), dims.weights)
        ours, theirs = self.k.inner.shape
        return UnitSimilarity(
            inner,
            (self.q.source_squared + self.o.source_squared).view(-1, ours).sum(dim=1),
            (self.q.target_squared + self.o.target_squared).view(-1, theirs).sum(dim=1),
        )

    def of_dims(self, heads: AxisPlan) -> UnitSimilarity:
        """Return the similarity of the value dimensions, given the matching of query heads."""
        ours, theirs = self.v.inner.shape
        read = UnitSimilarity(
            torch.einsum("isjt,ij->st", self._by_head(self.o), heads.weights),
            self.o.source_squared.view(-1, ours).sum(dim=0),
            self.o.target_squared.view(-1, theirs).sum(dim=0),
        )
        return self.v + read

    def value(self, heads: AxisPlan, dims: AxisPlan) -> float:
        """Return the sum of inner products over everything that is matched."""
        keys = (self.rope.weights * self.k.inner).sum()
        values = (dims.weights * self.v.inner).sum()
        return float(keys + values + (heads.weights * self.of_heads(dims).inner).sum())

    def squared(self) -> tuple[float, float]:
        """Return the squared norms of all weights of the source's and of the target's group."""
        parts = (self.q, self.k, self.v, self.o)
        return (
            sum(float(part.source_squared.sum()) for part in parts),
            sum(float(part.target_squared.sum()) for part in parts),
        )

    def _by_head(self, rows: UnitSimilarity) -> Float[Tensor, "heads dims heads_ dims_"]:
        ours, theirs = self.k.inner.shape
        return rows.inner.reshape(-1, ours, rows.inner.shape[1] // theirs, theirs)


@dataclass(frozen=True, eq=False)
class GroupFit:
    """What coordinate descent reached for a pair of groups.

    Attributes:
        heads: Which query heads correspond.
        dims: Which dimensions of the values correspond.
        value: The sum of inner products over everything that is matched.
        sweeps: In which sweep that was reached.
    """

    heads: AxisPlan
    dims: AxisPlan
    value: float
    sweeps: int


@dataclass(frozen=True, eq=False)
class CoordinateDescent:
    """Matches heads and value dimensions in turn, each given the other, until nothing is won.

    Source: weight matching, Ainsworth, Hayase and Srinivasa, 2023 (Git Re-Basin), algorithm 1.

    Attributes:
        align: Makes a plan of a similarity.
        sweeps: How often both are matched anew at most.
        generator: Draws which comes first in each sweep.
    """

    align: Aligner
    sweeps: int
    generator: torch.Generator

    def fit(self, pair: GroupPair) -> GroupFit:
        """Return the matchings of a pair of groups, beginning with those in stored order."""
        device = pair.k.inner.device
        ours, theirs = pair.k.inner.shape
        heads = AxisPlan.leading(
            pair.q.inner.shape[0] // ours, pair.q.inner.shape[1] // theirs, device
        )
        best = GroupFit(heads, AxisPlan.leading(ours, theirs, device), -float("inf"), 0)
        for sweep in range(1, self.sweeps + 1):
            heads, dims = best.heads, best.dims
            for coordinate in torch.randperm(2, generator=self.generator).tolist():
                if coordinate == 0:
                    heads = self.align(pair.of_heads(dims))
                else:
                    dims = self.align(pair.of_dims(heads))
            value = pair.value(heads, dims)
            if value <= best.value + _TOLERANCE:
                break
            best = GroupFit(heads, dims, value, sweep)
        return best
