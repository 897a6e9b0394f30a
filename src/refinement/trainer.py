"""The target as it learns: LoRA modules that begin from the adapter a mapper has made."""

import io
import math
import pickle
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ..adapters import LoraAdapter, LowRank, Site
from ..exceptions import AdapterError
from ..files import write_whole
from ..models.loading import BaseModel
from ..models.lora_training import LoraTraining, interruptible
from .base import RefinementProgress, silent

SCALE = 2.0
"""Of every update, ``lora_alpha / r``: what the learning rates here are made for."""

_NOTHING = 1e-6  # singular values under this share of the largest are rounding


class Student(LoraTraining):
    """The target with trainable LoRA modules that at first do what a given adapter does.

    One learning rate has to suit a start from nothing and one from any mapper, so the start is
    brought into the gauge of a fresh one: with its update ``U S V^T``, the rows of A are those of
    ``V^T``, each with the norm ``1 / sqrt(3)`` that a row drawn by PEFT has in the mean, and B
    holds the rest. Rows that the update does not need, all of them where it is zero, are drawn as
    PEFT draws them, and their columns of B are zero. So the same update trains alike, whatever
    factors it came in.

    Args:
        base: The target; borrowed until :meth:`close`, as :class:`LoraTraining` says.
        start: The adapter to begin from; it also says which modules have which rank.
        seed: Of what is drawn.
        lr: Learning rate of AdamW after the warm-up, without weight decay.
        warmup_steps: Over which it rises from zero; from there it falls linearly to zero.

    Raises:
        AdapterError: the adapter does not fit the target.
    """

    def __init__(
        self,
        base: BaseModel,
        start: LoraAdapter,
        *,
        seed: int = 0,
        lr: float = 2e-3,
        warmup_steps: int = 4,
    ) -> None:
        misfit = base.sites.misfit(start)
        if misfit is not None:
            site, found = misfit
            raise AdapterError(
                f"refinement begins from an adapter whose {site.module_name} has the shape "
                f"{start[site].shape}, but {base.name} has {found}; map the adapter to this model"
            )
        ranks = {site: update.rank for site, update in start.items()}
        super().__init__(base, ranks, scale=SCALE, init_seed=seed, lr=lr, warmup_steps=warmup_steps)
        self.base = base
        self._steps: int | None = None
        for site, update in start.items():
            self._begin_from(site, update)

    def _begin_from(self, site: Site, update: LowRank) -> None:
        a, b = self._factors(site)
        u, sigma, vt = update.to(torch.float32).factors_svd()
        kept = int((sigma > _NOTHING * sigma.max()).sum())
        row = 1 / math.sqrt(3)
        a.data[:kept] = (row * vt[:kept]).to(a)
        b.data[:, :kept] = (u[:, :kept] * sigma[:kept] / (row * self.scale)).to(b)

    def plan(self, steps: int) -> None:
        """Say how many steps the whole training has, of which this run may do the last only."""
        self._steps = steps

    def planned_steps(self) -> int:
        """Return the number of steps of the whole training."""
        return super().planned_steps() if self._steps is None else self._steps

    def factors(self) -> list[Float[Tensor, "_ _"]]:
        """Return copies of A and B of every site."""
        return [factor.detach().clone() for site in self.sites for factor in self._factors(site)]

    def take(self, factors: list[Any]) -> None:
        """Take back what :meth:`factors` returned."""
        own = [factor for site in self.sites for factor in self._factors(site)]
        for factor, value in zip(own, factors, strict=True):
            factor.data.copy_(value)


# Training a student over batches that are known beforehand, as often stopped as one likes.

SAVE_SECONDS = 20.0
CLIP_NORM = 1.0


@dataclass
class TrainingResult:
    """How a training went.

    Attributes:
        losses: Of every step.
        measured: What was measured behind how many steps; 0 is the start.
        best_step: Steps behind which the weights were taken that are kept; the last where nothing
            was measured.
        seconds: Of clock, of all runs that had a part in it, measuring included.
    """

    losses: list[float] = field(default_factory=list)
    measured: dict[int, float] = field(default_factory=dict)
    best_step: int = 0
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Number of steps that were made."""
        return len(self.losses)


def train_student(
    student: Student,
    batches: Sequence[Any],
    folder: Path | None = None,
    *,
    measure: Callable[[], float] | None = None,
    start_value: float | None = None,
    checks: int = 4,
    step: str = "training the student",
    progress: RefinementProgress = silent,
    save_seconds: float = SAVE_SECONDS,
) -> TrainingResult:
    """Train a student once over the batches, in their order, with Lightning's trainer.

    The state is saved from time to time, and when the run is stopped: factors, optimizer, place
    in the schedule, and the best weights so far. A run that is started again with the same folder
    goes on from there and ends in the same bits as one that nobody stopped. Gradients are clipped
    to the norm 1.

    Args:
        student: What is trained; in the end it has the weights with the lowest measure.
        batches: What :meth:`Student.loss` takes, for all steps of all epochs.
        folder: Holds the state while the training is unfinished, and is removed at its end. Its
            name must say all that the training depends on. None keeps nothing.
        measure: How far the student is from what it should become, such as the divergence from
            its teacher on held-out texts; lower is better. It is asked before the first step,
            and ``checks`` times on the way, the last time behind the last step. Without it the
            last weights are kept.
        start_value: What it says of the start, where that is known already.
        checks: So many times, evenly spread; at 0 it is never asked.
        step: What ``progress`` is told that is being done.
        progress: Is told how many steps are done.
        save_seconds: The state is saved behind the first step after so many.

    Raises:
        KeyboardInterrupt: the training was stopped, at the keyboard or by the system.
        OutputError: the state cannot be written.
    """
    student.plan(len(batches))
    asked = measure if checks else None
    session = _Session(student, len(batches), folder, asked, checks, save_seconds)
    session.tell = lambda done: progress(step, done, len(batches))
    session.begin(start_value)
    left = batches[session.result.steps :]
    if left:
        with interruptible():
            _trainer(student, session).fit(student, _Loader(left))
    session.end()
    return session.result


def _trainer(student: Student, session: Callback) -> Trainer:
    return Trainer(
        accelerator="cpu" if student.base.network.device.type == "cpu" else "auto",
        devices=1,
        max_epochs=1,
        gradient_clip_val=CLIP_NORM,
        callbacks=[session],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class _Loader:
    """The batches as one loader; Lightning takes each entry of a list for a loader itself."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


