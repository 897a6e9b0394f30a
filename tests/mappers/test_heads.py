"""Heads: their formula, their start in closed form, their losses, and what they explain."""

import numpy as np
import pytest
import torch
from scipy.special import erf
from sklearn.linear_model import Ridge as SklearnRidge
from torch import Tensor
from torch.autograd.functional import jacobian

from loraport.adapters import Role, Site
from loraport.alignment.layer_matching import LayerPairing
from loraport.alignment.linear_maps import HeldOutError, SplitMoments, TwoSidedRidge
from loraport.alignment.moments import PairedMoments
from loraport.mappers.from_text import ModelPair, PairFrame
from loraport.mappers.heads import (
    STRENGTHS,
    HeadPair,
    Heads,
    Losses,
    ProjectionHead,
    Space,
    input_space,
    output_space,
    reconstruction_r2,
    reconstruction_sums,
)
from loraport.models.hooks import Tap


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head(hidden: int, seed: int = 1) -> ProjectionHead:
    made = ProjectionHead(5, 3, hidden, torch.Generator().manual_seed(seed))
    made.start(drawn(3, 5, seed=2), drawn(3, seed=3))
    return made


def test_it_is_the_formula() -> None:
    made, x = head(8), drawn(7, 5)
    assert made.inner is not None
    assert made.outer is not None
    torch.testing.assert_close(made(x), x @ drawn(3, 5, seed=2).mT + drawn(3, seed=3))
    with torch.no_grad():
        made.inner.bias.copy_(drawn(8, seed=4))
        made.outer.weight.copy_(drawn(3, 8, seed=5))
    rows = x.double().numpy()
    w1, b1, w2 = (
        t.detach().double().numpy() for t in (*made.inner.parameters(), drawn(3, 8, seed=5))
    )
    scaled = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + 1e-6)
    inside = scaled @ w1.T + b1
    gelu = inside * (1 + erf(inside / np.sqrt(2))) / 2
    skip = rows @ drawn(3, 5, seed=2).double().numpy().T + drawn(3, seed=3).double().numpy()
    np.testing.assert_allclose(made(x).detach().numpy(), skip + gelu @ w2.T, rtol=1e-4, atol=1e-5)


def test_without_an_mlp_it_has_no_other_weights_and_is_linear() -> None:
    made = head(0)
    assert {name for name, _ in made.named_parameters()} == {"skip.weight", "skip.bias"}
    one, other = drawn(4, 5), drawn(4, 5, seed=9)
    middle = made((one + other) / 2)
    torch.testing.assert_close(middle, (made(one) + made(other)) / 2)


GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(90, 5, generator=GENERATOR) + 1
Y = torch.randn(90, 4, generator=GENERATOR) + X[:, :4]
MATRIX = torch.randn(4, 5, generator=GENERATOR).double() / 4
FIT, HELD = slice(0, 60), slice(60, 90)


def test_r2_of_a_linear_map_is_what_the_linear_mappers_report() -> None:
    made = X.double() @ MATRIX.mT
    # Of the held-out rows in two batches, or on two devices.
    sums = reconstruction_sums(made[60:71].float(), Y[60:71])
    sums = sums + reconstruction_sums(made[71:].float(), Y[71:])
    train, held_out = (PairedMoments.of(X[part], Y[part]) for part in (FIT, HELD))
    expected = HeldOutError.of(MATRIX, train, held_out).r2
    assert reconstruction_r2(sums, Y[FIT].mean(dim=0)) == pytest.approx(expected, abs=1e-6)
    centred = HeldOutError.of(MATRIX, train.centred(), held_out.centred()).r2
    assert reconstruction_r2(sums) == pytest.approx(centred, abs=1e-6)


def test_a_constant_error_counts_only_where_values_count() -> None:
    away = reconstruction_sums(Y[HELD] + 3, Y[HELD])
    assert reconstruction_r2(away) == pytest.approx(1, abs=1e-6)
    assert reconstruction_r2(away, Y[FIT].mean(dim=0)) < 0
    flat = torch.ones(9, 3)
    nothing = reconstruction_sums(flat + 1, flat)
    assert reconstruction_r2(nothing) == reconstruction_r2(nothing, torch.ones(3)) == 0


# Skips are the closed forms, and losses what they are called, by independent computations.

ROWS, CUT, WIDTH, OUT = 200, 150, 6, 4


X_ROWS = drawn(ROWS, WIDTH) + 1
Y_ROWS = X_ROWS @ drawn(WIDTH, OUT, seed=1) + 0.5 * drawn(ROWS, OUT, seed=2) - 2
# Gradients of y, and what a map carries back of them to x, with noise.
G_Y = drawn(ROWS, OUT, seed=3)
G_X = G_Y @ drawn(OUT, WIDTH, seed=4) + 0.5 * drawn(ROWS, WIDTH, seed=5)


