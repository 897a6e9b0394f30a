"""``diagnose.py``: whether and where two base models represent text alike, before any transfer.

:func:`run` tells the story: both models read the probes, their layers are compared by every measure
and paired, rotations between paired layers and linear maps between paired modules are fitted and
measured on held-out text, and all of it is written. :func:`diagnostics` says what is known of
single source adapters before any of them is carried over.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor

from ..adapters import LoraAdapter, LowRank, Role, Site
from ..adapters.lora import concentration, effective_rank, mean_cosine, span_share
from ..alignment.coverage import Coverage, LayerMap
from ..alignment.gromov_wasserstein import gromov_wasserstein
from ..alignment.layer_matching import LayerPairing, Pairing
from ..alignment.linear_maps import HeldOutError, LinearMap, Ridge
from ..alignment.moments import PairedMoments
from ..alignment.procrustes import Rotation, rotation
from ..alignment.similarity import Jaccard, LayerFingerprint, LayerMeasure, nearest, prepared
from ..data.probe_sets import ProbeSet
from ..data.text_corpus import TextCorpus
from ..data.zoo import SIDES, read_trained
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
)
from ..evaluation.verdict import compatibility_summary, fit_warnings
from ..files import write_whole
from ..models import BaseModel, StreamedWeights
from ..models.hooks import Tap
from ..models.statistics import RunningTotals, StatisticsStore, TapPair
from ..progress import shown_steps
from ..reporting.console import print_diagnosis, print_line
from ..reporting.figures import write_heat_maps
from ..reporting.pages import write_diagnosis_page
from ..settings import DiagnoseSettings
from ..store import Key, Store
from .compatibility import (
    Compatibility,
    Diagnosis,
    ProbeStates,
    Progress,
    compatibility_key,
    compatibility_of,
    refuse_incompatible,
)
from .context import RunContext, Stopwatch, quiet_libraries
from .porting import given_adapter
from .train import check_base

_TITLES = {
    "mutual_knn": "mutual k-NN",
    "jaccard": "Jaccard overlap of neighbours",
    "linear_cka": "debiased linear CKA",
    "rbf_cka": "debiased RBF CKA",
    "svcca": "SVCCA, cross-validated",
    "rsa": "RSA",
}
# Of the corpus, for single adapters: more would tell directions apart a little better, and take
# minutes longer.
_TOKENS, _HELD_OUT_TOKENS = 8000, 2000


def run(settings: DiagnoseSettings) -> IntersectionMap:
    """Compare the models of a pair, write everything into the run's folder, and print it.

    Raises:
        LoraportError: an option, a model, the adapter, the probes or the corpus cannot be used.
    """
    quiet_libraries()
    context, watch = RunContext(settings), Stopwatch()
    folder = Path(HydraConfig.get().runtime.output_dir)
    # Whatever cannot be read is refused before any model is loaded.
    with watch.step("read"):
        diagnosis: Diagnosis = settings.diagnosis.build()
        probes: ProbeSet = settings.probes.build()
        measures: dict[str, LayerMeasure] = {n: m.build() for n, m in settings.measures.items()}
        pairing: Pairing = settings.pairing.build()
        adapter = None if settings.adapter is None else given_adapter(context, settings.adapter)
        texts = settings.corpus.build() if settings.has_corpus else None
    with shown_steps() as progress:
        with watch.step("load"):
            source, target = (context.model(side) for side in SIDES)
            if adapter is not None:
                check_base(source, adapter, "source")
        with watch.step("probe"):
            states = diagnosis.states(source, target, probes, progress)
        with watch.step("compare"):
            maps: dict[str, LayerMap] = {}
            for done, (name, measure) in enumerate(measures.items()):
                progress(f"comparing layers: {name}", done, len(measures))
                maps[name] = diagnosis.similarity(states, measure)
            # Coverage goes by this one, whichever are to be drawn.
            near = maps.get("mutual_knn") or diagnosis.similarity(states, diagnosis.measure)
            compatibility = diagnosis.judge(states, near)
            key = compatibility_key(context, diagnosis, probes)
            Store(context.cache).made(key, lambda: asdict(compatibility))
            pairs = pairing.pair(near.calibrated.float())
        with watch.step("transport"):
            cells = transport_cells(settings, states, pairs, diagnosis.seed, progress)
        with watch.step("rotations"):
            layers, geometry = residual_geometry(states, pairs, diagnosis.seed)
        covered = diagnosis.coverage(states, near)
        modules: tuple[ModuleFit, ...] = ()
        with watch.step("modules"):
            if texts is not None:
                corpus: TextCorpus = settings.data.build(
                    texts=texts,
                    source_tokenizer=source.tokenizer,
                    target_tokenizer=target.tokenizer,
                )
                roles = settings.roles if adapter is None else adapter.roles
                paired = module_pairs(pairs, [role for role in Role if role in roles])
                fitted = ModuleMaps.of(context, source, target, corpus, paired, progress)
                modules = fitted.fits(adapter, progress)
    record = compatibility.record(diagnosis.minimum, force=settings.force)
    choices = HydraConfig.get().runtime.choices
    store = Store(context.cache)
    weights = {f"{side} model": store.folder_hash(context.weights(side).folder) for side in SIDES}
    words = compatibility_summary(
        source.name,
        target.name,
        record.coverage,
        record.minimum,
        record.identification,
    )
    confidences = layer_confidences(covered, layers, maps)
    content = IntersectionMap(
        config=settings.plain(),
        pair=PairRecord(name=settings.pair.name, source=source.name, target=target.name),
        probes=Probes(
            name=str(choices["probes"]),
            texts=len(set(states.documents.tolist())),
            aligned=states.aligned,
            rows=states.rows,
            tokens=len(set(states.tokens.tolist())),
        ),
        verdict=CompatibilityVerdict(
            **record.model_dump(exclude={"rows", "needed"}),
            compatible=record.coverage >= record.minimum,
            words=words,
            weighted_similarity=weighted_similarity(confidences),
        ),
        measures={name: _measure_map(name, compared, states) for name, compared in maps.items()},
        transport=cells,
        layers=confidences,
        geometry=geometry,
        pairing=pairs.feeds,
        pairing_name=str(choices["pairing"]),
        adapter=settings.adapter,
        modules=modules,
        warnings=tuple(fit_warnings(modules, adapter is not None)),
        timing=watch.rounded(),
        provenance=Provenance.of(weights),
    )
    with watch.step("write"):
        write_fingerprints(states, diagnosis.neighbours, folder / "fingerprints.safetensors")
        write(content, folder)
    return content


def enforce(settings: DiagnoseSettings, content: IntersectionMap) -> float:
    """Return the coverage.

    Raises:
        IncompatibleError: it is too low, and ``force`` is not set.
    """
    refuse_incompatible(RunContext(settings), content.verdict.record(content.probes.rows))
    return content.verdict.coverage


def write(content: IntersectionMap, folder: Path) -> None:
    """Write map, pictures and page, print the tables, and say where things lie."""
    path = content.write(folder / "intersection_map.json")
    pictures = write_heat_maps(content, folder)
    page = write_diagnosis_page(content, pictures, folder / "diagnosis.html")
    print_diagnosis(content)
    for what, where in (
        ("page", page),
        ("map", path),
        ("pictures", folder),
        ("fingerprints", folder / "fingerprints.safetensors"),
    ):
        print_line(f"{what:>12}  {where}")


def _measure_map(name: str, compared: LayerMap, states: ProbeStates) -> MeasureMap:
    return MeasureMap(
        title=_TITLES.get(name, name.replace("_", " ")),
        raw=tuple(tuple(row) for row in compared.raw.tolist()),
        calibrated=tuple(tuple(row) for row in compared.calibrated.tolist()),
        rows=states.rows,
    )


def _heaviest(feeds: Sequence[tuple[int, float]]) -> int:
    """Return the source layer that feeds a target layer most."""
    return max(feeds, key=lambda feed: feed[1])[0]


def transport_cells(
    settings: DiagnoseSettings,
    states: ProbeStates,
    pairing: LayerPairing,
    seed: int,
    progress: Progress,
) -> tuple[TransportCell, ...]:
    """Match the rows of some paired layers, spread evenly, by their distances alone."""
    if settings.transport.rows < 2:
        return ()
    fed = [target for target, feeds in enumerate(pairing.feeds) if feeds]
    count = max(min(settings.transport.layers, len(fed)), 1)
    chosen = sorted({fed[round(k * (len(fed) - 1) / max(count - 1, 1))] for k in range(count)})
    cells = []
    for done, target in enumerate(chosen):
        progress("matching rows by their distances", done, len(chosen))
        source = _heaviest(pairing.feeds[target])
        match = gromov_wasserstein(
            states.source[source], states.target[target], rows=settings.transport.rows, seed=seed
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

    @classmethod
    def of(
        cls,
        x: Float[Tensor, "rows source"],
        y: Float[Tensor, "rows target"],
        halves: tuple[Int[Tensor, " one"], Int[Tensor, " other"]],
    ) -> "LayerGeometry":
        """Fit on one half of the rows, and measure on the other."""
        train, held_out = (PairedMoments.of(x[half], y[half]).centred() for half in halves)
        found = rotation(train)
        error = HeldOutError.of(found.scale * found.matrix.mT, train, held_out)
        inside = found.matrix.mT @ found.matrix
        total = float(held_out.yy.trace())
        covered = float((inside * held_out.yy).sum()) / total if total > 0 else 0.0
        return cls(found, 1 - error.r2, covered)


def residual_geometry(
    states: ProbeStates, pairing: LayerPairing, seed: int
) -> tuple[tuple[LayerGeometry | None, ...], Geometry]:
    """Fit a rotation a target layer on half of the rows, and measure it on the other half.

    Rows have outlying entries clamped and norm 1, as for mutual k-NN: a few rogue dimensions
    would else be all that is measured. Roughness is ``|R - R'|^2 / (|R|^2 + |R'|^2)`` of
    neighbouring layers: 0 where they are the same, 1 where they have nothing in common.

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
        LayerGeometry.of(source[_heaviest(feeds)], target[index], halves) if feeds else None
        for index, feeds in enumerate(pairing.feeds)
    )
    fitted = [layer for layer in layers if layer is not None]
    roughness = []
    for one, other in pairwise(layer.rotation.matrix for layer in fitted):
        both = float(one.square().sum() + other.square().sum())
        roughness.append(float((one - other).square().sum()) / both if both > 0 else 0.0)
    errors = [layer.error for layer in fitted]
    return layers, Geometry(
        mean_error=_mean(errors),
        max_error=max(errors, default=None),
        roughness=_mean(roughness),
        anchor_coverage=_mean([layer.covered for layer in fitted]),
    )


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def layer_confidences(
    covered: Coverage, layers: Sequence[LayerGeometry | None], maps: Mapping[str, LayerMap]
) -> tuple[LayerConfidence, ...]:
    """Return what is known of each target layer's counterpart; see docs/diagnosis.md."""
    winners = [compared.raw.argmax(dim=1).tolist() for compared in maps.values()]
    jaccard, confidences = maps.get(Jaccard.name), []
    for target, (source, geometry) in enumerate(zip(covered.best, layers, strict=True)):
        agree = [abs(best[target] - source) <= 1 for best in winners]
        confidences.append(
            LayerConfidence(
                target=target,
                source=source,
                similarity=float(covered.scores[target]),
                covered=bool(covered.covered[target]),
                agreement=sum(agree) / len(agree) if agree else None,
                jaccard=float(jaccard.raw[target, source]) if jaccard else None,
                procrustes_error=None if geometry is None else geometry.error,
                anchor_coverage=None if geometry is None else geometry.covered,
            )
        )
    return tuple(confidences)


