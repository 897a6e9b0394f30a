"""What a mapper is: anything that turns a source adapter into a target adapter."""

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pickle import PickleError
from typing import Any, ClassVar

import torch
from lightning import LightningModule

from ..adapters import LoraAdapter, LowRank, Site
from ..alignment import relative_depth
from ..exceptions import AdapterError
from ..models.architectures import SiteTable
from ..models.streaming import FactorCache, StreamedWeights

Report = dict[str, Any]


class Mapper(ABC):
    """Turns an adapter of the source model into one of the target model.

    Two kinds extend it: :class:`~loraport.mappers.base.LearnedMapper` is trained and saved,
    :class:`~loraport.mappers.base.WeightMapper` needs the base models' weights alone.

    Attributes:
        data_access: What the mapper may use beside the source adapter, in the words of the
            evaluation protocol: ``weights only``, ``generic text`` or ``anchors``.
    """

    data_access: ClassVar[str]

    @property
    def name(self) -> str:
        """What reports call it: the name of its class without Mapper, in snake case."""
        kind = type(self).__name__.removesuffix("Mapper").replace("PerTensor", "Pertensor")
        words = re.findall(r"PCA|MLP|[A-Z][a-z]*", kind)
        return "_".join(words).lower()

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


# Mappers that are trained, and the checkpoints that rebuild them.

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


# Which site of a source adapter feeds each site of the target.


@dataclass(frozen=True)
class SitePairs:
    """The pairing of an adapter's sites with those of another model.

    Attributes:
        pairs: Target site to source site, in the target's order.
        dropped: Source sites that feed no target site, since the target has fewer layers.
    """

    pairs: dict[Site, Site]
    dropped: tuple[Site, ...]

    @classmethod
    def of(cls, adapter: LoraAdapter, source: SiteTable, target: SiteTable) -> "SitePairs":
        """Pair each target layer with the source layer at the same relative depth, role by role.

        A target site whose partner is not adapted stays without an update.

        Raises:
            AdapterError: no target site has an adapted partner.
        """
        depth = relative_depth(source.layers, target.layers)
        pairs = {}
        for site in target.shapes:
            partner = Site(depth[site.layer], site.role)
            if partner in adapter:
                pairs[site] = partner
        if not pairs:
            layers = sorted({site.layer for site in adapter})
            raise AdapterError(
                f"the adapter of {adapter.base_model} adapts only layers {layers}, none of which "
                f"is paired with a layer of the target: of {source.layers} source layers "
                f"{sorted(set(depth))} feed the target's {target.layers}; train it on more layers"
            )
        used = set(pairs.values())
        return cls(pairs, tuple(site for site in adapter if site not in used))

    def __iter__(self) -> Iterator[tuple[Site, Site]]:
        """Give target site and source site."""
        return iter(self.pairs.items())

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def repeated(self) -> int:
        """How many target sites get an update that another target site gets as well."""
        return len(self.pairs) - len(set(self.pairs.values()))

    def dropped_energy(self, adapter: LoraAdapter) -> float:
        """Return the share of the adapter's squared norm that the dropped sites hold."""
        lost = sum(adapter[site].norm() ** 2 for site in self.dropped)
        total = adapter.norm() ** 2
        return lost / total if total > 0 else 0.0


# Mappers that need the weights of both base models, and nothing that was learnt.

Progress = Callable[[int, int], None]
"""Is told how many sites are done, and of how many."""


