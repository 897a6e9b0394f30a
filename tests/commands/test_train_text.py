"""``train.py`` with mappers that learn from text, on pico models and a few sentences."""

import errno
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import torch

from loraport.adapters import read_adapter
from loraport.evaluation.records import Results
from loraport.mappers import load_mapper
from loraport.mappers.cast import CastMapper
from loraport.mappers.linear_text import LinearTextMapper
from loraport.models.statistics import StatisticsStore

from .conftest import HELD_OUT, Command, Outcome, Workspace

DIAGNOSED = ("diagnosis=cheap", "diagnosis.rows=120", "diagnosis.permutations=20")


class Trains:
    """Runs ``train.py`` in the folder ``run`` of the working folder."""

    def __init__(self, workspace: Workspace, command: Command) -> None:
        self.workspace, self.command = workspace, command
        self.folder = workspace.root / "work/run"

    def call(self, mapper: str, *options: str) -> Outcome:
        words = (*self.workspace.text_training(mapper), "hydra.run.dir=run", *options)
        named = {word.partition("=")[0] for word in options}
        kept = [word for word in words if word in options or word.partition("=")[0] not in named]
        return self.command("train", *kept)

    def refused(self, *options: str, code: int = 2) -> str:
        end = self.call("transport", *options)
        assert end.code == code, end.err
        assert "Traceback" not in end.err
        assert end.err.count("loraport:") == 1
        assert not self.folder.exists()
        return " ".join(end.err.split())

    @property
    def checkpoint(self) -> dict[str, Any]:
        loaded: dict[str, Any] = torch.load(self.folder / "mapper.ckpt", weights_only=True)
        return loaded


@pytest.fixture
def trains(workspace: Workspace, command: Command) -> Trains:
    return Trains(workspace, command)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def test_without_a_zoo_it_is_fitted_and_saved_and_says_so(trains: Trains):
    end = trains.call("transport")
    assert end.code == 0, end.err
    assert "fitted and saved, but not scored" in end.out
    assert "paths.zoo=DIR" in end.out
    assert f"{trains.folder / 'mapper.ckpt'}" in end.out
    assert load_mapper(trains.folder / "mapper.ckpt").fitted
    assert not (trains.folder / "results.json").exists()


def test_with_a_zoo_the_held_out_tasks_are_scored(trains: Trains):
    end = trains.call("transport", f"paths.zoo={trains.workspace.zoo}")
    assert end.code == 0, end.err
    results = Results.read(trains.folder / "results.json")
    assert (results.mapper, results.data_access) == ("transport", "generic text")
    assert set(results.tasks) == set(HELD_OUT)
    assert results.controls == ("mean", "nearest", "random", "swapped")
    assert all(None not in task.scores.values() for task in results.tasks.values())
    text = results.mapper_report["text"]
    assert text["tokens"] >= 300
    assert text["held_out_tokens"] >= 120
    assert 0 < text["aligned_share"] <= 1
    for name in HELD_OUT:
        assert name in end.out
        assert len(read_adapter(trains.folder / "adapters" / name)) == 6


@pytest.mark.slow
def test_held_out_tasks_change_nothing_of_what_is_learnt(trains: Trains):
    """The questions of anchor tasks are behind texts; the zoo is there to score on alone."""
    states = []
    for zoo in ((), (f"paths.zoo={trains.workspace.zoo}",)):
        assert trains.call("transport", "anchor_questions=true", *zoo).code == 0
        states.append(trains.checkpoint["mapper_state"])
    assert same(*states)
    assert trains.call("transport").code == 0
    assert not same(states[0], trains.checkpoint["mapper_state"])


