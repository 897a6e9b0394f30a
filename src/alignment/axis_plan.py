"""Which units of an axis correspond, and how an adapter's factors follow them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .unit_similarity import UnitSimilarity


@dataclass(frozen=True, eq=False)
class AxisPlan:
    """A matching, hard or soft, between the units of an axis of the source and of the target.

    A hard matching has entries 0 and 1 and at most one of these in a row or column; a transport
    plan spreads a unit over several; both may be signed. Rows and columns of units without a
    partner are zero.

    Attributes:
        joint: The weight of each pair of units, up to a common factor.
    """

    joint: Float[Tensor, "source target"]

    @classmethod
    def leading(cls, source: int, target: int, device: torch.device) -> "AxisPlan":
        """Match the i-th unit to the i-th, as far as both have one."""
        return cls(torch.eye(source, target, device=device))

    @property
    def weights(self) -> Float[Tensor, "source target"]:
        """The joint weights, scaled so that they sum to the smaller number of units."""
        absolute = self.joint.abs().sum()
        return self.joint * (min(self.joint.shape) / absolute)

    def output(self, rows: Float[Tensor, "source rank"]) -> Float[Tensor, "target rank"]:
        """Map what is written to the axis: ``T_col^T B``, each target unit an average.

        ``T_col`` is the plan with columns that sum to 1. Source: OTFusion, Singh and Jaggi, 2020.
        """
        return _normalised(self.joint, dim=0).to(rows).mT @ rows

    def input(self, columns: Float[Tensor, "rank source"]) -> Float[Tensor, "rank target"]:
        """Map what reads the axis: ``A T_row``, which reads ``T_row x_T`` in place of ``x_S``.

        ``T_row`` is the plan with rows that sum to 1. With ``T_col`` here as well, a read would
        be scaled by the ratio of the widths.
        """
        return columns @ _normalised(self.joint, dim=1).to(columns)

    def statistics(self, similarity: UnitSimilarity) -> dict[str, float]:
        """Return what the plan looks like on the similarity that it was made from.

        Returns:
            ``matched``, the share of source units with a partner; ``fixed``, the share of the
            plan's weight that joins the i-th unit to the i-th; ``partners``, the effective
            number of partners of a matched source unit, ``exp`` of the mean entropy;
            ``similarity`` and ``random_similarity``, the mean cosine between the weights of
            partners, and of all pairs.
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
