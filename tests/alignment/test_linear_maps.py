import numpy as np
import pytest
import torch
from scipy.linalg import solve_sylvester
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.metrics import r2_score
from torch import Tensor

from loraport.alignment.linear_maps import (
    HeldOutError,
    Ridge,
    Rotated,
    SplitMoments,
    TwoSidedRidge,
    gradient_r2,
    reduced_rank_regression,
)
from loraport.alignment.moments import PairedMoments
from loraport.alignment.procrustes import rotation

RULES = {"ridge": Ridge(), "rotated": Rotated()}
WEAK = Ridge((1e-9,))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def orthodrawn(rows: int, columns: int, seed: int = 0) -> Tensor:
    q = torch.linalg.qr(drawn(max(rows, columns), min(rows, columns), seed=seed)).Q
    return q if rows >= columns else q.mT


def split(x: Tensor, y: Tensor) -> SplitMoments:
    """Three quarters to fit on, one held out."""
    cut = 3 * len(x) // 4
    return SplitMoments(PairedMoments.of(x[:cut], y[:cut]), PairedMoments.of(x[cut:], y[cut:]))


@pytest.mark.parametrize("strength", [1e-3, 0.5])
def test_ridge_is_sklearns(strength: float) -> None:
    x, y = drawn(80, 6) @ drawn(6, 6, seed=1) + 1, drawn(80, 4, seed=2)
    train, held_out = split(x, y)
    found = Ridge((strength,)).forward(train, held_out)
    penalty = strength * float(train.xx.trace()) / 6
    expected = SklearnRidge(alpha=penalty, fit_intercept=False).fit(x[:60].numpy(), y[:60].numpy())
    assert torch.allclose(found.matrix, torch.from_numpy(expected.coef_), atol=1e-9)
    assert found.strength == strength


def test_strength_is_that_of_least_held_out_error() -> None:
    x = drawn(60, 20)
    y = x @ drawn(20, 5, seed=1) + 8 * drawn(60, 5, seed=2)
    train, held_out = split(x, y)
    found = Ridge().forward(train, held_out)
    errors = {}
    for strength in Ridge().strengths:
        matrix = Ridge((strength,)).forward(train, held_out).matrix
        errors[strength] = float((y[45:] - x[45:] @ matrix.mT).square().sum())
    assert found.strength == min(errors, key=lambda s: errors[s])
    assert found.strength not in (min(errors), max(errors))


def test_r2_is_sklearns_against_the_mean_of_the_training_part() -> None:
    x, y = drawn(80, 5), drawn(80, 3, seed=1) + drawn(1, 3, seed=2)
    y = y + x @ drawn(5, 3, seed=3)
    train, held_out = split(x, y)
    found = Ridge().forward(train, held_out)
    predicted = x[60:] @ found.matrix.mT
    missed = (y[60:] - predicted).square().sum()
    expected = 1 - missed / (y[60:] - y[:60].mean(dim=0)).square().sum()
    assert found.error.r2 == pytest.approx(float(expected))
    of_centred = Ridge().forward(*split(x, y).centred())
    held_x, held_y = (part[60:] - part[60:].mean(dim=0) for part in (x, y))
    sklearns = r2_score(
        held_y.numpy(), (held_x @ of_centred.matrix.mT).numpy(), multioutput="variance_weighted"
    )
    assert of_centred.error.r2 == pytest.approx(sklearns)


def test_a_large_mean_is_no_skill() -> None:
    x, y = drawn(400, 5) + 50, drawn(400, 3, seed=1) + 50
    found = WEAK.forward(*split(x, y))
    assert float((y - x @ found.matrix.mT).square().sum()) < 1e-3 * float(y.square().sum())
    assert found.error.r2 < 0


def test_restricted_r2_is_that_of_what_the_adapter_reads() -> None:
    x = drawn(200, 6)
    y = torch.cat([x[:, :3], drawn(200, 3, seed=1)], dim=1)
    found = WEAK.forward(*split(x, y))
    a = torch.zeros(2, 6)
    a[0, 0], a[1, 1] = 3, 1
    assert found.error.restricted_r2(a) == pytest.approx(1)
    assert found.error.restricted_r2(a.flip(1)) < 0.1
    mixed = drawn(2, 6, seed=4)
    code, predicted = y[150:] @ mixed.mT, x[150:] @ found.matrix.mT @ mixed.mT
    mean = y[:150].mean(dim=0) @ mixed.mT
    expected = 1 - (code - predicted).square().sum() / (code - mean).square().sum()
    assert found.error.restricted_r2(mixed) == pytest.approx(float(expected))
    nothing = HeldOutError(torch.zeros(6, 6), torch.zeros(6, 6))
    assert (nothing.r2, nothing.restricted_r2(a)) == (0.0, 0.0)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize(("narrow", "wide"), [(8, 8), (8, 11), (11, 8)])
