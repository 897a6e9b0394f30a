"""Procrustes with locks: every anchor shall stay on its partner's side, ``<a R, b> > 0``."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .moments import PairedMoments
from .procrustes import Rotation, best_scale, polar, rotation, without_reflection


class LockedRotation(NamedTuple):
    """A rotation, and what became of the locks.

    Attributes:
        rotation: The rotation.
        violated: Places of the anchors that end up on the wrong side. With good pairs there are
            none, whatever is done about them: a violation says that the pairing is bad.
        rounds: How often the anchors were weighted anew.
    """

    rotation: Rotation
    violated: Int[Tensor, " violated"]
    rounds: int


@dataclass(frozen=True)
class AnchorLocks:
    """Locks by re-weighting: the weight of a violated anchor is doubled, and R found again.

    What all anchors have in common, their mean and leading principal components, would satisfy
    every lock by itself. Those directions of both spaces are therefore rotated onto each other
    apart, and neither the fit of the rest nor the locks see them. Locks that no weight satisfies
    stay violated: to flip columns until they hold would wreck other anchors.

    Attributes:
        components: Leading principal components to take away beside the mean.
        rounds: Re-weightings, at most.
        cap: The largest weight; an anchor starts with 1, as every other sample has.
    """

    components: int = 2
    rounds: int = 20
    cap: float = 1e3

    def rotation(
        self,
        moments: PairedMoments,
        x: Float[Tensor, "anchors x"],
        y: Float[Tensor, "anchors y"],
        *,
        proper: bool = False,
    ) -> LockedRotation:
        """Return the rotation of x onto y whose anchors keep their side where they can.

        Args:
            moments: Of all samples, the anchors among them.
            x: The anchors; minus the mean where ``moments`` are centred.
            y: Their partners.
            proper: Whether a reflection is undone, as the last step.
        """
        common_x, common_y = self._common(moments), self._common(moments.swapped())
        shared, _ = polar(common_x.mT @ moments.xy @ common_y, moments.rows)
        rest_x, rest_y = _without(x.double(), common_x), _without(y.double(), common_y)
        rest = _projected(moments, common_x, common_y)
        weights = torch.ones_like(rest_x[:, 0])
        done, turned = 0, rotation(rest).matrix
        while (wrong := _violated(rest_x @ turned, rest_y)).any() and done < self.rounds:
            weights = torch.where(wrong, (2 * weights).clamp_max(self.cap), weights)
            more = rest_x.mT @ ((weights - 1)[:, None] * rest_y)
            done, turned = done + 1, rotation(replace(rest, xy=rest.xy + more)).matrix
        matrix, rank = polar(turned + common_x @ shared @ common_y.mT, moments.rows)
        if proper:
            matrix = without_reflection(matrix, rank, moments.xy)
        found = Rotation(matrix, best_scale(moments, matrix), rank)
        return LockedRotation(found, _violated(rest_x @ matrix, rest_y).nonzero().flatten(), done)

    def _common(self, moments: PairedMoments) -> Float[Tensor, "x k"]:
        """Return an orthonormal basis of the mean and the leading components of x."""
        centred = moments.centred()
        vectors = torch.linalg.eigh(centred.xx).eigenvectors.flip(1)
        leading = vectors[:, : self.components]
        mean = moments.x_sum[:, None]
        if not bool(mean.any()):
            return leading
        return torch.linalg.qr(torch.cat([mean / mean.norm(), leading], dim=1)).Q


def _without(rows: Float[Tensor, "n x"], basis: Float[Tensor, "x k"]) -> Float[Tensor, "n x"]:
    """Return what of each row is orthogonal to the basis."""
    return rows - rows @ basis @ basis.mT


def _projected(
    moments: PairedMoments, common_x: Float[Tensor, "x kx"], common_y: Float[Tensor, "y ky"]
) -> PairedMoments:
    """Return the moments of what of each sample is orthogonal to the common directions."""

    def between(one: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return _without(_without(one, right).mT, left).mT

    return PairedMoments(
        moments.rows,
        _without(moments.x_sum[None], common_x)[0],
        _without(moments.y_sum[None], common_y)[0],
        between(moments.xx, common_x, common_x),
        between(moments.yy, common_y, common_y),
        between(moments.xy, common_x, common_y),
    )


def _violated(turned: Float[Tensor, "n y"], y: Float[Tensor, "n y"]) -> Bool[Tensor, " n"]:
    return (turned * y).sum(dim=1) <= 0
