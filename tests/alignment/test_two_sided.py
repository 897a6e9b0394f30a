import pytest
import torch
from scipy.linalg import solve_sylvester
from torch import Tensor

from loraport.alignment.linear_maps import Ridge, SplitMoments
from loraport.alignment.moments import PairedMoments
from loraport.alignment.two_sided import TwoSidedRidge, gradient_r2

ROWS, CUT = 120, 90
WIDE, NARROW = 9, 6  # of the target and of the source


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def split(x: Tensor, y: Tensor) -> SplitMoments:
    """Three quarters to fit on, one held out."""
    return SplitMoments(PairedMoments.of(x[:CUT], y[:CUT]), PairedMoments.of(x[CUT:], y[CUT:]))


PLANTED = drawn(WIDE, NARROW, seed=1)
OUTPUTS = drawn(ROWS, NARROW, seed=2)
GRADIENTS = drawn(ROWS, WIDE, seed=3)


def noisy(noise: float = 0.5) -> tuple[SplitMoments, SplitMoments]:
    """What a planted map carries forward and back, with noise on both."""
    y = OUTPUTS @ PLANTED.mT + noise * drawn(ROWS, WIDE, seed=4)
    g = GRADIENTS @ PLANTED + noise * drawn(ROWS, NARROW, seed=5)
    return split(OUTPUTS, y).centred(), split(g, GRADIENTS)


@pytest.mark.parametrize("weight", [0.3, 1.0, 20.0])
@pytest.mark.parametrize("strength", [1e-4, 0.5])
def test_it_is_scipys_solution_of_the_sylvester_equation(weight: float, strength: float) -> None:
    outputs, gradients = noisy()
    found = TwoSidedRidge(weight, (strength,)).forward(outputs, gradients)
    y, g = outputs.train, gradients.train
    one, other = 1 / y.yy.trace(), weight / g.xx.trace()
    left, right = other * g.yy, one * y.xx
    left = left + strength * left.trace() / WIDE * torch.eye(WIDE).double()
    right = right + strength * right.trace() / NARROW * torch.eye(NARROW).double()
    wanted = one * y.xy.mT + other * g.xy.mT
    expected = torch.from_numpy(solve_sylvester(left.numpy(), right.numpy(), wanted.numpy()))
    torch.testing.assert_close(found.matrix, expected, rtol=1e-9, atol=1e-9)
    assert found.strength == strength


def test_it_minimises_both_errors_together() -> None:
    outputs, gradients = noisy()
    found = TwoSidedRidge(0.7, (1e-12,)).forward(outputs, gradients).matrix
    y = OUTPUTS[:CUT] @ PLANTED.mT + 0.5 * drawn(ROWS, WIDE, seed=4)[:CUT]
    g = GRADIENTS[:CUT] @ PLANTED + 0.5 * drawn(ROWS, NARROW, seed=5)[:CUT]
    x, y = (part - part.mean(dim=0) for part in (OUTPUTS[:CUT], y))

    matrix = found.clone().requires_grad_()
    forward = (y - x @ matrix.mT).square().sum() / y.square().sum()
    back = (g - GRADIENTS[:CUT] @ matrix).square().sum() / g.square().sum()
    (slope,) = torch.autograd.grad(forward + 0.7 * back, matrix)
    (alone,) = torch.autograd.grad((y - x @ matrix.mT).square().sum() / y.square().sum(), matrix)
    assert slope.norm() < 1e-9
    assert alone.norm() > 1e-3


@pytest.mark.parametrize("strengths", [(0.1,), (1e-4, 1e-2, 1.0)])
def test_weight_0_is_ridge_regression_on_outputs(strengths: tuple[float, ...]) -> None:
    outputs, gradients = noisy(3.0)
    found = TwoSidedRidge(0.0, strengths).forward(outputs, gradients)
    expected = Ridge(strengths).forward(*outputs)
    torch.testing.assert_close(found.matrix, expected.matrix, rtol=1e-8, atol=1e-9)
    assert found.strength == expected.strength
    assert found.error.r2 == pytest.approx(expected.error.r2)


