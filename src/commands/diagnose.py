"""How well linear maps between paired modules of two models predict text that they never saw."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from jaxtyping import Float, Int
from omegaconf import DictConfig
from rich.console import Console
from safetensors.torch import save
from torch import Tensor

from ..adapters import LoraAdapter, Role, Site, read_adapter
from ..adapters.lora import concentration, effective_rank, mean_cosine, span_share
from ..alignment.coverage import Coverage, LayerMap
from ..alignment.gromov_wasserstein import gromov_wasserstein
from ..alignment.layer_matching import LayerPairing, Pairing
from ..alignment.linear_maps import HeldOutError, LinearMap, Ridge
from ..alignment.moments import PairedMoments
from ..alignment.procrustes import Rotation, rotation
from ..alignment.similarity import LayerFingerprint, LayerMeasure, nearest, prepared
from ..data.probe_sets import ProbeSet
from ..data.text_corpus import TextCorpus
from ..data.zoo import SIDES
from ..evaluation.records import (
    CompatibilityVerdict,
    Geometry,
    IntersectionMap,
    LayerConfidence,
    MeasureMap,
    ModuleFit,
    PairRecord,
    Probes,
    Provenance,
    TransportCell,
    git_revision,
    library_versions,
)
from ..evaluation.verdict import compatibility_summary, fit_warnings
from ..exceptions import ConfigurationError
from ..files import write_whole
from ..models import BaseModel, ModelSource, StreamedWeights
from ..models.capture import PairedCapture
from ..models.hooks import Tap
from ..models.statistics import RunningTotals, StatisticsStore, TapPair
from ..reporting.console import print_diagnosis
from ..reporting.figures import write_heat_maps
from ..reporting.pages import write_diagnosis_page
from ..store import Store
from .compatibility import (
    Compatibility,
    Diagnosis,
    ProbeStates,
    Progress,
    diagnosis_progress,
    kept_at,
    refuse_incompatible,
)
from .context import (
    RunContext,
    Stopwatch,
    build,
    listed,
    option,
    optional,
    plain_config,
    quiet_libraries,
)
from .porting import given_adapter
from .train import check_base


class ModulePair(NamedTuple):
    """A site of the target, and the site of the source that it is fitted to."""

    target: Site
    source: Site

    @property
    def inputs(self) -> TapPair:
        """What both read, source first."""
        return Tap.input(self.source), Tap.input(self.target)

    @property
    def outputs(self) -> TapPair:
        """What both write, source first."""
        return Tap.output(self.source), Tap.output(self.target)


def module_pairs(pairing: LayerPairing, roles: Sequence[Role]) -> list[ModulePair]:
    """Pair the sites of each target layer with those of the source layer that feeds it most."""
    return [
        ModulePair(Site(target, role), Site(max(feeds, key=lambda feed: feed[1])[0], role))
        for target, feeds in enumerate(pairing.feeds)
        if feeds
        for role in roles
    ]


def module_fits(
    source: BaseModel,
    target: BaseModel,
    corpus: TextCorpus,
    pairs: Sequence[ModulePair],
    adapter: LoraAdapter | None,
    store: StatisticsStore,
    progress: Progress,
) -> tuple[ModuleFit, ...]:
    """Fit ridge maps between paired modules, and measure them on held-out text.

    Inputs are mapped from the target to the source, outputs from the source to the target: that
    is what carries an update ``B A`` over as ``N B A M``.

    Args:
        source: The source model.
        target: The target model.
        corpus: Text to fit on, and other text to measure on.
        pairs: The modules.
        adapter: Of the source: restricts R^2 to the directions that it reads (``A x``) and
            writes (``N B``); None for all directions.
        store: Keeps what was read of the models.
        progress: Is told what is being done.
    """
    train, held_out = corpus.train_dataloader(), corpus.val_dataloader()
    batches = len(train) + len(held_out)
    totals = store.gather(
        f"{source.fingerprint} {target.fingerprint} {corpus.content_hash()}",
        [taps for pair in pairs for taps in (pair.inputs, pair.outputs)],
        PairedCapture(source.network, target.network),
        train,
        held_out,
        progress=lambda done: progress("reading the corpus", done, batches),
    )
    fits: list[ModuleFit] = []
    readings: dict[TapPair, LinearMap] = {}  # q, k and v read the same
    for pair in pairs:
        progress("fitting maps", len(fits), len(pairs))
        if pair.inputs not in readings:
            readings[pair.inputs] = _reading(pair, totals)
        fits.append(_fit(pair, readings[pair.inputs], _writing(pair, totals), adapter))
    return tuple(fits)


def _reading(pair: ModulePair, totals: RunningTotals) -> LinearMap:
    """Return M; inputs are not centred, since a LoRA has no bias that could hold an intercept."""
    return Ridge().backward(
        totals.train.moments(*pair.inputs), totals.held_out.moments(*pair.inputs)
    )


def _writing(pair: ModulePair, totals: RunningTotals) -> LinearMap:
    """Return N; outputs are centred, since an update is a difference of outputs."""
    return Ridge().forward(
        totals.train.moments(*pair.outputs).centred(),
        totals.held_out.moments(*pair.outputs).centred(),
    )


def _fit(
    pair: ModulePair, reading: LinearMap, writing: LinearMap, adapter: LoraAdapter | None
) -> ModuleFit:
    update = None if adapter is None else adapter.get(pair.source)
    used = (
        (None, None)
        if update is None
        else (
            reading.error.restricted_r2(update.A),
            writing.error.restricted_r2((writing.matrix @ update.B.to(writing.matrix)).mT),
        )
    )
    return ModuleFit(
        target=pair.target.label,
        source=pair.source.label,
        inputs=reading.error.r2,
        outputs=writing.error.r2,
        adapter_inputs=used[0],
        adapter_outputs=used[1],
    )


# Linear maps between paired modules, fitted once for any number of adapters.


class DirectionFit(NamedTuple):
    """How well maps between modules hold in the directions that an adapter uses.

    Attributes:
        reads: Held-out R^2 of ``A x``, the source's from the target's inputs.
        writes: Held-out R^2 of ``N B``, in the target's outputs.
    """

    reads: float
    writes: float


@dataclass(frozen=True, eq=False)
class ModuleMaps:
    """What paired modules read and write on a corpus, and the maps that are fitted to it.

    Attributes:
        pairs: The modules.
        totals: Statistics of the corpus at all of them.
    """

    pairs: Sequence[ModulePair]
    totals: RunningTotals

    @classmethod
    def of(
        cls,
        source: BaseModel,
        target: BaseModel,
        corpus: TextCorpus,
        pairs: Sequence[ModulePair],
        store: StatisticsStore,
        progress: Progress,
    ) -> "ModuleMaps":
        """Run both models over a corpus, unless the store has kept what comes of it."""
        train, held_out = corpus.train_dataloader(), corpus.val_dataloader()
        batches = len(train) + len(held_out)
        totals = store.gather(
            f"{source.fingerprint} {target.fingerprint} {corpus.content_hash()}",
            [taps for pair in pairs for taps in (pair.inputs, pair.outputs)],
            PairedCapture(source.network, target.network),
            train,
            held_out,
            progress=lambda done: progress("reading the corpus", done, batches),
        )
        return cls(pairs, totals)

    def restricted(
        self, adapters: Mapping[str, LoraAdapter], progress: Progress
    ) -> dict[str, DirectionFit]:
        """Return how well the maps hold in each adapter's directions, mean over its sites.

        A pair of modules weighs by the squared norm of the adapter's update at the source's site.
        An adapter without an update at any of the sites has no entry.
        """
        sums = {name: [0.0, 0.0, 0.0] for name in adapters}
        readings: dict[TapPair, LinearMap] = {}  # q, k and v read the same
        for done, pair in enumerate(self.pairs):
            progress("fitting maps", done, len(self.pairs))
            if pair.inputs not in readings:
                readings[pair.inputs] = self._reading(pair.inputs)
            reading, writing = readings[pair.inputs], self._writing(pair.outputs)
            for name, adapter in adapters.items():
                update = adapter.get(pair.source)
                if update is None:
                    continue
                written = (writing.matrix @ update.B.to(writing.matrix)).mT
                fit = reading.error.restricted_r2(update.A), writing.error.restricted_r2(written)
                energy = update.inner(update)
                for place, part in enumerate((energy, energy * fit[0], energy * fit[1])):
                    sums[name][place] += part
        return {
            name: DirectionFit(reads / weight, writes / weight)
            for name, (weight, reads, writes) in sums.items()
            if weight > 0
        }

    def _reading(self, taps: TapPair) -> LinearMap:
        """Not centred, since a LoRA has no bias that could hold an intercept."""
        totals = self.totals
        return Ridge().backward(totals.train.moments(*taps), totals.held_out.moments(*taps))

    def _writing(self, taps: TapPair) -> LinearMap:
        """Centred, since an update is a difference of outputs."""
        totals = self.totals
        return Ridge().forward(
            totals.train.moments(*taps).centred(), totals.held_out.moments(*taps).centred()
        )


# Rotations between the residual streams of paired layers, and how well they hold.


class LayerGeometry(NamedTuple):
    """The rotation between a target layer and the source layer that feeds it.

    Attributes:
        rotation: Of the source's rows onto the target's, centred.
        error: Share of the held-out rows' variance that it leaves unexplained.
        covered: Share of that variance in the directions that the other rows determine.
    """

    rotation: Rotation
    error: float
    covered: float


def residual_geometry(
    states: ProbeStates, pairing: LayerPairing, seed: int
) -> tuple[tuple[LayerGeometry | None, ...], Geometry]:
    """Fit a rotation a target layer on half of the rows, and measure it on the other half.

    Rows have outlying entries clamped and norm 1, as for mutual k-NN: a few rogue dimensions
    would else be all that is measured.

    Args:
        states: The rows.
        pairing: Which source layer is rotated onto each target layer: its heaviest.
        seed: Draws the halves.
    """
    order = torch.randperm(states.rows, generator=torch.Generator().manual_seed(seed))
    halves = order[: states.rows // 2], order[states.rows // 2 :]
    source = [prepared(layer) for layer in states.source]
    target = [prepared(layer) for layer in states.target]
    layers = tuple(
        _layer(source[max(feeds, key=lambda feed: feed[1])[0]], target[place], halves)
        if feeds
        else None
        for place, feeds in enumerate(pairing.feeds)
    )
    found = [layer for layer in layers if layer is not None]
    rough = [
        _roughness(one.rotation.matrix, other.rotation.matrix) for one, other in pairwise(found)
    ]
    errors = [layer.error for layer in found]
    return layers, Geometry(
        mean_error=_mean(errors),
        max_error=max(errors, default=None),
        roughness=_mean(rough),
        anchor_coverage=_mean([layer.covered for layer in found]),
    )


def _layer(
    x: Float[Tensor, "rows source"],
    y: Float[Tensor, "rows target"],
    halves: tuple[Int[Tensor, " one"], Int[Tensor, " other"]],
) -> LayerGeometry:
    train, held_out = (PairedMoments.of(x[half], y[half]).centred() for half in halves)
    found = rotation(train)
    error = HeldOutError.of(found.scale * found.matrix.mT, train, held_out)
    inside = found.matrix.mT @ found.matrix
    there = float(held_out.yy.trace())
    covered = float((inside * held_out.yy).sum()) / there if there > 0 else 0.0
    return LayerGeometry(found, 1 - error.r2, covered)


def _roughness(one: Float[Tensor, "x y"], other: Float[Tensor, "x y"]) -> float:
    """Return ``|R - R'|^2 / (|R|^2 + |R'|^2)``: 0 the same, 1 nothing in common."""
    both = float(one.square().sum() + other.square().sum())
    return float((one - other).square().sum()) / both if both > 0 else 0.0


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


# What is known of source adapters before any of them is carried over.

# Raise it when the code changes what comes out.
_FORMAT = 1
# Of the corpus: more would tell directions apart a little better, and take minutes longer.
_TOKENS = 8000
_HELD_OUT_TOKENS = 2000

Numbers = dict[str, float]
"""Diagnostics by name."""


def diagnostics(context: RunContext, given: Mapping[str, LoraAdapter]) -> dict[str, Numbers]:
    """Return what is known of each source adapter before a transfer, without its target.

    ``relative_norm``: Frobenius norm of the updates beside that of the weights they change.
    ``effective_rank``, ``concentration``: see :mod:`loraport.adapters.lora`. Where the zoo
    has source adapters of other tasks that are not held out: ``mean_cosine`` with them, and
    ``anchor_span``, the share of the squared norm in their span. Unless ``diagnosis=none``:
    ``coverage`` and ``identification`` of the pair, the same for all its adapters. Where there is
    a corpus as well: ``r2_reads`` and ``r2_writes``, the held-out R^2 of linear maps between
    paired modules in the directions that the adapter reads and writes, mean over the sites by
    squared norm. What cannot be known is left out.

    Everything is kept in the cache by its content.

    Args:
        context: Of the pair; read are ``pair``, ``paths``, ``tasks.held_out``, ``diagnosis``,
            ``probes``, ``pairing``, ``corpus`` and ``seed``.
        given: Adapters of the source model by their tasks.

    Raises:
        LoraportError: a model, the corpus or the zoo cannot be read, or an adapter is of another
            model.
    """
    if not given:
        return {}
    pair, anchors = _Pair.of(context), _anchors(context)
    folder, content = context.cache / "pre_transfer", pair.content()
    others = {name: _others(anchors, name) for name in given}
    places = {
        name: folder / f"{_key(content, adapter, others[name])}.json"
        for name, adapter in given.items()
    }
    found = {name: kept for name, place in places.items() if (kept := _read(place)) is not None}
    missing = {name: adapter for name, adapter in given.items() if name not in found}
    for name, told in (pair.told(missing) if missing else {}).items():
        adapter = missing[name]
        found[name] = _alone(adapter, pair.source) | _beside(adapter, others[name]) | told
        write_whole(places[name], json.dumps(found[name], allow_nan=False) + "\n")
    return {name: found[name] for name in given}


@dataclass(frozen=True)
class _Pair:
    """Both models of a pair on disk, with how they are compared.

    Attributes:
        context: The configuration.
        source: The source's weights.
        target: The target's weights.
        diagnosis: How the pair is diagnosed; None with ``diagnosis=none``.
        corpus: Text to fit maps on; None without it, or without a diagnosis.
    """

    context: RunContext
    source: StreamedWeights
    target: StreamedWeights
    diagnosis: Diagnosis | None
    corpus: TextCorpus | None

    @classmethod
    def of(cls, context: RunContext) -> "_Pair":
        config = context.config
        sources: list[ModelSource] = [build(config.pair[side]) for side in SIDES]
        source, target = (found.weights(context.cache) for found in sources)
        if "_target_" not in config.diagnosis:
            return cls(context, source, target, None, None)
        corpus = None
        if "folder" not in config.corpus or config.corpus.folder is not None:
            corpus = TextCorpus(
                build(config.corpus),
                source.tokenizer,
                target.tokenizer,
                tokens=_TOKENS,
                held_out_tokens=_HELD_OUT_TOKENS,
                seed=option(config, "seed", int),
            )
        return cls(context, source, target, build(config.diagnosis), corpus)

    def content(self) -> list[object]:
        """Return all that the numbers depend on, apart from adapters."""
        if self.diagnosis is None:
            return [Store(self.context.cache).folder_hash(self.source.folder)]
        return [
            kept_at(self.context, self.diagnosis, build(self.context.config.probes)).stem,
            plain_config(self.context.config)["pairing"],
            None if self.corpus is None else self.corpus.content_hash(),
        ]

    def told(self, adapters: Mapping[str, LoraAdapter]) -> dict[str, Numbers]:
        """Return what the two models tell: of the pair, and of each adapter's directions."""
        with diagnosis_progress() as progress:
            source, target = (self.context.model(side) for side in SIDES)
            for adapter in adapters.values():
                check_base(source, adapter, "source")
            if self.diagnosis is None:
                return {name: {} for name in adapters}
            probes = build(self.context.config.probes)
            place = kept_at(self.context, self.diagnosis, probes)
            found = Compatibility.read(place)
            if found is None:
                found = self.diagnosis.compare(source, target, probes, progress)
                found.write(place)
            of_pair = {"coverage": found.coverage, "identification": found.identification}
            told = {name: dict(of_pair) for name in adapters}
            if self.corpus is not None:
                pairing: Pairing = build(self.context.config.pairing)
                paired = pairing.pair(torch.tensor(found.similarity))
                used = {role for adapter in adapters.values() for role in adapter.roles}
                pairs = module_pairs(paired, [role for role in Role if role in used])
                store = StatisticsStore(self.context.cache)
                maps = ModuleMaps.of(source, target, self.corpus, pairs, store, progress)
                for name, fit in maps.restricted(adapters, progress).items():
                    told[name] |= {"r2_reads": fit.reads, "r2_writes": fit.writes}
        return told