class TestRefused:
    def test_no_corpus(self, trains: Trains) -> None:
        message = trains.refused("paths.corpus=null")
        assert "a corpus of texts is needed, but none is named" in message
        assert "set paths.corpus" in message

    def test_a_corpus_that_is_not_there(self, trains: Trains) -> None:
        assert "the corpus nowhere does not exist" in trains.refused("paths.corpus=nowhere")

    @pytest.mark.parametrize(
        ("name", "content", "named"),
        [
            ("empty.txt", b"", "0 aligned tokens for train"),
            ("texts.png", b"\x89PNG\r\n", "neither .txt nor .jsonl"),
            ("rows.jsonl", b'{"label": "good"}\n' * 50, "text"),
        ],
    )
    def test_a_file_that_is_no_text(
        self, trains: Trains, name: str, content: bytes, named: str
    ) -> None:
        path = trains.workspace.root / name
        path.write_bytes(content)
        assert named in trains.refused(f"paths.corpus={path}")

    def test_a_pairing_by_similarity_without_a_diagnosis(self, trains: Trains) -> None:
        message = trains.refused("pairing=monotone", "diagnosis=none")
        assert "diagnosis=cheap, or pairing=relative_depth" in message

    @pytest.mark.parametrize(
        ("option", "named"),
        [
            ("mapper.roles=[query]", "mapper.roles is ['query']"),
            ("mapper.strengths=[0]", "strengths"),
            ("data.tokens=0", "tokens"),
        ],
    )
    def test_a_wrong_option(self, trains: Trains, option: str, named: str) -> None:
        assert named in trains.refused(option)

    def test_an_incompatible_pair(self, trains: Trains) -> None:
        """Both pico models have random weights."""
        message = trains.refused(*DIAGNOSED, code=3)
        assert "represent text too differently" in message
        assert "force=true" in message


def test_forced_it_goes_on_and_the_results_say_so(trains: Trains):
    end = trains.call("transport", *DIAGNOSED, "force=true", f"paths.zoo={trains.workspace.zoo}")
    assert end.code == 0, end.err
    found = Results.read(trains.folder / "results.json").mapper_report["diagnosis"]
    assert found["forced"] is True
    assert found["coverage"] < found["minimum"]


def overwrite_a_tensor(checkpoint: Path) -> None:
    """Change bytes in the largest tensor of a file that PyTorch wrote, and nothing else."""
    with ZipFile(checkpoint) as archive:
        tensors = (entry for entry in archive.infolist() if "/data/" in entry.filename)
        largest = max(tensors, key=lambda entry: entry.file_size)
        content = archive.read(largest)
    whole = checkpoint.read_bytes()
    assert whole.count(content) == 1
    at = whole.index(content)
    changed = bytes(byte ^ 1 for byte in content[:500])
    checkpoint.write_bytes(whole[:at] + changed + whole[at + len(changed) :])


