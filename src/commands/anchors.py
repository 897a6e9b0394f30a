"""Training the adapters of a zoo, each once, by any number of processes."""

import contextlib
import json
import logging
import multiprocessing
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ..adapters import LoraAdapter, Role, read_adapter, write_adapter
from ..data import PromptTemplate, Task, write_manifest
from ..data.prompts import AnswerExamples
from ..data.zoo import SIDES
from ..evaluation.scoring import ScoreCache
from ..exceptions import ConfigurationError
from ..models import BaseModel, LoraFineTuning
from .context import RunContext, plain_config, quiet_libraries, shown_bars

log = logging.getLogger(__name__)
METRICS_FILE = "metrics.json"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one adapter is trained; the fields of ``conf/recipe``.

    Attributes:
        rank: Columns of every B.
        alpha: PEFT's ``lora_alpha``.
        roles: Adapted modules of every layer.
        init_seed: Draws A; shared by all tasks of a base.
        lr: Of AdamW, after the warm-up.
        warmup_steps: After which the learning rate falls linearly to zero.
        epochs: Passes over the rows.
        batch_size: Rows a step.
        examples: Training rows.
        balanced: Take them from the labels in turn.
        clip_norm: Of the gradient.
        seed: Of the order of the rows.

    Raises:
        ConfigurationError: a number is not positive, or a role does not exist.
    """

    rank: int
    alpha: int
    roles: tuple[str, ...]
    init_seed: int
    lr: float
    warmup_steps: int
    epochs: int
    batch_size: int
    examples: int
    balanced: bool
    clip_norm: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("rank", "alpha", "epochs", "batch_size", "examples", "lr", "clip_norm"):
            value = getattr(self, name)
            if not value > 0:
                raise ConfigurationError(f"recipe.{name} is {value}, it takes a positive number")
        known = [role.value for role in Role]
        strangers = [role for role in self.roles if role not in known]
        if strangers or not self.roles:
            raise ConfigurationError(
                f"recipe.roles is {list(self.roles)}; it takes one or more of {', '.join(known)}"
            )

    def train(
        self, base: BaseModel, task: Task, template: PromptTemplate, trainer: dict[str, Any]
    ) -> tuple[LoraAdapter, dict[str, Any]]:
        """Train an adapter of a base model on a task.

        Args:
            base: The model.
            task: Where the rows come from.
            template: The prompt.
            trainer: Arguments of ``lightning.Trainer``: device, precision, strategy.

        Returns:
            The adapter, and what there is to say of its training.
        """
        examples = AnswerExamples(
            task,
            template,
            base.tokenizer,
            batch_size=self.batch_size,
            examples=self.examples,
            balanced=self.balanced,
            seed=self.seed,
        )
        tuning = LoraFineTuning(
            base,
            rank=self.rank,
            alpha=self.alpha,
            roles=self.roles,
            init_seed=self.init_seed,
            lr=self.lr,
            warmup_steps=self.warmup_steps,
        )
        with contextlib.closing(tuning), warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*does not have many workers.*")
            options = trainer | {
                "max_epochs": self.epochs,
                "gradient_clip_val": self.clip_norm,
                "logger": False,
                "enable_progress_bar": False,
            }
            fitting = Trainer(**options)
            fitting.fit(tuning, datamodule=examples)
            losses, adapter = tuning.losses, tuning.adapter()
            if adapter.norm() == 0:
                raise ConfigurationError(
                    f"{len(losses)} steps of recipe.lr={self.lr} left the adapter of {task.name} "
                    f"at zero, with recipe.warmup_steps={self.warmup_steps}; raise recipe.epochs "
                    "or recipe.examples, or lower recipe.batch_size"
                )
            return adapter, {
                "task": task.name,
                "examples": len(examples.rows),
                "steps": len(losses),
                "loss_first": losses[0],
                "loss_last": sum(losses[-8:]) / len(losses[-8:]),
            }


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
    """

    folder: Path
    side: str
    base: BaseModel
    recipe: Recipe
    template: PromptTemplate
    trainer: dict[str, Any]

    def run(self, tasks: Sequence[Task]) -> None:
        """Train what is missing.

        Tasks that another process is at are left for a second round, in which they are waited
        for, so that processes that start together share the work.

        Raises:
            ConfigurationError: an adapter is there that was trained in another way.
        """
        busy = [task for task in tasks if not self._try(task, timeout=0.0)]
        for task in busy:
            self._try(task, timeout=-1.0)

    def _try(self, task: Task, timeout: float) -> bool:
        locks = self.folder / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(locks / f"{self.side}-{task.name}.lock", timeout=timeout):
                if not self.finished(task):
                    self._train(task)
        except Timeout:
            return False
        return True

    def path(self, task: Task) -> Path:
        """Return the folder of a task's adapter."""
        return self.folder / self.side / task.name

    def finished(self, task: Task) -> bool:
        """Return whether a task's adapter is there.

        Raises:
            ConfigurationError: it is, but was trained on other rows or in another way.
        """
        path = self.path(task)
        if not path.exists():
            return False
        read_adapter(path)  # a damaged one is named, not trained over
        kept = _read_key(path)
        # A zoo from elsewhere says nothing of how it was trained: it is taken as it is.
        if kept is not None and kept != self._settings(task):
            differing = [k for k, value in self._settings(task).items() if kept.get(k) != value]
            raise ConfigurationError(
                f"{path} was trained with another {', '.join(differing)} than is asked for now; "
                "name another folder by paths.zoo, or remove that one to train it again"
            )
        return True

    def _settings(self, task: Task) -> dict[str, Any]:
        recipe = json.loads(json.dumps(asdict(self.recipe)))
        return {
            "recipe": recipe,
            "prompt": asdict(self.template),
            "base": self.base.fingerprint,
            "rows": replace(task, test=()).content_hash(),
        }

    def _train(self, task: Task) -> None:
        log.info("training %s/%s", self.side, task.name)
        adapter, metrics = self.recipe.train(self.base, task, self.template, self.trainer)
        content = json.dumps(metrics | {"settings": self._settings(task)}, indent=1) + "\n"
        write_adapter(adapter, self.path(task), extra={METRICS_FILE: content})
        log.info("trained %s/%s: loss %.3f", self.side, task.name, metrics["loss_last"])


