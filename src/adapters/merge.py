"""Merging several adapters of one base model into one.

All combiners work on the updates, never on A and B separately: the product of summed factors has
the cross terms ``B_i A_j``, which belong to no adapter.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..exceptions import AdapterError, ConfigurationError
from .lora import LoraAdapter, LowRank, Site, stacked
from .sparsify import (
    Combined,
    CombinedSite,
    check_dropped,
    cut,
    cut_site,
    dropped_at_random,
    largest,
    low_rank,
    widened,
)


class Term(NamedTuple):
    """One adapter's part in a site; ``position`` is the adapter's among those that are merged."""

    position: int
    weight: float
    update: LowRank


class Combiner(ABC):
    """Merges adapters of one base model into one.

    A single adapter is returned as it is, times its weight, by every combiner: nothing
    interferes with it. The same holds at a site that only one of several adapters has; the others
    are zero there.
    """

    averages: ClassVar[bool] = False
    """Whether the weights are divided by their sum, so that a single adapter's is 1."""

    def __call__(
        self,
        adapters: Sequence[LoraAdapter],
        weights: Sequence[float] | None = None,
        rank: int | None = None,
    ) -> Combined:
        """Merge adapters, which may adapt different sites at different ranks.

        Args:
            adapters: At least one.
            weights: One for each adapter; None: 1 each.
            rank: The most that a site of the result may have. None: the sum of the ranks that
                the site has in the adapters, at which the exact combiners lose nothing and those
                that make a dense update lose little.

        Raises:
            AdapterError: two adapters have different shapes at a site.
            ConfigurationError: there is no adapter, or the weights do not fit.
        """
        resolved = self._weights(len(adapters), weights)
        if len(adapters) == 1:
            (adapter,), (weight,) = adapters, resolved
            scaled = adapter if weight == 1 else adapter.map(lambda update: update.scaled(weight))
            return cut(scaled, rank)
        sites = {}
        for site in dict.fromkeys(site for adapter in adapters for site in adapter):
            terms = [
                Term(position, weight, adapter[site])
                for position, (adapter, weight) in enumerate(zip(adapters, resolved, strict=True))
                if site in adapter
            ]
            _check_shapes(site, terms)
            if len(terms) == 1:
                sites[site] = cut_site(terms[0].update.scaled(terms[0].weight), rank)
            else:
                wide = [term._replace(update=widened(term.update)) for term in terms]
                sites[site] = self.merge(site, wide, rank)
        return Combined.of(sites, adapters[0].base_model)

    @abstractmethod
    def merge(self, site: Site, terms: Sequence[Term], rank: int | None) -> CombinedSite:
        """Merge two or more updates of one site, which are in float32 at least."""

    def _weights(self, count: int, weights: Sequence[float] | None) -> list[float]:
        if count == 0:
            raise ConfigurationError("merge got no adapter, it takes at least one")
        resolved = [1.0] * count if weights is None else [float(weight) for weight in weights]
        if len(resolved) != count or not all(math.isfinite(weight) for weight in resolved):
            raise ConfigurationError(
                f"merge.weights is {resolved}, but {count} adapters are merged (the ported ones "
                "and those of merge.with): it takes one finite number for each of them, or null "
                "for 1 each"
            )
        if not self.averages:
            return resolved
        total = math.fsum(resolved)
        if min(resolved) < 0 or total == 0:
            raise ConfigurationError(
                f"merge.weights is {resolved}, but an average takes weights that are not negative "
                "and not all 0; take merge=linear to subtract an adapter"
            )
        return [weight / total for weight in resolved]


def _check_shapes(site: Site, terms: Sequence[Term]) -> None:
    first = terms[0]
    for term in terms[1:]:
        if term.update.shape != first.update.shape:
            raise AdapterError(
                f"adapter {term.position + 1} of those to merge has shape {term.update.shape} at "
                f"{site.module_name}, but adapter {first.position + 1} has shape "
                f"{first.update.shape}; adapters that are merged take the same base model: leave "
                "one out of merge.with"
            )


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
    """The weighted mean of the updates: :class:`Linear` with weights divided by their sum."""

    averages: ClassVar[bool] = True


