"""What a mapper is: anything that turns a source adapter into a target adapter."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from ..adapters import LoraAdapter

Report = dict[str, Any]


class Mapper(ABC):
    """Turns an adapter of the source model into one of the target model.

    Two kinds extend it: :class:`~loraport.mappers.learned.LearnedMapper` is trained and saved,
    :class:`~loraport.mappers.weight_mapper.WeightMapper` needs the base models' weights alone.

    Attributes:
        information_class: What the mapper may use beside the source adapter, in the words of the
            evaluation protocol: ``weights only``, ``generic text`` or ``anchors``.
    """

    information_class: ClassVar[str]

    @property
    @abstractmethod
    def gauge_dependent(self) -> bool:
        """Whether the result changes with the gauge of the factors, at an unchanged update."""

    @abstractmethod
    def map(self, adapter: LoraAdapter) -> LoraAdapter:
        """Return the target adapter that the mapper makes of a source adapter.

        Raises:
            AdapterError: the adapter does not fit what the mapper was fitted on.
            RuntimeError: the mapper has not been given what it needs yet.
        """

    @abstractmethod
    def report(self) -> Report:
        """Return what was chosen and found, as plain data for ``results.json``."""