@dataclass(frozen=True, eq=False)
class BasePair:
    """The two base models of a transfer, on disk.

    Attributes:
        source: The weights that the adapter was trained on.
        target: The weights that it shall work on.
        factors: Factorisations of both, kept from one transfer to the next.
        device: Where matrices are multiplied.
    """

    source: StreamedWeights
    target: StreamedWeights
    factors: FactorCache = field(default_factory=lambda: FactorCache(None))
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class WeightMapper(Mapper):
    """Maps an adapter site by site; at any time at most a layer's weights are in memory.

    Attributes:
        acts: False for a control whose adapter changes nothing.
    """

    data_access: ClassVar[str] = "weights only"
    acts: ClassVar[bool] = True

    def __init__(self) -> None:
        self._pair: BasePair | None = None
        self._sites: dict[Site, dict[str, Any]] = {}
        self._whole: Report = {}
        self._progress: Progress = _silent

    def use(self, pair: BasePair, progress: Progress | None = None) -> None:
        """Give the mapper the two base models, and whom to tell how far it is."""
        self._pair = pair
        self._progress = progress or _silent

    @property
    def pair(self) -> BasePair:
        """The two base models."""
        if self._pair is None:
            name = type(self).__name__
            raise RuntimeError(f"{name} has no base models yet: call use(BasePair(...)) first")
        return self._pair

    @property
    def gauge_dependent(self) -> bool:
        """False: a map of inputs and outputs commutes with any change of gauge."""
        return False

    def prepare(self, adapter: LoraAdapter, pairs: SitePairs) -> None:
        """Do what precedes all sites; by default nothing.

        Raises:
            ConfigurationError: the method is not defined for this pair of models.
        """

    @abstractmethod
    def map_site(self, source: Site, target: Site, update: LowRank) -> LowRank:
        """Return the update of a target site.

        Args:
            source: The paired site of the source.
            target: The site, of the shape ``pair.target.sites.shapes[target]``.
            update: The source's update there, in float32 on ``pair.device``.
        """

    def map(self, adapter: LoraAdapter) -> LoraAdapter:
        """Return the target adapter, in float32.

        Raises:
            AdapterError: the adapter does not belong to the source model.
            ModelError: a weight cannot be read.
        """
        pair = self.pair
        check_source(adapter, pair.source)
        pairs = SitePairs.of(adapter, pair.source.sites, pair.target.sites)
        self._sites = {}
        self._whole = {
            "dropped_sites": [site.label for site in pairs.dropped],
            "dropped_energy": pairs.dropped_energy(adapter),
            "repeated_sites": pairs.repeated,
        }
        self.prepare(adapter, pairs)
        mapped = {}
        for done, (target, source) in enumerate(pairs):
            self._progress(done, len(pairs))
            update = _moved(adapter[source], pair.device)
            made = self.map_site(source, target, update)
            norm, before = made.norm(), update.norm()
            self.note(target, source=source.label, norm=norm)
            if before > 0:
                self.note(target, kept_norm=norm / before)
            mapped[target] = _moved(made, torch.device("cpu"))
        pair.factors.flush()
        self._progress(len(pairs), len(pairs))
        return LoraAdapter(mapped, pair.target.name)

    def note(self, target: Site, **facts: float | int | str) -> None:
        """Put facts about a target site into the report."""
        self._sites.setdefault(target, {}).update(facts)

    def note_whole(self, **facts: Any) -> None:
        """Put facts about the whole transfer into the report."""
        self._whole.update(facts)

    def report(self) -> Report:
        """Return what was found while mapping the last adapter, as a whole and for each site."""
        return {**self._whole, "sites": {site.label: f for site, f in self._sites.items()}}


def check_source(adapter: LoraAdapter, source: StreamedWeights) -> None:
    """Raise AdapterError unless an adapter's sites and shapes are modules of the source model."""
    misfit = source.sites.misfit(adapter)
    if misfit is not None:
        site, found = misfit
        raise AdapterError(
            f"the adapter, trained on {adapter.base_model or 'an unnamed model'!r}, has shape "
            f"{adapter[site].shape} at {site.module_name}, but the pair's source {source.name} has "
            f"{found}; choose the pair whose source the adapter was trained on"
        )


def _moved(update: LowRank, device: torch.device) -> LowRank:
    a, b = (factor.to(device, torch.float32) for factor in (update.A, update.B))
    return LowRank(a, b, update.scale)


def _silent(done: int, total: int) -> None:
    """Tell nobody."""