def test_planted_rotation_carries_an_update_exactly(
    rule: Ridge | Rotated, narrow: int, wide: int
) -> None:
    """If ``x_T = R^T x_S``, then ``dW_T x_T = R_out^T dW_S x_S`` and no other way."""
    hidden = drawn(400, min(narrow, wide))
    source = hidden @ orthodrawn(min(narrow, wide), narrow, 5)
    planted_in, planted_out = orthodrawn(narrow, wide, 1), orthodrawn(7, 9, 2)
    if narrow > wide:
        planted_in = orthodrawn(wide, narrow, 5).mT @ orthodrawn(wide, wide, 6)
    outputs = drawn(400, 7, seed=8)
    given = split(source, source @ planted_in)
    written = split(outputs, outputs @ planted_out).centred()
    m, n = rule.backward(*given), rule.forward(*written)
    update = drawn(7, narrow, seed=3)
    carried = n.matrix @ update @ m.matrix
    expected = planted_out.mT @ update @ source[:20].mT
    assert torch.allclose(carried @ (source[:20] @ planted_in).mT, expected, rtol=0, atol=1e-2)
    if isinstance(rule, Rotated):
        assert torch.allclose(carried, planted_out.mT @ update @ planted_in, atol=1e-8)
        backwards = planted_out.mT @ update @ m.matrix.flip(0)
        assert (backwards - carried).norm() > carried.norm()
    assert min(m.error.r2, n.error.r2) > 0.9999


def test_rotation_is_the_same_in_both_directions() -> None:
    x, y = drawn(60, 5), drawn(60, 7, seed=1)
    train, held_out = split(x, y)
    rule = Rotated(scaled=False)
    there, back = rule.forward(train, held_out), rule.backward(train, held_out)
    assert torch.allclose(there.matrix, back.matrix.mT)
    scaled = Rotated().forward(train, held_out)
    assert torch.allclose(scaled.matrix, rotation(train).scale * there.matrix)
    error = [float((y[:45] - c * x[:45] @ scaled.matrix.mT).norm()) for c in (0.99, 1.0, 1.01)]
    assert error[1] == min(error)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_fewer_anchors_than_dimensions_leave_unseen_directions_alone(rule: Ridge | Rotated) -> None:
    x = drawn(8, 30)
    train = PairedMoments.of(x, x @ orthodrawn(30, 30, 1))
    held_out = PairedMoments.of(drawn(5, 30, seed=2), drawn(5, 30, seed=3))
    unseen = torch.linalg.svd(x).Vh[8:]
    assert float((rule.forward(train, held_out).matrix @ unseen.mT).abs().max()) < 1e-8
    behind = unseen @ orthodrawn(30, 30, 1)
    assert float((rule.backward(train, held_out).matrix @ behind.mT).abs().max()) < 1e-8


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_samples_of_zeros_give_no_map(rule: Ridge | Rotated) -> None:
    zeros = PairedMoments.of(torch.zeros(5, 3), torch.ones(5, 4))
    assert not rule.forward(zeros, zeros).matrix.any()


X, Y, ROWS = 7, 5, 60


