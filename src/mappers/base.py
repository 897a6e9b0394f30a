"""What every mapper promises and declares, and the two kinds: learned ones and those of weights.

A mapper turns an adapter of the source model into one of the target model. A
:class:`LearnedMapper` is trained by ``train.py`` and travels as a checkpoint; a
:class:`WeightMapper` computes everything from the two base models' weights.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from lightning import LightningDataModule, LightningModule

from ..adapters import LoraAdapter, LowRank, Site
from ..alignment import relative_depth
from ..exceptions import AdapterError, ConfigurationError
from ..files import reading
from ..models.architectures import SiteTable
from ..models.streaming import FactorCache, StreamedWeights

if TYPE_CHECKING:
    from .cartridge import Cartridge

Data = TypeVar("Data", bound=LightningDataModule)

Report = dict[str, Any]
"""What was chosen and measured, as plain data."""

Progress = Callable[[int, int], None]
"""Called with the number of finished sites and the number of all sites."""


@dataclass(frozen=True, eq=False)
class BasePair:
    """The two base models of a transfer, on disk.

    Attributes:
        source: Of the adapter that is mapped; likewise ``target``, of the result.
        factors: Factorisations of both, kept from one transfer to the next.
        device: Where matrices are multiplied.
    """

    source: StreamedWeights
    target: StreamedWeights
    factors: FactorCache = field(default_factory=lambda: FactorCache(None))
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Mapper(ABC):
    """Turns an adapter of the source model into one of the target model.

    Attributes:
        name: The name of the mapper's YAML, which reports and messages use.
        data_access: What the mapper may use beside the source adapter, in the words of the
            evaluation protocol: ``weights only``, ``generic text`` or ``anchors``.
        learns_from: What ``train.py`` fits the mapper on; None for a mapper without training.
        acts: False for a control whose adapter changes nothing.
        is_linear: Whether ``c`` times an update is mapped to ``c`` times the result.
        needs_correspondence: Whether it rests on layers of both models that correspond; a pair
            without them is refused.
        has_cartridge: Whether :meth:`cartridge` gives the adapter behind projection heads.
    """

    name: ClassVar[str]
    data_access: ClassVar[str]
    learns_from: ClassVar[Literal["anchors", "text"] | None] = None
    acts: ClassVar[bool] = True
    is_linear: ClassVar[bool] = False
    needs_correspondence: ClassVar[bool] = True
    has_cartridge: ClassVar[bool] = False

    @property
    @abstractmethod
    def gauge_dependent(self) -> bool:
        """Whether the result changes with the gauge of the factors, at an unchanged update."""

    @property
    def options(self) -> dict[str, Any]:
        """What a learned mapper was trained with, as plain data; empty for any other."""
        return {}

    def use(  # noqa: B027 - a mapper that needs no base models leaves it as it is
        self, pair: BasePair, progress: Progress | None = None
    ) -> None:
        """Called with the base models, and what hears of progress, before the first adapter.

        Raises:
            ConfigurationError: the mapper was fitted for other models.
        """

    @abstractmethod
    def map(self, adapter: LoraAdapter) -> LoraAdapter:
        """Return the target adapter for a source adapter.

        Raises:
            AdapterError: the adapter does not fit what the mapper was fitted on.
            RuntimeError: the mapper has not been given what it needs yet.
        """

    @abstractmethod
    def report(self) -> Report:
        """Return what ``results.json`` says of the mapper and of the last adapter."""

    def cartridge(self, adapter: LoraAdapter) -> "Cartridge":
        """Return the adapter behind projection heads, where :attr:`has_cartridge` says so.

        Raises:
            AdapterError: the mapper has no heads, or the adapter does not fit.
        """
        raise AdapterError(f"{type(self).__name__} has no heads that a cartridge could hold")


class LearnedMapper(LightningModule, Mapper):
    """A mapper that ``train.py`` fits, and whose checkpoint ``transfer.py ckpt=`` takes.

    A subclass passes its own options to ``save_hyperparameters`` as plain data: a checkpoint is
    rebuilt by calling the class with them.
    """

    checkpoint_key: ClassVar[str] = "mapper_state"
    """Under which the fitted state lies in a checkpoint."""

    @property
    @abstractmethod
    def fitted(self) -> bool:
        """Whether :meth:`map` can be called."""

    @abstractmethod
    def fitted_state(self) -> dict[str, Any]:
        """Return the result of fitting, as plain data and tensors."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`fitted_state` returned."""

    @property
    def options(self) -> dict[str, Any]:
        """The hyperparameters, as the checkpoint has them."""
        return dict(self.hparams)

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

    def trained_on(self, kind: type[Data]) -> Data:
        """Return the trainer's data module, which has to be of a kind."""
        data: Any = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, kind):
            name = type(self).__name__
            raise RuntimeError(f"{name} trains on {kind.__name__}, not on {data!r}")
        return data

    def summed(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all devices that train the mapper."""
        reduced: Any = self.trainer.strategy.reduce(tensor, reduce_op="sum")
        return torch.as_tensor(reduced)


def load_mapper(path: str | Path) -> LearnedMapper:
    """Rebuild a fitted mapper from a checkpoint alone.

    The file holds plain data, tensors and the name of a class, which must be one of this package's
    mappers or of a module that is imported already: reading a file runs no code that the reader
    did not choose.

    Raises:
        AdapterError: the file is no checkpoint of a known mapper in the present format.
    """
    takes = (
        "the checkpoint of a known mapper, the mapper.ckpt that train.py wrote: train it again "
        "where an earlier version wrote it, and import a mapper of your own before"
    )
    with reading(path, takes, AdapterError):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        kind = _mapper_class(checkpoint[LearnedMapper.checkpoint_key]["class"])
        mapper = kind(**checkpoint["hyper_parameters"])
        mapper.on_load_checkpoint(checkpoint)
        mapper.load_state_dict(checkpoint["state_dict"])
        return mapper.eval()


def _mapper_class(path: str) -> type[LearnedMapper]:
    module, _, name = path.rpartition(".")
    own = module.startswith(__package__ + ".")
    kind = getattr(import_module(module) if own else sys.modules[module], name, None)
    if not (isinstance(kind, type) and issubclass(kind, LearnedMapper)):
        raise TypeError(f"{path} is no mapper")
    return kind


def check_least(least: int, **options: int | float) -> None:
    """Raise ConfigurationError where an option of a mapper is below what it takes."""
    for name, value in options.items():
        if not value >= least:
            raise ConfigurationError(f"mapper.{name} is {value}; it takes {least} or more")


def check_source(adapter: LoraAdapter, name: str, sites: SiteTable) -> None:
    """Raise AdapterError unless an adapter's sites and shapes are modules of the source model."""
    way_out = "choose the pair whose source the adapter was trained on"
    sites.check(adapter, "the adapter", f"the mapper's source {name}", way_out)


def paired_by_depth(adapter: LoraAdapter, source: SiteTable, target: SiteTable) -> dict[Site, Site]:
    """Return each target site with the source site of its role at the same relative depth.

    A target site whose partner is not adapted is left out.

    Raises:
        AdapterError: no target site has an adapted partner.
    """
    depth = relative_depth(source.layers, target.layers)
    partners = {site: Site(depth[site.layer], site.role) for site in target.shapes}
    pairs = {site: partner for site, partner in partners.items() if partner in adapter}
    if not pairs:
        raise AdapterError(
            f"the adapter of {adapter.base_model} adapts only layers "
            f"{sorted({site.layer for site in adapter})}, none of which is paired with a layer of "
            f"the target: of {source.layers} source layers {sorted(set(depth))} feed the target's "
            f"{target.layers}; train it on more layers"
        )
    return pairs


def dropped_facts(adapter: LoraAdapter, fed_by: Iterable[Site]) -> Report:
    """Return which sites of an adapter feed nothing, and their share of its squared norm."""
    used = set(fed_by)
    dropped = [site for site in adapter if site not in used]
    lost = sum(adapter[site].norm() ** 2 for site in dropped)
    total = adapter.norm() ** 2
    return {
        "dropped_sites": [site.label for site in dropped],
        "dropped_energy": lost / total if total > 0 else 0.0,
    }


class WeightMapper(Mapper):
    """Maps an adapter site by site; at any time at most a layer's weights are in memory."""

    data_access: ClassVar[str] = "weights only"
    is_linear: ClassVar[bool] = True

    def __init__(self) -> None:
        self._pair: BasePair | None = None
        self._sites: dict[Site, dict[str, Any]] = {}
        self._whole: Report = {}
        self._progress: Progress | None = None

    def use(self, pair: BasePair, progress: Progress | None = None) -> None:
        """Keep the two base models, and what is called with the progress."""
        self._pair, self._progress = pair, progress

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

    def prepare(self, pairs: dict[Site, Site]) -> None:
        """Do what precedes all sites, given each target site with the source site that feeds it.

        Raises:
            ConfigurationError: the method is not defined for this pair of models.
        """

    @abstractmethod
    def map_site(self, source: Site, target: Site, update: LowRank) -> LowRank:
        """Return the update of a target site, of the shape ``pair.target.sites.shapes[target]``.

        The update of the paired source site comes in float32 on ``pair.device``.
        """

    def map(self, adapter: LoraAdapter) -> LoraAdapter:
        """Return the target adapter, in float32."""
        pair, mapped = self.pair, {}
        check_source(adapter, pair.source.name, pair.source.sites)
        pairs = paired_by_depth(adapter, pair.source.sites, pair.target.sites)
        repeated = len(pairs) - len(set(pairs.values()))
        self._sites = {}
        self._whole = dropped_facts(adapter, pairs.values()) | {"repeated_sites": repeated}
        progress = self._progress or (lambda done, total: None)
        self.prepare(pairs)
        for done, (target, source) in enumerate(pairs.items()):
            progress(done, len(pairs))
            update = _moved(adapter[source], pair.device)
            result = self.map_site(source, target, update)
            norm, before = result.norm(), update.norm()
            self.note(target, source=source.label, norm=norm)
            if before > 0:
                self.note(target, kept_norm=norm / before)
            mapped[target] = _moved(result, torch.device("cpu"))
        pair.factors.flush()
        progress(len(pairs), len(pairs))
        return LoraAdapter(mapped, pair.target.name)

    def note(self, target: Site, **facts: float | int | str) -> None:
        """Add facts about a target site to the report."""
        self._sites.setdefault(target, {}).update(facts)

    def note_whole(self, **facts: Any) -> None:
        """Add facts about the whole transfer to the report."""
        self._whole.update(facts)

    def report(self) -> Report:
        """Return what was measured while the last adapter was mapped, in all and by site."""
        return {**self._whole, "sites": {site.label: f for site, f in self._sites.items()}}


def _moved(update: LowRank, device: torch.device) -> LowRank:
    a, b = (factor.to(device, torch.float32) for factor in (update.A, update.B))
    return LowRank(a, b, update.scale)
