"""From a dense update back to a low-rank one: the nearest of a rank, and what it loses."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..alignment.randomised_svd import randomised_svd
from .low_rank import LowRank, Truncation

# Up to this many rows or columns, whichever are fewer, the cut is exact.
EXACT_UP_TO = 1024
# A thinned update falls off slowly behind its leading singular values.
_OVERSAMPLING = 32
_POWER_ITERATIONS = 4


def low_rank(matrix: Float[Tensor, "out in"], rank: int) -> Truncation:
    """Return the nearest update of at most ``rank`` to a dense one, with the energy it loses.

    A matrix whose smaller side is at most :data:`EXACT_UP_TO` is cut exactly, through the
    eigenvectors of its smaller Gram matrix in float64; a larger one by a randomised SVD from a
    fixed seed. The lost energy, ``1 - sum sigma^2 / |M|^2``, is that of the result as it is: it
    counts what the randomisation missed.

    Args:
        matrix: The update of one site.
        rank: Columns of the result; zeros where the matrix has fewer singular values.

    Returns:
        Balanced canonical factors as of :meth:`LowRank.truncated`, in the matrix's dtype, and
        the share of the squared norm that is lost.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    basis = _leading(wide, rank)
    image = (basis.mT @ wide.to(basis.dtype)).double()
    if wide is matrix:
        near = LowRank(image, basis.double())
    else:
        near = LowRank(basis.mT.double(), image.mT)
    cut = near.truncated(rank).matrix
    total = float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
    lost = max(0.0, 1 - cut.norm() ** 2 / total) if total > 0 else 0.0
    return Truncation(cut.to(matrix.dtype), lost)


def _leading(wide: Float[Tensor, "out in"], count: int) -> Float[Tensor, "out k"]:
    """Return the leading left singular vectors, all there are where ``count`` is more."""
    if wide.shape[0] <= EXACT_UP_TO:
        exact = wide.double()
        return torch.linalg.eigh(exact @ exact.mT).eigenvectors.flip(1)[:, :count]
    return randomised_svd(
        wide, count, oversampling=_OVERSAMPLING, power_iterations=_POWER_ITERATIONS
    ).U
