"""Skips are the closed forms, and losses what they are called, by independent computations."""

import numpy as np
import pytest
import torch
from scipy.linalg import solve_sylvester
from sklearn.linear_model import Ridge as SklearnRidge
from torch import Tensor
from torch.autograd.functional import jacobian

from loraport.alignment.linear_maps import SplitMoments
from loraport.alignment.moments import PairedMoments
from loraport.alignment.two_sided import TwoSidedRidge
from loraport.mappers.head_pair import STRENGTHS, HeadPair

ROWS, CUT, WIDTH, OUT = 200, 150, 6, 4


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = drawn(ROWS, WIDTH) + 1
Y = X @ drawn(WIDTH, OUT, seed=1) + 0.5 * drawn(ROWS, OUT, seed=2) - 2
# Gradients of y, and what a map carries back of them to x, with noise.
G_Y = drawn(ROWS, OUT, seed=3)
G_X = G_Y @ drawn(OUT, WIDTH, seed=4) + 0.5 * drawn(ROWS, WIDTH, seed=5)


def split(x: Tensor, y: Tensor) -> SplitMoments:
    return SplitMoments(PairedMoments.of(x[:CUT], y[:CUT]), PairedMoments.of(x[CUT:], y[CUT:]))


def pair(hidden: int = 0, both: bool = True) -> HeadPair:
    return HeadPair(WIDTH, OUT, hidden, both, torch.Generator().manual_seed(0))


def trained(hidden: int = 8) -> HeadPair:
    """Heads whose MLPs do something."""
    heads = pair(hidden)
    heads.start(split(X, Y), None, 1.0)
    for place, weight in enumerate(heads.parameters()):
        weight.data += 0.3 * drawn(*weight.shape, seed=place)
    return heads


def ridge(x: Tensor, y: Tensor) -> SklearnRidge:
    """The ridge of scikit-learn that predicts the held-out rows best, both centred by itself."""
    centre = x[:CUT].double().numpy() - x[:CUT].double().numpy().mean(axis=0)
    fits = []
    for strength in STRENGTHS:
        penalty = strength * (centre**2).sum() / x.shape[1]
        fit = SklearnRidge(alpha=penalty, solver="cholesky").fit(x[:CUT].double(), y[:CUT].double())
        error = y[CUT:].double().numpy() - fit.predict(x[CUT:].double())
        fits.append((((error - error.mean(axis=0)) ** 2).sum(), fit))
    return min(fits, key=lambda found: found[0])[1]


def test_skips_are_ridge_regressions_with_an_intercept() -> None:
    heads = pair()
    found = heads.start(split(X, Y), None, 1.0)
    assert heads.back is not None
    for head, fit in ((heads.head, ridge(X, Y)), (heads.back, ridge(Y, X))):
        np.testing.assert_allclose(head.skip.weight.detach(), fit.coef_, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(head.skip.bias.detach(), fit.intercept_, rtol=1e-4, atol=1e-5)
    error = (Y[CUT:] - heads.head(X[CUT:])).detach()
    there = Y[CUT:] - Y[CUT:].mean(dim=0)
    r2 = 1 - (error - error.mean(dim=0)).square().sum() / there.square().sum()
    assert found.error.r2 == pytest.approx(float(r2), abs=1e-5)


def test_with_gradients_the_skip_solves_the_sylvester_equation() -> None:
    heads = pair()
    found = heads.start(split(X, Y), split(G_X, G_Y), 2.0)
    x, y = ((rows[:CUT] - rows[:CUT].mean(dim=0)).double().numpy() for rows in (X, Y))
    gx, gy = (rows[:CUT].double().numpy() for rows in (G_X, G_Y))
    power_y, power_g = (y**2).sum(), (gx**2).sum() / 2.0
    forward, back = x.T @ x / power_y, gy.T @ gy / power_g
    strength = found.strength
    assert strength is not None
    forward += strength * np.trace(forward) / WIDTH * np.eye(WIDTH)
    back += strength * np.trace(back) / OUT * np.eye(OUT)
    expected = solve_sylvester(back, forward, y.T @ x / power_y + gy.T @ gx / power_g)
    np.testing.assert_allclose(heads.head.skip.weight.detach(), expected, rtol=1e-4, atol=1e-5)
    plain = TwoSidedRidge(0.0).forward(split(X, Y).centred(), split(G_X, G_Y)).matrix.float()
    assert (plain - heads.head.skip.weight).abs().max() > 0.01


def test_losses_are_shares_of_what_there_is_to_explain() -> None:
    heads = trained()
    assert heads.back is not None
    losses = heads.losses(X, Y, None)
    made = heads.head(X)
    x_power, y_power = (
        (rows[:CUT] - rows[:CUT].mean(dim=0)).square().sum(dim=1).mean() for rows in (X, Y)
    )
    expected = (made - Y).square().sum(dim=1).mean() / y_power
    expected += (heads.back(Y) - X).square().sum(dim=1).mean() / x_power
    torch.testing.assert_close(losses.reconstruction, expected)
    again = (heads.back(made) - X).square().sum(dim=1).mean() / x_power
    torch.testing.assert_close(losses.cycle, again)
    assert float(losses.behaviour) == 0


def test_without_a_way_back_there_is_no_cycle() -> None:
    heads = pair(both=False)
    heads.start(split(X, Y), None, 1.0)
    assert heads.back is None
    assert float(heads.losses(X, Y, None).cycle) == 0


def test_the_mean_is_no_merit() -> None:
    """A head that gives the mean, whatever it reads, explains nothing."""
    heads = pair(both=False)
    heads.start(split(X, Y), None, 1.0)
    heads.head.start(torch.zeros(OUT, WIDTH), Y[:CUT].mean(dim=0))
    with torch.no_grad():
        loss = heads.losses(X[:CUT], Y[:CUT], None).reconstruction
    assert float(loss) == pytest.approx(1, rel=1e-5)


def test_behaviour_is_what_the_jacobian_carries_back() -> None:
    heads = trained()
    losses = heads.losses(X, Y, (G_X, G_Y))
    carried = torch.stack([jacobian(heads.head, x).mT @ g for x, g in zip(X, G_Y, strict=True)])
    expected = (carried - G_X).square().sum() / G_X.square().sum()
    torch.testing.assert_close(losses.behaviour, expected, rtol=1e-4, atol=1e-6)


def test_behaviour_trains_the_mlp_and_leaves_the_batch_as_it_was() -> None:
    heads, x = trained(), X.clone()
    heads.losses(x, Y, (G_X, G_Y)).behaviour.backward()
    assert heads.head.inner is not None
    assert heads.head.inner.weight.grad is not None
    assert heads.head.inner.weight.grad.abs().max() > 0
    assert not x.requires_grad
    # By finite differences, in one weight.
    weight, step = heads.head.inner.weight, 1e-2
    found = float(heads.head.inner.weight.grad[0, 0])
    ends = []
    for sign in (1, -1):
        weight.data[0, 0] += sign * step
        ends.append(float(heads.losses(x, Y, (G_X, G_Y)).behaviour.detach()))
        weight.data[0, 0] -= sign * step
    assert found == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.05, abs=1e-4)