def test_directions_without_activations_come_from_gradients() -> None:
    seen, unseen = torch.eye(NARROW, dtype=torch.float64).split([2, NARROW - 2])
    flat = OUTPUTS @ seen.mT @ seen
    outputs = split(flat, flat @ PLANTED.mT).centred()
    gradients = split(GRADIENTS @ PLANTED, GRADIENTS)
    found = TwoSidedRidge(1.0, (1e-9,)).forward(outputs, gradients)
    torch.testing.assert_close(found.matrix, PLANTED, rtol=0, atol=1e-6)
    assert gradient_r2(found.matrix, gradients) == pytest.approx(1)
    alone = Ridge((1e-9,)).forward(*outputs).matrix
    assert (alone @ unseen.mT).abs().max() < 1e-9
    assert gradient_r2(alone, gradients) < 0.9


def test_directions_without_gradients_come_from_activations() -> None:
    flat = GRADIENTS.clone()
    flat[:, 3:] = 0
    outputs = split(OUTPUTS, OUTPUTS @ PLANTED.mT).centred()
    found = TwoSidedRidge(1.0, (1e-9,)).forward(outputs, split(flat @ PLANTED, flat))
    torch.testing.assert_close(found.matrix, PLANTED, rtol=0, atol=1e-6)


def test_strength_is_that_of_least_held_out_loss() -> None:
    outputs, gradients = noisy(4.0)
    strengths = (1e-4, 1e-2, 0.1, 1.0, 10.0, 100.0)
    found = TwoSidedRidge(2.0, strengths).forward(outputs, gradients)
    y = (OUTPUTS @ PLANTED.mT + 4 * drawn(ROWS, WIDE, seed=4))[CUT:]
    g = (GRADIENTS @ PLANTED + 4 * drawn(ROWS, NARROW, seed=5))[CUT:]
    x, y = (part - part.mean(dim=0) for part in (OUTPUTS[CUT:], y))
    losses = {}
    for strength in strengths:
        matrix = TwoSidedRidge(2.0, (strength,)).forward(outputs, gradients).matrix
        forward = (y - x @ matrix.mT).square().sum() / outputs.train.yy.trace()
        back = (g - GRADIENTS[CUT:] @ matrix).square().sum() / gradients.train.xx.trace()
        losses[strength] = float(forward + 2 * back)
    assert found.strength == min(losses, key=lambda s: losses[s])
    assert found.strength not in (min(strengths), max(strengths))


def test_gradient_r2_is_that_of_held_out_rows() -> None:
    _, gradients = noisy()
    g = (GRADIENTS @ PLANTED + 0.5 * drawn(ROWS, NARROW, seed=5))[CUT:]
    missed = (g - GRADIENTS[CUT:] @ PLANTED).square().sum() / g.square().sum()
    assert gradient_r2(PLANTED, gradients) == pytest.approx(1 - float(missed))
    assert gradient_r2(torch.zeros_like(PLANTED), gradients) == pytest.approx(0)
    nothing = split(torch.zeros(ROWS, NARROW), torch.zeros(ROWS, WIDE))
    assert gradient_r2(PLANTED, nothing) == 0.0


def test_without_gradients_it_is_a_map_of_outputs() -> None:
    outputs, _ = noisy()
    nothing = split(torch.zeros(ROWS, NARROW), torch.zeros(ROWS, WIDE))
    found = TwoSidedRidge(1.0, (0.1,)).forward(outputs, nothing)
    torch.testing.assert_close(found.matrix, Ridge((0.1,)).forward(*outputs).matrix)
    nowhere = split(torch.zeros(ROWS, NARROW), torch.zeros(ROWS, WIDE)).centred()
    assert not TwoSidedRidge().forward(nowhere, nothing).matrix.any()


def test_no_strength_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one strength"):
        TwoSidedRidge(1.0, ()).forward(*noisy())
