"""Reduced-rank ridge regression from moments: the best linear map of a given rank.

Source: reduced-rank regression, Izenman, Journal of Multivariate Analysis 5, 1975; its ridge
form is that of samples to which ``sqrt(lambda) I`` was added, with outputs of zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .moments import PairedMoments


@dataclass(frozen=True, eq=False)
class ReducedRank:
    """The linear map ``x -> B (A x)``, as a LoRA update holds it.

    Attributes:
        A: Reads ``x``, float64.
        B: Writes ``y``; its columns are orthonormal, those without use are zero.
        strength: The chosen strength, without unit.
        r2: Share of the held-out ``sum |y|^2`` that the map explains; at or below 0 it predicts no
            better than no map at all.
    """

    A: Float[Tensor, "rank x"]
    B: Float[Tensor, "y rank"]
    strength: float
    r2: float


def reduced_rank_regression(
    train: PairedMoments, held_out: PairedMoments, rank: int, strengths: Sequence[float]
) -> ReducedRank:
    """Return the map of at most ``rank`` that explains most of the held-out samples.

    For each strength it minimises ``sum |y - B A x|^2 + lambda |B A|^2`` over the training samples,
    ``lambda = strength * tr(X^T X) / x``. Nothing is centred: a LoRA has no intercept. With
    ``X^T X + lambda I = L L^T`` and the SVD ``L^-1 X^T Y = U S V^T`` the minimum is ``B = V_r``,
    ``A = S_r U_r^T L^-1``. Of equally good strengths the largest is taken.

    Args:
        train: Moments of the samples to fit.
        held_out: Moments of other samples, which choose the strength.
        rank: Of the map; where ``x`` or ``y`` has fewer dimensions the rest is zero.
        strengths: Without unit, not negative; 0 takes an ``X`` of full rank.

    Raises:
        ValueError: ``X^T X + lambda I`` is singular.
    """
    fits = []
    for strength in strengths:
        a, b = _fit(train, rank, strength)
        fits.append(ReducedRank(a, b, strength, explained(held_out, a, b)))
    return max(fits, key=lambda fit: (fit.r2, fit.strength))


def explained(
    moments: PairedMoments, a: Float[Tensor, "rank x"], b: Float[Tensor, "y rank"]
) -> float:
    """Return ``1 - sum |y - B A x|^2 / sum |y|^2``; 0 where every y is zero."""
    total = float(moments.yy.trace())
    if total <= 0:
        return 0.0
    shared = float(((a @ moments.xy) * b.mT).sum())
    made = float(((a @ moments.xx @ a.mT) * (b.mT @ b)).sum())
    return (2 * shared - made) / total


def _fit(moments: PairedMoments, rank: int, strength: float) -> tuple[Tensor, Tensor]:
    gram = moments.xx.clone()
    gram.diagonal().add_(strength * float(gram.trace()) / len(gram))
    lower, failed = torch.linalg.cholesky_ex(gram)
    if int(failed):
        raise ValueError(
            f"X^T X of width {len(gram)} is singular at strength {strength}; a strength above 0 "
            "makes it regular"
        )
    whitened = torch.linalg.solve_triangular(lower, moments.xy, upper=False)
    # Right singular vectors by the Gram matrix: x is often far wider than y, as in down_proj.
    values, vectors = torch.linalg.eigh(whitened.mT @ whitened)
    kept = min(rank, *whitened.shape)
    v = vectors.flip(1)[:, :kept] * (values.flip(0)[:kept] > 0)
    peaks = v.gather(0, v.abs().argmax(dim=0, keepdim=True))
    v = v * torch.where(peaks < 0, -1.0, 1.0).to(v)
    a, b = gram.new_zeros(rank, len(gram)), gram.new_zeros(len(vectors), rank)
    a[:kept] = torch.linalg.solve_triangular(lower.mT, whitened @ v, upper=True).mT
    b[:, :kept] = v
    return a, b