def weighted_similarity(layers: Sequence[LayerConfidence]) -> float | None:
    """Return the mean similarity of the layers, each counted by its agreement; None without any."""
    pairs = [(layer.agreement or 0.0, layer.similarity or 0.0) for layer in layers]
    whole = sum(weight for weight, _ in pairs)
    return sum(weight * value for weight, value in pairs) / whole if whole else None


# Linear maps between paired modules, fitted once for any number of adapters.


class ModulePair(NamedTuple):
    """A site of the target, and the site of the source that it is fitted to."""

    target: Site
    source: Site

    @property
    def inputs(self) -> TapPair:
        """The inputs of both, source first."""
        return Tap.input(self.source), Tap.input(self.target)

    @property
    def outputs(self) -> TapPair:
        """The outputs of both, source first."""
        return Tap.output(self.source), Tap.output(self.target)


def module_pairs(pairing: LayerPairing, roles: Sequence[Role]) -> list[ModulePair]:
    """Pair the sites of each target layer with those of the source layer that feeds it most."""
    return [
        ModulePair(Site(target, role), Site(_heaviest(feeds), role))
        for target, feeds in enumerate(pairing.feeds)
        if feeds
        for role in roles
    ]


class ModuleMap(NamedTuple):
    """Ridge maps between two paired modules: what carries an update ``B A`` over as ``N B A M``.

    Attributes:
        pair: The modules.
        inputs: M, from the target's inputs to the source's; not centred, since a LoRA has no bias
            that could hold an intercept.
        outputs: N, from the source's outputs to the target's; centred, since an update is a
            difference of outputs.
    """

    pair: ModulePair
    inputs: LinearMap
    outputs: LinearMap

    def restricted_r2(self, update: LowRank) -> tuple[float, float]:
        """Return held-out R^2 in the directions that an update reads and writes."""
        written = (self.outputs.matrix @ update.B.to(self.outputs.matrix)).mT
        return self.inputs.error.restricted_r2(update.A), self.outputs.error.restricted_r2(written)


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
    """Statistics of paired modules' inputs and outputs on a corpus, and the maps fitted to them.

    Attributes:
        pairs: The modules.
        totals: Statistics of the corpus at all of them.
    """

    pairs: Sequence[ModulePair]
    totals: RunningTotals

    @classmethod
    def of(
        cls,
        context: RunContext,
        source: BaseModel,
        target: BaseModel,
        corpus: TextCorpus,
        pairs: Sequence[ModulePair],
        progress: Progress,
    ) -> "ModuleMaps":
        """Run both models over a corpus, unless the context's cache has what comes of it."""
        train, held_out = corpus.train_dataloader(), corpus.val_dataloader()
        batches = len(train) + len(held_out)
        totals = StatisticsStore(context.cache).gather(
            [source.key_parts, target.key_parts, corpus.content_hash()],
            [taps for pair in pairs for taps in (pair.inputs, pair.outputs)],
            source.network,
            target.network,
            train,
            held_out,
            progress=lambda done: progress("reading the corpus", done, batches),
        )
        return cls(pairs, totals)

    def maps(self, progress: Progress) -> Iterator[ModuleMap]:
        """Give the maps of each pair, chosen and measured on the held-out text."""
        train, held_out = self.totals.train.moments, self.totals.held_out.moments
        inputs: dict[TapPair, LinearMap] = {}  # q, k and v have the same inputs
        for done, pair in enumerate(self.pairs):
            progress("fitting maps", done, len(self.pairs))
            taps = pair.inputs
            if taps not in inputs:
                inputs[taps] = Ridge().backward(train(*taps), held_out(*taps))
            outputs = train(*pair.outputs).centred(), held_out(*pair.outputs).centred()
            yield ModuleMap(pair, inputs[taps], Ridge().forward(*outputs))

    def fits(self, adapter: LoraAdapter | None, progress: Progress) -> tuple[ModuleFit, ...]:
        """Return how well the maps hold, and in the directions of an adapter where one is given."""
        fits = []
        for fitted in self.maps(progress):
            update = None if adapter is None else adapter.get(fitted.pair.source)
            used = (None, None) if update is None else fitted.restricted_r2(update)
            fits.append(
                ModuleFit(
                    target=fitted.pair.target.label,
                    source=fitted.pair.source.label,
                    inputs=fitted.inputs.error.r2,
                    outputs=fitted.outputs.error.r2,
                    adapter_inputs=used[0],
                    adapter_outputs=used[1],
                )
            )
        return tuple(fits)

    def restricted(
        self, adapters: Mapping[str, LoraAdapter], progress: Progress
    ) -> dict[str, DirectionFit]:
        """Return how well the maps hold in each adapter's directions, mean over its sites.

        A pair of modules weighs by the squared norm of the adapter's update at the source's site.
        An adapter without an update at any of the sites has no entry.
        """
        sums = {name: [0.0, 0.0, 0.0] for name in adapters}
        for fitted in self.maps(progress):
            for name, adapter in adapters.items():
                update = adapter.get(fitted.pair.source)
                if update is not None:
                    reads, writes = fitted.restricted_r2(update)
                    energy = update.inner(update)
                    parts = energy, energy * reads, energy * writes
                    sums[name] = [a + b for a, b in zip(sums[name], parts, strict=True)]
        return {
            name: DirectionFit(reads / weight, writes / weight)
            for name, (weight, reads, writes) in sums.items()
            if weight > 0
        }


