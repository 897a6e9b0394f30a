"""Fitting a learned mapper with Lightning's trainer."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger

from ..data import AnchorPairs
from ..mappers import LearnedMapper, load_mapper
from ..mappers.corpus_mapper import CorpusMapper
from ..models.interruptible import interruptible
from ..models.threads import one_thread
from .building import Workbench, build, plain_config
from .text_fitting import TextFit


@dataclass(frozen=True)
class Fitting:
    """A mapper, and what it is fitted on.

    Attributes:
        bench: The configuration.
        mapper: What is fitted.
        data: What the trainer is given.
        text: Where the mapper learns from text: the models and the corpus behind ``data``.
    """

    bench: Workbench
    mapper: LearnedMapper
    data: LightningDataModule
    text: TextFit | None

    @classmethod
    def of(cls, bench: Workbench, mapper: LearnedMapper, anchors: AnchorPairs | None) -> "Fitting":
        """Load what the mapper learns from.

        Raises:
            LoraportError: it cannot be used.
        """
        if isinstance(mapper, CorpusMapper):
            text = TextFit.of(bench, mapper)
            return cls(bench, mapper, text.data, text)
        if anchors is None:
            raise ValueError(f"{type(mapper).__name__} is fitted on anchors, but there are none")
        return cls(bench, mapper, anchors, None)

    def fit(self, loggers: list[Logger], folder: Path) -> tuple[Trainer, LearnedMapper]:
        """Fit, save ``mapper.ckpt`` in the folder, and return the mapper with its best weights.

        Training on text is also saved at the end of each epoch, in the cache, and goes on from
        there when it was stopped.

        Raises:
            KeyboardInterrupt: it was stopped, at the keyboard or by the system.
        """
        config = self.bench.config
        callbacks: list[Callback] = [build(node) for node in config.callbacks.values()]
        chosen = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
        # The matrices of anchors are small: more threads would wait rather than work.
        with nullcontext() if self.text else one_thread(), self._resumable(chosen) as unfinished:
            if unfinished is not None:
                callbacks.append(unfinished)
            trainer: Trainer = build(
                config.trainer, logger=loggers, callbacks=callbacks, default_root_dir=folder
            )
            with interruptible():
                trainer.fit(self.mapper, datamodule=self.data, ckpt_path=_last(unfinished))
            trainer.save_checkpoint(folder / "mapper.ckpt", weights_only=True)
            best = [callback.best_model_path for callback in chosen]
            if not (best and best[0] and trainer.is_global_zero):
                return trainer, self.mapper
            shutil.move(best[0], folder / "mapper.ckpt")
        return trainer, load_mapper(folder / "mapper.ckpt")

    def facts(self) -> dict[str, Any]:
        """Return what reports say of the texts, where there are any."""
        return {} if self.text is None else {"text": self.text.facts()}

    @contextmanager
    def _resumable(self, chosen: list[ModelCheckpoint]) -> Iterator[ModelCheckpoint | None]:
        """Give a callback that keeps the last epoch until the training has come to its end.

        The best weights so far are kept beside it, where the next run, which has another folder
        of its own, finds them.
        """
        if self.text is None or not self.mapper.automatic_optimization:
            yield None
            return
        folder = self.bench.cache / "training" / self._key(self.text)
        for callback in chosen:
            callback.dirpath = str(folder / "best")
        yield ModelCheckpoint(dirpath=folder, filename="last", enable_version_counter=False)
        shutil.rmtree(folder, ignore_errors=True)

    def _key(self, text: TextFit) -> str:
        """Return a hash of all that the training depends on."""
        config = plain_config(self.bench.config)
        made_of = {
            part: config[part] for part in ("mapper", "data", "corpus", "pairing", "trainer")
        }
        made_of["models"] = [m.fingerprint for m in vars(text.models).values()]
        made_of["text"] = text.corpus.content_hash()
        content = json.dumps(made_of, sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


def _last(unfinished: ModelCheckpoint | None) -> str | None:
    """Return the checkpoint to go on from, where there is one."""
    if unfinished is None or unfinished.dirpath is None:
        return None
    path = Path(unfinished.dirpath) / "last.ckpt"
    return str(path) if path.exists() else None