class _Session(Callback):
    """Keeps the state of one training: on disk while it is unfinished, the best at its end."""

    def __init__(
        self,
        student: Student,
        steps: int,
        folder: Path | None,
        measure: Callable[[], float] | None,
        checks: int,
        save_seconds: float,
    ) -> None:
        self.result = TrainingResult()
        self.tell: Callable[[int], None] = lambda done: None
        self._student = student
        self._file = None if folder is None else folder / "state.pt"
        self._measure = measure
        self._due = {round(steps * check / checks) for check in range(1, checks + 1)}
        self._best: list[Any] = []
        self._trained: dict[str, Any] = {}
        self._save_seconds = save_seconds
        self._saved = self._begun = time.monotonic()
        self._within_step = False

    def begin(self, start_value: float | None) -> None:
        """Take up what an earlier run has left, or note where the student starts."""
        state = self._read()
        if state is None:
            self._check(start_value)
        else:
            self.result = TrainingResult(**state["course"])
            self._student.losses = self.result.losses
            self._student.take(state["factors"])
            self._best, self._trained = state["best"], state["trained"]
            self._begun -= self.result.seconds
        self.result.losses = self._student.losses
        self.tell(self.result.steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the optimizer and its schedule where the earlier run was."""
        del pl_module
        if self._trained:
            trainer.optimizers[0].load_state_dict(self._trained["optimizer"])
            trainer.lr_scheduler_configs[0].scheduler.load_state_dict(self._trained["schedule"])

    def on_before_optimizer_step(self, *_: Any) -> None:
        """Note that weights are being changed: what is saved now would be half a step."""
        self._within_step = True

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Measure where it is due, and save where it is time."""
        if self.result.steps in self._due:
            self._check()
        self._within_step = False
        self.tell(self.result.steps)
        if time.monotonic() - self._saved >= self._save_seconds:
            self._save(trainer)

    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        """Save what has been done so far."""
        if not self._within_step:
            self._save(trainer)

    def end(self) -> None:
        """Give the student its best weights, and remove what is on disk."""
        if self._measure is None:
            self.result.best_step = self.result.steps
        else:
            self._student.take(self._best)
        self.result.seconds = time.monotonic() - self._begun
        if self._file is not None:
            shutil.rmtree(self._file.parent, ignore_errors=True)

    def _check(self, known: float | None = None) -> None:
        """Measure, and keep the weights if there were none better."""
        if self._measure is None:
            return
        network = self._student.network
        network.eval()
        with torch.no_grad():
            value = float(self._measure()) if known is None else known
        network.train()
        result, step = self.result, len(self._student.losses)
        if not result.measured or value < result.measured[result.best_step]:
            result.best_step, self._best = step, self._student.factors()
        result.measured[step] = value

    def _save(self, trainer: Trainer) -> None:
        if self._file is None or not trainer.optimizers:
            return
        done = trainer.lr_scheduler_configs[0].scheduler.last_epoch
        self.result.seconds = time.monotonic() - self._begun
        state = {
            # A loss is noted before its step is made.
            "course": vars(self.result) | {"losses": self.result.losses[:done]},
            "factors": self._student.factors(),
            "best": self._best,
            "trained": {
                "optimizer": trainer.optimizers[0].state_dict(),
                "schedule": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
            },
        }
        content = io.BytesIO()
        torch.save(state, content)
        write_whole(self._file, content.getvalue())
        self._saved = time.monotonic()

    def _read(self) -> dict[str, Any] | None:
        """Return the state that is kept; None where there is none, or it is damaged."""
        if self._file is None:
            return None
        try:
            return dict(torch.load(self._file, weights_only=True))
        except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, ValueError):
            return None