# What is known of source adapters before any of them is carried over.


def diagnostics(
    context: RunContext, adapters: Mapping[str, LoraAdapter]
) -> dict[str, dict[str, float]]:
    """Return what is known of each source adapter before a transfer, without its target.

    ``relative_norm``: Frobenius norm of the updates beside that of the weights they change.
    ``effective_rank``, ``concentration``: see :mod:`loraport.adapters.lora`. Where the zoo
    has source adapters of other tasks that are not held out: ``mean_cosine`` with them, and
    ``anchor_span``, the share of the squared norm in their span. Unless ``diagnosis=none``:
    ``coverage`` and ``identification`` of the pair, the same for all its adapters. Where there is
    a corpus as well: ``r2_reads`` and ``r2_writes``, the held-out R^2 of linear maps between
    paired modules in the directions that the adapter reads and writes, mean over the sites by
    squared norm. What cannot be known is left out.

    Args:
        context: Of the pair; read are ``pair``, ``paths``, ``tasks.held_out``, ``diagnosis``,
            ``probes``, ``pairing``, ``corpus`` and ``seed``.
        adapters: Of the source model by their tasks.

    Raises:
        LoraportError: a model, the corpus or the zoo cannot be read, or an adapter is of another
            model.
    """
    if not adapters:
        return {}
    settings, store = context.settings, Store(context.cache)
    source, target = (context.weights(side) for side in SIDES)
    diagnosis: Diagnosis | None = None
    corpus: TextCorpus | None = None
    if settings.diagnosis is not None:
        diagnosis = settings.diagnosis.build()
        if settings.has_corpus:
            corpus = TextCorpus(
                settings.corpus.build(),
                source.tokenizer,
                target.tokenizer,
                tokens=_TOKENS,
                held_out_tokens=_HELD_OUT_TOKENS,
                seed=settings.seed,
            )
    anchors: dict[str, LoraAdapter] = {}
    if context.has_zoo():
        zoo, held_out = context.zoo(), set(settings.tasks.held_out)
        names = [name for name in zoo.names() if name not in held_out]
        anchors = {name: read_trained(zoo.source / name) for name in names}
    others = {
        task: [anchor for name, anchor in anchors.items() if name != task] for task in adapters
    }
    pair: object = store.folder_hash(source.folder)
    if diagnosis is not None:
        probes: ProbeSet = settings.probes.build()
        pair = [
            compatibility_key(context, diagnosis, probes).name,
            settings.plain()["pairing"],
            None if corpus is None else corpus.content_hash(),
        ]
    keys = {
        name: Key.of("pre_transfer", pair=pair, adapter=adapter, anchors=others[name])
        for name, adapter in adapters.items()
    }
    known = {name: store.get(key) for name, key in keys.items()}
    missing = {name: adapter for name, adapter in adapters.items() if known[name] is None}
    of_models = _of_models(context, diagnosis, corpus, missing) if missing else {}
    for name, adapter in missing.items():
        known[name] = _of_adapter(adapter, source, others[name]) | of_models[name]
        store.put(keys[name], known[name])
    return {name: dict(numbers) for name, numbers in known.items() if numbers is not None}


