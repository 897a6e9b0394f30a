"""Training a student: the target's LoRA modules, from a mapped adapter, stoppable at any time."""

import io
import logging
import math
import time
from collections import UserList
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ..adapters import LoraAdapter, LowRank, Site
from ..exceptions import OutputError
from ..models.loading import BaseModel
from ..models.lora_training import LoraTraining, interruptible
from ..store import Key, Store
from .base import NO_STORE, RefinementProgress, silent

_log = logging.getLogger(__name__)

SCALE = 2.0
"""``lora_alpha / r`` of every update: the learning rates of the refinements are made for it."""

_ROUNDING = 1e-6  # singular values under this share of the largest are rounding


class Student(LoraTraining):
    """The target with trainable LoRA modules that at first equal a given adapter.

    The same learning rate has to suit a start from zero and one from any mapper, so the start is
    rescaled to look like a fresh LoRA: with its update ``U S V^T``, the rows of A are those of
    ``V^T``, each with the norm ``1 / sqrt(3)`` that a row drawn by PEFT has in the mean, and B
    holds the rest. Rows beyond the rank of the update, all of them where it is zero, are drawn as
    PEFT draws them, and their columns of B are zero. So the training depends on the update and
    not on its factors.

    Args:
        base: The target; borrowed until :meth:`close`, as :class:`LoraTraining` says.
        start: The adapter to begin from; it also determines the sites and their ranks.
        seed: Of what is drawn.
        lr: Learning rate of AdamW after the warm-up, without weight decay.
        warmup_steps: Steps over which it rises from zero; from there it falls linearly to zero.

    Attributes:
        total_steps: Steps of the whole training, of which this run may do the last only; None
            where the trainer knows.
        key_parts: What determines the training besides its batches; a subclass adds the options
            of its loss.

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
        what = "the adapter that refinement begins from"
        base.sites.check(start, what, base.name, "map the adapter to this model")
        ranks = {site: update.rank for site, update in start.items()}
        super().__init__(base, ranks, scale=SCALE, init_seed=seed, lr=lr, warmup_steps=warmup_steps)
        self.base = base
        self.total_steps: int | None = None
        self.key_parts: list[Any] = [
            *(type(self).__name__, base.key_parts),
            *(start, seed, lr, warmup_steps),
        ]
        for site, update in start.items():
            self._begin_from(site, update)

    def _begin_from(self, site: Site, update: LowRank) -> None:
        a, b = self._factors(site)
        u, sigma, vt = update.to(torch.float32).factors_svd()
        kept = int((sigma > _ROUNDING * sigma.max()).sum())
        row = 1 / math.sqrt(3)
        a.data[:kept] = (row * vt[:kept]).to(a)
        b.data[:, :kept] = (u[:, :kept] * sigma[:kept] / (row * self.scale)).to(b)

    def planned_steps(self) -> int:
        """Return the number of steps of the whole training."""
        return super().planned_steps() if self.total_steps is None else self.total_steps

    def factors(self) -> list[Float[Tensor, "_ _"]]:
        """Return copies of A and B of every site."""
        return [factor.detach().clone() for site in self.sites for factor in self._factors(site)]

    def load_factors(self, factors: Sequence[Any]) -> None:
        """Set A and B of every site to what :meth:`factors` returned."""
        own = [factor for site in self.sites for factor in self._factors(site)]
        for factor, value in zip(own, factors, strict=True):
            factor.data.copy_(value)


@dataclass
class TrainingResult:
    """How a training went.

    Attributes:
        losses: Of every step.
        measured: The measure after a number of steps; 0 is the start.
        best_step: Steps after which the kept weights were taken; all where nothing was measured.
        seconds: Wall time of all runs that took part, measuring included.
    """

    losses: list[float] = field(default_factory=list)
    measured: dict[int, float] = field(default_factory=dict)
    best_step: int = 0
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.losses)


def train_student(
    student: Student,
    batches: Sequence[Any],
    *,
    store: Store = NO_STORE,
    measure: Callable[[], float] | None = None,
    measured_on: Any = None,
    start_value: float | None = None,
    checks: int = 4,
    step: str = "training the student",
    progress: RefinementProgress = silent,
    save_seconds: float = 20.0,
) -> TrainingResult:
    """Train a student once over the batches, in their order, with Lightning's trainer.

    The state is saved from time to time, and when the run is stopped: factors, optimizer, learning
    rate schedule, and the best weights so far. The same call made again goes on from there and
    ends in the same bits as one that was never stopped. A state that cannot be written costs no
    more than that, and is said once. Gradients are clipped to the norm 1.

    Args:
        student: What is trained; in the end it has the weights with the lowest measure.
        batches: What :meth:`Student.loss` takes, for all steps of all epochs.
        store: Keeps the state while the training is unfinished.
        measure: How far the student is from its aim; lower is better. Called before the first
            step, and ``checks`` times during training, evenly spread, the last time after the
            last step. Without it, or with no checks, the last weights are kept.
        measured_on: What ``measure`` compares with, which decides which weights are kept.
        start_value: The measure of the start, where it is known already.
        checks: Number of measurements.
        step: What ``progress`` is called with, beside the number of finished steps.
        progress: Called after each step.
        save_seconds: The state is saved after the first step beyond so many seconds.

    Raises:
        KeyboardInterrupt: the training was stopped, at the keyboard or by the system.
    """
    student.total_steps = len(batches)
    if not checks:
        measure = None
    checked = [checks, measured_on] if measure else None
    session = _Session(
        student,
        measure,
        {round(len(batches) * i / checks) for i in range(1, checks + 1)},
        Key.of("students", student=student.key_parts, batches=batches, checked=checked),
        store,
        save_seconds,
        lambda done: progress(step, done, len(batches)),
    )
    session.begin(start_value)
    left = batches[session.result.steps :]
    if left:
        trainer = Trainer(
            accelerator="cpu" if student.base.network.device.type == "cpu" else "auto",
            devices=1,
            max_epochs=1,
            gradient_clip_val=1.0,
            callbacks=[session],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        with interruptible():
            # Not a list: Lightning takes each entry of a list for a loader itself.
            trainer.fit(student, UserList(left))
    session.end()
    return session.result


class _Session(Callback):
    """One training: its state in the store while it is unfinished, its best weights at its end."""

    def __init__(
        self,
        student: Student,
        measure: Callable[[], float] | None,
        checkpoints: set[int],
        key: Key,
        store: Store,
        save_seconds: float,
        show: Callable[[int], None],
    ) -> None:
        self.result = TrainingResult()
        self._student, self._measure, self._checkpoints = student, measure, checkpoints
        self._key, self._store, self._save_seconds, self._show = key, store, save_seconds, show
        self._best: list[Any] = []
        self._optimizer_state: dict[str, Any] = {}
        self._saved = self._begun = time.monotonic()
        self._within_step = self._unwritable = self._complete = False

    def begin(self, start_value: float | None) -> None:
        """Go on from the state that is kept, or measure the start."""
        content = self._store.get_bytes(self._key)
        if content is None:
            self._check(start_value)
        else:
            state = torch.load(io.BytesIO(content), weights_only=True)
            self.result = TrainingResult(**state["result"])
            self._student.losses = self.result.losses
            self._student.load_factors(state["factors"])
            self._best, self._optimizer_state = state["best"], state["optimizer"]
            self._begun -= self.result.seconds
            self._complete = not self._optimizer_state
        self.result.losses = self._student.losses
        self._show(self.result.steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the optimizer and its schedule where the earlier run was."""
        del pl_module
        if self._optimizer_state:
            trainer.optimizers[0].load_state_dict(self._optimizer_state["optimizer"])
            schedule = trainer.lr_scheduler_configs[0].scheduler
            schedule.load_state_dict(self._optimizer_state["schedule"])

    def on_before_optimizer_step(self, *_: Any) -> None:
        """Note that weights are being changed: what is saved now would be half a step."""
        self._within_step = True

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Measure where it is due, and save where it is time."""
        if self.result.steps in self._checkpoints:
            self._check()
        self._within_step = False
        self._show(self.result.steps)
        if time.monotonic() - self._saved >= self._save_seconds:
            self._save(trainer)

    def on_exception(self, trainer: Trainer, *_: Any) -> None:
        """Save what has been done so far."""
        if not self._within_step:
            self._save(trainer)

    def end(self) -> None:
        """Give the student its best weights; the state goes when the result is at its place."""
        self.result.seconds = time.monotonic() - self._begun
        if not self._complete:
            self._keep(self.result.losses, {})
        if self._measure is None:
            self.result.best_step = self.result.steps
        else:
            self._student.load_factors(self._best)
        self._store.finish(self._key)

    def _check(self, known: float | None = None) -> None:
        """Measure, and keep the weights if none before were better."""
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
        if not trainer.optimizers:
            return
        optimizer, schedule = trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler
        self.result.seconds = time.monotonic() - self._begun
        # A loss is noted before its step is made, so the schedule counts the steps.
        self._keep(
            self.result.losses[: schedule.last_epoch],
            {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()},
        )
        self._saved = time.monotonic()

    def _keep(self, losses: list[float], optimizer: dict[str, Any]) -> None:
        """Keep the state, where that can be written; without an optimizer's it is the last one."""
        if self._store.root is None or self._unwritable:
            return
        state = {
            "result": vars(self.result) | {"losses": losses},
            "factors": self._student.factors(),
            "best": self._best,
            "optimizer": optimizer,
        }
        content = io.BytesIO()
        torch.save(state, content)
        try:
            self._store.put_bytes(self._key, content.getvalue())
        except OutputError as error:
            self._unwritable = True
            _log.warning("%s; training goes on, but one that is stopped begins again", error)
