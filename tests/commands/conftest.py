"""A workspace as a user has it: two models on disk, tasks in a folder, a zoo, and the commands."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra

from loraport import cli
from loraport.adapters import LoraAdapter, LowRank, write_adapter
from loraport.commands.context import RunContext
from loraport.models import BaseModel
from loraport.settings import load

TASKS = ("films", "plays", "songs", "books", "games")
HELD_OUT = ("books", "games")
NOUNS = ("film", "plot", "scene")


# What makes training on text, and a diagnosis, a matter of seconds.
QUICK_TEXT = (
    *("pairing=relative_depth", "data.tokens=300", "data.held_out_tokens=120"),
    "data.batch_tokens=1024",
)
QUICK_DIAGNOSIS = (
    *("diagnosis.rows=120", "diagnosis.permutations=20", "measures.svcca.components=4"),
    *("transport.layers=1", "transport.rows=12"),
)
# Of models with random weights only what is read last decides, so that the text is.
ASKED = ("prompt.template='{instruction} {text}'", "prompt.labels=[good,bad]")
_BESIDE = (*ASKED, "refine.pool=12", "refine.generic=8", "refine.held_out=8", "refine.batch_size=4")
# So few texts hardly ever agree better than none: the last weights are kept.
_LAST = "refine.checks=0"
QUICK_REFINEMENT = {
    "corpus_distill": (
        *(*ASKED, "refine.texts=16", "refine.pool=24", "refine.held_out=8", "refine.batch_size=4"),
        *(_LAST, "drift.texts=6", "drift.positions=4"),
    ),
    "prompt_distill": (*_BESIDE, _LAST),
    "few_shot": _BESIDE,
    "drift_budget": (
        *("refine.texts=6", "refine.positions=4"),
        *("drift.texts=6", "drift.positions=4"),
    ),
}
QUICK_MAPPER = {
    "cast": ("mapper.hidden=4", "trainer.max_epochs=1", "mapper.export_rows=64"),
}


ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@dataclass(frozen=True)
class Workspace:
    """Folders, and the options that point a command at them."""

    root: Path

    @property
    def zoo(self) -> Path:
        return self.root / "zoo"

    def options(self) -> list[str]:
        models = self.root / "models"
        return [
            "pair=local",
            *(f"pair.{side}.path={models / side}" for side in ("source", "target")),
            *(f"pair.{side}.name=pico/{side}" for side in ("source", "target")),
            f"paths.tasks={self.root / 'tasks'}",
            f"paths.cache={self.root / 'cache'}",
            f"paths.zoo={self.zoo}",
            "recipe.examples=8",
            "recipe.batch_size=2",
            "recipe.rank=2",
        ]

    def training(self) -> list[str]:
        return [*self.options(), f"tasks.held_out=[{','.join(HELD_OUT)}]", "logger=csv"]

    def text_training(self, mapper: str) -> list[str]:
        """Options of ``train.py`` for a mapper that learns from text, without a zoo."""
        texts = self.root / "texts"
        if not texts.exists():
            write_texts(texts)
        return [
            *(word for word in self.training() if not word.startswith("paths.zoo=")),
            *QUICK_TEXT,
            *QUICK_MAPPER.get(mapper, ()),
            f"mapper={mapper}",
            f"paths.corpus={texts}",
        ]


def context_of(command: str, *words: str) -> RunContext:
    """Return the context that a command has for some words of its command line."""
    return RunContext(load(command, words))


def write_tasks(folder: Path) -> None:
    """Tasks of short sentences, whose last word gives the label."""
    for place, name in enumerate(TASKS):
        path = folder / name
        path.mkdir(parents=True)
        facts = {
            "name": name,
            "instruction": "Which feeling ?",
            "labels": ["very good", "bad"],
            "role": "held_out" if name in HELD_OUT else "anchor",
        }
        (path / "task.json").write_text(json.dumps(facts))
        for split, rows in (("train", 16), ("test", 6)):
            lines = [
                {
                    "text": "the " * (row % 3 + 1)
                    + f"{NOUNS[(row + place) % 3]} is {('good', 'dull')[row % 2]}",
                    "label": ("very good", "bad")[row % 2],
                }
                for row in range(rows)
            ]
            (path / f"{split}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


def write_texts(folder: Path) -> None:
    """Different sentences of words that the pico models know, a text a line."""
    nouns, words = ("film", "plot", "actor", "scene"), ("good", "bad", "dull", "neutral")
    lines = [
        f"the {one} was truly {word} and a {other} is never {end}"
        for one in nouns
        for other in nouns
        for word in words
        for end in words
    ]
    folder.mkdir(parents=True)
    (folder / "all.txt").write_text("\n".join(lines))


def write_inputs(folder: Path) -> tuple[Path, Path]:
    """Unlabelled inputs and labelled examples, as a user has them; return both files."""
    inputs, examples = folder / "inputs.txt", folder / "examples.jsonl"
    inputs.write_text("the film is good\n\nthe plot is bad\na dull scene")
    rows = [{"text": f"the film is {word}", "label": "bad"} for word in ("bad", "dull", "never")]
    rows.append({"text": "a very good scene", "label": "good"})
    examples.write_text("\n".join(map(json.dumps, rows)))
    return inputs, examples


def write_zoo(folder: Path, sides: dict[str, BaseModel]) -> None:
    """Adapters with random factors: what these tests ask is whether they arrive."""
    import torch

    for side, base in sides.items():
        for seed, name in enumerate(TASKS):
            generator = torch.Generator().manual_seed(seed)
            sites = {
                site: LowRank(
                    torch.randn(2, shape[1], generator=generator),
                    torch.randn(shape[0], 2, generator=generator) / 8,
                )
                for site, shape in base.sites.shapes.items()
                if site.role in ("q", "v")
            }
            write_adapter(LoraAdapter(sites, base.name), folder / side / name)


@pytest.fixture(scope="session")
def models_and_tasks(
    tmp_path_factory: pytest.TempPathFactory, pico_source: BaseModel, pico_target: BaseModel
) -> Path:
    root = tmp_path_factory.mktemp("workspace")
    for side, base in (("source", pico_source), ("target", pico_target)):
        base.network.save_pretrained(root / "models" / side)
        base.tokenizer.save_pretrained(root / "models" / side)
    write_tasks(root / "tasks")
    return root


def new_workspace(folder: Path, kept: Path, sides: dict[str, BaseModel]) -> Workspace:
    """Make a workspace in an empty folder, with the models and the tasks of ``kept``."""
    for name in ("models", "tasks"):
        (folder / name).symlink_to(kept / name)
    write_zoo(folder / "zoo", sides)
    return Workspace(folder)


@pytest.fixture
def workspace(
    tmp_path: Path, models_and_tasks: Path, pico_source: BaseModel, pico_target: BaseModel
) -> Workspace:
    return new_workspace(tmp_path, models_and_tasks, {"source": pico_source, "target": pico_target})


def start_command(script: str, cache: Path, *options: str) -> subprocess.Popen[str]:
    """Start a command as a user does, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, ROOT / f"{script}.py", *options, f"paths.cache={cache}"],
        cwd=cache,
        env=os.environ | {"WANDB_MODE": "offline"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a command that ends well, and return what it said."""
    out, _ = process.communicate()
    assert process.returncode == 0, out
    return out


def run_command(folder: Path, script: str, *options: str) -> int:
    """Call a command as its script does, in an empty working folder, without a new process.

    Models with random weights are not compatible, so that the pair is diagnosed only where a
    test says how.

    Returns:
        The exit code.
    """
    diagnosed = any(word.startswith("diagnosis") for word in options)
    if script in ("train", "transfer", "evaluate") and not diagnosed:
        options = (*options, "diagnosis=none")
    work = folder / "work"
    work.mkdir(exist_ok=True)
    GlobalHydra.instance().clear()
    with pytest.MonkeyPatch.context() as patch:
        if not any(word.startswith("sweep=") for word in options):
            # Hydra composes a configuration once more to see whether it asks for a sweep.
            patch.setattr(Hydra, "get_mode", lambda *_, **__: None)
        patch.chdir(work)
        patch.setattr(sys, "argv", [f"{script}.py", *options])
        patch.setenv("HYDRA_FULL_ERROR", "1")
        patch.setenv("WANDB_MODE", "offline")
        try:
            getattr(cli, script)()
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
    return 0


@pytest.fixture
def command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """Call a command, and return what it printed as well."""

    def call(script: str, *options: str) -> Outcome:
        capfd.readouterr()
        code = run_command(tmp_path, script, *options)
        out, err = capfd.readouterr()
        return Outcome(code, out, err)

    return call


@contextmanager
def mounted(folder: Path, *asked: tuple[str, ...]) -> Iterator[None]:
    """Mount at a folder what some calls of ``mount`` ask for; skip the test where none may."""
    folder.mkdir(parents=True, exist_ok=True)
    # Lazily, since what a command has mapped into this process may be held yet.
    unmount = ["umount", "--lazy", str(folder)]
    with ExitStack() as mounts:
        for place, options in enumerate(asked):
            try:
                command = ["mount", *options, str(folder)]
                subprocess.run(command, check=True, capture_output=True)
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"nothing can be mounted here: {error}")
            if not place:  # the others change the first
                mounts.callback(subprocess.run, unmount, check=True, capture_output=True)
        yield


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Let a folder be a disk of a size, such as 64k."""
    with mounted(folder, ("-t", "tmpfs", "-o", f"size={size}", "tmpfs")):
        yield folder
