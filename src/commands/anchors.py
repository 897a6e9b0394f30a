"""``anchors.py``: the adapters of a zoo, each trained once, by any number of processes.

What is finished is kept, so that a stopped run goes on where it was. Commands that need the zoo of
a pair that brings its own tasks train it by :func:`train_zoo` as well.
"""

import contextlib
import json
import logging
import multiprocessing
import shutil
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning import Trainer

from ..adapters import LoraAdapter, write_adapter
from ..adapters.peft_io import peft_files
from ..data import PromptTemplate, Task, write_manifest
from ..data.prompts import AnswerExamples
from ..data.zoo import METRICS_FILE, read_trained, trained_facts
from ..exceptions import AdapterError, ConfigurationError, DataError
from ..files import writing
from ..models import BaseModel, LoraFineTuning
from ..models.loading import say_beyond_window
from ..progress import shown_progress
from ..reporting.console import print_line
from ..settings import AnchorsSettings, Recipe, Settings
from .context import RunContext, quiet_libraries, trainer_device

log = logging.getLogger(__name__)
CPU_TRAINER: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "deterministic": True,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}


def run(settings: AnchorsSettings) -> Path:
    """Train the missing adapters of a zoo and return its folder.

    Raises:
        LoraportError: something that was asked for or given cannot be used.
    """
    context = RunContext(settings)
    names = settings.tasks.names or context.task_source().names()
    trainer = {k: v for k, v in settings.trainer.options.items() if k != "max_epochs"}
    folder = train_zoo(context, settings.sides, names, trainer)
    if settings.evaluation.rows is not None:
        _print_scores(context, names, settings.evaluation.rows)
    for side in settings.sides:
        print_line(f"{len(names)} {side} adapters in {folder / side}")
    return folder


def builds_zoo(context: RunContext) -> bool:
    """Return whether the pair brings its own tasks, and no other zoo was given."""
    settings: Settings = context.settings
    return settings.pair.build_zoo and not (settings.paths.zoo or settings.paths.zoo_source)


def train_zoo(
    context: RunContext, sides: Sequence[str], names: Sequence[str], trainer: dict[str, Any]
) -> Path:
    """Train what a zoo lacks, each side in a process of its own where the pair asks for it.

    Args:
        context: Of the pair.
        sides: Whose adapters.
        names: The tasks.
        trainer: Arguments of ``lightning.Trainer``: device, precision, strategy.

    Raises:
        ConfigurationError: an adapter is there that was trained in another way.
    """
    folder, workers = context.zoo_folder(), context.settings.pair.workers
    missing = [side for side in sides if _count_finished(folder, side, names) < len(names)]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _progress(folder, sides, names):
        if workers > 1 and len(missing) > 1:
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(workers, mp_context=spawn) as pool:
                arguments = (list(names), trainer)
                jobs = [
                    pool.submit(_train_side_alone, context.settings, side, *arguments)
                    for side in missing
                ]
                for job in jobs:
                    job.result()
        else:
            for side in sides:
                train_side(context, side, names, trainer)
    _write_manifest(context.settings, folder)
    return folder


def _train_side_alone(
    settings: Settings, side: str, names: list[str], trainer: dict[str, Any]
) -> None:
    """Train one side in a process of its own; tiny models gain nothing from a second thread."""
    quiet_libraries()
    torch.set_num_threads(1)
    train_side(RunContext(settings), side, names, trainer)


def train_side(
    context: RunContext, side: str, names: Sequence[str], trainer: dict[str, Any]
) -> None:
    """Train what one side of a zoo lacks.

    Tasks that another process is at are left for a second round, in which they are waited for, so
    that processes that start together share the work.
    """
    quiet_libraries()
    tasks = list(context.task_source().load(list(names)).values())
    training = ZooTraining(
        context.zoo_folder(),
        side,
        context.model(side),
        context.settings.recipe,
        context.template,
        trainer,
        kept=context.settings.paths.zoo is None,
    )
    busy = [task for task in tasks if not training.try_task(task, timeout=0.0)]
    for task in busy:
        training.try_task(task, timeout=-1.0)


