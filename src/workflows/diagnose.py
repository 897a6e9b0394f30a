"""``diagnose.py``: whether and where two base models represent text alike, before any transfer."""

from pathlib import Path
from typing import NamedTuple

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from ..adapters import LoraAdapter, Role
from ..alignment.layer_pairing import LayerPairing
from ..alignment.pairings import Pairing
from ..alignment.similarity import LayerMap, LayerMeasure, gromov_wasserstein
from ..data.probe_sets import ProbeSet
from ..data.text_corpus import TextCorpus
from ..data.zoo import SIDES
from ..exceptions import ConfigurationError
from ..models import BaseModel
from ..models.statistics_store import StatisticsStore
from ..reporting.diagnosis_page import write_diagnosis_page
from ..reporting.diagnosis_table import print_diagnosis
from ..reporting.heat_maps import write_heat_maps
from ..reporting.intersection_map import (
    IntersectionMap,
    ModuleFit,
    TransportCell,
    write_intersection_map,
)
from .building import Workbench, build
from .compatibility_check import kept_at, refuse_incompatible
from .diagnosis_progress import diagnosis_progress
from .diagnosis_record import Found, intersection_map
from .fingerprints import write_fingerprints
from .given_adapters import given_adapter
from .module_fits import module_fits, module_pairs
from .options import listed, option, optional
from .pair_diagnosis import Diagnosis
from .prediction import check_base
from .probe_states import ProbeStates, Progress
from .quiet import quiet_libraries
from .residual_geometry import residual_geometry
from .stopwatch import Stopwatch


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
    def of(cls, bench: Workbench) -> "Asked":
        """Read the options and the adapter.

        Raises:
            ConfigurationError: an option is of the wrong kind, or the diagnosis is left out.
            AdapterError: the adapter cannot be read.
        """
        config = bench.config
        option(config, "force", bool)
        if "_target_" not in config.diagnosis:
            raise ConfigurationError(
                "diagnosis=none leaves nothing to do; diagnose.py takes diagnosis=cheap"
            )
        place = optional(config, "adapter", str)
        adapter = None if place is None else given_adapter(bench, place)
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
    bench, watch = Workbench(config), Stopwatch()
    folder = Path(HydraConfig.get().runtime.output_dir)
    with watch.step("read"):
        asked = Asked.of(bench)
        has_corpus(bench)  # One that is named and not there is refused before models are loaded.
    with diagnosis_progress() as progress:
        with watch.step("load"):
            source, target = (bench.model(side) for side in SIDES)
            if asked.adapter is not None:
                check_base(source, asked.adapter, "source")
        with watch.step("probe"):
            states = asked.diagnosis.states(source, target, asked.probes, progress)
        found, maps = compared(bench, asked, states, progress, watch)
        with watch.step("modules"):
            found = found._replace(
                modules=fitted_modules(bench, asked, source, target, found.pairing, progress)
            )
    content = intersection_map(bench, asked.diagnosis, states, found, maps, watch.seconds)
    with watch.step("write"):
        write_fingerprints(states, asked.diagnosis.neighbours, folder / "fingerprints.safetensors")
        write(content, folder)
    return content


def enforce(config: DictConfig, content: IntersectionMap) -> float:
    """Return the coverage.

    Raises:
        IncompatibleError: it is too low, and ``force`` is not set.
    """
    refuse_incompatible(Workbench(config), content.verdict.record(content.probes.rows))
    return content.verdict.coverage


def compared(
    bench: Workbench, asked: Asked, states: ProbeStates, progress: Progress, watch: Stopwatch
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
        compatibility.write(kept_at(bench, diagnosis, asked.probes))
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


def has_corpus(bench: Workbench) -> bool:
    """Return whether there is a corpus to fit maps between modules on.

    Raises:
        DataError: one is named that is not there.
    """
    config = bench.config
    if HydraConfig.get().runtime.choices["corpus"] == "folder" and config.paths.corpus is None:
        return False
    build(config.corpus)
    return True


def fitted_modules(
    bench: Workbench,
    asked: Asked,
    source: BaseModel,
    target: BaseModel,
    pairing: LayerPairing,
    progress: Progress,
) -> tuple[ModuleFit, ...]:
    """Fit linear maps between paired modules on the corpus, where there is one."""
    if not has_corpus(bench):
        return ()
    corpus: TextCorpus = build(
        bench.config.data, source_tokenizer=source.tokenizer, target_tokenizer=target.tokenizer
    )
    pairs = module_pairs(pairing, asked.roles)
    store = StatisticsStore(bench.cache / "statistics")
    return module_fits(source, target, corpus, pairs, asked.adapter, store, progress)


def write(content: IntersectionMap, folder: Path) -> None:
    """Write map, pictures and page, print the tables, and say where things lie."""
    path = write_intersection_map(content, folder / "intersection_map.json")
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
