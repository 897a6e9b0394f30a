from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from loraport.adapters import Role, Site
from loraport.alignment.moments import PairedMoments
from loraport.data.text_corpus import AlignedBatch, TokenBatch
from loraport.exceptions import DataError
from loraport.models import BaseModel
from loraport.models.capture import paired_readings
from loraport.models.hooks import Tap
from loraport.models.statistics import (
    LEAST_ROWS,
    SLAB,
    PairStatistics,
    RunningTotals,
    StatisticsStore,
    layer_blocks,
    statistics_bytes,
)

A, B, C = Tap.residual(0), Tap.residual(1), Tap.residual(2)
# Widths under, over and far over a slab, and no multiples of it.
WIDTHS = {A: 20, B: SLAB + 30, C: 2 * SLAB + 3}
PAIRS = [(A, B), (A, C), (B, A)]
PARTS = ("x_sum", "y_sum", "xx", "yy", "xy")


def rows_of(seed: int, rows: int) -> dict[Tap, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # With a mean, as activations have.
    return {t: torch.randn(rows, w, generator=generator) + 1 for t, w in WIDTHS.items()}


def gathered(
    ends: Sequence[int], pairs: Sequence[tuple[Tap, Tap]] = PAIRS, rows: int = 3000
) -> PairStatistics:
    source, target = rows_of(1, rows), rows_of(2, rows)
    statistics = PairStatistics(pairs)
    for first, last in pairwise([0, *ends, rows]):
        statistics.add(
            {tap: x[first:last] for tap, x in source.items()},
            {tap: x[first:last] for tap, x in target.items()},
        )
    return statistics


def assert_same_bits(one: PairStatistics, other: PairStatistics) -> None:
    assert one.rows == other.rows
    for pair in one.pairs:
        ours, theirs = one.moments(*pair), other.moments(*pair)
        assert all(torch.equal(getattr(ours, part), getattr(theirs, part)) for part in PARTS)


@pytest.mark.parametrize("ends", [(), (10, 11, 400, 400, 2000)], ids=["one batch", "batches"])
def test_moments_are_those_of_all_rows_at_once(ends: tuple[int, ...]) -> None:
    statistics = gathered(ends)
    for pair in PAIRS:
        moments = statistics.moments(*pair)
        expected = PairedMoments.of(rows_of(1, 3000)[pair[0]], rows_of(2, 3000)[pair[1]])
        assert moments.rows == 3000
        for part in PARTS:
            found = getattr(moments, part)
            assert found.dtype == torch.float64
            torch.testing.assert_close(found, getattr(expected, part), rtol=1e-5, atol=3e-3)
        assert moments.xx.equal(moments.xx.mT)
        assert moments.yy.equal(moments.yy.mT)


def test_many_batches_do_not_lose_precision() -> None:
    """A sum in float32 would stand still: 2^24 + 1 = 2^24."""
    statistics = PairStatistics([(A, A)])
    ones = {A: torch.ones(LEAST_ROWS, 1)}
    statistics.add({A: torch.full((LEAST_ROWS, 1), 4096.0)}, ones)
    for _ in range(3):
        statistics.add(ones, ones)
    expected = LEAST_ROWS * (4096**2 + 3)
    assert statistics.moments(A, A).xx.item() == expected


def test_same_batches_give_the_same_bits_also_when_restored_in_between() -> None:
    ends = (300, 900, 1500, 1700, 2990)
    straight = gathered(ends)
    source, target = rows_of(1, 3000), rows_of(2, 3000)
    broken = PairStatistics(PAIRS)
    for first, last in pairwise([0, *ends, 3000]):
        kept = {name: tensor.clone() for name, tensor in broken.tensors().items()}
        broken = PairStatistics.from_tensors(PAIRS, kept)
        broken.add(
            {tap: x[first:last] for tap, x in source.items()},
            {tap: x[first:last] for tap, x in target.items()},
        )
    assert_same_bits(straight, broken)


def test_moments_stay_as_they_were_when_more_rows_come() -> None:
    statistics = gathered(())
    before = statistics.moments(A, B)
    copies = {part: getattr(before, part).clone() for part in PARTS}
    statistics.add(rows_of(1, 2000), rows_of(2, 2000))
    assert statistics.moments(A, B).rows == 5000
    assert before.rows == 3000
    assert all(torch.equal(getattr(before, part), copies[part]) for part in PARTS)


def test_a_tap_of_several_pairs_is_kept_once_and_little_more_than_half_of_a_gram() -> None:
    tensors = gathered((), [*PAIRS, *PAIRS]).tensors()
    assert len([name for name in tensors if name.startswith("sum.source.0")]) == 1
    assert len([name for name in tensors if name.startswith("cross.")]) == 3
    kept = sum(x.numel() for name, x in tensors.items() if "target.2" in name and "gram" in name)
    assert kept <= 0.75 * WIDTHS[C] ** 2


def test_other_precision_is_taken_as_float32() -> None:
    half = {A: torch.randn(50, 20, generator=torch.Generator().manual_seed(0)).bfloat16()}
    statistics = PairStatistics([(A, A)])
    statistics.add(half, half)
    moments = statistics.moments(A, A)
    torch.testing.assert_close(
        moments.xy, PairedMoments.of(half[A], half[A]).xy, rtol=1e-5, atol=1e-4
    )


def test_devices_are_summed() -> None:
    one, other = gathered((500,)), gathered((200, 1800))
    others = {id(x): name for name, x in one.tensors().items()}
    theirs = other.tensors()
    other.settle()

    def reduce(tensor: Tensor) -> Tensor:
        name = others.get(id(tensor), "rows")
        return tensor + theirs[name]

    together = one.reduced(reduce)
    assert together.rows == 6000
    assert one.rows == 3000
    for pair in PAIRS:
        for part in PARTS:
            found = getattr(together.moments(*pair), part)
            parts = [getattr(x.moments(*pair), part) for x in (one, other)]
            torch.testing.assert_close(found, parts[0] + parts[1])


def test_without_rows_the_reason_is_told() -> None:
    with pytest.raises(DataError, match=r"no token.*give a corpus"):
        PairStatistics(PAIRS).moments(A, B)


TAP_PAIRS = [
    (Tap.input(Site(0, Role.Q)), Tap.input(Site(1, Role.Q))),
    (Tap.output(Site(1, Role.V)), Tap.output(Site(2, Role.V))),
]


def batches(seed: int, count: int) -> list[AlignedBatch]:
    generator = torch.Generator().manual_seed(seed)

    def one() -> AlignedBatch:
        ids = torch.randint(2, 20, (3, 16), generator=generator)
        tokens = TokenBatch(ids, torch.ones_like(ids))
        places = torch.randperm(48, generator=generator)[:30]
        return AlignedBatch(tokens, tokens, places, places, places // 16)

    return [one() for _ in range(count)]


TRAIN, HELD_OUT = batches(1, 5), batches(2, 3)


Networks = tuple[PreTrainedModel, PreTrainedModel]


@pytest.fixture
def networks(
    pico_source: BaseModel, pico_target: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> Networks:
    # So few that the totals change in the middle, and that some rows wait between batches.
    monkeypatch.setattr("loraport.models.statistics.LEAST_ROWS", 50)
    return pico_source.network, pico_target.network


@pytest.fixture
def runs(pico_source: BaseModel) -> Iterator[list[int]]:
    """One entry for each time that the source model is run."""
    noted: list[int] = []
    handle = pico_source.network.model.embed_tokens.register_forward_hook(
        lambda *_: noted.append(1)
    )
    yield noted
    handle.remove()


def always(folder: Path | None) -> StatisticsStore:
    return StatisticsStore(folder, seconds=0.0)


def gather(folder: Path | None, networks: Networks, **options: Any) -> RunningTotals:
    return always(folder).gather("key", TAP_PAIRS, *networks, TRAIN, HELD_OUT, **options)


def assert_same_totals(one: RunningTotals, other: RunningTotals) -> None:
    for ours, theirs in ((one.train, other.train), (one.held_out, other.held_out)):
        assert ours.rows == theirs.rows > 0
        for pair in TAP_PAIRS:
            a, b = ours.moments(*pair), theirs.moments(*pair)
            assert all(torch.equal(getattr(a, part), getattr(b, part)) for part in PARTS)


def killed(after: int) -> Callable[[int], None]:
    """A progress callback that stops everything when so many batches are done."""

    def stop(done: int) -> None:
        if done == after:
            raise KeyboardInterrupt

    return stop


def test_totals_are_those_of_all_batches(networks: Networks) -> None:
    totals = gather(None, networks)
    assert (totals.train_batches, totals.held_out_batches, totals.complete) == (5, 3, True)
    assert (totals.train.rows, totals.held_out.rows) == (150, 90)
    x_taps, y_taps = zip(*TAP_PAIRS, strict=True)
    read = list(paired_readings(*networks, TRAIN, (x_taps, y_taps)))
    for x_tap, y_tap in TAP_PAIRS:
        x = torch.cat([source[x_tap] for source, _ in read]).double()
        y = torch.cat([target[y_tap] for _, target in read]).double()
        found = totals.train.moments(x_tap, y_tap)
        torch.testing.assert_close(found.xy, x.mT @ y, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(found.xx, x.mT @ x, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("after", [1, 5, 7])
def test_a_stopped_capture_goes_on_and_ends_with_the_same_bits(
    after: int, networks: Networks, runs: list[int], tmp_path: Path
) -> None:
    straight = gather(None, networks)
    del runs[:]
    with pytest.raises(KeyboardInterrupt):
        gather(tmp_path, networks, progress=killed(after))
    assert len(runs) == after
    kept = always(tmp_path).resume("key", TAP_PAIRS)
    assert kept.train_batches + kept.held_out_batches == after
    assert not kept.complete
    resumed = gather(tmp_path, networks)
    assert len(runs) == len(TRAIN) + len(HELD_OUT)
    assert_same_totals(straight, resumed)


def test_a_finished_capture_is_loaded_without_running_anything(
    networks: Networks, runs: list[int], tmp_path: Path
) -> None:
    done: list[int] = []
    first = gather(tmp_path, networks, progress=done.append)
    assert done == [1, 2, 3, 4, 5, 6, 7, 8]
    del runs[:]
    again = gather(tmp_path, networks)
    assert runs == []
    assert again.complete
    assert_same_totals(first, again)


def test_it_is_saved_at_most_every_so_many_seconds(
    networks: Networks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(0, 1000, 10))  # ten seconds a look at the clock
    monkeypatch.setattr("loraport.models.statistics.time.monotonic", lambda: next(now))
    saved: list[int] = []

    class Noting(StatisticsStore):
        def save(self, totals: RunningTotals) -> None:
            saved.append(totals.train_batches + totals.held_out_batches)

    Noting(tmp_path, seconds=25.0).gather("key", TAP_PAIRS, *networks, TRAIN, HELD_OUT)
    assert saved == [3, 6, 8]


@pytest.mark.parametrize("other", ["key", "pairs"])
def test_key_and_pairs_decide_what_is_found(other: str, networks: Networks, tmp_path: Path) -> None:
    gather(tmp_path, networks)
    key = "another cpu" if other == "key" else "key"
    pairs = TAP_PAIRS[:1] if other == "pairs" else TAP_PAIRS
    found = always(tmp_path).resume(key, pairs)
    assert not found.complete
    assert found.train.rows == 0
    assert always(tmp_path).resume("key", TAP_PAIRS[::-1]).complete


LAYERS = range(6)
LAYER_WIDTHS = (
    {Tap.residual(layer): 300 for layer in LAYERS},
    {Tap.residual(layer): 520 for layer in LAYERS},
)
# Out of order, and two source layers for one of the target's.
LAYER_PAIRS = [(Tap.residual(layer // 2), Tap.residual(layer)) for layer in reversed(LAYERS)]
LAYER_PAIRS.append((Tap.residual(5), Tap.residual(0)))


def test_blocks_hold_all_pairs_in_order_of_the_target_layer() -> None:
    one = statistics_bytes([LAYER_PAIRS[0]], LAYER_WIDTHS) / 1e9
    blocks = layer_blocks(LAYER_PAIRS, LAYER_WIDTHS, budget_gb=2.2 * one)
    assert len(blocks) > 1
    layers = [pair[1].layer for pair in chain.from_iterable(blocks)]
    assert layers == sorted(layers)
    assert sorted(chain.from_iterable(blocks)) == sorted(LAYER_PAIRS)
    assert all(statistics_bytes(block, LAYER_WIDTHS) <= 2.2e9 * one for block in blocks)
    # No two neighbours would fit together.
    for first, second in pairwise(blocks):
        next_layer = [pair for pair in second if pair[1].layer == second[0][1].layer]
        assert statistics_bytes([*first, *next_layer], LAYER_WIDTHS) > 2.2e9 * one


def test_a_layer_is_not_split() -> None:
    blocks = layer_blocks(LAYER_PAIRS, LAYER_WIDTHS, budget_gb=1e-9)
    assert [{pair[1].layer for pair in block} for block in blocks] == [{x} for x in LAYERS]
    assert len(blocks[0]) == 2
    assert len(layer_blocks(LAYER_PAIRS, LAYER_WIDTHS)) == 1
    assert layer_blocks([], LAYER_WIDTHS) == ()


def test_bytes_are_those_that_are_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    sides = [
        {tap: torch.randn(LEAST_ROWS, width, generator=generator) for tap, width in side.items()}
        for side in LAYER_WIDTHS
    ]
    statistics = PairStatistics(LAYER_PAIRS)
    statistics.add(sides[0], sides[1])
    held = sum(tensor.nbytes for name, tensor in statistics.tensors().items() if name != "rows")
    read = sum(
        LAYER_WIDTHS[side][tap] for side in (0, 1) for tap in {pair[side] for pair in LAYER_PAIRS}
    )
    assert statistics_bytes(LAYER_PAIRS, LAYER_WIDTHS) == pytest.approx(
        2 * held + 4 * LEAST_ROWS * read
    )