@dataclass(frozen=True)
class ZooTraining:
    """The adapters of one side of a zoo.

    Attributes:
        folder: The zoo.
        side: ``source`` or ``target``.
        base: That side's model.
        recipe: How each adapter is trained.
        template: The prompt.
        trainer: Arguments of ``lightning.Trainer``.
        kept: Whether it is the one that the cache keeps, where a damaged adapter is made again.
    """

    folder: Path
    side: str
    base: BaseModel
    recipe: Recipe
    template: PromptTemplate
    trainer: dict[str, Any]
    kept: bool = False

    def try_task(self, task: Task, timeout: float) -> bool:
        """Train a task's adapter unless it is there.

        Args:
            task: The task.
            timeout: Seconds to wait for another process that is at it; negative: until it ends.

        Returns:
            False where another process is still at it.

        Raises:
            ConfigurationError: an adapter is there that was trained in another way.
        """
        if self._finished(task):  # needs no lock, and no permission to write
            return True
        locks = self.folder / ".locks"
        with writing(locks):
            locks.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(locks / f"{self.side}-{task.name}.lock", timeout=timeout):
                if not self._finished(task, again=True):
                    self._train(task)
        except Timeout:
            return False
        return True

    def _finished(self, task: Task, again: bool = False) -> bool:
        """Return whether a task's adapter is there; ``again`` removes a damaged one of the cache.

        Raises:
            ConfigurationError: it was trained in another way.
        """
        path = self.folder / self.side / task.name
        if not path.exists():
            return False
        try:
            read_trained(path)
        except AdapterError as error:
            if not self.kept:
                raise  # a damaged one is named, not trained over
            if again:  # under the lock
                log.warning("%s; it is trained again", error)
                shutil.rmtree(path)
            return False
        kept, now = trained_facts(path).get("settings"), self._settings(task)
        # A zoo from elsewhere says nothing of how it was trained: it is taken as it is.
        # An earlier version did not note precision and device.
        differing = [key for key, value in now.items() if kept and kept.get(key, value) != value]
        if differing:
            raise ConfigurationError(
                f"{path} was trained with another {', '.join(differing)} than is asked for now; "
                "name another folder by paths.zoo, or remove that one to train it again"
            )
        return True

    def _settings(self, task: Task) -> dict[str, Any]:
        """Return all that an adapter depends on."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "prompt": asdict(self.template),
            "base": self.base.fingerprint,
            "rows": replace(task, test=()).content_hash(),
            "precision": str(self.trainer.get("precision", "32-true")),
            "device": trainer_device(self.trainer),
        }

    def _train(self, task: Task) -> None:
        log.info("training %s/%s", self.side, task.name)
        adapter, metrics = train_adapter(self.recipe, self.base, task, self.template, self.trainer)
        hashes = {n: sha256(content).hexdigest() for n, content in peft_files(adapter).items()}
        facts = {"files": hashes, "settings": self._settings(task)}
        content = json.dumps(metrics | facts, indent=1) + "\n"
        path = self.folder / self.side / task.name
        write_adapter(adapter, path, extra={METRICS_FILE: content})
        log.info("trained %s/%s: loss %.3f", self.side, task.name, metrics["loss_last"])


def train_adapter(
    recipe: Recipe, base: BaseModel, task: Task, template: PromptTemplate, trainer: dict[str, Any]
) -> tuple[LoraAdapter, dict[str, Any]]:
    """Train an adapter of a base model on a task.

    Args:
        recipe: How.
        base: The model.
        task: Where the rows come from.
        template: The prompt.
        trainer: Arguments of ``lightning.Trainer``: device, precision, strategy.

    Returns:
        The adapter, and what there is to say of its training.

    Raises:
        ConfigurationError: the training left it at zero.
    """
    examples = AnswerExamples(
        task,
        template,
        base.tokenizer,
        batch_size=recipe.batch_size,
        examples=recipe.examples,
        balanced=recipe.balanced,
        seed=recipe.seed,
    )
    answers = sorted({tuple(row.answer) for row in examples.rows})
    if len(answers) < 2:
        raise DataError(
            f"all {len(examples.rows)} training rows of the task {task.name} have one label, from "
            f"which nothing but that answer is learned; it takes rows of at least two of "
            f"{', '.join(task.labels)}: add rows to its train.jsonl, or set recipe.balanced=true"
        )
    say_beyond_window(base, [row.length for row in examples.rows], f"training on {task.name}")
    tuning = LoraFineTuning(
        base,
        rank=recipe.rank,
        alpha=recipe.alpha,
        roles=recipe.roles,
        init_seed=recipe.init_seed,
        lr=recipe.lr,
        warmup_steps=recipe.warmup_steps,
    )
    with contextlib.closing(tuning), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        options = trainer | {
            "max_epochs": recipe.epochs,
            "gradient_clip_val": recipe.clip_norm,
            "logger": False,
            "enable_progress_bar": False,
        }
        Trainer(**options).fit(tuning, datamodule=examples)
        losses, adapter = tuning.losses, tuning.adapter()
    if adapter.norm() == 0:
        raise ConfigurationError(
            f"{len(losses)} steps of recipe.lr={recipe.lr} left the adapter of {task.name} at "
            f"zero, with recipe.warmup_steps={recipe.warmup_steps}; raise recipe.epochs or "
            "recipe.examples, or lower recipe.batch_size"
        )
    return adapter, {
        "task": task.name,
        "examples": len(examples.rows),
        "steps": len(losses),
        "loss_first": losses[0],
        "loss_last": sum(losses[-8:]) / len(losses[-8:]),
    }


def _count_finished(folder: Path, side: str, names: Sequence[str]) -> int:
    """Return how many of the tasks have an adapter in a zoo."""
    return sum((folder / side / name / "adapter_config.json").exists() for name in names)


@contextmanager
def _progress(folder: Path, sides: Sequence[str], names: Sequence[str]) -> Iterator[None]:
    """Show how many adapters are finished, whoever finishes them, and how long the rest takes."""
    with shown_progress() as progress:
        bars = {
            side: progress.add_task(f"{side} model, adapters", total=len(names)) for side in sides
        }
        stopped = threading.Event()

        def watch() -> None:
            while not stopped.wait(0.5):
                for side, bar in bars.items():
                    progress.update(bar, completed=_count_finished(folder, side, names))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stopped.set()
            watcher.join()


def _write_manifest(settings: Settings, folder: Path) -> None:
    config = settings.plain()
    libraries = ("torch", "transformers", "peft", "lightning")
    facts = {
        "pair": settings.pair.name,
        "prompt": config["prompt"],
        "recipe": config["recipe"],
        "versions": {library: version(library) for library in libraries},
    }
    write_manifest(folder, facts)


def _print_scores(context: RunContext, names: Sequence[str], rows: int) -> None:
    """Score every adapter and its base on the first test rows."""
    scores, tasks = context.scores, context.task_source().load(list(names))
    for side in context.settings.sides:
        base = context.model(side)
        for name, task in tasks.items():
            few = task.limited(rows)
            adapter = read_trained(context.zoo_folder() / side / name)
            plain, adapted = scores.score(base, None, few), scores.score(base, adapter, few)
            line = f"{side} {name}: accuracy {plain.accuracy:.3f} -> {adapted.accuracy:.3f}"
            if plain.nll is not None and adapted.nll is not None:
                line += f", NLL {plain.nll:.3f} -> {adapted.nll:.3f}"
            print_line(line)
