"""From what a diagnosis found to its report."""

from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig

from ..alignment.layer_pairing import LayerPairing
from ..alignment.similarity import Coverage, LayerMap
from ..data.zoo import SIDES
from ..models import ModelSource
from ..models.sources import folder_hash
from ..reporting.diagnosis_words import fit_warnings, verdict_words
from ..reporting.intersection_map import (
    Geometry,
    IntersectionMap,
    LayerConfidence,
    MeasureMap,
    ModuleFit,
    Probes,
    TransportCell,
    Verdict,
)
from ..reporting.provenance import git_revision, library_versions
from ..reporting.results import PairRecord, Provenance
from .building import Workbench, build, plain_config
from .compatibility import Compatibility
from .pair_diagnosis import Diagnosis
from .probe_states import ProbeStates
from .residual_geometry import LayerGeometry

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
    bench: Workbench,
    diagnosis: Diagnosis,
    states: ProbeStates,
    found: Found,
    maps: dict[str, LayerMap],
    seconds: dict[str, float],
) -> IntersectionMap:
    """Return everything that ``intersection_map.json`` holds."""
    config, choices = plain_config(bench.config), HydraConfig.get().runtime.choices
    sources: dict[str, ModelSource] = {side: build(bench.config.pair[side]) for side in SIDES}
    record = found.compatibility.record(diagnosis.minimum, force=config["force"])
    words = verdict_words(
        sources["source"].name,
        sources["target"].name,
        record.coverage,
        record.minimum,
        record.identification,
    )
    folders = {f"{s} model": m.weights(bench.cache).folder for s, m in sources.items()}
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
        verdict=Verdict(
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
            hashes={name: folder_hash(folder) for name, folder in folders.items()},
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
