import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from loraport.alignment import PrincipalScores
from loraport.alignment.svd import TruncatedSvd, randomised_svd

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


def assert_orthonormal(*bases: Tensor) -> None:
    for columns in bases:
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
    assert_orthonormal(svd.U, svd.V)
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
@pytest.mark.parametrize("rank", [85, 1000])
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
    assert_orthonormal(svd.U, svd.V)


@pytest.mark.parametrize("rank", [3, 20, 90])
def test_low_rank_matrix_comes_back_whole(rank: int) -> None:
    matrix = low_rank(200, 90, rank=3)
    svd = randomised_svd(matrix, rank, oversampling=4)
    torch.testing.assert_close(rebuilt(svd), matrix, rtol=0, atol=1e-4)
    assert float(svd.S[3:].sum()) < 1e-3 * float(svd.S[0])
    assert_orthonormal(svd.U, svd.V)


@pytest.mark.parametrize("rank", [5, 90])
def test_matrix_of_zeros_has_singular_values_of_zero(rank: int) -> None:
    svd = randomised_svd(torch.zeros(200, 90), rank)
    assert (bool(svd.S.any()), svd.energy, svd.kept) == (False, 0, 1)
    assert_orthonormal(svd.U, svd.V)


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
    assert_orthonormal(svd.U, svd.V)


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
    assert_orthonormal(svd.U, svd.V)


def test_seed_decides_the_bits_and_the_global_generator_is_left_alone() -> None:
    matrix = decaying(150, 120, power=0.3)
    before = torch.get_rng_state()
    first, again, other = (randomised_svd(matrix, 10, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.U, again.U)
    assert torch.equal(first.V, again.V)
    assert not torch.equal(first.U, other.U)


def test_entries_that_are_not_finite_are_refused() -> None:
    matrix = decaying(50, 40)
    matrix[3, 4] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        randomised_svd(matrix, 5)


N, K = 10, 4


def points(rows: int, dim: int, seed: int) -> Tensor:
    """Far from the origin, with a clearly different variance along each axis."""
    generator = torch.Generator().manual_seed(seed)
    spread = 1.5 ** -torch.arange(dim, dtype=torch.float64)
    return 3 + spread * torch.randn(rows, dim, generator=generator, dtype=torch.float64)


def signs(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.sign((found * expected).sum(axis=0))


@pytest.mark.parametrize("dim", [25, 6], ids=["wide", "narrow"])
class TestAgainstScikitLearn:
    def test_scores_and_variances(self, dim: int) -> None:
        x = points(N, dim, 0)
        ours = PrincipalScores.fit(x @ x.mT, K)
        pca = PCA(K, whiten=True, svd_solver="full").fit(x.numpy())
        # scikit-learn divides by n - 1.
        expected = pca.transform(x.numpy()) * (N / (N - 1)) ** 0.5
        found = ours.scores.numpy()
        np.testing.assert_allclose(found * signs(found, expected), expected, atol=1e-8)
        variances = pca.explained_variance_ * (N - 1) / N
        np.testing.assert_allclose(ours.variances.numpy(), variances, rtol=1e-10)
        peaks = ours.directions.gather(0, ours.directions.abs().argmax(dim=0, keepdim=True))
        assert (peaks > 0).all()

    def test_projection_of_new_points(self, dim: int) -> None:
        x, new = points(N, dim, 0), points(5, dim, 1)
        ours = PrincipalScores.fit(x @ x.mT, K)
        pca = PCA(K, whiten=True, svd_solver="full").fit(x.numpy())
        expected = pca.transform(new.numpy()) * (N / (N - 1)) ** 0.5
        known = pca.transform(x.numpy())
        flip = signs(ours.scores.numpy(), known)
        found = ours.project(new @ x.mT).numpy()
        np.testing.assert_allclose(found * flip, expected, atol=1e-8)
        torch.testing.assert_close(ours.project(x @ x.mT), ours.scores)

    def test_coefficients_give_the_point_back_within_the_span(self, dim: int) -> None:
        x, new = points(N, dim, 0), points(5, dim, 1)
        every = min(N - 1, dim)
        ours = PrincipalScores.fit(x @ x.mT, every)
        mixed = torch.softmax(points(5, N, 2), dim=1) @ x
        again = ours.coefficients(ours.project(mixed @ x.mT)) @ x
        torch.testing.assert_close(again, mixed)
        # And its nearest point in the kept components otherwise.
        few = PrincipalScores.fit(x @ x.mT, K)
        pca = PCA(K, svd_solver="full").fit(x.numpy())
        nearest = pca.inverse_transform(pca.transform(new.numpy()))
        found = few.coefficients(few.project(new @ x.mT)) @ x
        np.testing.assert_allclose(found.numpy(), nearest, atol=1e-8)


def test_components_without_variance_are_empty_and_say_nothing() -> None:
    x, new = points(N, 2, 0), points(5, 2, 1)
    ours = PrincipalScores.fit(x @ x.mT, K)
    assert (ours.variances[:2] > 0).all()
    assert ours.variances[2:].count_nonzero() == 0
    assert ours.scores[:, 2:].count_nonzero() == 0
    scores = ours.project(new @ x.mT)
    assert scores[:, 2:].count_nonzero() == 0
    torch.testing.assert_close(ours.coefficients(scores) @ x, new)
    scores[:, 2:] = 100.0
    torch.testing.assert_close(ours.coefficients(scores) @ x, new)


def test_equal_points_have_no_scores() -> None:
    ours = PrincipalScores.fit(torch.full((5, 5), 2.0, dtype=torch.float64), 3)
    assert ours.scores.count_nonzero() == 0
    mean = ours.coefficients(ours.project(torch.ones(1, 5, dtype=torch.float64)))
    assert torch.equal(mean, torch.full((1, 5), 0.2, dtype=torch.float64))
