"""``train.py mapper=cast`` on the tiny pair, as a user runs it: what it shows, and stopping it."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loraport.evaluation.records import Results
from loraport.store import Key, Store
from loraport.tiny.tasks import TinyTasks

from .conftest import finish, start_command

pytestmark = pytest.mark.slow
NAMES = TinyTasks().names()[:4]
OPTIONS = (
    f"tasks.names=[{','.join(NAMES)}]",
    f"tasks.held_out=[{','.join(NAMES[:2])}]",
    "mapper.roles=[v,o,down]",
    "logger=none",
    "evaluation.controls=[]",
)
CAST = ("mapper=cast", "mapper.hidden=64", "trainer.max_epochs=4")


def start(cache: Path, run: str, *options: str) -> subprocess.Popen[str]:
    """Start training as a user does, in a process group of its own."""
    return start_command("train", cache, *OPTIONS, *options, f"hydra.run.dir={cache / run}")


def stop(process: subprocess.Popen[str], when: Callable[[], bool], how: signal.Signals) -> str:
    """Send a signal as soon as something is the case; return what the process said."""
    end = time.monotonic() + 900  # a limit for what hangs: an epoch takes minutes on a busy machine
    while not when():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.005)
    os.killpg(process.pid, how)
    out, _ = process.communicate()
    assert process.returncode != 0, out
    return out


def captured(cache: Path) -> dict[str, int]:
    """How many rows of each split's activations lie on disk, by the entry that says so."""
    store = Store(cache)
    names = [path.stem for path in (cache / "activations").rglob("*.entry")]
    return {name: store.get(Key("activations", name)) or 0 for name in names}


def made(run: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The weights that were trained, and the adapters that they predict."""
    checkpoint = torch.load(run / "mapper.ckpt", weights_only=True)
    files = sorted((run / "adapters").glob("*/adapter_model.safetensors"))
    assert len(files) == 2
    return checkpoint["state_dict"], {file.parent.name: file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(cache: Path) -> Path:
    """A run that nobody stopped."""
    finish(start(cache, "whole", *CAST))
    assert not list((cache / "training").rglob("*.ckpt"))
    return cache / "whole"


def test_cast_reconstructs_held_out_text_better_than_linear_maps(cache: Path) -> None:
    found: dict[str, dict[str, float]] = {}
    for name, *options in (
        ("cast", "mapper=cast", "mapper.hidden=128"),
        ("plain", "mapper=cast", "mapper.hidden=128", "mapper.behaviour=0.0"),
        ("transport", "mapper=transport"),
        ("procrustes", "mapper=procrustes"),
    ):
        finish(
            start(cache, name, f"mapper={name}", *options)
            if name != "plain"
            else start(cache, name, *options)
        )
        report = Results.read(cache / name / "results.json").mapper_report
        fits = [facts for feeds in report["fits"].values() for facts in feeds.values()]
        found[name] = {
            side: sum(facts[f"{side}_r2"] for facts in fits) / len(fits)
            for side in ("input", "output")
        }
        assert report["text"]["held_out_tokens"] > 1000
    for linear in ("transport", "procrustes"):
        # With the gradients writers give some of it up for what they are for.
        assert sum(found["cast"].values()) > sum(found[linear].values())
        for side in ("input", "output"):
            assert found["plain"][side] > found[linear][side]


def test_the_cartridge_is_scored_beside_the_prediction(whole: Path) -> None:
    results = Results.read(whole / "results.json")
    for task in results.tasks.values():
        assert task.scores["cartridge"] is not None
        assert task.nll["cartridge"] is not None
    assert results.summary.cartridge_gap is not None


@pytest.mark.parametrize(
    "how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name
)
def test_stopped_in_capture_and_in_training_it_ends_as_if_it_had_not_been(
    cache: Path, whole: Path, how: signal.Signals
) -> None:
    expected = made(whole)
    broken = cache / f"broken-{how.name}"
    broken.mkdir()
    for part in ("tiny", "zoo", "scores", "diagnoses"):
        if (cache / part).exists():
            shutil.copytree(cache / part, broken / part)

    out = stop(start(broken, "one", *CAST), lambda: any(captured(broken).values()), how)
    assert "Traceback" not in out
    if how == signal.SIGINT:
        assert "the same command goes on from here" in out
    assert captured(broken) != {name: captured(cache)[name] for name in captured(broken)} or (
        len(captured(broken)) < 2
    )

    kept = broken / "training"
    out = stop(start(broken, "two", *CAST), lambda: bool(list(kept.rglob("last.ckpt"))), how)
    assert "Traceback" not in out
    if how == signal.SIGINT:
        assert "the same command goes on from here" in out
    (last,) = kept.rglob("last.ckpt")
    assert torch.load(last, weights_only=True)["epoch"] < 3
    assert not (broken / "two/mapper.ckpt").exists()

    finish(start(broken, "three", *CAST))
    weights, adapters = made(broken / "three")
    assert weights.keys() == expected[0].keys()
    assert [name for name in weights if not torch.equal(weights[name], expected[0][name])] == []
    assert adapters == expected[1]
    assert not list(kept.rglob("*.ckpt"))