class DenseCombiner(Combiner):
    """A combiner whose result has no low rank of its own: one site is dense at a time."""

    def merge(self, site: Site, terms: Sequence[Term], rank: int | None) -> CombinedSite:
        """Merge dense updates, and cut the result to ``rank`` or to the sum of their ranks."""
        merged = self.merge_dense(site, terms)
        most = sum(term.update.rank for term in terms) if rank is None else rank
        near, lost = low_rank(merged, min(most, *merged.shape))
        share = int(merged.count_nonzero()) / merged.numel()
        return CombinedSite(near, lost, {"kept_share": share})

    @abstractmethod
    def merge_dense(self, site: Site, terms: Sequence[Term]) -> Float[Tensor, "out in"]:
        """Return the merged update of one site."""


def disjoint_mean(deltas: Sequence[Float[Tensor, "out in"]]) -> Float[Tensor, "out in"]:
    """Elect a sign for each entry, and return the mean of the entries that agree with it.

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

    Source: Yadav et al., 2023 (TIES-Merging, arXiv 2306.01708). The updates of each site are
    trimmed by themselves, to the share ``density`` of their entries. Weights multiply the trimmed
    updates before signs are elected; the mean divides by the number of agreeing entries, so that
    the same weight for all is the paper's lambda (1 without validation).

    Raises:
        ConfigurationError: the density is not in (0, 1].
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
    """Drops entries of each update with probability p, divides by ``1 - p``, and sums by weight.

    Each adapter has its own draw at each site. Unbiased: the mean over seeds is :class:`Linear`.
    Source: Yu et al., 2024 (DARE, arXiv 2311.03099). Why not entries of the factors:
    :class:`loraport.adapters.sparsify.Dare`.

    Raises:
        ConfigurationError: p is not in [0, 1).
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
            dropped_at_random(t.update.dense(), self.p, self.seed, site, t.position)
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


# A column this much smaller than the largest has a direction that is rounding alone.
_NEGLIGIBLE = 1e-6


class Orthogonalised(NamedTuple):
    """Factors of the adapters, perturbed towards orthogonality, and figures for the report.

    ``before`` and ``after`` are the overlaps ``sum_{i != j} |a_i a_j^T|^2`` of the normalised
    factors, ``perturbation`` is ``(sum_i |delta_i|^2 / sum_i |a_i|^2)^(1/2)``.
    """

    factors: list[Tensor]
    before: float
    after: float
    perturbation: float