def _read_key(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads((path / METRICS_FILE).read_text(encoding="utf-8")).get("settings")
    except (OSError, ValueError, AttributeError):
        return None


def count_finished(folder: Path, side: str, names: Sequence[str]) -> int:
    """Return how many of the tasks have an adapter in a zoo."""
    return sum((folder / side / name / "adapter_config.json").exists() for name in names)


# ``anchors.py``: the adapters of a zoo, trained with progress, resumable.

CPU_TRAINER: dict[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "deterministic": True,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
_MANIFEST_LIBRARIES = ("torch", "transformers", "peft", "lightning")


def run(config: DictConfig) -> Path:
    """Train the missing adapters of a zoo and return its folder.

    Raises:
        LoraportError: something that was asked for or given cannot be used.
    """
    context = RunContext(config)
    if config.side not in (*SIDES, "both"):
        raise ConfigurationError(f"side is {config.side!r}; it takes source, target or both")
    sides = SIDES if config.side == "both" else (config.side,)
    names = list(config.tasks.names or context.task_source().names())
    trainer = plain_config(config.trainer)
    trainer = {k: v for k, v in trainer.items() if k not in ("_target_", "max_epochs")}
    folder = train_zoo(context, sides, names, trainer)
    console = Console()
    if config.evaluation.rows is not None:
        _print_scores(context, console, sides, names)
    for side in sides:
        console.print(f"{len(names)} {side} adapters in {folder / side}", soft_wrap=True)
    return folder


def builds_zoo(context: RunContext) -> bool:
    """Return whether the pair brings its own tasks, and no other zoo was given."""
    paths = context.config.paths
    return bool(context.config.pair.get("build_zoo")) and not (paths.zoo or paths.zoo_source)


def train_zoo(
    context: RunContext, sides: Sequence[str], names: Sequence[str], trainer: dict[str, Any]
) -> Path:
    """Train what a zoo lacks, each side in a process of its own where the pair asks for it."""
    folder = context.zoo_folder()
    missing = [side for side in sides if count_finished(folder, side, names) < len(names)]
    folder.mkdir(parents=True, exist_ok=True)
    workers = int(context.config.pair.get("workers", 1))
    with _progress(folder, sides, names):
        if workers > 1 and len(missing) > 1:
            _in_processes(context.config, missing, list(names), trainer, workers)
        else:
            for side in sides:
                train_side(context.config, side, list(names), trainer)
    _write_manifest(context, folder)
    return folder


def train_side(
    config: DictConfig, side: str, names: list[str], trainer: dict[str, Any], threads: int = 0
) -> None:
    """Train what one side of a zoo lacks."""
    quiet_libraries()
    if threads:
        torch.set_num_threads(threads)
    context = RunContext(config)
    tasks = list(context.task_source().load(names).values())
    training = ZooTraining(
        context.zoo_folder(),
        side,
        context.model(side),
        recipe_of(config),
        context.template,
        trainer,
    )
    training.run(tasks)


def recipe_of(config: DictConfig) -> Recipe:
    """Return the recipe of a configuration.

    Raises:
        ConfigurationError: a number is not positive, or a role does not exist.
    """
    options = plain_config(config.recipe) | {"roles": tuple(config.recipe.roles)}
    return Recipe(**options | {name: float(options[name]) for name in ("lr", "clip_norm")})


def _in_processes(
    config: DictConfig,
    sides: Sequence[str],
    names: list[str],
    trainer: dict[str, Any],
    workers: int,
) -> None:
    """One process a side, one thread each: tiny models gain nothing from a second thread."""
    plain: Any = OmegaConf.create(plain_config(config))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        jobs = [pool.submit(train_side, plain, side, names, trainer, 1) for side in sides]
        for job in jobs:
            job.result()


@contextmanager
def _progress(folder: Path, sides: Sequence[str], names: Sequence[str]) -> Iterator[None]:
    """Show how many adapters are finished, whoever finishes them, and how long the rest takes."""
    with shown_bars() as progress:
        bars = {
            side: progress.add_task(f"{side} model, adapters", total=len(names)) for side in sides
        }
        stopped = threading.Event()

        def watch() -> None:
            while not stopped.wait(0.5):
                for side, bar in bars.items():
                    progress.update(bar, completed=count_finished(folder, side, names))

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stopped.set()
            watcher.join()


def _write_manifest(context: RunContext, folder: Path) -> None:
    config = plain_config(context.config)
    facts = {
        "pair": config["pair"]["name"],
        "prompt": config["prompt"],
        "recipe": config["recipe"],
        "versions": {library: version(library) for library in _MANIFEST_LIBRARIES},
    }
    locks = folder / ".locks"
    locks.mkdir(exist_ok=True)
    with FileLock(locks / "manifest.lock"):
        write_manifest(folder, facts)


def _print_scores(
    context: RunContext, console: Console, sides: Sequence[str], names: Sequence[str]
) -> None:
    """Score every adapter and its base on the first test rows."""
    rows = int(context.config.evaluation.rows)
    scores: ScoreCache = context.scores
    tasks = context.task_source().load(list(names))
    for side in sides:
        base = context.model(side)
        for name, task in tasks.items():
            few = task.limited(rows)
            adapter = read_adapter(context.zoo_folder() / side / name)
            plain, adapted = scores.score(base, None, few), scores.score(base, adapter, few)
            line = f"{side} {name}: accuracy {plain.accuracy:.3f} -> {adapted.accuracy:.3f}"
            if plain.nll is not None and adapted.nll is not None:
                line += f", NLL {plain.nll:.3f} -> {adapted.nll:.3f}"
            console.print(line, highlight=False, soft_wrap=True)
