"""The heads between one space of a model and its counterpart in another, and their losses."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..alignment.linear_maps import LinearMap, Ridge, SplitMoments
from ..alignment.moments import PairedMoments
from ..alignment.two_sided import TwoSidedRidge
from .projection_head import ProjectionHead

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the ridge that a skip starts as."""

_TINY = 1e-12


class Losses(NamedTuple):
    """What heads are trained by, each relative to what there is to explain.

    Attributes:
        reconstruction: ``|head(x) - y|^2 / |y - mean|^2``, and the same of the head that leads
            back, where there is one.
        cycle: ``|back(head(x)) - x|^2 / |x - mean|^2``.
        behaviour: ``|J^T g_y - g_x|^2 / |g_x|^2``, J being the head's derivative; 0 without
            gradients.
    """

    reconstruction: Float[Tensor, ""]
    cycle: Float[Tensor, ""]
    behaviour: Float[Tensor, ""]


class HeadPair(nn.Module):
    """A head from one space to its counterpart in the other model, and one that leads back.

    Args:
        width: Of the space that the head starts in.
        out: Of its counterpart.
        hidden: Of each head's MLP.
        both: Whether there is a head that leads back.
        generator: Draws the MLPs.

    Attributes:
        x_mean: Of the rows that the skips were solved from; likewise ``y_mean``.
        x_power: Mean squared distance of those rows from their mean; likewise ``y_power``.
    """

    x_mean: Tensor
    y_mean: Tensor
    x_power: Tensor
    y_power: Tensor

    def __init__(
        self, width: int, out: int, hidden: int, both: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.head = ProjectionHead(width, out, hidden, generator)
        self.back = ProjectionHead(out, width, hidden, generator) if both else None
        for name, size in (("x", width), ("y", out)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_power", torch.ones(()))

    def start(
        self, samples: SplitMoments, gradients: SplitMoments | None, weight: float
    ) -> LinearMap:
        """Set the skips by closed forms, and return the head's.

        Args:
            samples: Moments of x and y.
            gradients: Moments of the gradients with respect to x and y, where they are known.
            weight: Of the gradients beside the samples.
        """
        centred = samples.centred()
        found = (
            Ridge(STRENGTHS).forward(*centred)
            if gradients is None
            else TwoSidedRidge(weight).forward(centred, gradients)
        )
        _start(self.head, found.matrix, samples.train)
        if self.back is not None:
            back = Ridge(STRENGTHS).backward(*centred).matrix
            _start(self.back, back, samples.train.swapped())
        rows = max(samples.train.rows, 1)
        self.x_mean.copy_(samples.train.x_sum / rows)
        self.y_mean.copy_(samples.train.y_sum / rows)
        self.x_power.fill_(max(float(centred.train.xx.trace()) / rows, _TINY))
        self.y_power.fill_(max(float(centred.train.yy.trace()) / rows, _TINY))
        return found

    def losses(
        self,
        x: Float[Tensor, "rows x"],
        y: Float[Tensor, "rows y"],
        gradients: tuple[Float[Tensor, "rows x"], Float[Tensor, "rows y"]] | None,
    ) -> Losses:
        """Return the losses of a batch of paired rows.

        Args:
            x: Rows of the space that the head starts in.
            y: Rows of its counterpart.
            gradients: With respect to both, where they are known.
        """
        x = x.detach().requires_grad_(gradients is not None)
        made = self.head(x)
        zero = made.new_zeros(())
        cycle, behaviour = zero, zero
        reconstruction = _power(made - y) / self.y_power
        if self.back is not None:
            cycle = _power(self.back(made) - x) / self.x_power
            reconstruction = reconstruction + _power(self.back(y) - x) / self.x_power
        if gradients is not None:
            g_x, g_y = gradients
            (carried,) = torch.autograd.grad(made, x, g_y, create_graph=True)
            behaviour = _power(carried - g_x) / _power(g_x).clamp_min(1e-30)
        return Losses(reconstruction, cycle, behaviour)


def _start(head: ProjectionHead, matrix: Tensor, moments: PairedMoments) -> None:
    """Set a skip, with the bias that takes the one mean to the other."""
    mean_x, mean_y = (total / max(moments.rows, 1) for total in (moments.x_sum, moments.y_sum))
    head.start(matrix.float(), (mean_y - matrix @ mean_x).float())


def _power(rows: Float[Tensor, "rows width"]) -> Float[Tensor, ""]:
    return rows.square().sum(dim=1).mean()
