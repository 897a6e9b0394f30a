import json
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from loraport.adapters import Role, Site
from loraport.data.aligned_batch import AlignedBatch, TokenBatch
from loraport.exceptions import ConfigurationError, DataError, OutputError
from loraport.models import BaseModel
from loraport.models.activation_cache import ActivationCache
from loraport.models.paired_capture import PairedCapture
from loraport.models.taps import Tap, tap_widths

WIDTHS = {"source.0.residual": 6, "target.1.q.input": 10}
SOURCE, TARGET = Tap.residual(1), Tap.input(Site(2, Role.Q))


def rows(count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {x: torch.randn(count, width, generator=generator) for x, width in WIDTHS.items()}


def batches(count: int = 4) -> list[AlignedBatch]:
    generator = torch.Generator().manual_seed(0)

    def one(number: int) -> AlignedBatch:
        ids = torch.randint(2, 20, (2, 10), generator=generator)
        tokens = TokenBatch(ids, torch.ones_like(ids))
        places = torch.randperm(20, generator=generator)[: 5 + number]
        return AlignedBatch(tokens, tokens, places, places, places // 10)

    return [one(number) for number in range(count)]


ROWS = sum(len(batch.documents) for batch in batches())


@pytest.fixture
def capture(pico_source: BaseModel, pico_target: BaseModel) -> PairedCapture:
    return PairedCapture(pico_source.network, pico_target.network)


@pytest.fixture
def runs(pico_source: BaseModel) -> Iterator[list[int]]:
    noted: list[int] = []
    handle = pico_source.network.model.embed_tokens.register_forward_hook(
        lambda *_: noted.append(1)
    )
    yield noted
    handle.remove()


@pytest.fixture
def widths(pico_source: BaseModel, pico_target: BaseModel) -> dict[str, int]:
    source = tap_widths(pico_source.sites, [SOURCE])
    target = tap_widths(pico_target.sites, [TARGET])
    return {
        SOURCE.label_on("source"): source[SOURCE],
        TARGET.label_on("target"): target[TARGET],
    }


def test_rows_come_back_as_bfloat16_holds_them(tmp_path: Path) -> None:
    cache = ActivationCache.create(tmp_path / "cache", WIDTHS, 50)
    written = rows(50)
    cache.write(0, {label: x[:20] for label, x in written.items()})
    cache.write(20, {label: x[20:] for label, x in written.items()})
    assert cache.complete
    index = torch.tensor([40, 3, 3, 19, 20])
    for opened in (cache, ActivationCache.open(tmp_path / "cache")):
        assert opened.widths == WIDTHS
        for label, x in written.items():
            found = opened.read(label, index)
            assert found.dtype == torch.float32
            assert torch.equal(found, x[index].bfloat16().float())
    assert (
        cache.bytes
        == 50 * 16 * 2
        == sum(file.stat().st_size for file in (tmp_path / "cache").glob("*.bf16"))
    )


def test_what_is_read_can_be_changed_without_changing_the_files(tmp_path: Path) -> None:
    cache = ActivationCache.create(tmp_path / "cache", WIDTHS, 5)
    cache.write(0, rows(5))
    label, index = "source.0.residual", torch.arange(5)
    first = cache.read(label, index)
    first.clone().zero_()
    cache.read(label, index).zero_()
    assert torch.equal(ActivationCache.open(tmp_path / "cache").read(label, index), first)


def test_a_stopped_capture_goes_on_from_the_last_whole_batch(
    capture: PairedCapture, widths: dict[str, int], runs: list[int], tmp_path: Path
) -> None:
    straight = ActivationCache.create(tmp_path / "straight", widths, ROWS)
    straight.fill(capture, batches(), [SOURCE], [TARGET])
    assert straight.complete
    del runs[:]

    def stop(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        ActivationCache.resume(folder, widths, ROWS).fill(
            capture, batches(), [SOURCE], [TARGET], progress=stop
        )
    # The beginning of a batch that did not end.
    with (folder / "source.1.residual.bf16").open("r+b") as file:
        file.seek(11 * 32 * 2)
        file.write(b"\x11" * 100)
    stopped = ActivationCache.resume(folder, widths, ROWS)
    assert (stopped.done, stopped.complete) == (11, False)
    done: list[int] = []
    stopped.fill(capture, batches(), [SOURCE], [TARGET], progress=done.append)
    assert done == [2, 3, 4]
    assert len(runs) == 4
    for label in widths:
        one, other = (tmp_path / name / f"{label}.bf16" for name in ("straight", "stopped"))
        assert one.read_bytes() == other.read_bytes()


def test_a_finished_cache_runs_nothing(
    capture: PairedCapture, widths: dict[str, int], runs: list[int], tmp_path: Path
) -> None:
    cache = ActivationCache.resume(tmp_path / "cache", widths, ROWS)
    cache.fill(capture, batches(), [SOURCE], [TARGET])
    del runs[:]
    again = ActivationCache.resume(tmp_path / "cache", widths, ROWS)
    again.fill(capture, batches(), [SOURCE], [TARGET])
    assert runs == []
    read = list(capture.run(batches(), [SOURCE], [TARGET]))
    found = again.read("target.2.q.input", torch.arange(ROWS))
    expected = torch.cat([one.target[TARGET] for one in read])
    assert torch.equal(found, expected.bfloat16().float())


def test_other_batches_are_refused(
    capture: PairedCapture, widths: dict[str, int], tmp_path: Path
) -> None:
    cache = ActivationCache.create(tmp_path / "cache", widths, ROWS)
    with pytest.raises(ConfigurationError, match=r"0 of 26 rows.*corpus has 18.*remove the folder"):
        cache.fill(capture, batches(3), [SOURCE], [TARGET])


@pytest.mark.parametrize("damage", ["no progress", "cut", "missing", "format", "no JSON"])
def test_what_is_damaged_is_refused_and_begun_anew(damage: str, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    ActivationCache.create(folder, WIDTHS, 5).write(0, rows(5))
    progress, file = folder / "progress.json", folder / "source.0.residual.bf16"
    if damage == "no progress":
        progress.unlink()
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "missing":
        file.unlink()
    elif damage == "format":
        progress.write_text(json.dumps({**json.loads(progress.read_text()), "format": 0}))
    else:
        progress.write_text("{")
    with pytest.raises(DataError, match=r"cache holds no activations.*remove the folder"):
        ActivationCache.open(folder)
    assert ActivationCache.resume(folder, WIDTHS, 5).done == 0
    assert ActivationCache.open(folder).done == 0


def test_another_shape_begins_anew(tmp_path: Path) -> None:
    ActivationCache.create(tmp_path / "cache", WIDTHS, 5).write(0, rows(5))
    assert ActivationCache.resume(tmp_path / "cache", WIDTHS, 5).complete
    assert ActivationCache.resume(tmp_path / "cache", WIDTHS, 6).done == 0
    assert ActivationCache.resume(tmp_path / "cache", {"source.0.residual": 6}, 6).done == 0


@pytest.mark.parametrize(
    ("row", "batch"),
    [
        (1, rows(2)),
        (0, rows(6)),
        (0, {"source.0.residual": torch.zeros(2, 6)}),
        (0, {**rows(2), "source.0.residual": torch.zeros(2, 7)}),
    ],
    ids=["place", "too many", "label", "width"],
)
def test_rows_that_do_not_belong_there_are_refused(
    row: int, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    cache = ActivationCache.create(tmp_path / "cache", WIDTHS, 5)
    with pytest.raises(ConfigurationError, match=r"takes rows from 0 to 5 of the 2 places"):
        cache.write(row, batch)
    assert cache.done == 0


def test_too_little_room_is_told_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(
        "loraport.models.activation_cache.shutil.disk_usage", lambda _: usage(1, 1, 1_500_000_000)
    )
    with pytest.raises(OutputError, match=r"needs 3\.2 GB.*1\.5 GB free.*fewer tokens"):
        ActivationCache.create(tmp_path / "cache", WIDTHS, 100_000_000)
    assert not list((tmp_path / "cache").glob("*"))


def test_forbidden_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder is due")
    with pytest.raises(OutputError, match=r"cache.*cannot be written"):
        ActivationCache.create(tmp_path / "cache", WIDTHS, 5)


def test_nothing_to_write_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="at least one of each"):
        ActivationCache.create(tmp_path / "cache", WIDTHS, 0)
    with pytest.raises(ConfigurationError, match="at least one of each"):
        ActivationCache.create(tmp_path / "cache", {}, 5)
