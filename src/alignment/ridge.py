"""Ridge regression in its dual form, from inner products alone, with exact leave-one-out.

Inputs ``x_i`` and outputs ``y_i`` are never seen, only their Gram matrices: they may have
millions of entries, and a regression that uses inner products alone is the same in any basis.
Sources: ridge regression in dual variables, Saunders, Gammerman and Vovk, 1998;
leave-one-out by the hat matrix, Allen 1974 (PRESS).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

# Of the squared norms of factors in float32: variance below this share is their rounding.
ROUNDING = 1e-12


def centred(gram: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Return the Gram matrix of ``x_i - mean(x)``; zero where the ``x_i`` are equal.

    What rounding leaves of equal ones would be divided by itself.
    """
    rows = gram.mean(dim=0, keepdim=True)
    found = gram - rows - rows.mT + gram.mean()
    return found if found.trace() > ROUNDING * gram.trace() else torch.zeros_like(gram)


def centred_query(
    gram: Float[Tensor, "n n"], inner: Float[Tensor, "queries n"]
) -> Float[Tensor, "queries n"]:
    """Return ``<x - mean, x_i - mean>`` from ``<x, x_i>``, the mean being that of the ``x_i``."""
    return inner - inner.mean(dim=1, keepdim=True) - gram.mean(dim=0) + gram.mean()


def affine(weights: Float[Tensor, "queries n"]) -> Float[Tensor, "queries n"]:
    """Return ``c`` with ``sum_i c_i y_i = mean(y) + sum_i w_i (y_i - mean(y))``."""
    return weights + (1 - weights.sum(dim=1, keepdim=True)) / weights.shape[1]


def _penalty(centred_gram: Float[Tensor, "n n"], strength: float) -> float:
    return strength * float(centred_gram.trace()) / centred_gram.shape[0]


def ridge_coefficients(
    gram: Float[Tensor, "n n"], inner: Float[Tensor, "queries n"], strength: float
) -> Float[Tensor, "queries n"]:
    """Return ``c`` so that ``sum_i c_i y_i`` is the ridge prediction at each query.

    ``c = w + (1 - sum w) / n`` with ``w = (G + lambda I)^-1 k``, G and k centred, and
    ``lambda = strength * tr(G) / n``, so that a strength means the same for any scale of x. An
    infinite strength gives the mean of the ``y_i``.

    Args:
        gram: ``<x_i, x_j>``.
        inner: ``<x, x_i>`` of each query x.
        strength: Without unit, not negative.
    """
    if math.isinf(strength):
        return torch.full_like(inner, 1 / gram.shape[0])
    g = centred(gram)
    regularised = g + _penalty(g, strength) * torch.eye(len(g), dtype=g.dtype, device=g.device)
    # Without a penalty the centred Gram is singular: the minimum-norm solution is meant.
    weights = torch.linalg.pinv(regularised, hermitian=True) @ centred_query(gram, inner).mT
    return affine(weights.mT)


def leave_one_out_errors(
    gram: Float[Tensor, "n n"], target_gram: Float[Tensor, "n n"], strength: float
) -> Float[Tensor, " n"]:
    """Return ``|y_i - prediction from the others|^2`` for each i, in closed form.

    With the hat matrix ``H = 1 1^T / n + G (G + lambda I)^-1`` the residuals are
    ``(Y - H Y)_i / (1 - H_ii)``; their norms need only the Gram matrix of Y. The mean is taken
    again in each fold; lambda stays that of all n.
    """
    n = gram.shape[0]
    eye = torch.eye(n, dtype=gram.dtype, device=gram.device)
    hat = torch.full_like(gram, 1 / n)
    if not math.isinf(strength):
        g = centred(gram)
        hat = hat + g @ torch.linalg.pinv(g + _penalty(g, strength) * eye, hermitian=True)
    residual = eye - hat
    return ((residual @ target_gram) * residual).sum(dim=1) / residual.diagonal().square()


def choose_strength(
    gram: Float[Tensor, "n n"], target_gram: Float[Tensor, "n n"], strengths: Sequence[float]
) -> tuple[float, float]:
    """Return the strength of least leave-one-out error, and that error relative to the mean's.

    The second value is below 1 where the regression predicts better than the mean of the other
    ``y_i`` does.
    """
    errors = {s: float(leave_one_out_errors(gram, target_gram, s).sum()) for s in strengths}
    best = min(errors, key=lambda s: (errors[s], -s))
    mean = float(leave_one_out_errors(gram, target_gram, math.inf).sum())
    return best, errors[best] / mean if mean > 0 else 1.0
