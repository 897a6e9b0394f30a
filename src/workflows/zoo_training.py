"""Training the adapters of a zoo, each once, by any number of processes."""

import contextlib
import json
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from lightning import Trainer

from ..adapters import LoraAdapter, Role, read_adapter, write_adapter
from ..data import PromptTemplate, Task
from ..data.answers import AnswerExamples
from ..exceptions import ConfigurationError
from ..models import BaseModel, LoraFineTuning

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