@dataclass(frozen=True)
class Decoupled(Combiner):
    """Orthogonalises the updates' factors, and averages magnitudes and directions separately.

    At each site gradient descent first makes the rows of the A_i of different adapters (input
    directions) more orthogonal by small perturbations, and likewise the columns of the B_i (output
    directions): ``sum_{i != j} |a_i a_j^T|^2 + gamma sum_i |delta_i|^2`` with
    ``a_i = a_i^0 + delta_i``. Then each update is split into the magnitudes and the unit directions
    of its columns; both are averaged by weight, and multiplied: adapters of very different norms
    have the same weight in the direction. Exact at the sum of the ranks, without a dense matrix.

    Source: Zheng et al., 2025 (DO-Merging, arXiv 2505.15875), known here by its abstract and a
    summary. Not found there, and chosen: the values of gamma, steps and lr; ``A_i A_j^T`` (rank
    by rank) for the printed ``A_i^T A_j``, which does not measure a common direction; factors in
    canonical form and divided by their spectral norm, so that gamma has no unit and neither the
    gauge nor the adapters' norms matter; columns, the effect of one input feature, as the axis of
    the magnitudes; magnitudes of the updates as given, since those of the perturbed ones would
    let the descent lower the overlap by shrinking.

    Attributes:
        gamma: Weight of the perturbation, above 0. At 1, the leading direction of two adapters
            that share it in full shrinks to 0.59 of itself in both.
        steps: Steps of gradient descent; 0 leaves the factors as they are.
        lr: Step size, in (0, 2), as a share of ``1 / (12 (n - 1) + 2 gamma)``, the inverse of the
            largest curvature that n adapters can have at the start.

    Raises:
        ConfigurationError: an option is out of its range.
    """

    averages: ClassVar[bool] = True

    gamma: float = 1.0
    steps: int = 100
    lr: float = 1.0

    def __post_init__(self) -> None:
        for option, fits, takes in (
            ("gamma", 0 < self.gamma < math.inf, "a number above 0"),
            ("steps", self.steps >= 0, "0 or a positive whole number"),
            ("lr", 0 < self.lr < 2, "a number between 0 and 2"),
        ):
            if not fits:
                raise ConfigurationError(
                    f"merge.method.{option} is {getattr(self, option)!r}, it takes {takes}; "
                    f"the default is {getattr(Decoupled, option)}"
                )

    def merge(self, site: Site, terms: Sequence[Term], rank: int | None) -> CombinedSite:
        """Average magnitudes and directions; cut back only if ``rank`` is given."""
        updates = [term.update.to(torch.float64).canonical() for term in terms]
        weights = [term.weight for term in terms]
        read = self.orthogonalised([update.A for update in updates])
        written = self.orthogonalised([update.B.mT for update in updates])
        magnitudes = [w * _column_norms(u) for w, u in zip(weights, updates, strict=True)]
        magnitude = torch.stack(magnitudes).sum(dim=0)
        columns = []
        for a, b in zip(read.factors, written.factors, strict=True):
            norms = _column_norms(LowRank(a, b.mT))
            inverse = torch.where(norms > _NEGLIGIBLE * norms.max(), 1 / norms, 0.0)
            columns.append(LowRank(a * inverse * magnitude, b.mT))
        merged = stacked(columns, weights).to(terms[0].update.A.dtype)
        near, lost, _ = cut_site(merged, rank)
        notes = {}
        for name, side in (("read", read), ("written", written)):
            notes[f"overlap_{name}_before"] = side.before
            notes[f"overlap_{name}_after"] = side.after
            notes[f"perturbation_{name}"] = side.perturbation
        return CombinedSite(near, lost, notes)

    def orthogonalised(self, factors: Sequence[Float[Tensor, "_ width"]]) -> Orthogonalised:
        """Perturb the rows of several factors towards orthogonality between the factors."""
        norms = [max(float(torch.linalg.matrix_norm(f, ord=2)), 1e-300) for f in factors]
        # Every gradient lies in the span of all rows: the descent runs in its coordinates.
        basis = torch.linalg.qr(torch.cat(list(factors)).mT).Q
        start = [f @ basis / norm for f, norm in zip(factors, norms, strict=True)]
        now = start
        step = self.lr / (12 * (len(factors) - 1) + 2 * self.gamma)
        for _ in range(self.steps):
            gram = sum((a.mT @ a for a in now), torch.zeros(()).double())
            now = [
                a - step * (4 * (a @ gram - a @ a.mT @ a) + 2 * self.gamma * (a - first))
                for a, first in zip(now, start, strict=True)
            ]
        moved = float(torch.cat([a - b for a, b in zip(now, start, strict=True)]).square().sum())
        size = float(torch.cat(start).square().sum())
        return Orthogonalised(
            [norm * a @ basis.mT for a, norm in zip(now, norms, strict=True)],
            _overlap(start),
            _overlap(now),
            (moved / size) ** 0.5 if size > 0 else 0.0,
        )


def _overlap(factors: Sequence[Float[Tensor, "_ width"]]) -> float:
    """Return ``sum_{i != j} |a_i a_j^T|^2``."""
    return math.fsum(
        float((a @ b.mT).square().sum()) for a in factors for b in factors if a is not b
    )


def _column_norms(update: LowRank) -> Float[Tensor, " in"]:
    """Return the norm of each column of the update, from a QR of B."""
    return torch.linalg.vector_norm(torch.linalg.qr(update.B).R @ update.A, dim=0)
