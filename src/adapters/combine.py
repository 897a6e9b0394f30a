"""Combiners that sum updates, or vote entry by entry: linear, weight average, TIES, DARE.

All of them work on the updates, never on A and B separately: the product of summed factors has
the cross terms B_i A_j, which are nobody's update.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..exceptions import ConfigurationError
from .combined import CombinedSite, cut_site
from .combiner import Combiner, Term
from .dense import low_rank
from .low_rank import stacked
from .sites import Site
from .sparsify import check_dropped, dropped_at_random, largest


@dataclass(frozen=True)
class Linear(Combiner):
    """The weighted sum of the updates, ``sum_i w_i D_i``: task arithmetic.

    Exact, by stacking the factors. Source: Ilharco et al., 2023 (arXiv 2212.04089).
    """

    def merge(self, site: Site, terms: Sequence[Term], rank: int | None) -> CombinedSite:
        """Stack the factors; cut back only if ``rank`` is given."""
        total = stacked([term.update for term in terms], [term.weight for term in terms])
        return cut_site(total, rank)


@dataclass(frozen=True)
class WeightAverage(Linear):
    """The weighted mean of the updates: :class:`Linear` with weights divided by their sum.

    Of the updates and not of the factors, and exact. A site that an adapter lacks is zero there.
    """

    averages: ClassVar[bool] = True


class DenseCombiner(Combiner):
    """A combiner whose result has no low rank of its own: one site is dense at a time."""

    def merge(self, site: Site, terms: Sequence[Term], rank: int | None) -> CombinedSite:
        """Merge the dense updates, and cut back to ``rank`` or to the sum of the ranks."""
        merged = self.merge_dense(site, terms)
        most = sum(term.update.rank for term in terms) if rank is None else rank
        near, lost = low_rank(merged, min(most, *merged.shape))
        share = int(merged.count_nonzero()) / merged.numel()
        return CombinedSite(near, lost, {"kept_share": share})

    @abstractmethod
    def merge_dense(self, site: Site, terms: Sequence[Term]) -> Float[Tensor, "out in"]:
        """Return the merged update of one site."""


def disjoint_mean(deltas: Sequence[Float[Tensor, "out in"]]) -> Float[Tensor, "out in"]:
    """Elect a sign for each entry, and return the mean of the updates that agree with it.

    The sign is that of the sum over the updates, positive where that is 0. Zeros do not agree
    with any sign, and are not counted in the mean.
    """
    total = torch.stack(list(deltas)).sum(dim=0)
    sign = torch.where(total >= 0, 1.0, -1.0).to(total.dtype)
    agreeing = [torch.where(delta * sign > 0, delta, 0.0) for delta in deltas]
    count = sum((delta != 0).to(total.dtype) for delta in agreeing)
    return torch.stack(agreeing).sum(dim=0) / torch.as_tensor(count).clamp_min(1)


@dataclass(frozen=True)
class Ties(DenseCombiner):
    """Trim, elect signs, and take the mean of the entries that agree.

    Source: Yadav et al., 2023 (TIES-Merging, arXiv 2306.01708). Trimmed are the updates of each
    site by themselves. Weights multiply the trimmed updates before signs are elected; the mean
    divides by the number of agreeing entries, so that the same weight for all is the paper's
    lambda (1 without validation).

    Attributes:
        density: Share of entries of each update that trimming keeps, in (0, 1].

    Raises:
        ConfigurationError: the density is out of its range.
    """

    density: float = 0.2

    def __post_init__(self) -> None:
        if not (isinstance(self.density, int | float) and 0 < self.density <= 1):
            raise ConfigurationError(
                f"merge.method.density is {self.density!r}, but it is the share of entries that "
                "is kept and takes a number above 0 and up to 1; try 0.2"
            )

    def merge_dense(self, site: Site, terms: Sequence[Term]) -> Float[Tensor, "out in"]:
        """Return the disjoint mean of the trimmed and weighted updates."""
        trimmed = [t.weight * largest(t.update.dense(), self.density) for t in terms]
        return disjoint_mean(trimmed)


@dataclass(frozen=True)
class Dare(DenseCombiner):
    """Drops entries of each update at random, divides by ``1 - p``, and sums by weight.

    Each adapter has its own draw at each site. Unbiased: the mean over seeds is :class:`Linear`.
    Source: Yu et al., 2024 (DARE, arXiv 2311.03099). Why not entries of the factors:
    :class:`loraport.adapters.sparsify.Dare`.

    Attributes:
        p: Probability that an entry is dropped, in [0, 1).
        seed: Of the draws.

    Raises:
        ConfigurationError: p is out of its range.
    """

    p: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        check_dropped("merge.method.p", self.p)

    def merge_dense(self, site: Site, terms: Sequence[Term]) -> Float[Tensor, "out in"]:
        """Return the sum of the thinned updates."""
        return torch.stack(self._thinned(site, terms)).sum(dim=0)

    def _thinned(self, site: Site, terms: Sequence[Term]) -> list[Float[Tensor, "out in"]]:
        """Return the weighted updates with entries dropped and the rest divided by 1 - p."""
        return [
            dropped_at_random(t.update.dense(), self.p, self.seed, site, t.place)
            * (t.weight / (1 - self.p))
            for t in terms
        ]


@dataclass(frozen=True)
class DareTies(Dare):
    """Drops and rescales as :class:`Dare`, then elects signs and takes the disjoint mean.

    Source: Yu et al., 2024, section 4: DARE in front of TIES, whose trimming it replaces.
    """

    def merge_dense(self, site: Site, terms: Sequence[Term]) -> Float[Tensor, "out in"]:
        """Return the disjoint mean of the thinned updates."""
        return disjoint_mean(self._thinned(site, terms))
