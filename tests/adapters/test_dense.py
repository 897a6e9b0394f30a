import numpy as np
import pytest
import torch
from torch import Tensor

from loraport.adapters import LowRank
from loraport.adapters.dense import EXACT_UP_TO, low_rank

# The larger ones are cut by a randomised SVD.
SMALL = [(7, 5), (4, 9), (6, 6), (1, 1)]
LARGE = [(EXACT_UP_TO + 6, EXACT_UP_TO + 76), (EXACT_UP_TO + 76, EXACT_UP_TO + 6)]


def drawn(shape: tuple[int, int], dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def thinned(shape: tuple[int, int], rank: int = 8) -> Tensor:
    """An update of low rank with a tenth of its entries left: a slow tail behind the first."""
    product = drawn((shape[0], rank), seed=1) @ drawn((rank, shape[1]), seed=2)
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.1
    return (product * kept / 0.1).float()


@pytest.mark.parametrize("shape", SMALL)
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_it_is_the_nearest_and_says_what_it_loses(shape: tuple[int, int], rank: int) -> None:
    matrix = drawn(shape)
    near, lost = low_rank(matrix, rank)
    u, sigma, vt = np.linalg.svd(matrix.numpy(), full_matrices=False)
    np.testing.assert_allclose(near.dense(), (u[:, :rank] * sigma[:rank]) @ vt[:rank], atol=1e-9)
    assert lost == pytest.approx((sigma[rank:] ** 2).sum() / (sigma**2).sum(), abs=1e-12)
    assert (near.rank, near.scale) == (rank, 1.0)
    torch.testing.assert_close(near.B.mT @ near.B, near.A @ near.A.mT, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", LARGE)
def test_a_large_one_is_as_near_as_makes_no_difference(shape: tuple[int, int]) -> None:
    matrix = thinned(shape)
    near, lost = low_rank(matrix, 8)
    sigma = torch.linalg.svdvals(matrix.double())
    best = float(1 - sigma[:8].square().sum() / sigma.square().sum())
    assert best <= lost + 1e-7 <= best + 2e-6
    assert best > 0.5
    error = (matrix - near.dense()).double().norm() / matrix.double().norm()
    assert float(error**2) == pytest.approx(lost, abs=1e-5)


def test_a_large_one_of_low_rank_comes_back() -> None:
    update = LowRank(drawn((4, 1400)).float(), drawn((1100, 4), seed=1).float(), 0.5)
    near, lost = low_rank(update.dense(), 4)
    assert lost < 1e-7
    torch.testing.assert_close(near.dense(), update.dense(), rtol=1e-4, atol=1e-4)


def test_it_draws_from_no_global_generator_and_repeats_itself() -> None:
    matrix = thinned(LARGE[0])
    before = torch.get_rng_state()
    one, other = low_rank(matrix, 3).matrix, low_rank(matrix, 3).matrix
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.A, other.A)
    assert torch.equal(one.B, other.B)


def test_a_rank_above_the_smaller_side_is_filled_with_zeros() -> None:
    matrix = drawn((3, 5))
    near, lost = low_rank(matrix, 7)
    assert (near.A.shape, near.B.shape) == ((7, 5), (3, 7))
    assert near.A[3:].count_nonzero() == near.B[:, 3:].count_nonzero() == 0
    assert lost == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(near.dense(), matrix)


def test_zero_loses_nothing() -> None:
    near, lost = low_rank(torch.zeros(4, 6), 2)
    assert lost == 0.0
    assert near.dense().count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(6, 8), LARGE[0]])
def test_factors_have_the_dtype_of_the_matrix(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    near = low_rank(drawn(shape, dtype), 2).matrix
    assert (near.A.dtype, near.B.dtype) == (dtype, dtype)
