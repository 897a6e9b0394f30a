"""Mappers that carry LoRA factors by two linear maps a site, fitted from moments of activations.

With ``x_S ~ M x_T`` between what two modules read and ``dy_T ~ N dy_S`` between what they write,
the update that does in the target what ``dW_S`` does in the source is ``N dW_S M``: the input
projection gives ``A_T = A_S M``, the output projection ``B_T = N B_S``. Where several source layers
feed a target layer their updates are added by weight, ``dW_T = sum_l w_l N_l dW_l M_l``.

In the order of this file: the projections of all sites and what is known of them; the moments from
which they are solved; and the mapper, which gathers moments in an epoch over text, has a subclass
solve the maps, and carries adapters.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..adapters import LoraAdapter, LowRank, Site, stacked
from ..alignment.linear_maps import HeldOutError, LinearMap, SplitMoments
from ..data import AlignedBatch
from ..exceptions import AdapterError
from ..models.capture import readings
from ..models.hooks import Tap, tap_widths
from ..models.loading import BaseModel
from ..models.statistics import PairStatistics, RunningTotals, TapPair, layer_blocks
from .base import Report, dropped_facts
from .from_text import ROLES, CorpusMapper, PairFrame, SitePair, check_varies, input_pair


@dataclass(frozen=True, eq=False)
class InputProjection:
    """The map M of a module's inputs, ``x_S ~ M x_T``, float32 on the CPU.

    Attributes:
        matrix: M.
        strength: Of its ridge; None without one.
        r2: On held-out text.
        residual: What M leaves unexplained, direction by direction, and of what ``covariance``:
            as in :class:`HeldOutError`.
    """

    matrix: Float[Tensor, "source target"]
    strength: float | None
    r2: float
    residual: Float[Tensor, "source source"]
    covariance: Float[Tensor, "source source"]

    @classmethod
    def of(cls, fit: LinearMap) -> "InputProjection":
        """Keep a fitted map."""
        error = fit.error
        residual, covariance = _kept(error.residual), _kept(error.covariance)
        return cls(_kept(fit.matrix), fit.strength, error.r2, residual, covariance)


@dataclass(frozen=True, eq=False)
class OutputProjection:
    """The map N of a module's outputs, ``dy_T ~ N dy_S``, float32 on the CPU.

    ``gradient_r2`` is that of held-out gradients which it carries back; None without any.
    """

    matrix: Float[Tensor, "target source"]
    strength: float | None
    r2: float
    gradient_r2: float | None = None

    @classmethod
    def of(cls, fit: LinearMap) -> "OutputProjection":
        """Keep a fitted map."""
        return cls(_kept(fit.matrix), fit.strength, fit.error.r2, fit.gradient_r2)


def _kept(matrix: Tensor) -> Tensor:
    return matrix.to("cpu", torch.float32).contiguous()


@dataclass
class FittedMaps:
    """The projections of all pairs of sites; modules that share an input share its projection."""

    inputs: dict[SitePair, InputProjection] = field(default_factory=dict)
    outputs: dict[SitePair, OutputProjection] = field(default_factory=dict)

    def of(self, source: Site, target: Site) -> tuple[InputProjection, OutputProjection]:
        """Return both projections of a pair of sites."""
        return self.inputs[input_pair(source, target)], self.outputs[source, target]

    def facts(self, source: Site, target: Site) -> dict[str, float]:
        """Return what was chosen and measured for a pair of sites."""
        into, out = self.of(source, target)
        facts = {
            "input_r2": into.r2,
            "output_r2": out.r2,
            "input_strength": into.strength,
            "output_strength": out.strength,
            "gradient_r2": out.gradient_r2,
        }
        return {name: value for name, value in facts.items() if value is not None}

    def state(self) -> dict[str, Any]:
        """Return everything as plain data and tensors."""
        return {
            "input_projections": {_label(pair): vars(kept) for pair, kept in self.inputs.items()},
            "output_projections": {_label(pair): vars(kept) for pair, kept in self.outputs.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "FittedMaps":
        """Return what :meth:`state` describes."""
        inputs, outputs = (state[f"{kind}_projections"].items() for kind in ("input", "output"))
        return cls(
            {_pair(label): InputProjection(**kept) for label, kept in inputs},
            {_pair(label): OutputProjection(**kept) for label, kept in outputs},
        )


def _label(pair: SitePair) -> str:
    return " ".join(site.label for site in pair)


def _pair(label: str) -> SitePair:
    source, target = label.split()
    return Site.from_label(source), Site.from_label(target)


def weight_norms(model: BaseModel, sites: Iterable[Site]) -> dict[Site, float]:
    """Return the Frobenius norms of weights, which say how large an update is beside them."""

    def norm(site: Site) -> float:
        weight = model.network.get_parameter(f"{site.module_name}.weight")
        return float(torch.linalg.vector_norm(weight, dtype=torch.float64))

    return {site: norm(site) for site in sorted(sites, key=lambda site: site.sort_key)}


class Gathered(NamedTuple):
    """The statistics of all devices, of the text to fit on and of that to measure on."""

    train: PairStatistics
    held_out: PairStatistics

    def inputs(self, source: Site, target: Site) -> SplitMoments:
        """Return the moments of what two sites read, as they are."""
        return self._varying(Tap.input(source), Tap.input(target))

    def outputs(self, source: Site, target: Site) -> SplitMoments:
        """Return the moments of what two sites write, centred."""
        return self._varying(Tap.output(source), Tap.output(target)).centred()

    def gradients(self, source: Site, target: Site) -> SplitMoments:
        """Return the moments of gradients with respect to what two sites write, if asked for."""
        return self._moments(Tap.gradient(source), Tap.gradient(target))

    def _moments(self, source: Tap, target: Tap) -> SplitMoments:
        return SplitMoments(*(part.moments(source, target) for part in self))

    def _varying(self, source: Tap, target: Tap) -> SplitMoments:
        found = self._moments(source, target)
        check_varies(found.train, f"{source.label_on('source')} and {target.label_on('target')}")
        return found


class LinearOptions(TypedDict, total=False):
    """The options of every linear mapper; :class:`LinearTextMapper` explains them."""

    roles: Sequence[str]
    min_r2: float | None
    match_norm: bool
    memory_gb: float


class _Term(NamedTuple):
    """What one source site gives a target site, and what is known of it."""

    source: Site
    weight: float
    update: LowRank
    facts: dict[str, float]


class LinearTextMapper(CorpusMapper):
    """Fits an input and an output projection for every target site and each layer that feeds it.

    An epoch runs both models over the text and keeps moments, no activations; the maps are solved
    at its end. Where the moments of all layers do not fit into memory the layers are taken in
    blocks, an epoch each, whatever ``max_epochs`` says. With a store, a fit that was stopped
    goes on where it was, and statistics that are complete are not gathered again.

    Of a target layer that one source layer feeds with weight 1, rank and scale are the source's;
    of one that several feed, the ranks add up.

    Args:
        roles: The roles of adapters that it shall carry.
        min_r2: What a source site feeds is left out, and reported, where the held-out R^2 of
            what the adapter makes of its input there, ``1 - tr(D E D^T) / tr(D C D^T)`` with
            ``D = B A``, is at or below it; None leaves out nothing.
        match_norm: Whether each update is rescaled to be as large beside its weight as it was in
            the source.
        memory_gb: Gigabytes that statistics may take.
    """

    is_linear: ClassVar[bool] = True

    def __init__(
        self,
        roles: Sequence[str] = ROLES,
        min_r2: float | None = None,
        match_norm: bool = False,
        memory_gb: float = 2.0,
    ) -> None:
        super().__init__(roles)
        self.min_r2, self.match_norm, self.memory_gb = min_r2, match_norm, memory_gb
        self.save_hyperparameters("min_r2", "match_norm", "memory_gb")
        self.maps = FittedMaps()
        self.source_norms: dict[Site, float] = {}
        self.target_norms: dict[Site, float] = {}
        self._mapped: Report = {}
        self._blocks: tuple[tuple[TapPair, ...], ...] = ()
        self.automatic_optimization = False
        # DistributedDataParallel refuses a module without a parameter.
        self.unused = nn.Parameter(torch.zeros(()))
        self._totals = RunningTotals.empty("", ())

    @abstractmethod
    def fit_input(self, source: Site, target: Site, gathered: Gathered) -> LinearMap:
        """Return the map from what a target site reads to what a source site reads."""

    @abstractmethod
    def fit_output(self, source: Site, target: Site, gathered: Gathered) -> LinearMap:
        """Return the map from what a source site writes to what a target site writes."""

    def tap_pairs(self, source: Site, target: Site) -> tuple[TapPair, ...]:
        """Return where the models are read for a pair of sites."""
        return (Tap.input(source), Tap.input(target)), (Tap.output(source), Tap.output(target))

    @property
    def fitted(self) -> bool:
        """Whether every pair of sites has its maps."""
        frame = self._frame
        return frame is not None and all(p in self.maps.outputs for p in frame.site_pairs())

    def configure_optimizers(self) -> None:
        """Return no optimizer: the maps are solved in closed form."""

    def setup(self, stage: str) -> None:
        """Split the layers into blocks that fit into memory, and ask for an epoch each."""
        if stage != "fit":
            return
        models, frame = self.models, self.described
        pairs = [taps for pair in frame.site_pairs() for taps in self.tap_pairs(*pair)]
        widths = (
            tap_widths(models.source.sites, [pair[0] for pair in pairs]),
            tap_widths(models.target.sites, [pair[1] for pair in pairs]),
        )
        self._blocks = layer_blocks(pairs, widths, self.memory_gb)
        self.trainer.fit_loop.max_epochs = len(self._blocks)
        # In inference mode there are no gradients, which readings may be asked for.
        self.trainer.fit_loop.epoch_loop.val_loop.inference_mode = False
        feeding = {source for source, _ in frame.site_pairs()}
        self.source_norms = weight_norms(models.source, feeding)
        self.target_norms = weight_norms(models.target, frame.feeds())

    def on_train_epoch_start(self) -> None:
        """Take up what was gathered before for this epoch's layers."""
        if self.current_epoch == 0:
            self.maps = FittedMaps()
        self._totals = self.store.resume(self._key(), self._blocks[self.current_epoch])

    def training_step(self, batch: AlignedBatch, batch_idx: int) -> None:
        """Add a batch to the statistics that maps are fitted on."""
        if batch_idx >= self._totals.train_batches:
            self.gather(self._totals.train, batch)
            self._totals.train_batches += 1
            self.store.step(self._totals)

    def on_validation_start(self) -> None:
        """End the sums over training text, whose last bits depend on where they end."""
        self._totals.train.settle()

    def validation_step(self, batch: AlignedBatch, batch_idx: int) -> None:
        """Add a batch to the statistics that maps are chosen and measured on."""
        if self.trainer.sanity_checking or batch_idx < self._totals.held_out_batches:
            return
        self.gather(self._totals.held_out, batch)
        self._totals.held_out_batches += 1
        self.store.step(self._totals)

    def gather(self, statistics: PairStatistics, batch: AlignedBatch) -> None:
        """Add what the taps of both models give at a batch's tokens."""
        models, pairs = self.models, statistics.pairs
        statistics.add(
            readings(
                models.source.network, batch.source, batch.source_places, [p[0] for p in pairs]
            ),
            readings(
                models.target.network, batch.target, batch.target_places, [p[1] for p in pairs]
            ),
        )

    def on_train_epoch_end(self) -> None:
        """Solve the maps of this epoch's layers from the statistics of all devices."""
        totals = self._totals
        totals.held_out.settle()
        if not totals.complete:
            totals.complete = True
            self.store.save(totals)
        self._totals = RunningTotals.empty("", ())
        gathered = Gathered(totals.train.reduced(self.summed), totals.held_out.reduced(self.summed))
        layers = {pair[1].layer for pair in self._blocks[self.current_epoch]}
        for source, target in self.described.site_pairs():
            if target.layer not in layers:
                continue
            shared = input_pair(source, target)
            if shared not in self.maps.inputs:
                self.maps.inputs[shared] = InputProjection.of(self.fit_input(*shared, gathered))
            fit = self.fit_output(source, target, gathered)
            self.maps.outputs[source, target] = OutputProjection.of(fit)

    def _key(self) -> list[Any]:
        """Return what this device's statistics depend on."""
        trainer = self.trainer
        return [
            *(model.key_parts for model in self.models),
            *(self.data.content_hash(), trainer.precision),
            *(trainer.global_rank, trainer.world_size),
            *(trainer.num_training_batches, trainer.num_val_batches),
        ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put also the maps of some of the blocks into it, so that a stopped fit can go on."""
        super().on_save_checkpoint(checkpoint)
        if self.maps.outputs:
            checkpoint[self.checkpoint_key]["state"] = self.fitted_state()

    def map(self, adapter: LoraAdapter) -> LoraAdapter:
        """Return the target adapter, in float32."""
        frame, left_out = self.frame, list[str]()
        feeds = frame.feeds_of(adapter)
        kept: dict[Site, list[_Term]] = {}
        for target, found in feeds.items():
            for source, weight in found:
                term = self._term(adapter, target, source, weight)
                if self.min_r2 is None or term.facts["restricted_r2"] > self.min_r2:
                    kept.setdefault(target, []).append(term)
                else:
                    left_out.append(f"{source.label} > {target.label}")
        if not kept:
            raise AdapterError(
                f"what the adapter of {adapter.base_model} reads is predicted from text with an "
                f"R^2 above mapper.min_r2={self.min_r2} at none of its sites; lower it, or set it "
                "to null"
            )
        mapped = {target: self._joined(adapter, target, terms) for target, terms in kept.items()}
        used = [term.source for terms in kept.values() for term in terms]
        self._mapped = {
            **dropped_facts(adapter, {source for found in feeds.values() for source, _ in found}),
            "repeated_sites": len(used) - len(set(used)),
            "left_out": left_out,
            "sites": {
                target.label: _facts(adapter, update, kept[target])
                for target, update in mapped.items()
            },
        }
        return LoraAdapter(mapped, frame.target_name)

    def _term(self, adapter: LoraAdapter, target: Site, source: Site, weight: float) -> _Term:
        given, (into, out) = adapter[source], self.maps.of(source, target)
        a, b = given.A.float(), given.B.float()
        update = LowRank(a @ into.matrix, out.matrix @ b, given.scale)
        facts = self.maps.facts(source, target)
        # A itself would count directions by the gauge: with B = Q R, |B A x| = |R A x| for every x.
        error = HeldOutError(into.residual, into.covariance)
        facts["restricted_r2"] = error.restricted_r2(torch.linalg.qr(b).R @ a)
        before = given.norm()
        if before > 0:
            facts["kept_norm"] = update.norm() / before
        return _Term(source, weight, update, facts)

    def _joined(self, adapter: LoraAdapter, target: Site, terms: Sequence[_Term]) -> LowRank:
        """Return the weighted sum of what feeds a target site, of the norm that is asked for."""
        if len(terms) == 1:
            update = terms[0].update.scaled(terms[0].weight)
        else:
            update = stacked([term.update for term in terms], [term.weight for term in terms])
        if not self.match_norm:
            return update
        # |dW_T| / |W_T| = sum_l |w_l| |dW_l| / |W_l| over the layers that feed it.
        wanted = sum(
            abs(t.weight) * adapter[t.source].norm() / self.source_norms[t.source] for t in terms
        )
        norm = update.norm()
        return update.scaled(wanted * self.target_norms[target] / norm) if norm > 0 else update

    def report(self) -> Report:
        """Return how well text predicts each site, and what became of the last adapter there."""
        frame = self.frame
        return {
            **frame.report(),
            "fits": {
                target.label: {s.label: self.maps.facts(s, target) for s, _ in feeds}
                for target, feeds in frame.feeds().items()
            },
            **self._mapped,
        }

    def fitted_state(self) -> dict[str, Any]:
        """Return maps, norms and frame."""
        norms = (self.source_norms, self.target_norms)
        return {
            "frame": self.described.state(),
            "maps": self.maps.state(),
            "norms": [{site.label: norm for site, norm in side.items()} for side in norms],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back maps, norms and frame."""
        self._frame = PairFrame.from_state(state["frame"])
        self.maps = FittedMaps.from_state(state["maps"])
        self.source_norms, self.target_norms = (
            {Site.from_label(label): norm for label, norm in side.items()}
            for side in state["norms"]
        )


def _facts(adapter: LoraAdapter, update: LowRank, terms: Sequence[_Term]) -> dict[str, Any]:
    """Return what the report says of a target site; of several sources their weighted means."""
    total = sum(abs(term.weight) for term in terms) or 1.0
    names = dict.fromkeys(name for term in terms for name in term.facts)
    facts: dict[str, Any] = {
        "source": " + ".join(term.source.label for term in terms),
        "norm": update.norm(),
    }
    for name in names:
        weighted = sum(abs(term.weight) * term.facts.get(name, 0.0) for term in terms)
        facts[name] = weighted / total
    before = sum(term.weight**2 * adapter[term.source].norm() ** 2 for term in terms) ** 0.5
    if before > 0:
        facts["kept_norm"] = update.norm() / before
    if len(terms) > 1:
        facts["feeds"] = {t.source.label: {"weight": t.weight, **t.facts} for t in terms}
    return facts
