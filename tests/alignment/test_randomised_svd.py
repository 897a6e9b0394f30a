import pytest
import torch
from torch import Tensor

from loraport.alignment.randomised_svd import TruncatedSvd, randomised_svd

SHAPES = [(120, 120), (200, 90), (90, 200)]


def decaying(out: int, in_: int, power: float = 1.0, seed: int = 0) -> Tensor:
    """A matrix whose singular values are ``1 / i^power``."""
    generator = torch.Generator().manual_seed(seed)
    k = min(out, in_)
    left = torch.linalg.qr(torch.randn(out, k, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(in_, k, generator=generator, dtype=torch.float64)).Q
    values = torch.arange(1, k + 1, dtype=torch.float64) ** -power
    return (left * values @ right.mT).float()


def low_rank(out: int, in_: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(out, rank, generator=generator) @ torch.randn(rank, in_, generator=generator)


def rebuilt(svd: TruncatedSvd) -> Tensor:
    return svd.U * svd.S @ svd.V.mT


def assert_orthonormal(columns: Tensor) -> None:
    identity = torch.eye(columns.shape[1])
    torch.testing.assert_close(columns.mT @ columns, identity, rtol=0, atol=1e-5)


def least_cosine(one: Tensor, other: Tensor) -> float:
    """The cosine of the largest principal angle between two subspaces."""
    return float(torch.linalg.svdvals(one.double().mT @ other.double()).min())


@pytest.mark.parametrize("shape", SHAPES)
def test_it_agrees_with_the_full_decomposition(shape: tuple[int, int]) -> None:
    matrix = decaying(*shape)
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    svd = randomised_svd(matrix, 20, oversampling=10)
    assert svd.U.shape == (shape[0], 20)
    assert svd.V.shape == (shape[1], 20)
    torch.testing.assert_close(svd.S[:10].double(), s[:10], rtol=1e-4, atol=0)
    torch.testing.assert_close(svd.S.double(), s[:20], rtol=2e-2, atol=0)
    assert least_cosine(svd.U[:, :10], u[:, :10]) > 0.999
    assert least_cosine(svd.V[:, :10], vh[:10].mT) > 0.999
    # Left and right vectors belong together, sign by sign.
    torch.testing.assert_close(
        matrix @ svd.V[:, :10], svd.U[:, :10] * svd.S[:10], rtol=0, atol=5e-3
    )
    assert_orthonormal(svd.U)
    assert_orthonormal(svd.V)
    assert svd.energy == pytest.approx(float(s.square().sum()), rel=1e-6)
    assert svd.kept == pytest.approx(float(s[:20].square().sum() / s.square().sum()), rel=1e-3)


def test_power_iterations_bring_it_nearer_to_a_flat_spectrum() -> None:
    matrix = decaying(300, 250, power=0.3)
    vh = torch.linalg.svd(matrix, full_matrices=False).Vh

    def nearness(power_iterations: int) -> float:
        svd = randomised_svd(matrix, 20, oversampling=5, power_iterations=power_iterations)
        return float((svd.V.mT @ vh[:20].mT).square().sum() / 20)

    assert nearness(0) < nearness(1) < nearness(3)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [85, 90, 1000])
def test_it_is_exact_where_the_rank_reaches_the_smaller_side(
    shape: tuple[int, int], rank: int
) -> None:
    matrix = decaying(*shape)
    svd = randomised_svd(matrix, rank, oversampling=64, power_iterations=0)
    k = min(rank, *shape)
    expected = torch.linalg.svdvals(matrix.double())[:k]
    torch.testing.assert_close(svd.S.double(), expected, rtol=1e-5, atol=0)
    if k == min(shape):
        torch.testing.assert_close(rebuilt(svd), matrix, rtol=0, atol=1e-6)
        assert svd.kept == pytest.approx(1.0, abs=1e-6)
    assert svd.kept <= 1.0
    assert_orthonormal(svd.U)
    assert_orthonormal(svd.V)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [3, 8, 20, 90])
def test_low_rank_matrix_comes_back_whole(shape: tuple[int, int], rank: int) -> None:
    matrix = low_rank(*shape, rank=3)
    svd = randomised_svd(matrix, rank, oversampling=4)
    torch.testing.assert_close(rebuilt(svd), matrix, rtol=0, atol=1e-4)
    assert float(svd.S[3:].sum()) < 1e-3 * float(svd.S[0])
    assert_orthonormal(svd.U)
    assert_orthonormal(svd.V)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [5, 90])
def test_matrix_of_zeros_has_singular_values_of_zero(shape: tuple[int, int], rank: int) -> None:
    svd = randomised_svd(torch.zeros(shape), rank)
    assert not svd.S.any()
    assert svd.energy == 0
    assert svd.kept == 1
    assert_orthonormal(svd.U)
    assert_orthonormal(svd.V)


@pytest.mark.parametrize("scale", [1e-18, 1e15])
def test_scale_does_not_matter(scale: float) -> None:
    matrix = decaying(150, 120)
    plain, scaled = (randomised_svd(m, 10) for m in (matrix, matrix * scale))
    torch.testing.assert_close(scaled.S / scale, plain.S, rtol=1e-4, atol=0)
    assert least_cosine(scaled.U, plain.U) > 0.999


def test_a_dominant_direction_does_not_swallow_the_others() -> None:
    matrix = decaying(200, 150)
    u, s, vh = torch.linalg.svd(matrix.double())
    s[0] = 1e4
    svd = randomised_svd((u[:, :150] * s @ vh).float(), 10, oversampling=20)
    torch.testing.assert_close(svd.S.double(), s[:10], rtol=5e-3, atol=0)
    assert_orthonormal(svd.V)
    assert_orthonormal(svd.U)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_floating_dtype_is_taken(dtype: torch.dtype) -> None:
    matrix = decaying(150, 120).to(dtype)
    svd, reference = randomised_svd(matrix, 10), randomised_svd(matrix.float(), 10)
    assert svd.U.dtype == svd.S.dtype == svd.V.dtype == torch.float32
    # Products in bfloat16, where they are fast, are as exact as the entries: 2^-9.
    tolerance = 2e-3 if dtype == torch.bfloat16 else 1e-4
    torch.testing.assert_close(svd.S, reference.S, rtol=tolerance, atol=0)
    assert least_cosine(svd.U, reference.U) > 0.9999
    assert least_cosine(svd.V, reference.V) > 0.9999
    assert_orthonormal(svd.U)
    assert_orthonormal(svd.V)


def test_seed_decides_the_bits_and_the_global_generator_is_left_alone() -> None:
    matrix = decaying(150, 120, power=0.3)
    before = torch.get_rng_state()
    first, again, other = (randomised_svd(matrix, 10, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.U, again.U)
    assert torch.equal(first.V, again.V)
    assert not torch.equal(first.U, other.U)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_entries_that_are_not_finite_are_refused(bad: float) -> None:
    matrix = decaying(50, 40)
    matrix[3, 4] = bad
    with pytest.raises(ValueError, match="not finite"):
        randomised_svd(matrix, 5)
