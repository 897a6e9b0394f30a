"""Mappers that are trained, and the checkpoints that rebuild them."""

import sys
from abc import abstractmethod
from importlib import import_module
from pathlib import Path
from pickle import PickleError
from typing import Any, ClassVar

import torch
from lightning import LightningModule

from ..exceptions import AdapterError
from .base import Mapper

# What reading a file that is no checkpoint of a known mapper ends in.
_UNREADABLE = (
    *(OSError, EOFError, PickleError, RuntimeError),
    *(KeyError, TypeError, ValueError, ImportError),
)


class LearnedMapper(LightningModule, Mapper):
    """A mapper that ``train.py`` fits, and whose checkpoint ``transfer.py`` takes.

    Attributes:
        checkpoint_key: Under which the fitted state lies in a checkpoint.
    """

    checkpoint_key: ClassVar[str] = "mapper_state"

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Whether :meth:`map` can be called."""

    @abstractmethod
    def fitted_state(self) -> dict[str, Any]:
        """Return what fitting made, as plain data and tensors."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`fitted_state` returned."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the class, for :func:`load_mapper`, and the fitted state into the checkpoint."""
        state = self.fitted_state() if self.fitted else None
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint[self.checkpoint_key] = {"class": kind, "state": state}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the fitted state."""
        state = checkpoint[self.checkpoint_key]["state"]
        if state is not None:
            self.restore(state)


def load_mapper(path: str | Path) -> LearnedMapper:
    """Rebuild a fitted mapper from a checkpoint alone.

    The file holds plain data and tensors, and the name of a class, which must be one of this
    package's mappers or of a module that is imported already: reading a file runs no code that
    the reader did not choose.

    Raises:
        AdapterError: the file is no checkpoint of a mapper that can be found.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        kind = _mapper_class(checkpoint[LearnedMapper.checkpoint_key]["class"])
        mapper = kind(**checkpoint["hyper_parameters"])
        mapper.on_load_checkpoint(checkpoint)
        mapper.load_state_dict(checkpoint["state_dict"])
    except _UNREADABLE as error:
        raise AdapterError(
            f"{path} is no checkpoint of a known mapper ({type(error).__name__}: {error}); it "
            "takes the mapper.ckpt that train.py wrote, and a mapper of your own must be imported "
            "before"
        ) from None
    return mapper.eval()


def _mapper_class(name: str) -> type[LearnedMapper]:
    module, _, kind = name.rpartition(".")
    own = module.startswith(__package__ + ".")
    found = getattr(import_module(module) if own else sys.modules[module], kind, None)
    if not (isinstance(found, type) and issubclass(found, LearnedMapper)):
        raise TypeError(f"{name} is no mapper")
    return found