def split(x: Tensor, y: Tensor) -> SplitMoments:
    return SplitMoments(PairedMoments.of(x[:CUT], y[:CUT]), PairedMoments.of(x[CUT:], y[CUT:]))


def pair(hidden: int = 0, both: bool = True, gradients: bool = False) -> HeadPair:
    space = Space("x", "y", ("gx", "gy") if gradients else None, is_input=False)
    return HeadPair(space, WIDTH, OUT, hidden, both, torch.Generator().manual_seed(0))


def losses_of(heads: HeadPair, x: Tensor = X_ROWS, y: Tensor = Y_ROWS) -> Losses:
    return heads.losses({"x": x, "y": y, "gx": G_X, "gy": G_Y})


def trained(gradients: bool) -> HeadPair:
    """Heads whose MLPs do something."""
    heads = pair(8, gradients=gradients)
    heads.start(split(X_ROWS, Y_ROWS), None, 1.0)
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
    found = heads.start(split(X_ROWS, Y_ROWS), None, 1.0)
    assert heads.back is not None
    for head, fit in ((heads.head, ridge(X_ROWS, Y_ROWS)), (heads.back, ridge(Y_ROWS, X_ROWS))):
        np.testing.assert_allclose(head.skip.weight.detach(), fit.coef_, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(head.skip.bias.detach(), fit.intercept_, rtol=1e-4, atol=1e-5)
    error = (Y_ROWS[CUT:] - heads.head(X_ROWS[CUT:])).detach()
    there = Y_ROWS[CUT:] - Y_ROWS[CUT:].mean(dim=0)
    r2 = 1 - (error - error.mean(dim=0)).square().sum() / there.square().sum()
    assert found.error.r2 == pytest.approx(float(r2), abs=1e-5)


def test_with_gradients_the_skip_is_the_ridge_of_both_sides() -> None:
    heads, samples, gradients = pair(), split(X_ROWS, Y_ROWS), split(G_X, G_Y)
    heads.start(samples, gradients, 2.0)
    expected = TwoSidedRidge(2.0).forward(samples.centred(), gradients).matrix
    torch.testing.assert_close(heads.head.skip.weight.data, expected.float())
    plain = TwoSidedRidge(0.0).forward(samples.centred(), gradients).matrix
    assert (plain - expected).abs().max() > 0.01


def test_losses_are_shares_of_what_there_is_to_explain() -> None:
    heads = trained(gradients=False)
    assert heads.back is not None
    losses = losses_of(heads)
    made = heads.head(X_ROWS)
    x_power, y_power = (
        (rows[:CUT] - rows[:CUT].mean(dim=0)).square().sum(dim=1).mean()
        for rows in (X_ROWS, Y_ROWS)
    )
    expected = (made - Y_ROWS).square().sum(dim=1).mean() / y_power
    expected += (heads.back(Y_ROWS) - X_ROWS).square().sum(dim=1).mean() / x_power
    torch.testing.assert_close(losses.reconstruction, expected)
    again = (heads.back(made) - X_ROWS).square().sum(dim=1).mean() / x_power
    torch.testing.assert_close(losses.cycle, again)
    assert float(losses.behaviour) == 0


def test_the_mean_is_no_merit_and_without_a_way_back_there_is_no_cycle() -> None:
    """A head that gives the mean, whatever it reads, explains nothing."""
    heads = pair(both=False)
    heads.start(split(X_ROWS, Y_ROWS), None, 1.0)
    heads.head.start(torch.zeros(OUT, WIDTH), Y_ROWS[:CUT].mean(dim=0))
    with torch.no_grad():
        losses = losses_of(heads, X_ROWS[:CUT], Y_ROWS[:CUT])
    assert float(losses.reconstruction) == pytest.approx(1, rel=1e-5)
    assert float(losses.cycle) == 0


def test_behaviour_is_what_the_jacobian_carries_back() -> None:
    heads = trained(gradients=True)
    losses = losses_of(heads)
    carried = torch.stack(
        [jacobian(heads.head, x).mT @ g for x, g in zip(X_ROWS, G_Y, strict=True)]
    )
    expected = (carried - G_X).square().sum() / G_X.square().sum()
    torch.testing.assert_close(losses.behaviour, expected, rtol=1e-4, atol=1e-6)


def test_behaviour_trains_the_mlp_and_leaves_the_batch_as_it_was() -> None:
    heads, x = trained(gradients=True), X_ROWS.clone()
    losses_of(heads, x).behaviour.backward()
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
        ends.append(float(losses_of(heads, x).behaviour.detach()))
        weight.data[0, 0] -= sign * step
    assert found == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.05, abs=1e-4)


# All heads of a pair: which there are, what they share, and what each space is called.

