"""A progress bar over the epochs of a fit that leaves nothing behind."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class FitProgress(Callback):
    """Shows epochs, the time that is left and the last losses on stderr, and then vanishes.

    Where stderr is no terminal nothing is printed.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar on the first device."""
        columns = (
            TextColumn("fitting {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(
            *columns, console=Console(stderr=True), transient=True, disable=trainer.global_rank > 0
        )
        self._bar = self._progress.add_task(type(pl_module).__name__, total=trainer.max_epochs)
        self._progress.start()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Advance by one epoch."""
        losses = [f"{name} {float(value):.3f}" for name, value in trainer.callback_metrics.items()]
        described = " ".join([type(pl_module).__name__, *losses])
        self._progress.update(self._bar, advance=1, description=described)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._progress.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: Any) -> None:
        """Close the bar, so that an error is readable."""
        if hasattr(self, "_progress"):
            self._progress.stop()