def _of_adapter(
    adapter: LoraAdapter, weights: StreamedWeights, anchors: Sequence[LoraAdapter]
) -> dict[str, float]:
    """Return what is known of an adapter beside the weights that it changes, and the anchors."""
    squares = 0.0
    for site in adapter:
        squares += float(torch.linalg.vector_norm(weights.weight(site), dtype=torch.float64)) ** 2
    numbers = {
        "relative_norm": adapter.norm() / math.sqrt(squares),
        "effective_rank": effective_rank(adapter),
        "concentration": concentration(adapter),
    }
    if anchors:
        numbers["mean_cosine"] = mean_cosine(adapter, anchors)
        numbers["anchor_span"] = span_share(adapter, anchors)
    return numbers


def _of_models(
    context: RunContext,
    diagnosis: Diagnosis | None,
    corpus: TextCorpus | None,
    adapters: Mapping[str, LoraAdapter],
) -> dict[str, dict[str, float]]:
    """Return what the two models say: of the pair, and of each adapter's directions."""
    source, target = (context.model(side) for side in SIDES)
    for adapter in adapters.values():
        check_base(source, adapter, "source")
    if diagnosis is None:
        return {name: {} for name in adapters}
    found: Compatibility = compatibility_of(context, diagnosis)
    of_pair = {"coverage": found.coverage, "identification": found.identification}
    numbers = {name: dict(of_pair) for name in adapters}
    if corpus is not None:
        pairing: Pairing = context.settings.pairing.build()
        used = {role for adapter in adapters.values() for role in adapter.roles}
        paired = pairing.pair(torch.tensor(found.similarity))
        pairs = module_pairs(paired, [role for role in Role if role in used])
        with shown_steps() as progress:
            maps = ModuleMaps.of(context, source, target, corpus, pairs, progress)
            for name, fit in maps.restricted(adapters, progress).items():
                numbers[name] |= {"r2_reads": fit.reads, "r2_writes": fit.writes}
    return numbers


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
    tensors = {"tokens": states.tokens.contiguous(), "documents": states.documents.contiguous()}
    for side, layers in (("source", states.source), ("target", states.target)):
        for index, layer in enumerate(layers):
            print_of = LayerFingerprint.of(layer)
            near = nearest(layer, neighbours).nonzero()[:, 1].view(-1, neighbours)
            summary = (print_of.norm, print_of.anisotropy, print_of.dimensions)
            tensors[f"{side}.{index}.neighbours"] = near.int()
            tensors[f"{side}.{index}.distances"] = print_of.distances.float()
            tensors[f"{side}.{index}.summary"] = torch.tensor(summary)
    return write_whole(path, save(tensors))
