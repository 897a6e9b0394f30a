"""Rows on disk: captured once, taken up where they were left, in an order that the seed gives."""

import random
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import solve_sylvester
from scipy.special import erf
from sklearn.linear_model import Ridge as SklearnRidge
from torch import Tensor
from torch.autograd.functional import jacobian

from loraport.adapters import Role, Site
from loraport.alignment.layer_matching import LayerPairing
from loraport.alignment.linear_maps import HeldOutError, SplitMoments, TwoSidedRidge
from loraport.alignment.moments import PairedMoments
from loraport.data import AllEnds, TextCorpus
from loraport.mappers.activation_rows import ActivationRows
from loraport.mappers.from_text import ModelPair, PairFrame
from loraport.mappers.heads import (
    STRENGTHS,
    HeadPair,
    Heads,
    ProjectionHead,
    Reconstruction,
    input_label,
    output_label,
)
from loraport.models import BaseModel, capture
from loraport.models.hooks import Tap

TAPS = (
    [Tap.input(Site(1, Role.V)), Tap.output(Site(1, Role.V))],
    [Tap.input(Site(2, Role.V)), Tap.output(Site(2, Role.V))],
)
LABELS = ("source.1.q.input", "source.1.v.output", "target.2.q.input", "target.2.v.output")


class Letters:
    def texts(self, split: str) -> Iterator[str]:
        draw = random.Random(split)
        for _ in range(60):
            yield "".join(draw.choices(string.ascii_letters, k=30))


@pytest.fixture(scope="module")
def models(pico: Any, pico_target: BaseModel) -> ModelPair:
    return ModelPair(pico("llama"), pico_target)


@pytest.fixture(scope="module")
def corpus(models: ModelPair) -> TextCorpus:
    tokenizers = models.source.tokenizer, models.target.tokenizer
    return TextCorpus(
        Letters(),
        *tokenizers,
        tokens=700,
        held_out_tokens=250,
        batch_tokens=128,
        ends=AllEnds(),
    )


def rows_of(corpus: TextCorpus, models: ModelPair, folder: Path, seed: int = 0) -> ActivationRows:
    return ActivationRows(corpus, models, TAPS, folder, batch_rows=100, seed=seed)


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any model that runs fail the test."""

    def run(*_: object, **__: object) -> Iterator[object]:
        raise AssertionError("a model was run")
        yield

    monkeypatch.setattr(capture, "paired_readings", run)


def at(data: ActivationRows, epoch: int, rank: int = 0, devices: int = 1) -> ActivationRows:
    """Put the data into a trainer's hands."""
    trainer: Any = SimpleNamespace(current_epoch=epoch, global_rank=rank, world_size=devices)
    data.trainer = trainer
    return data


def test_rows_are_the_models_activations_at_aligned_tokens(
    corpus: TextCorpus, models: ModelPair, tmp_path: Path
) -> None:
    data = rows_of(corpus, models, tmp_path)
    batches = list(corpus.val_dataloader())
    found = data.all_rows("target.2.v.output", "held_out", 10**6)
    tap = Tap.output(Site(2, Role.V))
    expected = torch.cat(
        [
            capture.readings(models.target.network, b.target, b.target_places, [tap])[tap]
            for b in batches
        ]
    )
    assert torch.equal(found, expected.bfloat16().float())
    served = torch.cat([batch["target.2.v.output"] for batch in data.val_dataloader()])
    assert torch.equal(served, found)
    assert data.all_rows(LABELS[0], "train", 7).shape == (7, 32)


