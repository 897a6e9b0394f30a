"""What a mapper that learns from text knows of two models, before it fits anything.

Both base models read the same text; a mapper is trained on what their modules read and write at
tokens that end at the same byte. :class:`PairFrame` says which source modules feed which target
modules, and travels in the checkpoint; :class:`CorpusMapper` is what ``train.py`` talks to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from lightning import LightningDataModule

from ..adapters import LoraAdapter, Role, Site
from ..alignment.layer_matching import LayerPairing
from ..alignment.moments import PairedMoments
from ..data import TextCorpus
from ..exceptions import AdapterError, ConfigurationError, DataError
from ..models.architectures import INPUT_ROLE, SiteTable
from ..models.loading import BaseModel
from ..models.statistics import StatisticsStore
from .base import BasePair, LearnedMapper, Progress, Report, check_source

SitePair = tuple[Site, Site]
"""A source site and the target site that it feeds."""

Feed = tuple[Site, float]
"""A source site and the weight of what becomes of its update."""


@dataclass(frozen=True, eq=False)
class PairFrame:
    """Names and modules of two models, which layers are paired, and which roles are carried.

    Attributes:
        source_name: The hub id of the source; likewise ``target_name``.
        source: The source's modules; likewise ``target``.
        pairing: Which source layers feed each target layer.
        roles: The roles that are carried, in the order of a layer.
    """

    source_name: str
    target_name: str
    source: SiteTable
    target: SiteTable
    pairing: LayerPairing
    roles: tuple[Role, ...]

    @classmethod
    def of(
        cls, source: BaseModel, target: BaseModel, pairing: LayerPairing, roles: tuple[Role, ...]
    ) -> "PairFrame":
        """Describe two base models.

        Raises:
            ValueError: the pairing is one of other numbers of layers.
        """
        layers = source.sites.layers, target.sites.layers
        paired = pairing.source_layers, len(pairing.feeds)
        if layers != paired:
            raise ValueError(f"the pairing is of {paired} layers, the models have {layers}")
        return cls(source.name, target.name, source.sites, target.sites, pairing, roles)

    def feeds(self) -> dict[Site, tuple[Feed, ...]]:
        """Return the source sites that feed each target site, in the target's order."""
        return {
            site: tuple(
                (Site(layer, site.role), weight) for layer, weight in self.pairing.feeds[site.layer]
            )
            for site in self.target.of_roles(self.roles)
        }

    def feeds_of(self, adapter: LoraAdapter) -> dict[Site, tuple[Feed, ...]]:
        """Return what feeds each target site, of an adapter's sites alone.

        Raises:
            AdapterError: the adapter is not one of the source, has a role that is not carried,
                or no layer that feeds one of the target's.
        """
        missing = [role for role in adapter.roles if role not in self.roles]
        if missing:
            has, knows = (
                ",".join(role.value for role in roles) for roles in (adapter.roles, self.roles)
            )
            raise AdapterError(
                f"the adapter of {adapter.base_model} adapts {missing[0].module}, but this mapper "
                f"was fitted for the roles [{knows}]; train the mapper with mapper.roles=[{has}]"
            )
        check_source(adapter, self.source_name, self.source)
        feeds = {
            target: tuple((site, weight) for site, weight in found if site in adapter)
            for target, found in self.feeds().items()
        }
        fed = {target: found for target, found in feeds.items() if found}
        if not fed:
            used = sorted(set(range(self.source.layers)) - set(self.pairing.dropped))
            raise AdapterError(
                f"the adapter of {adapter.base_model} adapts only layers "
                f"{sorted({site.layer for site in adapter})}, none of which feeds a layer of "
                f"{self.target_name}: layers {used} of {self.source_name} do; train the adapter "
                "on more layers, or choose another pairing"
            )
        return fed

    def site_pairs(self) -> list[SitePair]:
        """Return every source site with the target site that it feeds."""
        return [(source, target) for target, feeds in self.feeds().items() for source, _ in feeds]

    def report(self) -> Report:
        """Return what reports say of it."""
        return {
            "roles": [role.value for role in self.roles],
            "pairing": [[list(feed) for feed in feeds] for feeds in self.pairing.feeds],
        }

    def state(self) -> dict[str, Any]:
        """Return the frame as plain data."""
        return {
            "names": [self.source_name, self.target_name],
            "tables": [
                {
                    "architecture": table.architecture,
                    "layers": table.layers,
                    "shapes": {site.label: list(shape) for site, shape in table.shapes.items()},
                }
                for table in (self.source, self.target)
            ],
            "feeds": self.report()["pairing"],
            "roles": self.report()["roles"],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "PairFrame":
        """Return the frame that :meth:`state` describes."""
        source, target = (
            SiteTable(
                table["architecture"],
                table["layers"],
                {
                    Site.from_label(label): (out, in_)
                    for label, (out, in_) in table["shapes"].items()
                },
            )
            for table in state["tables"]
        )
        feeds = tuple(tuple((layer, weight) for layer, weight in feeds) for feeds in state["feeds"])
        roles = tuple(Role(role) for role in state["roles"])
        pairing, names = LayerPairing(source.layers, feeds), state["names"]
        return cls(names[0], names[1], source, target, pairing, roles)


ROLES = ("q", "v")


class ModelPair(NamedTuple):
    """The two base models that a mapper runs over the same texts."""

    source: BaseModel
    target: BaseModel


class CorpusMapper(LearnedMapper):
    """A mapper that is trained on aligned batches of text, for one pair of models.

    Args:
        roles: The roles of adapters that it shall carry.
    """

    data_access: ClassVar[str] = "generic text"
    learns_from: ClassVar[Literal["anchors", "text"] | None] = "text"

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
        # A subclass saves its own options in the same way, which adds them.
        self.save_hyperparameters({"roles": [role.value for role in self.roles]})
        self._frame: PairFrame | None = None
        self._models: ModelPair | None = None
        self.store = StatisticsStore(None)

    def learn_from(
        self, models: ModelPair, pairing: LayerPairing, store: StatisticsStore | None = None
    ) -> None:
        """Take, before the training, everything that it needs beside text.

        Args:
            models: The base models. They are no part of the mapper's own state.
            pairing: Which source layers feed each target layer.
            store: Where statistics of their activations are kept from run to run.
        """
        self._frame = PairFrame.of(models.source, models.target, pairing, self.roles)
        self._models = models
        self.store = store or StatisticsStore(None)

    def data_module(self, corpus: TextCorpus, folder: Path) -> LightningDataModule:
        """Return what the trainer takes of texts; a folder holds what a mapper makes of them.

        Called after :meth:`learn_from`.
        """
        del folder
        return corpus

    def use(self, pair: BasePair, progress: Progress | None = None) -> None:
        """Raise ConfigurationError unless the mapper was fitted for the models of a pair."""
        frame = self.frame
        for side, model, name, sites in (
            ("source", pair.source, frame.source_name, frame.source),
            ("target", pair.target, frame.target_name, frame.target),
        ):
            if model.name == name and model.sites == sites:
                continue
            differs = "" if model.name != name else ", with modules of other shapes"
            raise ConfigurationError(
                f"the mapper was fitted for {frame.source_name} and {frame.target_name}, but the "
                f"{side} of this pair is {model.name}{differs}; choose the pair that it was fitted "
                "for, or fit one for this pair by `python train.py` with the same pair"
            )

    @property
    def gauge_dependent(self) -> bool:
        """False: nothing that is learnt from text depends on an adapter's factors."""
        return False

    @property
    def models(self) -> ModelPair:
        """The two base models."""
        if self._models is None:
            raise RuntimeError(
                f"{type(self).__name__} has no base models yet: call learn_from(ModelPair(...), "
                "pairing) before training it"
            )
        return self._models

    @property
    def described(self) -> PairFrame:
        """The two models' modules and the pairing of their layers."""
        if self._frame is None:
            raise RuntimeError(
                f"{type(self).__name__} knows no models yet: call learn_from(...) first"
            )
        return self._frame

    @property
    def frame(self) -> PairFrame:
        """:attr:`described`, of a mapper that has been fitted."""
        if not self.fitted:
            raise RuntimeError(f"{type(self).__name__} has seen no text yet: train it first")
        return self.described

    @property
    def data(self) -> TextCorpus:
        """The data module of the trainer that fits this mapper."""
        return self.trained_on(TextCorpus)

    def on_fit_start(self) -> None:
        """Move the base models to where the mapper is trained."""
        for model in (self.models.source, self.models.target):
            model.move(self.device)


def check_varies(train: PairedMoments, where: str) -> None:
    """Raise DataError where all tokens give the same activations, of which rounding is left."""
    if not train.varies:
        raise DataError(
            f"the {train.rows} aligned tokens of the training text all give the same activations "
            f"at {where}, of which no map can be learned; it takes text of many different words: "
            "set corpus= or paths.corpus"
        )


def input_pair(source: Site, target: Site) -> SitePair:
    """Return the sites under which the inputs of two sites are kept; q, k and v share one."""
    role = INPUT_ROLE[source.role]
    return Site(source.layer, role), Site(target.layer, role)
