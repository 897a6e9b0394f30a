"""``transfer.py``: one adapter in, one adapter of the target out, verified."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..adapters import read_adapter
from ..adapters.peft_folder import write_peft_files
from ..data.zoo import SIDES
from ..exceptions import ConfigurationError
from ..files import staged_folder, writing
from ..mappers import BasePair, LearnedMapper, Mapper, WeightMapper, load_mapper
from ..mappers.weight_mapper import Progress as SiteProgress
from ..models import ModelSource, StreamedWeights, torch_dtype
from ..models.factor_cache import FactorCache
from ..models.peft_check import verify
from ..reporting.ported_card import ported_card
from ..reporting.transfer_table import print_transfer
from .anchor_choice import AnchorChoice
from .building import Workbench, build
from .given_adapters import given_adapter
from .porting import Porting
from .quiet import quiet_libraries
from .stopwatch import Stopwatch
from .transfer_record import Transferred, transfer_report


def run(config: DictConfig) -> float | None:
    """Port one adapter, or several that are merged into one.

    Returns:
        The mean gain in log-likelihood on ``choose.anchors``, for sweeps; None without anchors.

    Raises:
        LoraportError: something that was asked for or given cannot be used, or the adapter that
            was made does not do on the target what it should; then nothing is left of it.
    """
    quiet_libraries()
    bench, watch = Workbench(config), Stopwatch()
    output = Path(config.output or Path(HydraConfig.get().runtime.output_dir) / "adapter")
    mapper, choice = chosen_mapper(config), AnchorChoice.of(bench)
    with watch.step("read"):
        given = {place: given_adapter(bench, place) for place in listed(config.adapter)}
        others = {place: read_adapter(place) for place in listed(config.merge["with"])}
    with staged_folder(output, overwrite=bool(config.overwrite)) as folder:
        with watch.step("open"):
            pair = base_pair(bench)
        porting = planned(config, mapper, pair)
        with watch.step("port"), site_progress() as progress:
            if isinstance(mapper, WeightMapper):
                mapper.use(pair, progress)
            ported = porting.port(list(given.values()), list(others.values()))
        with watch.step("verify"):
            with writing(output):
                write_peft_files(ported.adapter, folder)
            found = verify(folder, pair.target, ported.adapter)
        with watch.step("choose"):
            scores = choice.scores(bench, porting)
        done = Transferred(given, others, ported, found, scores)
        report = transfer_report(bench, porting, pair, done, watch.seconds)
        with writing(output):
            (folder / "report.json").write_text(report.json_text(), encoding="utf-8")
            (folder / "README.md").write_text(ported_card(report), encoding="utf-8")
    print_transfer(report)
    Console().print(f"adapter  {output}", highlight=False, soft_wrap=True)
    return choice.value(scores)


def listed(given: Any) -> list[str]:
    """Return one or several places as a list."""
    return [str(given)] if isinstance(given, str) else [str(place) for place in given]


def chosen_mapper(config: DictConfig) -> Mapper:
    """Return the mapper of ``mapper=``, or of ``ckpt=`` where that is given.

    Raises:
        ConfigurationError: a learned mapper lacks its checkpoint, or another one has one.
    """
    hydra = HydraConfig.get()
    name = hydra.runtime.choices["mapper"]
    asked = any(word.startswith("mapper=") for word in hydra.overrides.task)
    built: Mapper = build(config.mapper)
    if config.ckpt is None:
        if isinstance(built, LearnedMapper):
            raise ConfigurationError(
                f"mapper={name} is learned, and there is no checkpoint of it: fit it by `python "
                f"train.py mapper={name} pair={config.pair.name}` and give its mapper.ckpt as ckpt="
            )
        return built
    loaded = load_mapper(config.ckpt)
    if asked and type(loaded) is not type(built):
        raise ConfigurationError(
            f"ckpt={config.ckpt} holds a {type(loaded).__name__}, but mapper={name} is a "
            f"{type(built).__name__}; leave mapper= out, or give the checkpoint of that mapper"
        )
    return loaded


def base_pair(bench: Workbench) -> BasePair:
    """Open both models' weights on disk.

    Raises:
        ModelError: one of them cannot be found, or its architecture is not known.
    """
    models: dict[str, StreamedWeights] = {}
    for side in SIDES:
        source: ModelSource = build(bench.config.pair[side])
        models[side] = source.weights(bench.cache)
    return BasePair(
        **models, factors=FactorCache(bench.cache / "factors"), device=device(bench.config.device)
    )


def device(name: str) -> torch.device:
    """Return the device that ``device=`` names; ``auto`` takes a GPU where there is one.

    Raises:
        ConfigurationError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(
            f"device={name} cannot be used here ({str(error).splitlines()[0]}); it takes auto, cpu "
            "or the name of a GPU that there is, such as cuda:0"
        ) from None
    return chosen


def planned(config: DictConfig, mapper: Mapper, pair: BasePair) -> Porting:
    """Return the steps that the configuration asks for."""
    weights = config.merge.weights
    return Porting(
        mapper,
        pair.target.sites,
        sparsify=build(config.sparsify) if "_target_" in config.sparsify else None,
        merge=build(config.merge.method),
        weights=None if weights is None else [float(weight) for weight in weights],
        output_rank=config.output_rank,
        scale=float(config.scale),
        dtype=torch_dtype(config.dtype),
    )


@contextmanager
def site_progress() -> Iterator[SiteProgress]:
    """Show how many sites are mapped, and how long the rest takes."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("sites, remaining"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("porting", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)