def test_a_finished_capture_is_never_run_again(
    corpus: TextCorpus, models: ModelPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = rows_of(corpus, models, tmp_path)
    first.prepare_data()
    forbid(monkeypatch)
    again = rows_of(corpus, models, tmp_path)
    again.prepare_data()
    for label in LABELS:
        one, other = (data.all_rows(label, "train", 10**6) for data in (first, again))
        assert torch.equal(one, other)
    other_taps = ActivationRows(corpus, models, (TAPS[0][:1], TAPS[1][:1]), tmp_path, 100, 0)
    with pytest.raises(AssertionError, match="a model was run"):
        other_taps.prepare_data()


def test_a_capture_that_was_stopped_goes_on(
    corpus: TextCorpus, models: ModelPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rows_of(corpus, models, tmp_path / "whole")
    whole.prepare_data()
    run, seen = capture.paired_readings, []

    def stopped(*args: Any) -> Iterator[Any]:
        for place, read in enumerate(run(*args)):
            if place == 2:
                raise KeyboardInterrupt
            yield read

    def counted(*args: Any) -> Iterator[Any]:
        seen.append(len(args[2]))
        yield from run(*args)

    monkeypatch.setattr(capture, "paired_readings", stopped)
    with pytest.raises(KeyboardInterrupt):
        rows_of(corpus, models, tmp_path / "broken").prepare_data()
    monkeypatch.setattr(capture, "paired_readings", counted)
    rest = rows_of(corpus, models, tmp_path / "broken")
    rest.prepare_data()
    assert seen == [len(corpus.train_dataloader()) - 2, len(corpus.val_dataloader())]
    for label in LABELS:
        for split in ("train", "held_out"):
            one, other = (data.all_rows(label, split, 10**6) for data in (whole, rest))
            assert torch.equal(one, other)


def test_the_order_is_that_of_seed_and_epoch(
    corpus: TextCorpus, models: ModelPair, tmp_path: Path
) -> None:
    def served(seed: int, epoch: int) -> torch.Tensor:
        data = at(rows_of(corpus, models, tmp_path, seed), epoch)
        batches = list(data.train_dataloader())
        assert len(batches) == len(data.train_dataloader())
        pairs = [torch.cat([batch[LABELS[0]], batch[LABELS[2]]], dim=1) for batch in batches]
        return torch.cat(pairs)

    one = served(0, 1)
    assert torch.equal(one, served(0, 1))
    rows = {tuple(row) for row in one.tolist()}
    for seed, epoch in ((0, 0), (0, 2), (1, 1)):
        other = served(seed, epoch)
        assert not torch.equal(one, other)
        # The same pairs of rows, in another order.
        assert {tuple(row) for row in other.tolist()} == rows


def test_each_device_sees_other_rows_and_equally_many_batches(
    corpus: TextCorpus, models: ModelPair, tmp_path: Path
) -> None:
    shares, counts = [], set()
    for rank in range(3):
        data = at(rows_of(corpus, models, tmp_path), 1, rank, 3)
        batches = list(data.train_dataloader())
        counts.add((len(batches), len(data.train_dataloader())))
        shares.append(torch.cat([batch[LABELS[0]] for batch in batches]))
    assert len(counts) == 1
    assert len({len(share) for share in shares}) == 1
    every = torch.cat(shares)
    whole = rows_of(corpus, models, tmp_path).all_rows(LABELS[0], "train", 10**6)
    assert len(whole) - 3 < len(every) <= len(whole)
    assert len(every.unique(dim=0)) == len(every) - (len(whole) - len(whole.unique(dim=0)))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head(hidden: int, seed: int = 1) -> ProjectionHead:
    made = ProjectionHead(5, 3, hidden, torch.Generator().manual_seed(seed))
    made.start(drawn(3, 5, seed=2), drawn(3, seed=3))
    return made


def test_it_begins_as_its_skip() -> None:
    x = drawn(2, 7, 5)
    torch.testing.assert_close(head(8)(x), x @ drawn(3, 5, seed=2).mT + drawn(3, seed=3))


def test_it_is_the_formula() -> None:
    made, x = head(8), drawn(7, 5)
    assert made.inner is not None
    assert made.outer is not None
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


def test_the_generator_alone_draws_the_mlp() -> None:
    before = torch.get_rng_state()
    one, same, other = head(8), head(8), head(8, seed=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.inner is not None
    assert same.inner is not None
    assert other.inner is not None
    assert torch.equal(one.inner.weight, same.inner.weight)
    assert not torch.equal(one.inner.weight, other.inner.weight)


GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(90, 5, generator=GENERATOR) + 1
Y = torch.randn(90, 4, generator=GENERATOR) + X[:, :4]
MATRIX = torch.randn(4, 5, generator=GENERATOR).double() / 4
FIT, HELD = slice(0, 60), slice(60, 90)


def found() -> Reconstruction:
    """Of the held-out rows in two batches, as a linear map makes them."""
    made = X.double() @ MATRIX.mT
    return Reconstruction.of(made[60:71].float(), Y[60:71]) + Reconstruction.of(
        made[71:].float(), Y[71:]
    )


def test_of_a_linear_map_it_is_what_the_linear_mappers_report() -> None:
    train, held_out = (PairedMoments.of(X[part], Y[part]) for part in (FIT, HELD))
    expected = HeldOutError.of(MATRIX, train, held_out).r2
    assert found().r2(Y[FIT].mean(dim=0)) == pytest.approx(expected, abs=1e-6)
    centred = HeldOutError.of(MATRIX, train.centred(), held_out.centred()).r2
    assert found().centred_r2() == pytest.approx(centred, abs=1e-6)


def test_a_constant_error_counts_only_where_values_count() -> None:
    away = Reconstruction.of(Y[HELD] + 3, Y[HELD])
    assert away.centred_r2() == pytest.approx(1, abs=1e-6)
    assert away.r2(Y[FIT].mean(dim=0)) < 0


def test_sums_of_two_devices_are_those_of_all_rows() -> None:
    halves = [Reconstruction.of(X[part, :4], Y[part]) for part in (slice(0, 45), slice(45, 90))]
    sums = iter([torch.stack(parts).sum(dim=0) for parts in zip(*map(_parts, halves), strict=True)])
    both = halves[0].reduced(lambda tensor: next(sums))
    whole = Reconstruction.of(X[:, :4], Y)
    assert both.r2(Y.mean(dim=0)) == pytest.approx(whole.r2(Y.mean(dim=0)), abs=1e-9)


def test_rows_that_do_not_vary_give_zero() -> None:
    flat = torch.ones(9, 3)
    assert Reconstruction.of(flat + 1, flat).centred_r2() == 0
    assert Reconstruction.of(flat + 1, flat).r2(torch.ones(3)) == 0


def _parts(one: Reconstruction) -> tuple[torch.Tensor, ...]:
    return one.sums, one.missed, one.there


# Skips are the closed forms, and losses what they are called, by independent computations.

ROWS, CUT, WIDTH, OUT = 200, 150, 6, 4


X_HEAD_PAIR = drawn(ROWS, WIDTH) + 1
Y_HEAD_PAIR = X_HEAD_PAIR @ drawn(WIDTH, OUT, seed=1) + 0.5 * drawn(ROWS, OUT, seed=2) - 2
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
    heads.start(split(X_HEAD_PAIR, Y_HEAD_PAIR), None, 1.0)
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
    found = heads.start(split(X_HEAD_PAIR, Y_HEAD_PAIR), None, 1.0)
    assert heads.back is not None
    for head, fit in (
        (heads.head, ridge(X_HEAD_PAIR, Y_HEAD_PAIR)),
        (heads.back, ridge(Y_HEAD_PAIR, X_HEAD_PAIR)),
    ):
        np.testing.assert_allclose(head.skip.weight.detach(), fit.coef_, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(head.skip.bias.detach(), fit.intercept_, rtol=1e-4, atol=1e-5)
    error = (Y_HEAD_PAIR[CUT:] - heads.head(X_HEAD_PAIR[CUT:])).detach()
    there = Y_HEAD_PAIR[CUT:] - Y_HEAD_PAIR[CUT:].mean(dim=0)
    r2 = 1 - (error - error.mean(dim=0)).square().sum() / there.square().sum()
    assert found.error.r2 == pytest.approx(float(r2), abs=1e-5)


def test_with_gradients_the_skip_solves_the_sylvester_equation() -> None:
    heads = pair()
    found = heads.start(split(X_HEAD_PAIR, Y_HEAD_PAIR), split(G_X, G_Y), 2.0)
    x, y = (
        (rows[:CUT] - rows[:CUT].mean(dim=0)).double().numpy()
        for rows in (X_HEAD_PAIR, Y_HEAD_PAIR)
    )
    gx, gy = (rows[:CUT].double().numpy() for rows in (G_X, G_Y))
    power_y, power_g = (y**2).sum(), (gx**2).sum() / 2.0
    forward, back = x.T @ x / power_y, gy.T @ gy / power_g
    strength = found.strength
    assert strength is not None
    forward += strength * np.trace(forward) / WIDTH * np.eye(WIDTH)
    back += strength * np.trace(back) / OUT * np.eye(OUT)
    expected = solve_sylvester(back, forward, y.T @ x / power_y + gy.T @ gx / power_g)
    np.testing.assert_allclose(heads.head.skip.weight.detach(), expected, rtol=1e-4, atol=1e-5)
    plain = (
        TwoSidedRidge(0.0)
        .forward(split(X_HEAD_PAIR, Y_HEAD_PAIR).centred(), split(G_X, G_Y))
        .matrix.float()
    )
    assert (plain - heads.head.skip.weight).abs().max() > 0.01


def test_losses_are_shares_of_what_there_is_to_explain() -> None:
    heads = trained()
    assert heads.back is not None
    losses = heads.losses(X_HEAD_PAIR, Y_HEAD_PAIR, None)
    made = heads.head(X_HEAD_PAIR)
    x_power, y_power = (
        (rows[:CUT] - rows[:CUT].mean(dim=0)).square().sum(dim=1).mean()
        for rows in (X_HEAD_PAIR, Y_HEAD_PAIR)
    )
    expected = (made - Y_HEAD_PAIR).square().sum(dim=1).mean() / y_power
    expected += (heads.back(Y_HEAD_PAIR) - X_HEAD_PAIR).square().sum(dim=1).mean() / x_power
    torch.testing.assert_close(losses.reconstruction, expected)
    again = (heads.back(made) - X_HEAD_PAIR).square().sum(dim=1).mean() / x_power
    torch.testing.assert_close(losses.cycle, again)
    assert float(losses.behaviour) == 0


def test_without_a_way_back_there_is_no_cycle() -> None:
    heads = pair(both=False)
    heads.start(split(X_HEAD_PAIR, Y_HEAD_PAIR), None, 1.0)
    assert heads.back is None
    assert float(heads.losses(X_HEAD_PAIR, Y_HEAD_PAIR, None).cycle) == 0


def test_the_mean_is_no_merit() -> None:
    """A head that gives the mean, whatever it reads, explains nothing."""
    heads = pair(both=False)
    heads.start(split(X_HEAD_PAIR, Y_HEAD_PAIR), None, 1.0)
    heads.head.start(torch.zeros(OUT, WIDTH), Y_HEAD_PAIR[:CUT].mean(dim=0))
    with torch.no_grad():
        loss = heads.losses(X_HEAD_PAIR[:CUT], Y_HEAD_PAIR[:CUT], None).reconstruction
    assert float(loss) == pytest.approx(1, rel=1e-5)


def test_behaviour_is_what_the_jacobian_carries_back() -> None:
    heads = trained()
    losses = heads.losses(X_HEAD_PAIR, Y_HEAD_PAIR, (G_X, G_Y))
    carried = torch.stack(
        [jacobian(heads.head, x).mT @ g for x, g in zip(X_HEAD_PAIR, G_Y, strict=True)]
    )
    expected = (carried - G_X).square().sum() / G_X.square().sum()
    torch.testing.assert_close(losses.behaviour, expected, rtol=1e-4, atol=1e-6)


def test_behaviour_trains_the_mlp_and_leaves_the_batch_as_it_was() -> None:
    heads, x = trained(), X_HEAD_PAIR.clone()
    heads.losses(x, Y_HEAD_PAIR, (G_X, G_Y)).behaviour.backward()
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
        ends.append(float(heads.losses(x, Y_HEAD_PAIR, (G_X, G_Y)).behaviour.detach()))
        weight.data[0, 0] -= sign * step
    assert found == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=0.05, abs=1e-4)


# All heads of a pair: which there are, what they share, and what each space is called.

ROLES = (Role.Q, Role.V, Role.DOWN)
# The last layer is fed by both of the source's.
PAIRING = LayerPairing(2, (((0, 1.0),), ((1, 1.0),), ((0, 0.5), (1, 0.5))))


@pytest.fixture(scope="module")
def frame(pico: Callable[[str], BaseModel], pico_target: BaseModel) -> PairFrame:
    return PairFrame.of(pico("llama"), pico_target, PAIRING, ROLES)


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
    labels = [space.label for space in heads.spaces]
    assert len(set(labels)) == len(labels) == 8 + 12
    spaces = {space.label: space for space in heads.spaces}
    pair = Site(1, Role.V), Site(2, Role.V)
    read, written = spaces[input_label(*pair)], spaces[output_label(*pair)]
    assert (read.x, read.y) == ("target.2.q.input", "source.1.q.input")
    assert (written.x, written.y) == ("source.1.v.output", "target.2.v.output")
    assert (read.gradients, read.is_input) == (None, True)
    assert written.gradients == ("source.1.v.gradient", "target.2.v.gradient")
    assert (read.heads, written.heads) == (heads.input_heads(*pair), heads.output_heads(*pair))


@pytest.mark.parametrize("gradients", [True, False])
def test_taps_are_those_that_the_spaces_take(frame: PairFrame, gradients: bool) -> None:
    heads = Heads(frame, hidden=0, both=False, gradients=gradients, seed=0)
    source, target = heads.taps()
    assert (Tap.gradient(Site(0, Role.Q)) in source) == gradients
    given = {tap.label_on("source") for tap in source} | {tap.label_on("target") for tap in target}
    taken = {label for s in heads.spaces for label in (s.x, s.y, *(s.gradients or ()))}
    assert given == taken
    assert len(source) == len(set(source))


def test_losses_are_means_over_spaces(heads: Heads) -> None:
    generator = torch.Generator().manual_seed(0)
    batch: dict[str, torch.Tensor] = {}
    for space in heads.spaces:
        for label, head in ((space.x, space.heads.head), (space.y, space.heads.back)):
            assert head is not None
            batch.setdefault(label, torch.randn(5, head.skip.in_features, generator=generator))
        for label, like in zip(space.gradients or (), (space.x, space.y), strict=False):
            batch[label] = torch.randn(batch[like].shape, generator=generator)
    losses = heads.losses(batch)
    single = [
        s.heads.losses(
            batch[s.x],
            batch[s.y],
            None if s.gradients is None else (batch[s.gradients[0]], batch[s.gradients[1]]),
        )
        for s in heads.spaces
    ]
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


def test_the_seed_draws_the_mlps(frame: PairFrame) -> None:
    def drawn(seed: int) -> torch.Tensor:
        heads = Heads(frame, hidden=4, both=False, gradients=False, seed=seed)
        return torch.cat([weight.flatten() for weight in heads.parameters()])

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
