import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from torch import Tensor

from loraport.alignment.moments import PairedMoments
from loraport.alignment.reduced_rank import explained, reduced_rank_regression

X, Y, ROWS = 7, 5, 60


def normal(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def samples(rows: int, seed: int, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Far from the origin, with inputs of very different variances, and a map of rank 2."""
    scales = torch.logspace(-1, 1, X, dtype=torch.float64)
    x = 1 + normal(rows, X, seed=seed) * scales
    planted = normal(X, 2, seed=100) @ normal(2, Y, seed=101)
    return x, x @ planted + noise * normal(rows, Y, seed=seed + 1)


def exact(x: Tensor, y: Tensor, rank: int, penalty: float) -> np.ndarray:
    """Izenman's estimator by full ridge and the SVD of what it fits, penalty rows included."""
    ridge = Ridge(alpha=penalty, fit_intercept=False, solver="svd").fit(x.numpy(), y.numpy())
    full = ridge.coef_.T
    seen = np.concatenate([x.numpy(), penalty**0.5 * np.eye(X)])
    right = np.linalg.svd(seen @ full)[2][:rank]
    cut: np.ndarray = full @ right.T @ right
    return cut


@pytest.mark.parametrize("strength", [0.0, 1e-2, 1.0])
@pytest.mark.parametrize("rank", [1, 3, Y])
def test_it_is_ridge_cut_in_the_metric_of_what_it_fits(rank: int, strength: float) -> None:
    x, y = samples(ROWS, seed=0)
    moments = PairedMoments.of(x, y)
    fit = reduced_rank_regression(moments, moments, rank, [strength])
    penalty = strength * float(x.square().sum()) / X
    made = (fit.B @ fit.A).mT.numpy()
    np.testing.assert_allclose(made, exact(x, y, rank, penalty), atol=1e-9)
    torch.testing.assert_close(fit.B.mT @ fit.B, torch.eye(rank, dtype=torch.float64))


@pytest.mark.parametrize("strength", [0.0, 0.1])
def test_no_other_map_of_that_rank_costs_less(strength: float) -> None:
    x, y = samples(ROWS, seed=0)
    moments = PairedMoments.of(x, y)
    fit = reduced_rank_regression(moments, moments, 2, [strength])
    penalty = strength * float(x.square().sum()) / X

    def cost(a: Tensor, b: Tensor) -> float:
        return float((y - x @ a.mT @ b.mT).square().sum() + penalty * (b @ a).square().sum())

    least = cost(fit.A, fit.B)
    for seed in range(20):
        for step in (1e-3, 1e-1):
            a = fit.A + step * normal(*fit.A.shape, seed=seed)
            b = fit.B + step * normal(*fit.B.shape, seed=seed + 50)
            assert cost(a, b) > least


def test_of_a_space_onto_itself_it_is_principal_component_analysis() -> None:
    x = normal(ROWS, X, seed=0) * torch.logspace(-1, 1, X, dtype=torch.float64)
    x = x - x.mean(dim=0)
    moments = PairedMoments.of(x, x)
    fit = reduced_rank_regression(moments, moments, 3, [0.0])
    components = PCA(3).fit(x.numpy())
    projector = components.components_.T @ components.components_
    np.testing.assert_allclose((fit.B @ fit.A).numpy(), projector, atol=1e-9)
    assert fit.r2 == pytest.approx(float(components.explained_variance_ratio_.sum()))


def test_a_planted_map_is_recovered_though_inputs_are_fewer_than_dimensions() -> None:
    x, y = samples(ROWS, seed=0, noise=0.0)
    moments = PairedMoments.of(x, y)
    fit = reduced_rank_regression(moments, PairedMoments.of(*samples(30, 7, 0.0)), 2, [0.0, 1.0])
    assert fit.strength == 0.0
    assert fit.r2 == pytest.approx(1.0)
    torch.testing.assert_close(x @ fit.A.mT @ fit.B.mT, y)
    few = PairedMoments.of(x[:4], y[:4])
    small = reduced_rank_regression(few, moments, 2, [1e-9])
    torch.testing.assert_close(x[:4] @ small.A.mT @ small.B.mT, y[:4], rtol=1e-4, atol=1e-4)


def test_held_out_samples_choose_the_strength() -> None:
    x, y = samples(10, seed=0, noise=8.0)
    other = samples(500, seed=20, noise=8.0)
    train, held_out = PairedMoments.of(x, y), PairedMoments.of(*other)
    strengths = [1e-6, 1e-3, 1e-1, 1.0, 100.0]
    shares = {}
    for strength in strengths:
        fit = reduced_rank_regression(train, held_out, 3, [strength])
        left = (other[1] - other[0] @ fit.A.mT @ fit.B.mT).square().sum()
        shares[strength] = float(1 - left / other[1].square().sum())
        assert fit.r2 == pytest.approx(shares[strength])
    chosen = reduced_rank_regression(train, held_out, 3, strengths)
    assert chosen.r2 == pytest.approx(max(shares.values()))
    assert shares[chosen.strength] == max(shares.values())
    assert chosen.strength > min(strengths)


def test_what_exceeds_the_dimensions_is_zero() -> None:
    moments = PairedMoments.of(*samples(ROWS, seed=0))
    fit = reduced_rank_regression(moments, moments, Y + 4, [0.1])
    assert fit.A.shape == (Y + 4, X)
    assert fit.B.shape == (Y, Y + 4)
    assert not fit.A[Y:].any()
    assert not fit.B[:, Y:].any()
    whole = reduced_rank_regression(moments, moments, Y, [0.1])
    torch.testing.assert_close(fit.B @ fit.A, whole.B @ whole.A)


def test_nothing_to_explain_is_no_map() -> None:
    x, _ = samples(ROWS, seed=0)
    moments = PairedMoments.of(x, torch.zeros(ROWS, Y, dtype=torch.float64))
    fit = reduced_rank_regression(moments, moments, 2, [0.1, 1.0])
    assert not (fit.B @ fit.A).any()
    assert fit.r2 == 0.0
    assert explained(moments, fit.A, fit.B) == 0.0


def test_a_singular_problem_is_refused() -> None:
    x, y = samples(3, seed=0)
    x[:, 0] = 0
    moments = PairedMoments.of(x, y)
    with pytest.raises(ValueError, match="singular at strength 0"):
        reduced_rank_regression(moments, moments, 2, [0.0])
