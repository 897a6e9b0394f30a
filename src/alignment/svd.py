"""Truncated singular value decompositions by random projection, and PCA from a Gram matrix."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .ridge import ROUNDING, affine, centred, centred_query

# Singular values below this share of the largest are rounding errors of float32.
_EPSILON = float(torch.finfo(torch.float32).eps)
# Columns of float32 that depend on one another to this share leave no digits to Cholesky.
_DEPENDENT = 1e-5
# The same for a Gram matrix that is itself taken in float32.
_ROUGHLY_DEPENDENT = 2e-3
_ROWS = 1024


def has_matrix_units(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 faster than float32: CUDA, or a CPU with AMX."""
    # torch exposes AMX under a private name only.
    return device.type == "cuda" or bool(torch.cpu._is_amx_tile_supported())


def largest_entry_signs(columns: Float[Tensor, "rows k"]) -> Float[Tensor, " k"]:
    """Return the sign of each column's largest entry, 1 for a column of zeros.

    A singular vector or eigenvector times this sign is the same whatever sign it was computed with.
    """
    peaks = columns.gather(0, columns.abs().argmax(dim=0, keepdim=True)).squeeze(0)
    return torch.where(peaks < 0, -1.0, 1.0).to(columns)


class TruncatedSvd(NamedTuple):
    """The leading singular triplets of a matrix: ``matrix ~ U diag(S) V^T``.

    Attributes:
        U: Left singular vectors, as orthonormal columns.
        S: Singular values, falling.
        V: Right singular vectors, as orthonormal columns.
        energy: Squared Frobenius norm of the whole matrix.
    """

    U: Float[Tensor, "out k"]
    S: Float[Tensor, " k"]
    V: Float[Tensor, "in k"]
    energy: float

    @property
    def kept(self) -> float:
        """Share of the matrix's energy that the triplets hold; 1 for a matrix of zeros."""
        held = float(self.S.double().square().sum())
        return min(1.0, held / self.energy) if self.energy > 0 else 1.0


def randomised_svd(
    matrix: Float[Tensor, "out in"],
    rank: int,
    *,
    oversampling: int = 16,
    power_iterations: int = 2,
    seed: int = 0,
) -> TruncatedSvd:
    """Return the leading singular triplets of a matrix.

    Random vectors are multiplied with the matrix and its transpose in turn, and the matrix is
    decomposed inside the subspace that they reach: Halko, Martinsson and Tropp, "Finding
    structure with randomness", SIAM Review 53 (2011), algorithms 4.4 and 5.1. Where ``rank +
    oversampling`` reaches half the smaller side, nothing is drawn and the answer is exact.

    Products with the matrix are taken in float32 on its own device, what is small in float64.
    Where the matrix is stored in bfloat16 and the device multiplies that faster (AMX, CUDA),
    products are taken in bfloat16: they are then as exact as the entries themselves.
    The same seed gives the same bits with the same number of threads. Signs are arbitrary, as in
    every singular value decomposition.

    Args:
        matrix: Of any floating dtype.
        rank: Triplets asked for; no more come than the smaller side has.
        oversampling: Random vectors beyond the rank.
        power_iterations: How often the vectors pass through the matrix's transpose and back.
        seed: Draws the random vectors, on the CPU whatever the device.

    Raises:
        ValueError: the matrix has entries that are not finite.
    """
    wide = matrix.shape[0] < matrix.shape[1]
    energy = _energy(matrix)
    if not math.isfinite(energy):
        raise ValueError("the matrix has entries that are not finite")
    tall = matrix.mT if wide else matrix
    if not (tall.dtype == torch.bfloat16 and has_matrix_units(tall.device)):
        tall = tall.float()
    rank = min(rank, tall.shape[1])
    if 2 * (rank + oversampling) < tall.shape[1]:
        basis = _range(tall, rank + oversampling, power_iterations, seed)
        right, values, coordinates = _decomposed(_product(tall.mT, basis), rank)
        left = basis @ coordinates
    else:
        left, values, right = _decomposed(tall.float(), rank)
    if wide:
        left, right = right, left
    return TruncatedSvd(left.contiguous(), values, right.contiguous(), energy)


def _energy(matrix: Float[Tensor, "out in"]) -> float:
    """Return the squared Frobenius norm.

    Along rows, as they lie in memory: across them it takes fifty times longer. In blocks through
    one buffer: allocating a float32 copy of the matrix costs more than the sum.
    """
    widened = torch.promote_types(matrix.dtype, torch.float32)
    buffer = matrix.new_empty((min(len(matrix), _ROWS), matrix.shape[1]), dtype=widened)
    total = 0.0
    for block in torch.split(matrix, _ROWS):
        rows = buffer[: len(block)].copy_(block)
        total += float(torch.linalg.vector_norm(rows, dim=1).double().square().sum())
    return total


def _product(
    matrix: Float[Tensor, "rows columns"], vectors: Float[Tensor, "columns k"]
) -> Float[Tensor, "rows k"]:
    """Return the product, taken in the matrix's dtype, in float32."""
    return (matrix @ vectors.to(matrix)).float()


