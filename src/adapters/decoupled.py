"""The decoupled combiner: magnitudes and directions of the columns are averaged separately."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..exceptions import ConfigurationError
from .combined import CombinedSite, cut_site
from .combiner import Combiner, Term
from .low_rank import LowRank, stacked
from .sites import Site

# A column this much smaller than the largest has no direction but that of its rounding.
_NEGLIGIBLE = 1e-6


class Orthogonalised(NamedTuple):
    """Factors turned towards orthogonality, and the overlap before and after.

    Attributes:
        factors: One for each adapter, its rows the directions that were turned.
        before: ``sum_{i != j} |a_i a_j^T|^2`` of the normalised factors that were given.
        after: The same of those that are returned.
        perturbation: ``(sum_i |delta_i|^2 / sum_i |a_i|^2)^(1/2)``.
    """

    factors: list[Tensor]
    before: float
    after: float
    perturbation: float


@dataclass(frozen=True)
class Decoupled(Combiner):
    """Turns the updates' factors towards orthogonality, and averages size and direction apart.

    At each site:

    1. Small perturbations are found by gradient descent that make the rows of the A_i of
       different adapters (directions that are read) more orthogonal, and likewise the columns of
       the B_i (directions that are written): ``sum_{i != j} |a_i a_j^T|^2 + gamma sum_i
       |delta_i|^2`` with ``a_i = a_i^0 + delta_i``.
    2. Each update is split into the magnitudes and the unit directions of its columns; both are
       averaged by weight, and multiplied. Adapters of very different norms thus have an equal
       say in the direction.

    The result is a sum of updates whose columns are rescaled, so that it is exact at the sum of
    the ranks and nothing is ever dense. Directions that disagree cancel, as in any average.

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
        ranges = {
            "gamma": (0 < self.gamma < math.inf, "a number above 0"),
            "steps": (self.steps >= 0, "0 or a positive whole number"),
            "lr": (0 < self.lr < 2, "a number between 0 and 2"),
        }
        for option, (fits, takes) in ranges.items():
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
        turned = [LowRank(a, b.mT) for a, b in zip(read.factors, written.factors, strict=True)]
        magnitudes = [w * _column_norms(u) for w, u in zip(weights, updates, strict=True)]
        magnitude = torch.stack(magnitudes).sum(dim=0)
        columns = [LowRank(u.A * _inverse(_column_norms(u)) * magnitude, u.B) for u in turned]
        merged = stacked(columns, weights).to(terms[0].update.A.dtype)
        near, lost, _ = cut_site(merged, rank)
        notes = {
            "overlap_read_before": read.before,
            "overlap_read_after": read.after,
            "overlap_written_before": written.before,
            "overlap_written_after": written.after,
            "perturbation_read": read.perturbation,
            "perturbation_written": written.perturbation,
        }
        return CombinedSite(near, lost, notes)

    def orthogonalised(self, factors: Sequence[Float[Tensor, "_ width"]]) -> Orthogonalised:
        """Turn the rows of several factors towards orthogonality between the factors."""
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
        moved = math.fsum(float((a - b).square().sum()) for a, b in zip(now, start, strict=True))
        size = math.fsum(float(a.square().sum()) for a in start)
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


def _inverse(norms: Float[Tensor, " in"]) -> Float[Tensor, " in"]:
    return torch.where(norms > _NEGLIGIBLE * norms.max(), 1 / norms, 0.0)