def samples(rows: int, seed: int, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Far from the origin, with inputs of very different variances, and a map of rank 2."""
    scales = torch.logspace(-1, 1, X, dtype=torch.float64)
    x = 1 + drawn(rows, X, seed=seed) * scales
    planted = drawn(X, 2, seed=100) @ drawn(2, Y, seed=101)
    return x, x @ planted + noise * drawn(rows, Y, seed=seed + 1)


def exact(x: Tensor, y: Tensor, rank: int, penalty: float) -> np.ndarray:
    """Izenman's estimator by full ridge and the SVD of what it fits, penalty rows included."""
    ridge = SklearnRidge(alpha=penalty, fit_intercept=False, solver="svd").fit(x.numpy(), y.numpy())
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


def test_what_exceeds_the_dimensions_is_zero() -> None:
    moments = PairedMoments.of(*samples(ROWS, seed=0))
    fit = reduced_rank_regression(moments, moments, Y + 4, [0.1])
    assert fit.A.shape == (Y + 4, X)
    assert fit.B.shape == (Y, Y + 4)
    assert not fit.A[Y:].any()
    assert not fit.B[:, Y:].any()
    whole = reduced_rank_regression(moments, moments, Y, [0.1])
    torch.testing.assert_close(fit.B @ fit.A, whole.B @ whole.A)


def test_held_out_samples_choose_the_strength() -> None:
    x, y = samples(10, seed=0, noise=8.0)
    other = samples(500, seed=20, noise=8.0)
    train, held_out = PairedMoments.of(x, y), PairedMoments.of(*other)
    shares = {}
    for strength in (1e-6, 1e-3, 1e-1, 1.0, 100.0):
        fit = reduced_rank_regression(train, held_out, 3, [strength])
        left = (other[1] - other[0] @ fit.A.mT @ fit.B.mT).square().sum()
        shares[strength] = float(1 - left / other[1].square().sum())
        assert fit.r2 == pytest.approx(shares[strength])
    chosen = reduced_rank_regression(train, held_out, 3, list(shares))
    assert chosen.r2 == pytest.approx(max(shares.values()))
    assert shares[chosen.strength] == max(shares.values())
    assert chosen.strength > min(shares)


def test_nothing_to_explain_is_no_map_and_a_singular_problem_is_refused() -> None:
    x, _ = samples(ROWS, seed=0)
    moments = PairedMoments.of(x, torch.zeros(ROWS, Y, dtype=torch.float64))
    fit = reduced_rank_regression(moments, moments, 2, [0.1, 1.0])
    assert not (fit.B @ fit.A).any()
    assert fit.r2 == 0.0
    x[:, 0] = 0
    few = PairedMoments.of(x[:3], x[:3, :Y])
    with pytest.raises(ValueError, match="singular at strength 0"):
        reduced_rank_regression(few, few, 2, [0.0])


SAMPLES, CUT = 120, 90
WIDE, NARROW = 9, 6  # of the target and of the source


PLANTED = drawn(WIDE, NARROW, seed=1)
OUTPUTS = drawn(SAMPLES, NARROW, seed=2)
GRADIENTS = drawn(SAMPLES, WIDE, seed=3)


def carried(noise: float) -> tuple[Tensor, Tensor]:
    """Outputs that a planted map carries forward and gradients that it carries back, with noise."""
    y = OUTPUTS @ PLANTED.mT + noise * drawn(SAMPLES, WIDE, seed=4)
    return y, GRADIENTS @ PLANTED + noise * drawn(SAMPLES, NARROW, seed=5)


def noisy(noise: float = 0.5) -> tuple[SplitMoments, SplitMoments]:
    y, g = carried(noise)
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


def test_strength_is_that_of_least_held_out_loss() -> None:
    outputs, gradients = noisy(4.0)
    strengths = (1e-4, 1e-2, 0.1, 1.0, 10.0, 100.0)
    found = TwoSidedRidge(2.0, strengths).forward(outputs, gradients)
    y, g = (part[CUT:] for part in carried(4.0))
    x, y = (part - part.mean(dim=0) for part in (OUTPUTS[CUT:], y))
    losses = {}
    for strength in strengths:
        matrix = TwoSidedRidge(2.0, (strength,)).forward(outputs, gradients).matrix
        forward = (y - x @ matrix.mT).square().sum() / outputs.train.yy.trace()
        back = (g - GRADIENTS[CUT:] @ matrix).square().sum() / gradients.train.xx.trace()
        losses[strength] = float(forward + 2 * back)
    assert found.strength == min(losses, key=lambda s: losses[s])
    assert found.strength not in (min(strengths), max(strengths))
    missed = (g - GRADIENTS[CUT:] @ found.matrix).square().sum() / g.square().sum()
    assert found.gradient_r2 == pytest.approx(1 - float(missed))


def test_without_gradients_it_is_a_map_of_outputs() -> None:
    outputs, _ = noisy()
    nothing = split(torch.zeros(SAMPLES, NARROW), torch.zeros(SAMPLES, WIDE))
    assert gradient_r2(PLANTED, nothing) == 0.0
    found = TwoSidedRidge(1.0, (0.1,)).forward(outputs, nothing)
    torch.testing.assert_close(found.matrix, Ridge((0.1,)).forward(*outputs).matrix)
    assert not TwoSidedRidge().forward(nothing, nothing).matrix.any()
