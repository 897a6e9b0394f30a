import numpy as np
import pytest
import torch
from torch import Tensor

from loraport.adapters import LowRank, stacked

# (out, in, rank): also a rank above the smaller side, and the smallest there is.
SHAPES = [(7, 5, 3), (4, 9, 6), (6, 3, 5), (1, 1, 1)]


def drawn(
    out: int,
    in_: int,
    rank: int,
    seed: int = 0,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, in_, generator=generator, dtype=torch.float64)
    b = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    return LowRank(a.to(dtype), b.to(dtype), scale)


def in_another_gauge(update: LowRank, seed: int) -> LowRank:
    """The same update with factors ``G A`` and ``B G^-1``, singular values of G from 0.5 to 2."""
    generator = torch.Generator().manual_seed(seed)
    r = update.rank
    left = torch.linalg.qr(torch.randn(r, r, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(r, r, generator=generator, dtype=torch.float64)).Q
    gauge = left @ torch.linspace(0.5, 2, r, dtype=torch.float64).diag() @ right
    return LowRank(gauge @ update.A, update.B @ torch.linalg.inv(gauge), update.scale)


def reference(update: LowRank) -> Tensor:
    return torch.from_numpy(update.scale * (update.B.numpy() @ update.A.numpy()))


@pytest.mark.parametrize(("out", "in_", "rank"), SHAPES)
class TestAgainstDenseMatrices:
    def test_shape_rank_and_dense(self, out: int, in_: int, rank: int) -> None:
        update = drawn(out, in_, rank, scale=-0.5)
        assert (update.shape, update.rank) == ((out, in_), rank)
        torch.testing.assert_close(update.dense(), reference(update))

    def test_inner_and_norm(self, out: int, in_: int, rank: int) -> None:
        one, other = drawn(out, in_, rank, 1, 0.3), drawn(out, in_, rank + 2, 2, -1.7)
        expected = float((reference(one) * reference(other)).sum())
        assert one.inner(other) == pytest.approx(expected, rel=1e-12)
        assert one.norm() == pytest.approx(float(reference(one).norm()), rel=1e-12)

    def test_svd(self, out: int, in_: int, rank: int) -> None:
        update = drawn(out, in_, rank, scale=-2.0)
        u, sigma, vt = update.factors_svd()
        k = min(rank, out, in_)
        expected = np.linalg.svd(reference(update).numpy(), compute_uv=False)[:k]
        np.testing.assert_allclose(sigma.numpy(), expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(u @ sigma.diag() @ vt, reference(update))
        torch.testing.assert_close(u.mT @ u, torch.eye(k, dtype=torch.float64))
        torch.testing.assert_close(vt @ vt.mT, torch.eye(k, dtype=torch.float64))
        largest = u.gather(0, u.abs().argmax(dim=0, keepdim=True))
        assert (largest > 0).all()

    def test_truncation_is_that_of_eckart_and_young(self, out: int, in_: int, rank: int) -> None:
        update = drawn(out, in_, rank, scale=1.5)
        u, sigma, vt = np.linalg.svd(reference(update).numpy(), full_matrices=False)
        for kept in range(1, rank + 1):
            truncation = update.truncated(kept)
            best = (u[:, :kept] * sigma[:kept]) @ vt[:kept]
            np.testing.assert_allclose(truncation.matrix.dense().numpy(), best, atol=1e-10)
            lost = (sigma[kept:] ** 2).sum() / (sigma**2).sum()
            assert truncation.lost_energy == pytest.approx(lost, abs=1e-12)
            assert truncation.matrix.rank == kept

    def test_canonical_form_is_balanced_and_free_of_the_gauge(
        self, out: int, in_: int, rank: int
    ) -> None:
        update = drawn(out, in_, rank, scale=0.7)
        canonical = update.canonical()
        torch.testing.assert_close(canonical.dense(), reference(update))
        torch.testing.assert_close(canonical.B.mT @ canonical.B, canonical.A @ canonical.A.mT)
        for seed in range(5):
            moved = in_another_gauge(update, seed)
            assert not torch.allclose(moved.A, update.A)
            again = moved.canonical()
            # The square root of a vanishing singular value is only exact to 1e-8.
            torch.testing.assert_close(again.A, canonical.A, rtol=1e-7, atol=1e-7)
            torch.testing.assert_close(again.B, canonical.B, rtol=1e-7, atol=1e-7)


def test_truncation_to_a_higher_rank_pads_with_zeros() -> None:
    update = drawn(5, 4, 2)
    matrix, lost = update.truncated(6)
    assert (matrix.A.shape, matrix.B.shape, lost) == ((6, 4), (5, 6), 0.0)
    assert matrix.A[2:].count_nonzero() == matrix.B[:, 2:].count_nonzero() == 0
    torch.testing.assert_close(matrix.dense(), reference(update))


def test_zero_update_loses_nothing() -> None:
    matrix, lost = LowRank(torch.ones(2, 4), torch.zeros(5, 2)).truncated(1)
    assert lost == 0.0
    assert matrix.dense().count_nonzero() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_factors_keep_their_dtype_and_inner_products_are_in_float64(dtype: torch.dtype) -> None:
    update = drawn(6, 8, 3, scale=0.25, dtype=dtype)
    assert (update.canonical().A.dtype, update.canonical().B.dtype) == (dtype, dtype)
    exact = 0.25 * update.B.double() @ update.A.double()
    assert update.inner(update) == pytest.approx(float(exact.square().sum()), rel=1e-12)
    assert update.to(torch.float64).A.dtype == torch.float64


def test_scaled_changes_the_scale_alone() -> None:
    update = drawn(4, 3, 2, scale=0.5)
    double = update.scaled(-2.0)
    assert double.scale == -1.0
    assert double.A is update.A
    torch.testing.assert_close(double.dense(), -2 * update.dense())


def test_stacked_is_the_weighted_sum() -> None:
    terms = [drawn(6, 5, rank, seed, 0.5 + seed) for seed, rank in enumerate((1, 2, 4))]
    coefficients = [0.5, -2.0, 3.0]
    total = stacked(terms, coefficients)
    pairs = zip(coefficients, terms, strict=True)
    expected = torch.stack([c * reference(term) for c, term in pairs]).sum(dim=0)
    torch.testing.assert_close(total.dense(), expected)
    assert total.rank == 7
    with pytest.raises(ValueError, match="zip"):
        stacked(terms, [1.0])
