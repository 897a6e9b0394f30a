"""Commands that are killed, and disks that are full: nothing is lost, nothing is half-written.

``FAULTS=50`` in the environment asks for so many of each; where it is not set there are few.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from loraport.adapters import read_adapter
from loraport.evaluation.records import BenchmarkResults
from loraport.mappers import load_mapper

from .conftest import (
    QUICK_DIAGNOSIS,
    QUICK_REFINEMENT,
    ROOT,
    Workspace,
    small_disk,
    write_texts,
)
from .test_evaluate import evaluation, numbers
from .test_machine import QUICK_METHOD

pytestmark = pytest.mark.slow
COUNT = int(os.environ.get("FAULTS", "1"))
COMMANDS = ("anchors", "train", "transfer", "diagnose", "evaluate")
TEXTS = ("data.tokens=300", "data.held_out_tokens=120", "data.batch_tokens=1024")


@dataclass(frozen=True)
class Job:
    """A command with folders of its own: what is kept, what a run writes, what comes out."""

    command: str
    workspace: Workspace
    folder: Path

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def words(self) -> list[str]:
        workspace = self.workspace
        given = {
            "anchors": [*workspace.options(), "tasks.names=[films,plays]"],
            "train": [
                *(*workspace.training(), *TEXTS, "pairing=relative_depth", "mapper=cast"),
                *("trainer.max_epochs=3", "mapper.hidden=4", "mapper.batch_rows=64"),
                *("mapper.export_rows=64", "diagnosis=none"),
            ],
            "transfer": [
                *(*workspace.options(), f"adapter={workspace.zoo / 'source/books'}"),
                *(*QUICK_REFINEMENT["corpus_distill"], "refine.epochs=3", "diagnosis=none"),
                *(f"output={self.out / 'adapter'}", "overwrite=true"),
            ],
            "diagnose": [
                *(*workspace.options(), *QUICK_DIAGNOSIS, *TEXTS),
                *("probes=sentences", "force=true"),
            ],
            "evaluate": evaluation(
                workspace,
                *("methods=[global_ridge,cross_lora,transport]", QUICK_METHOD),
                *("diagnosis=none", "pairing=relative_depth"),
            ),
        }[self.command]
        own = {
            "paths.cache": self.cache,
            "hydra.run.dir": self.run,
            "paths.corpus": workspace.root / "texts",
        }
        if self.command == "anchors":
            own["paths.zoo"] = self.out
            del own["paths.corpus"]
        kept = [word for word in given if word.partition("=")[0] not in own]
        return [*kept, *(f"{name}={place}" for name, place in own.items())]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(ROOT / f"{self.command}.py"), *self.words()],
            cwd=self.workspace.root,
            env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def ended(self) -> tuple[int, str]:
        process = self.start()
        out, _ = process.communicate(timeout=600)
        return process.returncode, out

    def result(self) -> Any:
        """Run to the end, and return what came of it, without times and folders."""
        code, out = self.ended()
        assert code == 0, out
        return self.content()

    def content(self) -> Any:
        self.whole()
        if self.command == "anchors":
            files = sorted(path for path in self.out.glob("*/*/*") if path.is_file())
            return {str(f.relative_to(self.out)): sha256(f.read_bytes()).hexdigest() for f in files}
        if self.command == "train":
            mapper = load_mapper(self.run / "mapper.ckpt")
            weights = {k: v.tolist() for k, v in mapper.state_dict().items()}
            results = json.loads((self.run / "results.json").read_text())
            return weights, results["tasks"], results["summary"]
        if self.command == "transfer":
            return read_adapter(self.out / "adapter").content_hash()
        if self.command == "diagnose":
            found = json.loads((self.run / "intersection_map.json").read_text())
            return {k: v for k, v in found.items() if k not in ("config", "timing", "provenance")}
        return numbers(BenchmarkResults.read(self.run / "results.json"))

    def whole(self) -> None:
        """Whatever has its final name is complete."""
        for file in self.folder.glob("**/adapter_config.json"):
            if not any(part.startswith(".") for part in file.relative_to(self.folder).parts):
                read_adapter(file.parent)
        for file in self.run.glob("mapper.ckpt"):
            load_mapper(file)
        for file in self.folder.glob("*/*.json"):
            json.loads(file.read_text())


@pytest.fixture(scope="module")
def seconds() -> dict[str, float]:
    return {}


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory,
    models_and_tasks: Path,
    pico_source: Any,
    pico_target: Any,
) -> Workspace:
    from .conftest import new_workspace

    sides = {"source": pico_source, "target": pico_target}
    workspace = new_workspace(tmp_path_factory.mktemp("faults"), models_and_tasks, sides)
    write_texts(workspace.root / "texts")
    return workspace


_expected: dict[str, tuple[Any, float, dict[str, int]]] = {}


def expected(command: str, shared: Workspace) -> tuple[Any, float, dict[str, int]]:
    """What a command comes to undisturbed, how long it takes, and the bytes in its folders."""
    if command not in _expected:
        job = Job(command, shared, shared.root / command)
        begin = time.monotonic()
        found = job.result()
        takes = time.monotonic() - begin
        sizes = {
            place: sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            for place, folder in (("cache", job.cache), ("run", job.run), ("out", job.out))
        }
        _expected[command] = found, takes, sizes
    return _expected[command]


@pytest.mark.parametrize("turn", range(COUNT))
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_any_moment_it_ends_the_same(
    shared: Workspace, tmp_path: Path, command: str, turn: int
) -> None:
    result, takes, _ = expected(command, shared)
    chance = random.Random(f"{command} {turn}")
    job = Job(command, shared, tmp_path)
    killed = 0
    for _ in range(2):
        process = job.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0.3, 1.0) * takes)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.communicate()
        job.whole()
    print(f"FAULT {command}: killed {killed} times")
    assert job.result() == result


@pytest.mark.parametrize("turn", range(COUNT))
@pytest.mark.parametrize(
    ("command", "place"),
    [
        *(("anchors", place) for place in ("run", "out")),
        *(("train", place) for place in ("cache", "run")),
        *(("transfer", place) for place in ("cache", "run", "out")),
        *(("diagnose", place) for place in ("cache", "run")),
        *(("evaluate", place) for place in ("cache", "run")),
    ],
)
def test_on_a_full_disk_nothing_is_lost(
    shared: Workspace, tmp_path: Path, command: str, place: str, turn: int
) -> None:
    result, _, sizes = expected(command, shared)
    chance = random.Random(f"{command} {place} {turn}")
    size = 4096 * (1 + int(chance.uniform(0, 1.1) * sizes[place] / 4096))
    job = Job(command, shared, tmp_path)
    folder = {"cache": job.cache, "run": job.run, "out": job.out}[place]
    with small_disk(folder, str(size)):
        code, out = job.ended()
        print(f"FAULT {command} {place}: {size} of {sizes[place]} bytes, exit code {code}")
        assert "Traceback" not in out
        assert "Logging error" not in out
        assert code in (0, 2), out
        if code == 2:
            assert "cannot be written" in out or "GB free" in out, out
        job.whole()
        remount = ["mount", "-o", "remount,size=1g", str(folder)]
        subprocess.run(remount, check=True)
        assert job.result() == result
        hidden = [f for f in folder.rglob(".*") if f.name not in (".locks", ".hydra")]
        assert [f for f in hidden if ".hydra" not in f.parts and ".locks" not in f.parts] == []