def _alone(adapter: LoraAdapter, weights: StreamedWeights) -> Numbers:
    """Return what an adapter is by itself, and beside the weights that it changes."""
    squares = sum(_squared_norm(weights, site) for site in adapter)
    return {
        "relative_norm": adapter.norm() / math.sqrt(squares),
        "effective_rank": effective_rank(adapter),
        "concentration": concentration(adapter),
    }


def _squared_norm(weights: StreamedWeights, site: Site) -> float:
    return float(torch.linalg.vector_norm(weights.weight(site), dtype=torch.float64)) ** 2


def _beside(adapter: LoraAdapter, others: Sequence[LoraAdapter]) -> Numbers:
    """Return how an adapter lies to the anchors' source adapters."""
    if not others:
        return {}
    return {
        "mean_cosine": mean_cosine(adapter, others),
        "anchor_span": span_share(adapter, others),
    }


def _anchors(context: RunContext) -> dict[str, LoraAdapter]:
    """Return the source adapters of the zoo's tasks that are not held out."""
    if not context.has_zoo():
        return {}
    zoo, held_out = context.zoo(), set(context.config.tasks.held_out)
    return {name: read_adapter(zoo.source / name) for name in zoo.names() if name not in held_out}


def _others(anchors: Mapping[str, LoraAdapter], task: str) -> list[LoraAdapter]:
    return [adapter for name, adapter in anchors.items() if name != task]


