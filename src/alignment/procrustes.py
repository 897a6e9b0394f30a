"""Orthogonal Procrustes: the rotation, or partial isometry, that takes one space onto another.

In row convention ``x R ~ y``. With ``X^T Y = U S V^T`` the maximiser of ``tr(R^T X^T Y)`` is the
polar factor ``R = U V^T``, unique where the cross product has full rank. Where it has not, because
there are fewer samples than dimensions or because some directions never varied together, ``R`` is
the partial isometry of the rank that the samples have; no rotation is invented for the rest.

Sources: Schoenemann 1966 (equal widths); Kabsch 1976 (without reflection).
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .moments import PairedMoments

# Singular values below this share of the largest are rounding: products are taken in float32.
_NEGLIGIBLE = 1e-6


class Rotation(NamedTuple):
    """An isometry between two spaces.

    Attributes:
        matrix: R with ``x R ~ y``, ``R R^T`` and ``R^T R`` being projections of rank ``rank``.
        scale: ``c = <R, X^T Y> / |X R|^2``: the best multiple, ``x c R ~ y``.
        rank: In how many directions the samples determine R.
    """

    matrix: Float[Tensor, "x y"]
    scale: float
    rank: int


def rotation(moments: PairedMoments, *, proper: bool = False) -> Rotation:
    """Return the rotation of x onto y.

    Where x is not wider than y (``R R^T = I``), ``U V^T`` is the least-squares optimum. Where it
    is wider, ``|X R|`` depends on R, and ``U V^T`` would only maximise the trace: x is then
    reduced to as many principal components as y has dimensions first, and those are rotated.
    ``proper`` undoes a reflection (:func:`without_reflection`).
    """
    width = moments.xy.shape[1]
    if len(moments.xx) <= width:
        matrix, rank = polar(moments.xy, moments.rows)
    else:
        basis = torch.linalg.eigh(moments.xx).eigenvectors[:, -width:]
        inner, rank = polar(basis.mT @ moments.xy, moments.rows)
        matrix = basis @ inner
    if proper:
        matrix = without_reflection(matrix, rank, moments.xy)
    return Rotation(matrix, best_scale(moments, matrix), rank)


def best_scale(moments: PairedMoments, matrix: Float[Tensor, "x y"]) -> float:
    """Return the c that minimises ``|c X R - Y|``; 0 where ``X R`` is zero."""
    power = float((matrix * (moments.xx @ matrix)).sum())
    return float((matrix * moments.xy).sum()) / power if power > 0 else 0.0


def polar(cross: Float[Tensor, "x y"], samples: int) -> tuple[Float[Tensor, "x y"], int]:
    """Return ``U V^T`` of a cross product in float64, and its rank.

    The number of samples that it is the sum of bounds the rank; singular values that are rounding
    do not count either.
    """
    u, values, vt = torch.linalg.svd(cross, full_matrices=False)
    real = int((values > _NEGLIGIBLE * values[:1]).sum())
    rank = min(samples, real)
    return u[:, :rank] @ vt[:rank], rank


def without_reflection(
    matrix: Float[Tensor, "x y"], rank: int, cross: Float[Tensor, "x y"]
) -> Float[Tensor, "x y"]:
    """Return a rotation whose determinant is positive, by flipping the weakest direction.

    It costs ``2 sigma_min`` of the trace. A determinant is defined where R is square and of full
    rank; others are returned as they are. In hundreds of dimensions it has no meaning.
    """
    if not matrix.shape[0] == matrix.shape[1] == rank or torch.linalg.det(matrix) > 0:
        return matrix
    stretch = matrix.mT @ cross
    weakest = torch.linalg.eigh(stretch + stretch.mT).eigenvectors[:, :1]
    return matrix - 2 * (matrix @ weakest) @ weakest.mT


class LockedRotation(NamedTuple):
    """A rotation, the anchors whose locks it violates (``<a R, b> <= 0``), and re-weightings.

    Good pairs violate none even without weights: a violation says that the pairing is bad.
    """

    rotation: Rotation
    violated: Int[Tensor, " violated"]
    rounds: int


@dataclass(frozen=True)
class AnchorLocks:
    """Procrustes with locks: every anchor shall stay on its partner's side, ``<a R, b> > 0``.

    The weight of an anchor that violates its lock is doubled, and R is fitted again. What all
    anchors have in common, their mean and leading principal components, would satisfy every lock by
    itself: those directions of both spaces are rotated onto each other separately, and excluded
    from the fit of the rest and from the locks. Locks that no weight satisfies stay violated: to
    flip columns until they hold would wreck other anchors.

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
        """Return the rotation of x onto y whose anchors satisfy their locks where they can.

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
        violated = _violated(rest_x @ matrix, rest_y).nonzero().flatten()
        return LockedRotation(Rotation(matrix, best_scale(moments, matrix), rank), violated, done)

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