class TestStopped:
    """Control-C behind some batches; the same command then goes on."""

    def stop_after(self, monkeypatch: pytest.MonkeyPatch, kind: Any, steps: int) -> None:
        inner = kind.training_step
        seen: list[int] = []

        def step(mapper: Any, *batch: Any) -> Any:
            if len(seen) == steps:
                raise KeyboardInterrupt
            seen.append(1)
            return inner(mapper, *batch)

        monkeypatch.setattr(kind, "training_step", step)

    EPOCHS = ("trainer.max_epochs=3", "mapper.batch_rows=64")

    def stopped_beside_whole(
        self, trains: Trains, monkeypatch: pytest.MonkeyPatch, steps: int
    ) -> dict[str, Any]:
        """Train to the end, and again from nothing until a step; return the former's weights."""
        other = f"paths.cache={trains.workspace.root / 'c'}"
        assert trains.call("cast", *self.EPOCHS, other).code == 0
        whole: dict[str, Any] = trains.checkpoint["state_dict"]
        trains.folder = trains.folder.with_name("again")
        with monkeypatch.context() as patch:
            self.stop_after(patch, CastMapper, steps)
            end = trains.call("cast", *self.EPOCHS, "hydra.run.dir=again")
        assert end.code == 130, end.err
        return whole

    @pytest.mark.slow
    def test_statistics_go_on_where_they_were(
        self, trains: Trains, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        small = ("data.batch_tokens=128", "mapper.roles=[q,v]")
        root = trains.workspace.root
        assert trains.call("transport", *small, f"paths.cache={root / 'c'}").code == 0
        whole = trains.checkpoint["mapper_state"]
        added: list[int] = []
        inner = LinearTextMapper.gather

        def add(mapper: LinearTextMapper, *given: Any) -> None:
            added.append(1)
            inner(mapper, *given)

        monkeypatch.setattr(LinearTextMapper, "gather", add)
        often = partial(StatisticsStore, seconds=0.0)
        monkeypatch.setattr("loraport.commands.train.StatisticsStore", often)
        assert trains.call("transport", *small, f"paths.cache={root / 'd'}").code == 0
        batches = len(added)
        assert batches > 4
        added.clear()
        trains.folder = trains.folder.with_name("again")
        with monkeypatch.context() as patch:
            self.stop_after(patch, LinearTextMapper, 3)
            end = trains.call("transport", *small, "hydra.run.dir=again")
        assert end.code == 130, end.err
        assert not (trains.folder / "mapper.ckpt").exists()
        end = trains.call("transport", *small, "hydra.run.dir=again")
        assert end.code == 0, end.err
        assert len(added) <= batches + 1
        assert same(whole, trains.checkpoint["mapper_state"])
        added.clear()
        assert trains.call("transport", *small, "hydra.run.dir=again").code == 0
        assert not added
        assert list((root / "cache/statistics").iterdir())

    @pytest.mark.slow
    def test_training_goes_on_at_the_next_epoch(
        self, trains: Trains, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = self.stopped_beside_whole(trains, monkeypatch, 7)
        assert not (trains.folder / "mapper.ckpt").exists()
        kept = trains.workspace.root / "cache/training"
        assert list(kept.rglob("last.ckpt"))
        end = trains.call("cast", *self.EPOCHS, "hydra.run.dir=again")
        assert end.code == 0, end.err
        assert same(whole, trains.checkpoint["state_dict"])
        assert not list(kept.rglob("last.ckpt"))

    @pytest.mark.parametrize("damaged", [["last.ckpt"], ["last.ckpt", "before.ckpt"]])
    def test_damaged_state_is_said_and_training_goes_on_before_it(
        self, trains: Trains, monkeypatch: pytest.MonkeyPatch, damaged: list[str]
    ) -> None:
        """Some bytes of a tensor are others: PyTorch reads that without a word."""
        whole = self.stopped_beside_whole(trains, monkeypatch, 11)
        (folder,) = (trains.workspace.root / "cache/training").glob("*/*")
        for name in damaged:
            before = torch.load(folder / name, weights_only=True)["state_dict"]
            overwrite_a_tensor(folder / name)
            assert not same(torch.load(folder / name, weights_only=True)["state_dict"], before)
        epochs: list[int] = []
        with monkeypatch.context() as patch:
            inner = CastMapper.on_validation_epoch_end

            def noted(mapper: CastMapper) -> None:
                epochs.append(mapper.current_epoch)
                inner(mapper)

            patch.setattr(CastMapper, "on_validation_epoch_end", noted)
            assert trains.call("cast", *self.EPOCHS, "hydra.run.dir=again").code == 0
        assert epochs == list(range(2 - len(damaged), 3))
        assert same(whole, trains.checkpoint["state_dict"])
        log = (trains.folder / "train.log").read_text()
        assert all(log.count(f"{folder / name} is damaged") == 1 for name in damaged)


class TestFullDisk:
    """Nothing of a training is lost where what comes of it cannot be written."""

    QUICK = ("trainer.max_epochs=2", "mapper.batch_rows=64")

    @staticmethod
    def full_at(patch: pytest.MonkeyPatch, name: str) -> None:
        """Fill the disk in the middle of any file whose name contains a word."""
        replace, copy = Path.write_bytes, shutil.copyfile

        def write(path: Path, content: bytes) -> int:
            if name not in path.name:
                return replace(path, content)
            replace(path, bytes(content)[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        def copied(one: str, other: Path) -> Path:
            copy(one, other)
            write(Path(other), Path(one).read_bytes())
            return other

        patch.setattr(Path, "write_bytes", write)
        patch.setattr(shutil, "copyfile", copied)

    @pytest.mark.parametrize(
        ("name", "chosen"),
        [("mapper.ckpt", True), ("results.json", True), ("mapper.ckpt", False)],
    )
    def test_a_training_that_came_to_its_end_is_not_made_again(
        self, trains: Trains, monkeypatch: pytest.MonkeyPatch, name: str, chosen: bool
    ) -> None:
        best = () if chosen else ("~callbacks.best",)
        options = (*self.QUICK, *best, f"paths.zoo={trains.workspace.zoo}")
        with monkeypatch.context() as patch:
            self.full_at(patch, name)
            end = trains.call("cast", *options)
        assert end.code == 2, end.err
        assert "Traceback" not in end.err
        assert f"{name} cannot be written (No space left" in end.err
        if name == "mapper.ckpt":
            assert not trains.folder.exists()
        else:
            kept = load_mapper(trains.folder / "mapper.ckpt")
            assert f"the fitted mapper stays in {trains.folder / 'mapper.ckpt'}" in end.err
        with monkeypatch.context() as patch:
            TestStopped().stop_after(patch, CastMapper, 0)
            end = trains.call("cast", *options)
        assert end.code == 0, end.err
        if name != "mapper.ckpt":
            assert same(kept.state_dict(), trains.checkpoint["state_dict"])
        assert Results.read(trains.folder / "results.json").tasks
        assert not list((trains.workspace.root / "cache/training").rglob("*.ckpt"))
