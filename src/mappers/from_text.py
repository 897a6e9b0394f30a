"""What a mapper between two models must know of them to carry an adapter across."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from lightning import LightningDataModule
from torch import Tensor, nn

from ..adapters import LoraAdapter, LowRank, Role, Site, stacked
from ..alignment.layer_matching import LayerPairing
from ..alignment.linear_maps import HeldOutError, LinearMap, SplitMoments
from ..data import AlignedBatch, TextCorpus
from ..exceptions import AdapterError, ConfigurationError
from ..models.architectures import INPUT_ROLE, SiteTable
from ..models.capture import readings
from ..models.hooks import Tap, tap_widths
from ..models.loading import BaseModel
from ..models.statistics import (
    PairStatistics,
    RunningTotals,
    StatisticsStore,
    TapPair,
    layer_blocks,
)
from .base import LearnedMapper, Report

Feed = tuple[Site, float]
"""A source site and the weight of what becomes of its update."""


@dataclass(frozen=True, eq=False)
class PairFrame:
    """Names and modules of two models, which layers are paired, and which roles are carried.

    Attributes:
        source_name: The hub id of the source.
        target_name: The hub id of the target.
        source: The source's modules.
        target: The target's modules.
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
        cls,
        source: BaseModel,
        target: BaseModel,
        pairing: LayerPairing,
        roles: tuple[Role, ...],
    ) -> "PairFrame":
        """Describe two base models.

        Raises:
            ValueError: the pairing is one of other numbers of layers.
        """
        layers, paired = (source.sites.layers, target.sites.layers), _layers(pairing)
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
        self.check(adapter)
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

    def check(self, adapter: LoraAdapter) -> None:
        """Raise AdapterError unless an adapter is one of the source, of the carried roles."""
        missing = [role for role in adapter.roles if role not in self.roles]
        if missing:
            has, knows = (
                ",".join(role.value for role in roles) for roles in (adapter.roles, self.roles)
            )
            raise AdapterError(
                f"the adapter of {adapter.base_model} adapts {missing[0].module}, but this mapper "
                f"was fitted for the roles [{knows}]; train the mapper with mapper.roles=[{has}]"
            )
        misfit = self.source.misfit(adapter)
        if misfit is not None:
            site, found = misfit
            raise AdapterError(
                f"the adapter, trained on {adapter.base_model or 'an unnamed model'!r}, has shape "
                f"{adapter[site].shape} at {site.module_name}, but this mapper's source "
                f"{self.source_name} has {found}; give an adapter of that base model"
            )

    def dropped(self, adapter: LoraAdapter) -> dict[str, Any]:
        """Return which sites of an adapter feed nothing, and their share of its squared norm."""
        lost = [site for site in adapter if site.layer in self.pairing.dropped]
        total = adapter.norm() ** 2
        energy = sum(adapter[site].norm() ** 2 for site in lost)
        return {
            "dropped_sites": [site.label for site in lost],
            "dropped_energy": energy / total if total > 0 else 0.0,
        }

    def state(self) -> dict[str, Any]:
        """Return the frame as plain data."""
        return {
            "names": [self.source_name, self.target_name],
            "tables": [_plain(table) for table in (self.source, self.target)],
            "feeds": [[list(feed) for feed in feeds] for feeds in self.pairing.feeds],
            "roles": [role.value for role in self.roles],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "PairFrame":
        """Return the frame that :meth:`state` describes."""
        source, target = (_table(table) for table in state["tables"])
        feeds = tuple(
            tuple((int(layer), float(weight)) for layer, weight in feeds)
            for feeds in state["feeds"]
        )
        pairing = LayerPairing(source.layers, feeds)
        roles = tuple(Role(role) for role in state["roles"])
        source_name, target_name = state["names"]
        return cls(source_name, target_name, source, target, pairing, roles)


def _layers(pairing: LayerPairing) -> tuple[int, int]:
    return pairing.source_layers, len(pairing.feeds)


def _plain(table: SiteTable) -> dict[str, Any]:
    shapes = {site.label: list(shape) for site, shape in table.shapes.items()}
    return {"architecture": table.architecture, "layers": table.layers, "shapes": shapes}


def _table(plain: Mapping[str, Any]) -> SiteTable:
    shapes = {
        Site.from_label(label): (int(out), int(in_))
        for label, (out, in_) in plain["shapes"].items()
    }
    return SiteTable(plain["architecture"], plain["layers"], shapes)


# Mappers that learn from generic text how two base models represent it.

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

    data_access: ClassVar[str] = "generic text"

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


# How large an update is beside the weight that it changes.


@dataclass(frozen=True)
class RelativeNorms:
    """Frobenius norms of the weights of two models.

    Attributes:
        source: Of the source's modules.
        target: Of the target's.
    """

    source: Mapping[Site, float]
    target: Mapping[Site, float]

    @classmethod
    def of(
        cls,
        source: BaseModel,
        target: BaseModel,
        sites: Mapping[Site, Iterable[tuple[Site, float]]],
    ) -> "RelativeNorms":
        """Measure the target's sites and those of the source that feed them."""
        feeding = {site for feeds in sites.values() for site, _ in feeds}
        return cls(_norms(source, feeding), _norms(target, sites))

    def matched(
        self,
        update: LowRank,
        site: Site,
        adapter: LoraAdapter,
        feeds: Iterable[tuple[Site, float]],
    ) -> LowRank:
        """Return an update rescaled to be as large, relative to its weight, as its sources.

        ``|dW_T| / |W_T| = sum_l |w_l| |dW_l| / |W_l|`` over the layers that feed it; an update of
        zeros stays as it is.
        """
        wanted = sum(abs(w) * adapter[s].norm() / self.source[s] for s, w in feeds)
        norm = update.norm()
        return update.scaled(wanted * self.target[site] / norm) if norm > 0 else update


def _norms(model: BaseModel, sites: Iterable[Site]) -> dict[Site, float]:
    def norm(site: Site) -> float:
        weight = model.network.get_parameter(f"{site.module_name}.weight")
        return float(torch.linalg.vector_norm(weight, dtype=torch.float64))

    return {site: norm(site) for site in sorted(sites, key=lambda site: site.sort_key)}


# Gathering statistics of both models in one epoch over text, which a stopped fit goes on with.


class GatheringMapper(CorpusMapper):
    """A mapper without gradient steps, which solves from statistics at the end of an epoch.

    With a store, a fit that was stopped goes on where it was, and statistics that are complete
    are not gathered again. All arguments are those of the class that it is mixed into.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False
        # Nothing is learnt in it: DistributedDataParallel refuses a module without a parameter.
        self.unused = nn.Parameter(torch.zeros(()))
        self._take_up_empty()

    @abstractmethod
    def gather(self, statistics: PairStatistics, batch: AlignedBatch) -> None:
        """Add what both models hold at a batch's tokens to the statistics."""

    def configure_optimizers(self) -> None:
        """There is nothing to descend."""

    def take_up(self, pairs: Sequence[TapPair]) -> None:
        """Begin an epoch with what was gathered for these taps before."""
        key = self._key()
        self._totals = self.store.resume(key, pairs)
        self._saver = self.store.saver(key, self._totals)

    def training_step(self, batch: AlignedBatch, batch_idx: int) -> None:
        """Add a batch to the statistics that maps are fitted on."""
        if batch_idx >= self._totals.train_batches:
            self.gather(self._totals.train, batch)
            self._totals.train_batches += 1
            self._saver.step()

    def on_validation_start(self) -> None:
        """End the sums over training text where they always end."""
        self._totals.train.settle()

    def validation_step(self, batch: AlignedBatch, batch_idx: int) -> None:
        """Add a batch to the statistics that maps are chosen and measured on."""
        if self.trainer.sanity_checking or batch_idx < self._totals.held_out_batches:
            return
        self.gather(self._totals.held_out, batch)
        self._totals.held_out_batches += 1
        self._saver.step()

    def gathered(self) -> tuple[PairStatistics, PairStatistics]:
        """End the epoch: keep its statistics, and return those of all devices.

        Returns:
            Of the text to fit on, and of that to measure on.
        """
        totals = self._totals
        totals.held_out.settle()
        if not totals.complete:
            totals.complete = True
            self.store.save(self._key(), totals)
        self._take_up_empty()
        return totals.train.reduced(self._sum), totals.held_out.reduced(self._sum)

    def _take_up_empty(self) -> None:
        self._totals = RunningTotals.empty(())
        self._saver = self.store.saver("", self._totals)

    def _key(self) -> str:
        """Return what this device's statistics depend on."""
        trainer = self.trainer
        share = f"{trainer.global_rank} of {trainer.world_size}"
        batches = f"{trainer.num_training_batches} {trainer.num_val_batches}"
        how = f"{self.device.type} {trainer.precision}"
        return f"{self.content_key()} {share} {batches} {how}"

    def _sum(self, tensor: Tensor) -> Tensor:
        reduced: Any = self.trainer.strategy.reduce(tensor, reduce_op="sum")
        return torch.as_tensor(reduced)


# The linear maps of inputs and outputs that carry LoRA factors from one model to another.

SitePair = tuple[Site, Site]
"""A source site and the target site that it feeds."""


@dataclass(frozen=True, eq=False)
class Reader:
    """The map M of a module's inputs, ``x_S ~ M x_T``.

    Attributes:
        matrix: M, float32.
        strength: Of its ridge; None where there was none.
        r2: On held-out text.
        error: What M leaves unexplained, direction by direction.
    """

    matrix: Float[Tensor, "source target"]
    strength: float | None
    r2: float
    error: HeldOutError

    @classmethod
    def of(cls, found: LinearMap) -> "Reader":
        """Keep a map in float32 on the CPU."""
        residual, covariance = _kept(found.error.residual), _kept(found.error.covariance)
        error = HeldOutError(residual, covariance)
        return cls(_kept(found.matrix), found.strength, found.error.r2, error)


@dataclass(frozen=True, eq=False)
class Writer:
    """The map N of a module's outputs, ``dy_T ~ N dy_S``.

    Attributes:
        matrix: N, float32.
        strength: Of its ridge; None where there was none.
        r2: On held-out text.
        gradient_r2: Of the gradients that it carries back, on held-out text; None where there
            were none to look at.
    """

    matrix: Float[Tensor, "target source"]
    strength: float | None
    r2: float
    gradient_r2: float | None = None

    @classmethod
    def of(cls, found: LinearMap, gradient_r2: float | None = None) -> "Writer":
        """Keep a map in float32 on the CPU."""
        return cls(_kept(found.matrix), found.strength, found.error.r2, gradient_r2)


@dataclass
class FittedMaps:
    """Readers and writers of all pairs of sites; modules that share an input share a reader."""

    readers: dict[SitePair, Reader] = field(default_factory=dict)
    writers: dict[SitePair, Writer] = field(default_factory=dict)

    def reader(self, source: Site, target: Site) -> Reader:
        """Return the map of what two sites read."""
        return self.readers[input_pair(source, target)]

    def carried(self, update: LowRank, source: Site, target: Site) -> LowRank:
        """Return ``N B A M`` by its factors, of the update's own rank and scale."""
        a = update.A.float() @ self.reader(source, target).matrix
        return LowRank(a, self.writers[source, target].matrix @ update.B.float(), update.scale)

    def facts(self, source: Site, target: Site) -> dict[str, float]:
        """Return what was chosen and found for a pair of sites."""
        reader, writer = self.reader(source, target), self.writers[source, target]
        found = {"input_r2": reader.r2, "output_r2": writer.r2}
        if reader.strength is not None:
            found["input_strength"] = reader.strength
        if writer.strength is not None:
            found["output_strength"] = writer.strength
        if writer.gradient_r2 is not None:
            found["gradient_r2"] = writer.gradient_r2
        return found

    def state(self) -> dict[str, Any]:
        """Return everything as plain data and tensors."""
        return {
            "readers": {
                _label(pair): {
                    "matrix": reader.matrix,
                    "strength": reader.strength,
                    "r2": reader.r2,
                    "residual": reader.error.residual,
                    "covariance": reader.error.covariance,
                }
                for pair, reader in self.readers.items()
            },
            "writers": {
                _label(pair): {
                    "matrix": writer.matrix,
                    "strength": writer.strength,
                    "r2": writer.r2,
                    "gradient_r2": writer.gradient_r2,
                }
                for pair, writer in self.writers.items()
            },
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "FittedMaps":
        """Return what :meth:`state` describes."""
        readers = {
            _pair(label): Reader(
                kept["matrix"],
                kept["strength"],
                kept["r2"],
                HeldOutError(kept["residual"], kept["covariance"]),
            )
            for label, kept in state["readers"].items()
        }
        return cls(
            readers, {_pair(label): Writer(**kept) for label, kept in state["writers"].items()}
        )


def input_pair(source: Site, target: Site) -> SitePair:
    """Return the sites by which what two sites read is named; q, k and v share it."""
    role = INPUT_ROLE[source.role]
    return Site(source.layer, role), Site(target.layer, role)


def _label(pair: SitePair) -> str:
    return " ".join(site.label for site in pair)


def _pair(label: str) -> SitePair:
    source, target = label.split()
    return Site.from_label(source), Site.from_label(target)


def _kept(matrix: Tensor) -> Tensor:
    return matrix.to("cpu", torch.float32).contiguous()


# Carrying an adapter across along linear maps that are known.


class _Term(NamedTuple):
    """What one source site gives a target site, and what is known of it."""

    source: Site
    weight: float
    update: LowRank
    facts: dict[str, float]


class LinearCarrier(CorpusMapper):
    """Carries ``dW_T = sum_l w_l N_l dW_l M_l``, by its factors.

    Of a target layer that one source layer feeds with weight 1, rank and scale are the source's;
    of one that several feed, the ranks add up.

    Args:
        roles: The roles of adapters that it shall carry.
        min_r2: What a source site feeds is left out, and reported, where the held-out R^2 of
            what the adapter makes of its input there, ``1 - tr(D E D^T) / tr(D C D^T)`` with
            ``D = B A``, is at or below it; None leaves out nothing.
        match_norm: Whether each update is rescaled to be as large beside its weight as it was in
            the source.

    Attributes:
        maps: The readers and writers.
        norms: Of the two models' weights.
    """

    def __init__(self, roles: Sequence[str], min_r2: float | None, match_norm: bool) -> None:
        super().__init__(roles)
        self.min_r2, self.match_norm = min_r2, match_norm
        self.maps = FittedMaps()
        self.norms = RelativeNorms({}, {})
        self._found: Report = {}

    @property
    def fitted(self) -> bool:
        """Whether every pair of sites has its maps."""
        if self._frame is None:
            return False
        return all(
            (source, target) in self.maps.writers
            for target, feeds in self._frame.feeds().items()
            for source, _ in feeds
        )

    def map(self, adapter: LoraAdapter) -> LoraAdapter:
        """Return the target adapter, in float32.

        Raises:
            AdapterError: the adapter does not fit, or all of it is left out.
        """
        frame = self.frame
        feeds = frame.feeds_of(adapter)
        terms = {target: self._terms(adapter, target, found) for target, found in feeds.items()}
        kept = {target: [t for t in found if self._passes(t)] for target, found in terms.items()}
        mapped = {
            target: self._joined(adapter, target, found) for target, found in kept.items() if found
        }
        if not mapped:
            raise AdapterError(
                f"what the adapter of {adapter.base_model} reads is predicted from text with an "
                f"R^2 above mapper.min_r2={self.min_r2} at none of its sites; lower it, or set it "
                "to null"
            )
        used = [term.source for found in kept.values() for term in found]
        self._found = {
            **frame.dropped(adapter),
            "repeated_sites": len(used) - len(set(used)),
            "left_out": [
                f"{term.source.label} > {target.label}"
                for target, found in terms.items()
                for term in found
                if not self._passes(term)
            ],
            "sites": {
                target.label: _facts(adapter, update, kept[target])
                for target, update in mapped.items()
            },
        }
        return LoraAdapter(mapped, frame.target_name)

    def _terms(self, adapter: LoraAdapter, target: Site, feeds: Sequence[Feed]) -> list[_Term]:
        """Return what each source site gives a target site."""
        terms = []
        for source, weight in feeds:
            update = self.maps.carried(adapter[source], source, target)
            error = self.maps.reader(source, target).error
            facts = self.maps.facts(source, target)
            facts["restricted_r2"] = error.restricted_r2(_readers(adapter[source]))
            before = adapter[source].norm()
            if before > 0:
                facts["kept_norm"] = update.norm() / before
            terms.append(_Term(source, weight, update, facts))
        return terms

    def _passes(self, term: _Term) -> bool:
        return self.min_r2 is None or term.facts["restricted_r2"] > self.min_r2

    def _joined(self, adapter: LoraAdapter, target: Site, terms: Sequence[_Term]) -> LowRank:
        """Return the weighted sum of what feeds a target site."""
        if len(terms) == 1:
            update = terms[0].update.scaled(terms[0].weight)
        else:
            update = stacked([term.update for term in terms], [term.weight for term in terms])
        if not self.match_norm:
            return update
        feeds = [(term.source, term.weight) for term in terms]
        return self.norms.matched(update, target, adapter, feeds)

    def report(self) -> Report:
        """Return how well text predicts each site, and what became of the last adapter there."""
        frame = self.frame
        return {
            "roles": [role.value for role in frame.roles],
            "pairing": [[list(feed) for feed in feeds] for feeds in frame.pairing.feeds],
            "fits": {
                target.label: {s.label: self.maps.facts(s, target) for s, _ in feeds}
                for target, feeds in frame.feeds().items()
            },
            **self._found,
        }

    def fitted_state(self) -> dict[str, Any]:
        """Return maps, norms and frame."""
        norms = (self.norms.source, self.norms.target)
        return {
            "frame": self.described.state(),
            "maps": self.maps.state(),
            "norms": [{site.label: norm for site, norm in side.items()} for side in norms],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back maps, norms and frame."""
        self._frame = PairFrame.from_state(state["frame"])
        self.maps = FittedMaps.from_state(state["maps"])
        source, target = (
            {Site.from_label(label): float(norm) for label, norm in side.items()}
            for side in state["norms"]
        )
        self.norms = RelativeNorms(source, target)


def _readers(update: LowRank) -> Float[Tensor, "rank in"]:
    """Return rows that read inputs as B A does: A itself would count them by the gauge.

    With ``B = Q R``, ``|B A x| = |R A x|`` for every x.
    """
    return torch.linalg.qr(update.B.float()).R @ update.A.float()


def _facts(adapter: LoraAdapter, update: LowRank, terms: Sequence[_Term]) -> dict[str, Any]:
    """Return what the report says of a target site; of several sources their weighted means."""
    before = sum(term.weight**2 * adapter[term.source].norm() ** 2 for term in terms) ** 0.5
    facts: dict[str, Any] = {
        "source": " + ".join(term.source.label for term in terms),
        "norm": update.norm(),
        **_means(terms),
    }
    if before > 0:
        facts["kept_norm"] = update.norm() / before
    if len(terms) > 1:
        facts["feeds"] = {t.source.label: {"weight": t.weight, **t.facts} for t in terms}
    return facts


def _means(terms: Sequence[_Term]) -> dict[str, float]:
    total = sum(abs(term.weight) for term in terms) or 1.0
    names = dict.fromkeys(name for term in terms for name in term.facts)
    return {
        name: sum(abs(term.weight) * term.facts.get(name, 0.0) for term in terms) / total
        for name in names
    }


# Mappers that carry A and B by linear maps, fitted from streamed moments of activations.


class Gathered(NamedTuple):
    """The statistics of all devices, of the text to fit on and of that to measure on."""

    train: PairStatistics
    held_out: PairStatistics

    def inputs(self, source: Site, target: Site) -> SplitMoments:
        """Return the moments of what two sites read, as they are."""
        return self._moments(Tap.input(source), Tap.input(target))

    def outputs(self, source: Site, target: Site) -> SplitMoments:
        """Return the moments of what two sites write, centred."""
        return self._moments(Tap.output(source), Tap.output(target)).centred()

    def gradients(self, source: Site, target: Site) -> SplitMoments:
        """Return the moments of the gradients with respect to what two sites write, as they are.

        Only of a mapper whose :meth:`LinearCorpusMapper.tap_pairs` ask for them.
        """
        return self._moments(Tap.gradient(source), Tap.gradient(target))

    def _moments(self, source: Tap, target: Tap) -> SplitMoments:
        return SplitMoments(*(part.moments(source, target) for part in self))


class LinearCorpusMapper(GatheringMapper, LinearCarrier):
    """Fits a reader and a writer for every target site and every source layer that feeds it.

    An epoch runs both models over the text and keeps moments, no activations; the maps are solved
    at its end. Where the moments of all layers do not fit into memory the layers are taken in
    blocks, an epoch each, whatever ``max_epochs`` says. With a store, a fit that was stopped
    goes on where it was, and statistics that are complete are not gathered again.

    Args:
        roles: The roles of adapters that it shall carry.
        min_r2: See :class:`~loraport.mappers.from_text.LinearCarrier`.
        match_norm: Likewise.
        memory_gb: Gigabytes that statistics may take.
    """

    def __init__(
        self,
        roles: Sequence[str],
        min_r2: float | None,
        match_norm: bool,
        memory_gb: float,
    ) -> None:
        super().__init__(roles, min_r2, match_norm)
        self.memory_gb = memory_gb
        self._blocks: tuple[tuple[TapPair, ...], ...] = ()

    @abstractmethod
    def read(self, source: Site, target: Site, gathered: Gathered) -> LinearMap:
        """Return the map from what a target site reads to what a source site reads."""

    @abstractmethod
    def write(self, source: Site, target: Site, gathered: Gathered) -> LinearMap:
        """Return the map from what a source site writes to what a target site writes."""

    def writer(self, source: Site, target: Site, gathered: Gathered) -> Writer:
        """Return the same, with what the report says of it."""
        return Writer.of(self.write(source, target, gathered))

    def tap_pairs(self, source: Site, target: Site) -> tuple[TapPair, ...]:
        """Return where the models are read for a pair of sites."""
        return (Tap.input(source), Tap.input(target)), (Tap.output(source), Tap.output(target))

    def setup(self, stage: str) -> None:
        """Split the layers into blocks that fit into memory, and ask for an epoch each."""
        if stage != "fit":
            return
        models = self.models
        pairs = [taps for pair in self._site_pairs() for taps in self.tap_pairs(*pair)]
        widths = (
            tap_widths(models.source.sites, [pair[0] for pair in pairs]),
            tap_widths(models.target.sites, [pair[1] for pair in pairs]),
        )
        self._blocks = layer_blocks(pairs, widths, self.memory_gb)
        self.trainer.fit_loop.max_epochs = len(self._blocks)
        # In inference mode there are no gradients, which readings may be asked for.
        self.trainer.fit_loop.epoch_loop.val_loop.inference_mode = False
        self.norms = RelativeNorms.of(models.source, models.target, self.described.feeds())

    def on_train_epoch_start(self) -> None:
        """Take up what was gathered before for this epoch's layers."""
        if self.current_epoch == 0:
            self.maps = FittedMaps()
        self.take_up(self._blocks[self.current_epoch])

    def on_train_epoch_end(self) -> None:
        """Solve the maps of this epoch's layers from the statistics of all devices."""
        gathered = Gathered(*self.gathered())
        layers = {pair[1].layer for pair in self._blocks[self.current_epoch]}
        self.fit_maps(gathered, [pair for pair in self._site_pairs() if pair[1].layer in layers])

    def fit_maps(self, gathered: Gathered, pairs: Sequence[SitePair]) -> None:
        """Solve the maps of some pairs of sites."""
        for source, target in pairs:
            shared = input_pair(source, target)
            if shared not in self.maps.readers:
                self.maps.readers[shared] = Reader.of(self.read(*shared, gathered))
            self.maps.writers[source, target] = self.writer(source, target, gathered)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put also the maps of some of the blocks into it, so that a stopped fit can go on."""
        super().on_save_checkpoint(checkpoint)
        if self.maps.writers:
            checkpoint[self.checkpoint_key]["state"] = self.fitted_state()

    def _site_pairs(self) -> list[SitePair]:
        feeds = self.described.feeds()
        return [(source, target) for target, found in feeds.items() for source, _ in found]

    def gather(self, statistics: PairStatistics, batch: AlignedBatch) -> None:
        """Add what the taps of both models give."""
        models, pairs = self.models, statistics.pairs
        statistics.add(
            readings(
                models.source.network, batch.source, batch.source_places, [p[0] for p in pairs]
            ),
            readings(
                models.target.network, batch.target, batch.target_places, [p[1] for p in pairs]
            ),
        )