ROLES = (Role.Q, Role.V, Role.DOWN)
# The last layer is fed by both of the source's.
PAIRING = LayerPairing(2, (((0, 1.0),), ((1, 1.0),), ((0, 0.5), (1, 0.5))))


@pytest.fixture(scope="module")
def frame(models: ModelPair) -> PairFrame:
    return PairFrame.of(models.source, models.target, PAIRING, ROLES)


@pytest.fixture
def heads(frame: PairFrame) -> Heads:
    return Heads(frame, hidden=4, both=True, gradients=True, seed=0)


def test_every_feed_has_an_output_projection_and_every_pair_of_inputs_an_input_projection(
    heads: Heads, frame: PairFrame
) -> None:
    assert len(heads.pairs) == 4 * len(ROLES)
    assert len(heads.output_projections) == 4 * len(ROLES)
    assert len(heads.input_projections) == 4 * 2  # q and v read the same
    q, v, down = ((Site(1, role), Site(2, role)) for role in ROLES)
    assert heads.input_heads(*q) is heads.input_heads(*v)
    assert heads.input_heads(*q) is not heads.input_heads(*down)
    assert heads.output_heads(*q) is not heads.output_heads(*v)
    for source, target in heads.pairs:
        (out_s, in_s), (out_t, in_t) = frame.source.shapes[source], frame.target.shapes[target]
        into, out = heads.input_heads(source, target), heads.output_heads(source, target)
        assert tuple(into.head.skip.weight.shape) == (in_s, in_t)
        assert tuple(out.head.skip.weight.shape) == (out_t, out_s)
        assert into.back is not None
        assert tuple(into.back.skip.weight.shape) == (in_t, in_s)


def test_each_space_is_named_once_and_leads_the_right_way(heads: Heads) -> None:
    assert len(heads.by_space) == 8 + 12
    pair = Site(1, Role.V), Site(2, Role.V)
    read, written = (
        heads.by_space[space(*pair).label].space for space in (input_space, output_space)
    )
    assert (read.x, read.y) == ("target.2.q.input", "source.1.q.input")
    assert (written.x, written.y) == ("source.1.v.output", "target.2.v.output")
    assert (read.gradients, read.is_input) == (None, True)
    assert written.gradients == ("source.1.v.gradient", "target.2.v.gradient")
    assert (heads.input_heads(*pair).space, heads.output_heads(*pair).space) == (read, written)


@pytest.mark.parametrize("gradients", [True, False])
def test_taps_are_those_that_the_spaces_take(frame: PairFrame, gradients: bool) -> None:
    heads = Heads(frame, hidden=0, both=False, gradients=gradients, seed=0)
    source, target = heads.taps()
    assert (Tap.gradient(Site(0, Role.Q)) in source) == gradients
    given = {tap.label_on("source") for tap in source} | {tap.label_on("target") for tap in target}
    spaces = [pair.space for pair in heads.by_space.values()]
    taken = {label for s in spaces for label in (s.x, s.y, *(s.gradients or ()))}
    assert given == taken
    assert len(source) == len(set(source))


def test_losses_are_means_over_spaces(heads: Heads) -> None:
    batch: dict[str, Tensor] = {}
    for seed, pair in enumerate(heads.by_space.values()):
        space, widths = pair.space, (pair.head.skip.in_features, pair.head.skip.out_features)
        for labels in ((space.x, space.y), space.gradients or ()):
            for label, width in zip(labels, widths, strict=False):
                batch.setdefault(label, drawn(5, width, seed=seed))
    losses = heads.losses(batch)
    single = [pair.losses(batch) for pair in heads.by_space.values()]
    for name, part in losses._asdict().items():
        expected = sum(getattr(one, name).item() for one in single) / len(single)
        assert part.item() == pytest.approx(expected, rel=1e-5)
    assert losses.behaviour > 0


def test_frozen_ones_are_the_same_weights_without_gradients(heads: Heads) -> None:
    frozen = heads.frozen()
    for (name, weight), (_, other) in zip(
        heads.named_parameters(), frozen.named_parameters(), strict=True
    ):
        assert weight.data_ptr() == other.data_ptr(), name
        assert weight.requires_grad
        assert not other.requires_grad
    pair = Site(1, Role.V), Site(2, Role.V)
    assert frozen.input_heads(*pair) is not heads.input_heads(*pair)
    assert frozen.input_heads(*pair) is frozen.input_heads(Site(1, Role.Q), Site(2, Role.Q))


def test_the_seed_alone_draws_the_mlps(frame: PairFrame) -> None:
    def weights(seed: int) -> Tensor:
        heads = Heads(frame, hidden=4, both=False, gradients=False, seed=seed)
        return torch.cat([weight.flatten() for weight in heads.parameters()])

    before = torch.get_rng_state()
    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
    assert torch.equal(torch.get_rng_state(), before)
