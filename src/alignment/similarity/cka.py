"""Debiased centred kernel alignment.

``CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`` with Gram matrices K and L of paired rows.
Sources: Kornblith et al., 2019, for CKA; Song et al., 2012, eq. 5, for the unbiased HSIC;
Nguyen, Raghu and Kornblith, 2021, eq. 3, for its average over minibatches.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .comparison import Layers, RelationalComparison, rows_of

# The unbiased HSIC divides by n - 3.
_LEAST_ROWS = 4


def linear_gram(x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows rows"]:
    """Return the inner products of the rows about their mean, float64."""
    about_mean = x.double() - x.double().mean(dim=0)
    return about_mean @ about_mean.mT


def rbf_gram(x: Float[Tensor, "rows width"], bandwidth: float) -> Float[Tensor, "rows rows"]:
    """Return ``exp(-|x_i - x_j|^2 / (2 sigma^2))``, float64.

    Args:
        x: Paired rows.
        bandwidth: ``sigma`` relative to the median distance of two rows, so that it means the
            same whatever the scale and width of a space; from 2 on the kernel is nearly linear
            (Alvarez, 2021).
    """
    inner = linear_gram(x)
    squared = (inner.diagonal()[:, None] + inner.diagonal() - 2 * inner).clamp_min(0)
    i, j = torch.triu_indices(len(x), len(x), 1)
    median = float(squared[i, j].median())
    return torch.exp(-squared / (2 * bandwidth**2 * median)) if median > 0 else squared * 0 + 1


def unbiased_hsic(k: Float[Tensor, "rows rows"], l: Float[Tensor, "rows rows"]) -> float:  # noqa: E741
    """Return the unbiased estimate of HSIC from two Gram matrices (Song et al., 2012, eq. 5).

    Raises:
        ValueError: there are fewer than 4 rows.
    """
    n = len(k)
    return float((u_centred(k) * u_centred(l)).sum()) / (n * (n - 3))


def u_centred(gram: Float[Tensor, "rows rows"]) -> Float[Tensor, "rows rows"]:
    """Centre a Gram matrix so that inner products of two of them are unbiased.

    The diagonal is zero and so is every row sum; ``sum(K L) / (n (n - 3))`` of two such matrices
    is Song's estimate (Szekely and Rizzo, 2014).

    Raises:
        ValueError: there are fewer than 4 rows.
    """
    n = len(gram)
    if n < _LEAST_ROWS:
        raise ValueError(f"{n} rows are too few for an unbiased HSIC; it takes {_LEAST_ROWS}")
    hollow = gram - torch.diag(gram.diagonal())
    rows = hollow.sum(dim=0)
    whole = float(rows.sum()) / ((n - 1) * (n - 2))
    result = hollow - rows[:, None] / (n - 2) - rows / (n - 2) + whole
    return result - torch.diag(result.diagonal())


def linear_cka(x: Float[Tensor, "rows x"], y: Float[Tensor, "rows y"]) -> float:
    """Return debiased linear CKA: about 0 for independent representations, 1 for a rotation.

    Raises:
        ValueError: there are fewer than 4 rows.
    """
    return minibatch_cka([(x, y)])


def rbf_cka(
    x: Float[Tensor, "rows x"], y: Float[Tensor, "rows y"], bandwidth: float = 1.0
) -> float:
    """Return debiased CKA with a Gaussian kernel.

    Args:
        x: Paired rows.
        y: The same rows in another space.
        bandwidth: Relative to the median distance of each space.

    Raises:
        ValueError: there are fewer than 4 rows.
    """
    k, l = rbf_gram(x, bandwidth), rbf_gram(y, bandwidth)  # noqa: E741
    return _ratio(unbiased_hsic(k, l), unbiased_hsic(k, k), unbiased_hsic(l, l))


def minibatch_cka(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return debiased linear CKA with its three HSICs averaged over batches, then divided.

    Args:
        batches: Paired rows, at least 4 a batch; never all in memory at once.

    Raises:
        ValueError: a batch has fewer than 4 rows.
    """
    both = one = other = 0.0
    for x, y in batches:
        k, l = linear_gram(x), linear_gram(y)  # noqa: E741
        both += unbiased_hsic(k, l)
        one += unbiased_hsic(k, k)
        other += unbiased_hsic(l, l)
    return _ratio(both, one, other)


def _ratio(both: float, one: float, other: float) -> float:
    return both / math.sqrt(one * other) if one > 0 and other > 0 else 0.0


@dataclass(frozen=True)
class LinearCka:
    """Debiased linear CKA between all layers of two models."""

    name = "linear_cka"

    def compare(self, target: Layers, source: Layers) -> RelationalComparison:
        """Precompute the U-centred Gram matrix of each layer."""
        rows_of(target, source, _LEAST_ROWS)
        return RelationalComparison.of(
            [u_centred(linear_gram(layer)) for layer in target],
            [u_centred(linear_gram(layer)) for layer in source],
        )


@dataclass(frozen=True)
class RbfCka:
    """Debiased CKA with a Gaussian kernel between all layers of two models.

    Attributes:
        bandwidth: Relative to the median distance of each layer's rows.
    """

    bandwidth: float = 1.0
    name = "rbf_cka"

    def compare(self, target: Layers, source: Layers) -> RelationalComparison:
        """Precompute the U-centred Gram matrix of each layer."""
        rows_of(target, source, _LEAST_ROWS)
        return RelationalComparison.of(
            [u_centred(rbf_gram(layer, self.bandwidth)) for layer in target],
            [u_centred(rbf_gram(layer, self.bandwidth)) for layer in source],
        )