def _range(
    tall: Float[Tensor, "rows columns"], size: int, power_iterations: int, seed: int
) -> Float[Tensor, "rows size"]:
    """Return an orthonormal basis of a subspace that holds the leading left singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(tall.shape[1], size, generator=generator).to(tall.device)
    for _ in range(power_iterations):
        vectors = _orthogonalised(_product(tall.mT, _orthogonalised(_product(tall, vectors))))
    # One Cholesky step leaves vectors as far from orthonormal as they were from independent:
    # enough between products, but the basis itself takes a second step.
    return _orthogonalised(_orthogonalised(_product(tall, vectors)))


def _decomposed(
    tall: Float[Tensor, "rows columns"], rank: int
) -> tuple[Float[Tensor, "rows k"], Float[Tensor, " k"], Float[Tensor, "columns k"]]:
    """Return the leading singular triplets of a matrix with few columns, from its Gram matrix.

    In float64 the Gram matrix loses nothing of the precision of float32 entries.
    """
    exact = tall.double()
    eigenvalues, vectors = torch.linalg.eigh(exact.mT @ exact)
    values = eigenvalues.flip(0)[:rank].clamp_min(0).sqrt().float()
    right = vectors.flip(1)[:, :rank].float()
    # A direction that the matrix all but maps to zero has no left vector of its own: any that is
    # orthogonal to the others will do, which orthonormalising a column of zeros gives.
    clear = values > _EPSILON * values[:1]
    left = tall @ right * torch.where(clear, 1 / values, 0.0)
    return _orthogonalised(left), values, right


def _orthogonalised(columns: Float[Tensor, "rows k"]) -> Float[Tensor, "rows k"]:
    """Return columns of the same span, orthonormal up to rounding in float32."""
    triangle, failed = torch.linalg.cholesky_ex(columns.mT @ columns)
    diagonal = triangle.diagonal()
    if int(failed) or float(diagonal.amin()) < _ROUGHLY_DEPENDENT * float(diagonal.amax()):
        return _orthonormal(columns)
    return torch.linalg.solve_triangular(triangle.mT, columns, upper=True, left=False)


def _orthonormal(columns: Float[Tensor, "rows k"]) -> Float[Tensor, "rows k"]:
    """Return the Q of a QR with positive diagonal.

    By the Cholesky factor of the Gram matrix, many times faster than a Householder QR; dependent
    columns take the latter, which completes them.
    """
    exact = columns.double()
    triangle, failed = torch.linalg.cholesky_ex(exact.mT @ exact)
    diagonal = triangle.diagonal()
    if int(failed) or float(diagonal.amin()) < _DEPENDENT * float(diagonal.amax()):
        basis, upper = torch.linalg.qr(columns)
        return basis * torch.where(upper.diagonal() < 0, -1.0, 1.0).to(basis)
    identity = torch.eye(len(triangle), dtype=triangle.dtype, device=triangle.device)
    inverse = torch.linalg.solve_triangular(triangle, identity, upper=False)
    return columns @ inverse.mT.to(columns)


@dataclass(frozen=True, eq=False)
class PrincipalScores:
    """Whitened principal component scores of points given by their inner products alone.

    Attributes:
        gram: ``<x_i, x_j>``.
        directions: Leading eigenvectors of the centred Gram matrix, as columns; a column of
            zeros where there are fewer directions than were asked for.
        variances: Their eigenvalues divided by n: the variance along each component.
    """

    gram: Float[Tensor, "n n"]
    directions: Float[Tensor, "n k"]
    variances: Float[Tensor, " k"]

    @classmethod
    def fit(cls, gram: Float[Tensor, "n n"], components: int) -> "PrincipalScores":
        """Keep the leading components, at most n - 1, each with its largest entry positive."""
        n = gram.shape[0]
        values, vectors = torch.linalg.eigh(centred(gram))
        values, vectors = values.flip(0)[:components], vectors.flip(1)[:, :components]
        # Without variance an eigenvector is any vector of the null space: rounding would choose.
        usable = values > ROUNDING * gram.trace() / n
        signs = largest_entry_signs(vectors)
        return cls(gram, vectors * signs * usable, values * usable / n)

    @property
    def scores(self) -> Float[Tensor, "n k"]:
        """The scores of the fitted points: mean 0 and variance 1 where there is any."""
        return self.directions * len(self.gram) ** 0.5

    def project(self, inner: Float[Tensor, "queries n"]) -> Float[Tensor, "queries k"]:
        """Return the whitened scores of new points from their inner products ``<x, x_i>``."""
        inverse = torch.where(self.variances > 0, 1 / self.variances, 0.0)
        return centred_query(self.gram, inner) @ self.directions * inverse / len(self.gram) ** 0.5

    def coefficients(self, scores: Float[Tensor, "queries k"]) -> Float[Tensor, "queries n"]:
        """Return ``c`` so that ``sum_i c_i x_i`` is the point with the given scores."""
        return affine(scores @ self.directions.mT / len(self.gram) ** 0.5)
