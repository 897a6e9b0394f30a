"""Mappers that learn from generic text how two base models represent it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lightning import LightningDataModule

from ..adapters import Role
from ..alignment.layer_pairing import LayerPairing
from ..data import TextCorpus
from ..exceptions import ConfigurationError
from ..models.base import BaseModel
from ..models.statistics_store import StatisticsStore
from .learned import LearnedMapper
from .pair_frame import PairFrame

ROLES = ("q", "v")


@dataclass(frozen=True, eq=False)
class ModelPair:
    """The two base models that a mapper runs over the same texts."""

    source: BaseModel
    target: BaseModel


class CorpusMapper(LearnedMapper):
    """A mapper that is trained on aligned batches of text, for one pair of models.

    Args:
        roles: The roles of adapters that it shall carry.

    Attributes:
        roles: The same, in the order of a layer.

    Raises:
        ConfigurationError: a role does not exist, or there is none.
    """

    information_class: ClassVar[str] = "generic text"

    def __init__(self, roles: Sequence[str] = ROLES) -> None:
        super().__init__()
        known = [role.value for role in Role]
        unknown = sorted(set(roles) - set(known))
        if unknown or not roles:
            raise ConfigurationError(
                f"mapper.roles is {list(roles)}; it takes one or more of {', '.join(known)}, such "
                f"as [{','.join(ROLES)}]"
            )
        self.roles = tuple(role for role in Role if role.value in roles)
        self._frame: PairFrame | None = None
        self._models: ModelPair | None = None
        self.store = StatisticsStore(None)

    def use(
        self, models: ModelPair, pairing: LayerPairing, store: StatisticsStore | None = None
    ) -> None:
        """Give the mapper, before it is trained, what it shall be trained on beside text.

        Args:
            models: The base models. They are no part of the mapper's own state.
            pairing: Which source layers feed each target layer.
            store: Where statistics of their activations are kept from run to run.
        """
        self._frame = PairFrame.of(models.source, models.target, pairing, self.roles)
        self._models = models
        self.store = store or StatisticsStore(None)

    def data_module(self, corpus: TextCorpus, folder: Path) -> LightningDataModule:
        """Return the data module that the trainer shall be given, after :meth:`use`.

        Args:
            corpus: The texts.
            folder: Where a mapper may keep what it makes of them.
        """
        del folder
        return corpus

    @property
    def gauge_dependent(self) -> bool:
        """False: what text says of two models knows nothing of an adapter's factors."""
        return False

    @property
    def models(self) -> ModelPair:
        """The two base models."""
        if self._models is None:
            raise RuntimeError(
                f"{type(self).__name__} has no base models yet: call use(ModelPair(...), pairing) "
                "before training it"
            )
        return self._models

    @property
    def described(self) -> PairFrame:
        """What is known of the two models and of the pairing of their layers."""
        if self._frame is None:
            raise RuntimeError(f"{type(self).__name__} knows no models yet: call use(...) first")
        return self._frame

    @property
    def frame(self) -> PairFrame:
        """The same, of a mapper that has been fitted."""
        if not self.fitted:
            raise RuntimeError(f"{type(self).__name__} has seen no text yet: train it first")
        return self.described

    @property
    def data(self) -> TextCorpus:
        """The data module of the trainer that fits this mapper."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, TextCorpus):
            raise RuntimeError(f"{type(self).__name__} trains on a TextCorpus, not on {data!r}")
        return data

    def content_key(self) -> str:
        """Return what the activations of both models on the corpus depend on."""
        models = self.models
        prints = (models.source.fingerprint, models.target.fingerprint)
        return " ".join((*prints, self.data.content_hash()))

    def on_fit_start(self) -> None:
        """Move the base models to where the mapper is trained."""
        for model in (self.models.source, self.models.target):
            # The stub of transformers' decorated method has lost its argument.
            model.network.to(self.device)  # type: ignore[arg-type]
