"""Which units (channels, heads, neurons) of two networks correspond, judged by their weights.

:class:`UnitSimilarity` compares the units of an axis; an aligner makes an :class:`AxisPlan` of it:
a hard matching (:class:`LinearAssignment`) or an optimal transport plan between units of equal mass
(:class:`ExactPlan`, :class:`SinkhornPlan`). The cost of a pair of units is 1 minus the cosine
between their weights. Source: model fusion by optimal transport, Singh and Jaggi, 2020; POT.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import ot
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ..exceptions import ConfigurationError

# Network simplex ends by itself; this only keeps POT from stopping it at wide layers.
_SIMPLEX_STEPS = 10_000_000
_STEPS = 1000
# exp(-_RANGE) is far above the least number of float64.
_RANGE = 100
# The costs of units that are all the same are rounding.
_LEAST_COST = 1e-6


@dataclass(frozen=True, eq=False)
class UnitSimilarity:
    """Inner products between the weights of source units and of target units.

    Attributes:
        inner: ``<w_i, w_j>`` of each source unit i and target unit j.
        source_squared: ``<w_i, w_i>`` of each source unit; likewise ``target_squared``.
    """

    inner: Float[Tensor, "source target"]
    source_squared: Float[Tensor, " source"]
    target_squared: Float[Tensor, " target"]

    @classmethod
    def of(
        cls, source: Float[Tensor, "source width"], target: Float[Tensor, "target width"]
    ) -> "UnitSimilarity":
        """Compare the rows of two matrices, each divided by its Frobenius norm.

        So a sum over matrices, which differ in scale, gives each the same weight.
        """
        tiny = torch.finfo(source.dtype).tiny
        one = source / torch.linalg.norm(source).clamp_min(tiny)
        other = target / torch.linalg.norm(target).clamp_min(tiny)
        return cls(one @ other.mT, one.square().sum(dim=1), other.square().sum(dim=1))

    def __add__(self, other: "UnitSimilarity") -> "UnitSimilarity":
        """Return the similarity of units that have the weights of both."""
        return UnitSimilarity(
            self.inner + other.inner,
            self.source_squared + other.source_squared,
            self.target_squared + other.target_squared,
        )

    def block(self, source: slice, target: slice) -> "UnitSimilarity":
        """Return the similarity of some of the source units with some of the target units."""
        return UnitSimilarity(
            self.inner[source, target], self.source_squared[source], self.target_squared[target]
        )

    @property
    def cosine(self) -> Float[Tensor, "source target"]:
        """The cosine between the weights of two units; 0 where one has none."""
        norms = (self.source_squared[:, None] * self.target_squared).sqrt()
        return torch.where(norms > 0, self.inner / norms, 0.0)


@dataclass(frozen=True, eq=False)
class AxisPlan:
    """A matching between units of the source and of the target: hard, soft, and maybe signed.

    Attributes:
        joint: The weight of each pair of units, up to a common factor; zero in the rows and
            columns of units without a partner.
    """

    joint: Float[Tensor, "source target"]

    @property
    def weights(self) -> Float[Tensor, "source target"]:
        """The joint weights, scaled so that they sum to the smaller number of units."""
        absolute = self.joint.abs().sum()
        return self.joint * (min(self.joint.shape) / absolute)

    def output(self, rows: Float[Tensor, "source rank"]) -> Float[Tensor, "target rank"]:
        """Map an output projection to the axis: ``T_col^T B``, each target unit an average.

        ``T_col`` is the plan with columns that sum to 1. Source: OTFusion, Singh and Jaggi, 2020.
        """
        return _normalised(self.joint, dim=0).to(rows).mT @ rows

    def input(self, columns: Float[Tensor, "rank source"]) -> Float[Tensor, "rank target"]:
        """Map an input projection from the axis: ``A T_row``, with ``T_row x_T`` for ``x_S``.

        ``T_row`` is the plan with rows that sum to 1; ``T_col`` would scale by the ratio of widths.
        """
        return columns @ _normalised(self.joint, dim=1).to(columns)

    def statistics(self, similarity: UnitSimilarity) -> dict[str, float]:
        """Describe the plan on the similarity that it was made from.

        ``matched`` is the share of source units with a partner; ``fixed`` that of the plan's
        weight which joins the i-th unit to the i-th; ``partners`` the effective number of
        partners of a matched source unit, ``exp`` of the mean entropy; ``similarity`` and
        ``random_similarity`` are the mean cosines of partners, and of all pairs.
        """
        weights = self.joint.abs()
        total, cosine = weights.sum(), similarity.cosine
        row = _normalised(weights, dim=1)
        matched = weights.sum(dim=1) > 0
        entropy = torch.special.entr(row).sum(dim=1)[matched].mean()
        return {
            "matched": float(matched.float().mean()),
            "fixed": min(1.0, float(weights.diagonal().sum() / total)),
            "partners": math.exp(float(entropy)),
            "similarity": float((weights * cosine).sum() / total),
            "random_similarity": float(cosine.mean()),
        }


Aligner = Callable[[UnitSimilarity], AxisPlan]
"""Makes the plan of an axis from the similarity of its units."""


def _normalised(joint: Float[Tensor, "source target"], dim: int) -> Float[Tensor, "source target"]:
    totals = joint.abs().sum(dim=dim, keepdim=True)
    return torch.where(totals > 0, joint / totals, 0.0)


def best_assignment(gain: Float[Tensor, "source target"]) -> Float[Tensor, "source target"]:
    """Return the 0/1 matching of greatest total gain; it is as large as the smaller side.

    Source: Crouse, 2016, as in scipy.
    """
    rows, columns = linear_sum_assignment(gain.double().cpu().numpy(), maximize=True)
    matching = torch.zeros(gain.shape)
    matching[torch.from_numpy(rows), torch.from_numpy(columns)] = 1
    return matching.to(gain.device)


@dataclass(frozen=True)
class LinearAssignment:
    """Matches units one to one so that the sum of their weights' inner products is greatest.

    Where one side has more units, its least similar ones stay without a partner.

    Source: weight matching, Ainsworth, Hayase and Srinivasa, 2023 (Git Re-Basin), eq. 2.
    """

    def __call__(self, similarity: UnitSimilarity) -> AxisPlan:
        """Return the best matching."""
        return AxisPlan(best_assignment(similarity.inner))


@dataclass(frozen=True)
class ExactPlan:
    """The plan of least cost, by network simplex.

    Between equally many units it is a permutation; else ``source + target - 1`` pairs at most.
    On one core it takes about half a second for 1536 by 2048 units, 20 seconds for 4096 by 4096,
    and 70 seconds and 4 GB for 8960 by 8192.
    """

    def __call__(self, similarity: UnitSimilarity) -> AxisPlan:
        """Return the plan; its rows sum to 1/source, its columns to 1/target."""
        cost = _cost(similarity)
        source, target = _masses(cost)
        return _plan(ot.emd(source, target, cost, numItermax=_SIMPLEX_STEPS), similarity)


@dataclass(frozen=True)
class SinkhornPlan:
    """The plan of least cost minus entropy, by Sinkhorn's iteration.

    A weak regularisation is approached by halves from a stronger one, each starting from the
    potentials of the last (epsilon scaling; Schmitzer, 2019).

    Attributes:
        regularisation: Weight of the entropy relative to the mean cost; the greater, the more
            partners a unit has.
    """

    regularisation: float = 0.01

    def __post_init__(self) -> None:
        if not (self.regularisation > 0 and math.isfinite(self.regularisation)):
            raise ConfigurationError(
                f"mapper.plan.regularisation is {self.regularisation}; it takes a positive "
                "number such as 0.01: choose the exact plan for none"
            )

    def __call__(self, similarity: UnitSimilarity) -> AxisPlan:
        """Return the plan; its rows sum to 1/source, its columns to 1/target nearly."""
        cost = _cost(similarity)
        source, target = _masses(cost)
        strength = self.regularisation * max(float(cost.mean()), _LEAST_COST)
        reached = max(strength, float(np.ptp(cost)) / _RANGE)
        while True:
            plan, log = ot.sinkhorn(
                source, target, cost, reached, numItermax=_STEPS, warn=False, log=True
            )
            if reached == strength:
                return _plan(plan, similarity)
            # Potentials change no plan; those of a stronger regularisation leave costs so near
            # to 0 where mass goes that exp(-cost / strength) does not vanish there.
            cost = cost - reached * (np.log(log["u"])[:, None] + np.log(log["v"]))
            reached = max(strength, reached / 2)


def _cost(similarity: UnitSimilarity) -> NDArray[np.float64]:
    return 1 - similarity.cosine.double().cpu().numpy()


def _masses(cost: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    source, target = cost.shape
    return np.full(source, 1 / source), np.full(target, 1 / target)


def _plan(joint: NDArray[np.float64], similarity: UnitSimilarity) -> AxisPlan:
    return AxisPlan(torch.from_numpy(joint).to(similarity.inner))
