"""Orthogonal Procrustes: the rotation, or partial isometry, that takes one space onto another.

In row convention ``x R ~ y``. With ``X^T Y = U S V^T`` the maximiser of ``tr(R^T X^T Y)`` is the
polar factor ``R = U V^T``, unique where the cross product has full rank: signs of singular
vectors cancel. Where it has not, because there are fewer samples than dimensions or because
some directions never varied together, the samples say nothing of the other directions, and
``R`` is the partial isometry of the rank that they have; no rotation is invented for the rest.

Sources: Schoenemann 1966 (equal widths); Kabsch 1976 (without reflection).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .moments import PairedMoments

# Singular values below this share of the largest are rounding: products are taken in float32.
_NEGLIGIBLE = 1e-6


class Rotation(NamedTuple):
    """An isometry between two spaces.

    Attributes:
        matrix: R with ``x R ~ y``, ``R R^T`` and ``R^T R`` being projections of rank ``rank``.
        scale: ``c = <R, X^T Y> / |X R|^2``: the best multiple, ``x c R ~ y``. Where R keeps every
            x this is ``tr S / |X|^2``. 0 for samples of zeros.
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

    Args:
        moments: Of the samples, centred or not.
        proper: Whether a reflection is undone; see :func:`without_reflection`.
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
    """Return ``U V^T`` of a cross product, and its rank.

    Args:
        cross: ``X^T Y``, in float64.
        samples: How many it is the sum of, which bounds its rank; singular values that are
            rounding do not count either.
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
