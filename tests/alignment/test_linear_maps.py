from collections.abc import Sequence

import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.metrics import r2_score
from torch import Tensor

from loraport.alignment.linear_maps import (
    HeldOutError,
    MapRule,
    Ridge,
    Rotated,
)
from loraport.alignment.moments import PairedMoments
from loraport.alignment.procrustes import rotation

RULES = {"ridge": Ridge(), "rotated": Rotated()}
WEAK = Ridge((1e-9,))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def orthonormal(rows: int, columns: int, seed: int = 0) -> Tensor:
    q = torch.linalg.qr(drawn(max(rows, columns), min(rows, columns), seed=seed)).Q
    return q if rows >= columns else q.mT


def split(x: Tensor, y: Tensor) -> tuple[PairedMoments, PairedMoments]:
    """Three quarters to fit on, one held out."""
    cut = 3 * len(x) // 4
    return PairedMoments.of(x[:cut], y[:cut]), PairedMoments.of(x[cut:], y[cut:])


def centred(parts: Sequence[PairedMoments]) -> tuple[PairedMoments, PairedMoments]:
    one, other = parts
    return one.centred(), other.centred()


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
    of_centred = Ridge().forward(*centred(split(x, y)))
    held_x, held_y = (part[60:] - part[60:].mean(dim=0) for part in (x, y))
    sklearns = r2_score(
        held_y.numpy(),
        (held_x @ of_centred.matrix.mT).numpy(),
        multioutput="variance_weighted",
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
def test_planted_rotation_carries_an_update_exactly(rule: MapRule, narrow: int, wide: int) -> None:
    """algorithms: ``x_T = R^T x_S``, then ``dW_T x_T = R_out^T dW_S x_S`` and no other way."""
    hidden = drawn(400, min(narrow, wide))
    source = hidden @ orthonormal(min(narrow, wide), narrow, 5)
    planted_in, planted_out = orthonormal(narrow, wide, 1), orthonormal(7, 9, 2)
    if narrow > wide:
        planted_in = orthonormal(wide, narrow, 5).mT @ orthonormal(wide, wide, 6)
    outputs = drawn(400, 7, seed=8)
    given = split(source, source @ planted_in)
    written = centred(split(outputs, outputs @ planted_out))
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


def test_planted_linear_maps_with_noise_are_recovered_as_samples_grow() -> None:
    errors = []
    for rows in (500, 50_000):
        x = drawn(rows, 6)
        planted = drawn(6, 9, seed=1)
        found = Ridge((1e-6,)).forward(*split(x, x @ planted + 0.1 * drawn(rows, 9, seed=2)))
        errors.append(float((found.matrix - planted.mT).norm() / planted.norm()))
    assert errors[1] < 0.2 * errors[0] < 0.01


def test_planted_linear_map_is_recovered_to_1e4() -> None:
    x, reader, writer = drawn(400, 10), drawn(10, 8, seed=1), drawn(6, 9, seed=2)
    outputs, update = drawn(400, 6, seed=3), drawn(6, 8, seed=4)
    # x_S = M x_T, so that the target's inputs are those drawn.
    m = WEAK.backward(*split(x @ reader, x)).matrix
    n = WEAK.forward(*centred(split(outputs, outputs @ writer))).matrix
    expected = writer.mT @ update @ reader.mT
    assert float((n @ update @ m - expected).norm() / expected.norm()) < 1e-4


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
def test_fewer_anchors_than_dimensions_leave_unseen_directions_alone(rule: MapRule) -> None:
    x = drawn(8, 30)
    train = PairedMoments.of(x, x @ orthonormal(30, 30, 1))
    held_out = PairedMoments.of(drawn(5, 30, seed=2), drawn(5, 30, seed=3))
    unseen = torch.linalg.svd(x).Vh[8:]
    assert float((rule.forward(train, held_out).matrix @ unseen.mT).abs().max()) < 1e-8
    behind = unseen @ orthonormal(30, 30, 1)
    assert float((rule.backward(train, held_out).matrix @ behind.mT).abs().max()) < 1e-8


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_samples_of_zeros_give_no_map(rule: MapRule) -> None:
    zeros = PairedMoments.of(torch.zeros(5, 3), torch.ones(5, 4))
    assert not rule.forward(zeros, zeros).matrix.any()


def test_no_strength_is_refused() -> None:
    some = PairedMoments.of(drawn(5, 3), drawn(5, 3))
    with pytest.raises(ValueError, match="at least one strength"):
        Ridge(()).forward(some, some)
