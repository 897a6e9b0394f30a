"""Mappers that need the weights of both base models, and nothing that was learnt."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ..adapters import LoraAdapter, LowRank, Site
from ..exceptions import AdapterError
from ..models.factor_cache import FactorCache
from ..models.weights import StreamedWeights
from .base import Mapper, Report
from .site_pairs import SitePairs

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

    information_class: ClassVar[str] = "weights only"
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
