"""What a mapper is: anything that turns a source adapter into a target adapter."""

import sys
from abc import ABC, abstractmethod
from importlib import import_module
from pathlib import Path
from pickle import PickleError
from typing import Any, ClassVar

import torch
from lightning import LightningModule

from ..adapters import LoraAdapter
from ..exceptions import AdapterError

Report = dict[str, Any]
# What reading a file that is no checkpoint of a known mapper ends in.
_UNREADABLE = (
    *(OSError, EOFError, PickleError, RuntimeError),
    *(KeyError, TypeError, ValueError, ImportError),
)


class Mapper(LightningModule, ABC):
    """Turns an adapter of the source model into one of the target model.

    Attributes:
        information_class: What the mapper may use beside the source adapter, in the words of the
            evaluation protocol: ``weights only``, ``generic text`` or ``anchors``.
        checkpoint_key: Under which the fitted state lies in a checkpoint.
    """

    information_class: ClassVar[str]
    checkpoint_key: ClassVar[str] = "mapper_state"

    @property
    @abstractmethod
    def gauge_dependent(self) -> bool:
        """Whether the result changes with the gauge of the factors, at an unchanged update."""

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Whether :meth:`map` can be called."""

    @abstractmethod
    def map(self, adapter: LoraAdapter) -> LoraAdapter:
        """Return the target adapter that the mapper predicts for a source adapter.

        Raises:
            AdapterError: the adapter does not fit what the mapper was fitted on.
            RuntimeError: the mapper is not fitted yet.
        """

    @abstractmethod
    def report(self) -> Report:
        """Return what was chosen in fitting, as plain data for ``results.json``."""

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


def load_mapper(path: str | Path) -> Mapper:
    """Rebuild a fitted mapper from a checkpoint alone.

    The file holds plain data and tensors, and the name of a class, which must be one of this
    package's mappers or of a module that is imported already: reading a file runs no code that
    the reader did not choose.

    Raises:
        AdapterError: the file is no checkpoint of a mapper that can be found.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        kind = _mapper_class(checkpoint[Mapper.checkpoint_key]["class"])
    except _UNREADABLE as error:
        raise AdapterError(
            f"{path} is no checkpoint of a known mapper ({type(error).__name__}: {error}); it "
            "takes the mapper.ckpt that train.py wrote, and a mapper of your own must be imported "
            "before"
        ) from None
    mapper = kind(**checkpoint["hyper_parameters"])
    mapper.on_load_checkpoint(checkpoint)
    mapper.load_state_dict(checkpoint["state_dict"])
    return mapper.eval()


def _mapper_class(name: str) -> type[Mapper]:
    module, _, kind = name.rpartition(".")
    own = module.startswith(__package__ + ".")
    found = getattr(import_module(module) if own else sys.modules[module], kind, None)
    if not (isinstance(found, type) and issubclass(found, Mapper)):
        raise TypeError(f"{name} is no mapper")
    return found
