from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from loraport.adapters import Role, Site
from loraport.data.aligned_batch import AlignedBatch, TokenBatch
from loraport.exceptions import OutputError
from loraport.models import BaseModel
from loraport.models.paired_capture import PairedCapture
from loraport.models.statistics_store import RunningTotals, StatisticsStore
from loraport.models.taps import Tap

PAIRS = [
    (Tap.input(Site(0, Role.Q)), Tap.input(Site(1, Role.Q))),
    (Tap.output(Site(1, Role.V)), Tap.output(Site(2, Role.V))),
]
PARTS = ("x_sum", "y_sum", "xx", "yy", "xy")


def batches(seed: int, count: int) -> list[AlignedBatch]:
    generator = torch.Generator().manual_seed(seed)

    def one() -> AlignedBatch:
        ids = torch.randint(2, 20, (3, 16), generator=generator)
        tokens = TokenBatch(ids, torch.ones_like(ids))
        places = torch.randperm(48, generator=generator)[:30]
        return AlignedBatch(tokens, tokens, places, places, places // 16)

    return [one() for _ in range(count)]


TRAIN, HELD_OUT = batches(1, 5), batches(2, 3)


@pytest.fixture
def capture(
    pico_source: BaseModel, pico_target: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> PairedCapture:
    # So few that the totals change in the middle, and that some rows wait between batches.
    monkeypatch.setattr("loraport.models.pair_statistics.LEAST_ROWS", 50)
    return PairedCapture(pico_source.network, pico_target.network)


@pytest.fixture
def runs(pico_source: BaseModel) -> Iterator[list[int]]:
    """One entry for each time that the source model is run."""
    noted: list[int] = []
    handle = pico_source.network.model.embed_tokens.register_forward_hook(
        lambda *_: noted.append(1)
    )
    yield noted
    handle.remove()


def always(folder: Path) -> StatisticsStore:
    return StatisticsStore(folder, seconds=0.0)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_same_bits(one: RunningTotals, other: RunningTotals) -> None:
    for ours, theirs in ((one.train, other.train), (one.held_out, other.held_out)):
        assert ours.rows == theirs.rows > 0
        for pair in PAIRS:
            a, b = ours.moments(*pair), theirs.moments(*pair)
            assert all(torch.equal(getattr(a, part), getattr(b, part)) for part in PARTS)


def killed(after: int) -> Callable[[int], None]:
    """A progress callback that stops everything when so many batches are done."""

    def stop(done: int) -> None:
        if done == after:
            raise KeyboardInterrupt

    return stop


def test_totals_are_those_of_all_batches(capture: PairedCapture) -> None:
    totals = StatisticsStore(None).gather("key", PAIRS, capture, TRAIN, HELD_OUT)
    assert (totals.train_batches, totals.held_out_batches, totals.complete) == (5, 3, True)
    assert (totals.train.rows, totals.held_out.rows) == (150, 90)
    taps = [pair[0] for pair in PAIRS], [pair[1] for pair in PAIRS]
    read = list(capture.run(TRAIN, *taps))
    for x_tap, y_tap in PAIRS:
        x = torch.cat([one.source[x_tap] for one in read]).double()
        y = torch.cat([one.target[y_tap] for one in read]).double()
        found = totals.train.moments(x_tap, y_tap)
        torch.testing.assert_close(found.xy, x.mT @ y, rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(found.xx, x.mT @ x, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("after", range(1, 8))
def test_a_stopped_capture_goes_on_and_ends_with_the_same_bits(
    after: int, capture: PairedCapture, runs: list[int], tmp_path: Path
) -> None:
    straight = StatisticsStore(None).gather("key", PAIRS, capture, TRAIN, HELD_OUT)
    del runs[:]
    with pytest.raises(KeyboardInterrupt):
        always(tmp_path).gather("key", PAIRS, capture, TRAIN, HELD_OUT, progress=killed(after))
    assert len(runs) == after
    kept = always(tmp_path).resume("key", PAIRS)
    assert kept.train_batches + kept.held_out_batches == after
    assert not kept.complete
    resumed = always(tmp_path).gather("key", PAIRS, capture, TRAIN, HELD_OUT)
    assert len(runs) == len(TRAIN) + len(HELD_OUT)
    assert_same_bits(straight, resumed)


def test_a_finished_capture_is_loaded_without_running_anything(
    capture: PairedCapture, runs: list[int], tmp_path: Path
) -> None:
    first = StatisticsStore(tmp_path).gather("key", PAIRS, capture, TRAIN, HELD_OUT)
    del runs[:]

    def untouched() -> Iterable[AlignedBatch]:
        raise AssertionError("no batch is needed")
        yield

    again = StatisticsStore(tmp_path).gather("key", PAIRS, capture, untouched(), untouched())
    assert runs == []
    assert again.complete
    assert_same_bits(first, again)
    assert len(files(tmp_path)) == 1


def test_it_is_saved_at_most_every_so_many_seconds(
    capture: PairedCapture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter(range(0, 1000, 10))  # ten seconds a look at the clock
    monkeypatch.setattr("loraport.models.statistics_store.time.monotonic", lambda: next(now))
    saved: list[int] = []

    class Noting(StatisticsStore):
        def save(self, key: str, totals: RunningTotals) -> None:
            saved.append(totals.train_batches + totals.held_out_batches)

    Noting(tmp_path, seconds=25.0).gather("key", PAIRS, capture, TRAIN, HELD_OUT)
    assert saved == [3, 6, 8]


@pytest.mark.parametrize("other", ["key", "pairs"])
def test_key_and_pairs_decide_what_is_found(
    other: str, capture: PairedCapture, tmp_path: Path
) -> None:
    always(tmp_path).gather("key", PAIRS, capture, TRAIN, HELD_OUT)
    key = "another" if other == "key" else "key"
    pairs = PAIRS[:1] if other == "pairs" else PAIRS
    found = always(tmp_path).resume(key, pairs)
    assert not found.complete
    assert found.train.rows == 0
    assert always(tmp_path).resume("key", PAIRS[::-1]).complete


@pytest.mark.parametrize("damage", ["cut", "emptied", "no metadata"])
def test_what_is_damaged_is_gathered_again(
    damage: str, capture: PairedCapture, runs: list[int], tmp_path: Path
) -> None:
    first = always(tmp_path).gather("key", PAIRS, capture, TRAIN, HELD_OUT)
    (file,) = files(tmp_path)
    whole = file.read_bytes()
    if damage == "cut":
        file.write_bytes(whole[:-10])
    elif damage == "emptied":
        file.write_bytes(b"")
    else:
        file.write_bytes(whole.replace(b"train_batches", b"train_natches"))
    del runs[:]
    assert_same_bits(always(tmp_path).gather("key", PAIRS, capture, TRAIN, HELD_OUT), first)
    assert len(runs) == 8
    assert file.read_bytes() == whole


def test_progress_counts_all_batches(capture: PairedCapture) -> None:
    done: list[int] = []
    StatisticsStore(None).gather("key", PAIRS, capture, TRAIN, HELD_OUT, progress=done.append)
    assert all(later - earlier == 1 for earlier, later in pairwise(done))
    assert (done[0], done[-1]) == (1, 8)


def test_a_broken_model_leaves_what_was_kept(
    capture: PairedCapture,
    pico_target: BaseModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    straight = StatisticsStore(None).gather("key", PAIRS, capture, TRAIN, HELD_OUT)
    calls = iter(range(100))
    forward = pico_target.network.model.layers[1].mlp.forward

    def broken(states: torch.Tensor) -> nn.Module:
        if next(calls) == 2:
            raise RuntimeError("planted")
        return forward(states)

    with monkeypatch.context() as patch:
        patch.setattr(pico_target.network.model.layers[1].mlp, "forward", broken)
        with pytest.raises(RuntimeError, match="planted"):
            always(tmp_path).gather("key", PAIRS, capture, TRAIN, HELD_OUT)
    assert always(tmp_path).resume("key", PAIRS).train_batches == 2
    assert_same_bits(always(tmp_path).gather("key", PAIRS, capture, TRAIN, HELD_OUT), straight)


def test_forbidden_place_is_told(capture: PairedCapture, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where a folder is due")
    with pytest.raises(OutputError, match=r"store.*cannot be written"):
        always(tmp_path / "store").gather("key", PAIRS, capture, TRAIN, HELD_OUT)