def _key(content: Sequence[object], adapter: LoraAdapter, others: Sequence[LoraAdapter]) -> str:
    anchors = [other.content_hash() for other in others]
    key_parts = [_FORMAT, list(content), adapter.content_hash(), anchors]
    return hashlib.sha256(json.dumps(key_parts, sort_keys=True).encode()).hexdigest()[:32]


def _read(place: Path) -> Numbers | None:
    try:
        kept = json.loads(place.read_text(encoding="utf-8"))
        return {str(name): float(value) for name, value in kept.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None  # not there, or damaged: it is computed again


# What is kept of two models' representations, so that others can be compared with them later.


def write_fingerprints(states: ProbeStates, neighbours: int, path: Path) -> Path:
    """Write each layer's fingerprint as safetensors, and return the path.

    For the layer ``l`` of a side there are ``side.l.neighbours``, the nearest rows of each row
    in no order; ``side.l.distances``, each row's mean distance to the others relative to the mean
    of all; and ``side.l.summary``, which is norm, anisotropy and dimensions. Nothing of it depends
    on the coordinates of a space, so that any third model that has read the same probes can be
    compared by it. ``tokens`` and ``documents`` say what the rows are.

    Raises:
        OutputError: the file cannot be written.
    """
    tensors = dict(_tensors(states, neighbours))
    return write_whole(path, save(tensors))


def _tensors(states: ProbeStates, neighbours: int) -> Iterator[tuple[str, Tensor]]:
    yield "tokens", states.tokens.contiguous()
    yield "documents", states.documents.contiguous()
    for side, layers in (("source", states.source), ("target", states.target)):
        for place, layer in enumerate(layers):
            found = LayerFingerprint.of(layer)
            near = nearest(layer, neighbours).nonzero()[:, 1].view(-1, neighbours)
            summary = (found.norm, found.anisotropy, found.dimensions)
            yield f"{side}.{place}.neighbours", near.int()
            yield f"{side}.{place}.distances", found.distances.float()
            yield f"{side}.{place}.summary", torch.tensor(summary)


# From what a diagnosis found to its report.

_TITLES = {
    "mutual_knn": "mutual k-NN",
    "jaccard": "Jaccard overlap of neighbours",
    "linear_cka": "debiased linear CKA",
    "rbf_cka": "debiased RBF CKA",
    "svcca": "SVCCA, cross-validated",
    "rsa": "RSA",
}


class Found(NamedTuple):
    """What a diagnosis found, beside the maps of the measures."""

    compatibility: Compatibility
    coverage: Coverage
    pairing: LayerPairing
    transport: tuple[TransportCell, ...]
    layers: tuple[LayerGeometry | None, ...]
    geometry: Geometry
    modules: tuple[ModuleFit, ...]


def intersection_map(
    context: RunContext,
    diagnosis: Diagnosis,
    states: ProbeStates,
    found: Found,
    maps: dict[str, LayerMap],
    seconds: dict[str, float],
) -> IntersectionMap:
    """Return everything that ``intersection_map.json`` holds."""
    config, choices = plain_config(context.config), HydraConfig.get().runtime.choices
    sources: dict[str, ModelSource] = {side: build(context.config.pair[side]) for side in SIDES}
    record = found.compatibility.record(diagnosis.minimum, force=config["force"])
    words = compatibility_summary(
        sources["source"].name,
        sources["target"].name,
        record.coverage,
        record.minimum,
        record.identification,
    )
    store = Store(context.cache)
    folders = {f"{s} model": m.weights(context.cache).folder for s, m in sources.items()}
    return IntersectionMap(
        config=config,
        pair=PairRecord(
            name=config["pair"]["name"],
            source=sources["source"].name,
            target=sources["target"].name,
        ),
        probes=Probes(
            name=str(choices["probes"]),
            texts=len(set(states.documents.tolist())),
            aligned=states.aligned,
            rows=states.rows,
            tokens=len(set(states.tokens.tolist())),
        ),
        verdict=CompatibilityVerdict(
            **record.model_dump(exclude={"rows"}),
            compatible=record.coverage >= record.minimum,
            words=words,
        ),
        measures={name: _measure(name, measured, states) for name, measured in maps.items()},
        transport=found.transport,
        layers=tuple(_layers(found, maps)),
        geometry=found.geometry,
        pairing=found.pairing.feeds,
        pairing_name=str(choices["pairing"]),
        adapter=config["adapter"],
        modules=found.modules,
        warnings=tuple(fit_warnings(found.modules, config["adapter"] is not None)),
        timing={name: round(value, 2) for name, value in seconds.items()},
        provenance=Provenance(
            versions=library_versions(),
            hashes={name: store.folder_hash(folder) for name, folder in folders.items()},
            revisions={"checkout": git_revision()},
        ),
    )


def _measure(name: str, measured: LayerMap, states: ProbeStates) -> MeasureMap:
    return MeasureMap(
        title=_TITLES.get(name, name.replace("_", " ")),
        raw=tuple(tuple(row) for row in measured.raw.tolist()),
        calibrated=tuple(tuple(row) for row in measured.calibrated.tolist()),
        rows=states.rows,
    )


def _layers(found: Found, maps: dict[str, LayerMap]) -> list[LayerConfidence]:
    winners = [measured.raw.argmax(dim=1).tolist() for measured in maps.values()]
    layers = []
    for target, (source, geometry) in enumerate(
        zip(found.coverage.best, found.layers, strict=True)
    ):
        agree = [abs(best[target] - source) <= 1 for best in winners]
        layers.append(
            LayerConfidence(
                target=target,
                source=source,
                similarity=float(found.coverage.scores[target]),
                covered=bool(found.coverage.covered[target]),
                agreement=sum(agree) / len(agree) if agree else None,
                procrustes_error=None if geometry is None else geometry.error,
                anchor_coverage=None if geometry is None else geometry.covered,
            )
        )
    return layers


# ``diagnose.py``: whether and where two base models represent text alike, before any transfer.


class Asked(NamedTuple):
    """What a diagnosis is asked for, read and checked before any model is loaded."""

    diagnosis: Diagnosis
    probes: ProbeSet
    measures: dict[str, LayerMeasure]
    pairing: Pairing
    roles: tuple[Role, ...]
    adapter: LoraAdapter | None
    transport_rows: int
    transport_layers: int

    @classmethod
    def of(cls, context: RunContext) -> "Asked":
        """Read the options and the adapter.

        Raises:
            ConfigurationError: an option is of the wrong kind, or the diagnosis is left out.
            AdapterError: the adapter cannot be read.
        """
        config = context.config
        option(config, "force", bool)
        if "_target_" not in config.diagnosis:
            raise ConfigurationError(
                "diagnosis=none leaves nothing to do; diagnose.py takes diagnosis=cheap"
            )
        place = optional(config, "adapter", str)
        adapter = None if place is None else given_adapter(context, place)
        return cls(
            diagnosis=build(config.diagnosis),
            probes=build(config.probes),
            measures={str(name): build(node) for name, node in config.measures.items()},
            pairing=build(config.pairing),
            roles=_roles(config) if adapter is None else tuple(adapter.roles),
            adapter=adapter,
            transport_rows=option(config, "transport.rows", int),
            transport_layers=option(config, "transport.layers", int),
        )


def run(config: DictConfig) -> IntersectionMap:
    """Compare the models of a pair, write everything into the run's folder, and print it.

    Raises:
        LoraportError: something that was asked for or given cannot be used.
    """
    quiet_libraries()
    context, watch = RunContext(config), Stopwatch()
    folder = Path(HydraConfig.get().runtime.output_dir)
    with watch.step("read"):
        asked = Asked.of(context)
        has_corpus(context)  # One that is named and not there is refused before models are loaded.
    with diagnosis_progress() as progress:
        with watch.step("load"):
            source, target = (context.model(side) for side in SIDES)
            if asked.adapter is not None:
                check_base(source, asked.adapter, "source")
        with watch.step("probe"):
            states = asked.diagnosis.states(source, target, asked.probes, progress)
        found, maps = compared(context, asked, states, progress, watch)
        with watch.step("modules"):
            found = found._replace(
                modules=fitted_modules(context, asked, source, target, found.pairing, progress)
            )
    content = intersection_map(context, asked.diagnosis, states, found, maps, watch.seconds)
    with watch.step("write"):
        write_fingerprints(states, asked.diagnosis.neighbours, folder / "fingerprints.safetensors")
        write(content, folder)
    return content


def enforce(config: DictConfig, content: IntersectionMap) -> float:
    """Return the coverage.

    Raises:
        IncompatibleError: it is too low, and ``force`` is not set.
    """
    refuse_incompatible(RunContext(config), content.verdict.record(content.probes.rows))
    return content.verdict.coverage


def compared(
    context: RunContext, asked: Asked, states: ProbeStates, progress: Progress, watch: Stopwatch
) -> tuple[Found, dict[str, LayerMap]]:
    """Compare the residual streams of all layers by every measure, and pair the layers."""
    maps: dict[str, LayerMap] = {}
    diagnosis = asked.diagnosis
    with watch.step("compare"):
        for done, (name, measure) in enumerate(asked.measures.items()):
            progress(f"comparing layers: {name}", done, len(asked.measures))
            maps[name] = diagnosis.similarity(states, measure)
        # Coverage goes by this one, whichever are to be drawn.
        near = maps.get("mutual_knn") or diagnosis.similarity(states, diagnosis.measure)
        compatibility = diagnosis.judge(states, near)
        compatibility.write(kept_at(context, diagnosis, asked.probes))
        pairing = asked.pairing.pair(near.calibrated.float())
    with watch.step("transport"):
        cells = transport_cells(asked, states, pairing, progress)
    with watch.step("rotations"):
        layers, geometry = residual_geometry(states, pairing, diagnosis.seed)
    covered = diagnosis.coverage(states, near)
    return Found(compatibility, covered, pairing, cells, layers, geometry, ()), maps


def transport_cells(
    asked: Asked, states: ProbeStates, pairing: LayerPairing, progress: Progress
) -> tuple[TransportCell, ...]:
    """Match the rows of some paired layers by their distances alone."""
    if asked.transport_rows < 2:
        return ()
    fed = [target for target, feeds in enumerate(pairing.feeds) if feeds]
    count = max(min(asked.transport_layers, len(fed)), 1)
    chosen = sorted({fed[round(k * (len(fed) - 1) / max(count - 1, 1))] for k in range(count)})
    cells = []
    for done, target in enumerate(chosen):
        progress("matching rows by their distances", done, len(chosen))
        source = max(pairing.feeds[target], key=lambda feed: feed[1])[0]
        match = gromov_wasserstein(
            states.source[source],
            states.target[target],
            rows=asked.transport_rows,
            seed=asked.diagnosis.seed,
        )
        cells.append(
            TransportCell(
                target=target,
                source=source,
                rows=match.rows,
                diagonal_mass=match.diagonal_mass,
                matched=match.accuracy,
                ratio=match.ratio,
            )
        )
    return tuple(cells)


def has_corpus(context: RunContext) -> bool:
    """Return whether there is a corpus to fit maps between modules on.

    Raises:
        DataError: one is named that is not there.
    """
    config = context.config
    if HydraConfig.get().runtime.choices["corpus"] == "folder" and config.paths.corpus is None:
        return False
    build(config.corpus)
    return True


def fitted_modules(
    context: RunContext,
    asked: Asked,
    source: BaseModel,
    target: BaseModel,
    pairing: LayerPairing,
    progress: Progress,
) -> tuple[ModuleFit, ...]:
    """Fit linear maps between paired modules on the corpus, where there is one."""
    if not has_corpus(context):
        return ()
    corpus: TextCorpus = build(
        context.config.data, source_tokenizer=source.tokenizer, target_tokenizer=target.tokenizer
    )
    pairs = module_pairs(pairing, asked.roles)
    store = StatisticsStore(context.cache)
    return module_fits(source, target, corpus, pairs, asked.adapter, store, progress)


def write(content: IntersectionMap, folder: Path) -> None:
    """Write map, pictures and page, print the tables, and say where things lie."""
    path = content.write(folder / "intersection_map.json")
    pictures = write_heat_maps(content, folder)
    page = write_diagnosis_page(content, pictures, folder / "diagnosis.html")
    print_diagnosis(content)
    console = Console()
    for what, place in (
        ("page", page),
        ("map", path),
        ("pictures", folder),
        ("fingerprints", folder / "fingerprints.safetensors"),
    ):
        console.print(f"{what:>12}  {place}", highlight=False, soft_wrap=True)


def _roles(config: DictConfig) -> tuple[Role, ...]:
    given, known = listed(config, "roles", str), [role.value for role in Role]
    unknown = sorted(set(given) - set(known))
    if unknown or not given:
        raise ConfigurationError(
            f"roles is {given}; it takes one or more of {', '.join(known)}, such as [q,v]"
        )
    return tuple(role for role in Role if role.value in given)
