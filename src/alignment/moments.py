"""First and second moments of paired samples, gathered as they stream by."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class PairedMoments:
    """All that a linear map between two spaces needs to know of paired samples ``x`` and ``y``.

    Attributes:
        rows: How many samples there were.
        x_sum: Sum of the samples of one space, float64.
        y_sum: Sum of the samples of the other.
        xx: ``X^T X``, float64.
        yy: ``Y^T Y``.
        xy: ``X^T Y``.
    """

    rows: int
    x_sum: Float[Tensor, " x"]
    y_sum: Float[Tensor, " y"]
    xx: Float[Tensor, "x x"]
    yy: Float[Tensor, "y y"]
    xy: Float[Tensor, "x y"]

    @classmethod
    def of(cls, x: Float[Tensor, "rows x"], y: Float[Tensor, "rows y"]) -> "PairedMoments":
        """Return the moments of samples that are all there."""
        x, y = x.double(), y.double()
        return cls(len(x), x.sum(dim=0), y.sum(dim=0), x.mT @ x, y.mT @ y, x.mT @ y)

    def centred(self) -> "PairedMoments":
        """Return the moments of the samples with their means taken away."""
        n = max(self.rows, 1)
        return PairedMoments(
            self.rows,
            torch.zeros_like(self.x_sum),
            torch.zeros_like(self.y_sum),
            self.xx - torch.outer(self.x_sum, self.x_sum) / n,
            self.yy - torch.outer(self.y_sum, self.y_sum) / n,
            self.xy - torch.outer(self.x_sum, self.y_sum) / n,
        )

    @property
    def varies(self) -> bool:
        """Whether the samples of both spaces differ, by more than products in float32 round."""
        centred = self.centred()
        return all(
            float(own.trace()) > 1e-6 * float(raw.trace())
            for own, raw in ((centred.xx, self.xx), (centred.yy, self.yy))
        )

    def swapped(self) -> "PairedMoments":
        """Return the same moments with the two spaces exchanged."""
        return PairedMoments(self.rows, self.y_sum, self.x_sum, self.yy, self.xx, self.xy.mT)
