"""``transfer.py``: one adapter in, one adapter of the target out, verified."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

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
from ..models import ModelSource, StreamedWeights
from ..models.factor_cache import FactorCache
from ..models.peft_check import verify
from ..reporting.ported_card import ported_card
from ..reporting.transfer_report import TransferReport
from ..reporting.transfer_table import print_transfer
from .anchor_choice import AnchorChoice
from .building import Workbench, build
from .given_adapters import given_adapter
from .options import listed, option, optional
from .plan import Plan
from .quiet import quiet_libraries
from .stopwatch import Stopwatch
from .transfer_record import Given, Transferred, transfer_report


class Inputs(NamedTuple):
    """What a transfer is asked for, read and checked before anything is made."""

    given: Given
    others: Given
    mapper: Mapper
    plan: Plan
    choice: AnchorChoice

    @classmethod
    def of(cls, bench: Workbench) -> "Inputs":
        """Read the options and the adapters."""
        config = bench.config
        mapper, choice, plan = chosen_mapper(config), AnchorChoice.of(bench), Plan.of(config)
        given = {place: given_adapter(bench, place) for place in places(config, "adapter")}
        others = {p: read_adapter(Path(p).expanduser()) for p in places(config, "merge.with")}
        return cls(given, others, mapper, plan, choice)


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
    output = Path(optional(config, "output", str) or _run_folder() / "adapter").expanduser()
    with watch.step("read"):
        inputs = Inputs.of(bench)
    with staged_folder(output, overwrite=option(config, "overwrite", bool)) as folder:
        report = ported_into(folder, output, inputs, bench, watch)
        with writing(output):
            (folder / "report.json").write_text(report.json_text(), encoding="utf-8")
            (folder / "README.md").write_text(ported_card(report), encoding="utf-8")
    print_transfer(report)
    Console().print(f"adapter  {output}", highlight=False, soft_wrap=True)
    return inputs.choice.value(report.anchor_scores)


def ported_into(
    folder: Path, output: Path, inputs: Inputs, bench: Workbench, watch: Stopwatch
) -> TransferReport:
    """Port into a folder that will take the place of ``output``; return what is to be reported."""
    with watch.step("open"):
        pair = base_pair(bench)
    porting = inputs.plan.porting(inputs.mapper, pair)
    with watch.step("port"), site_progress() as progress:
        if isinstance(inputs.mapper, WeightMapper):
            inputs.mapper.use(pair, progress)
        ported = porting.port(list(inputs.given.values()), list(inputs.others.values()))
    with watch.step("verify"):
        with writing(output):
            write_peft_files(ported.adapter, folder)
        found = verify(folder, pair.target, ported.adapter, called=output)
    with watch.step("choose"):
        scores = inputs.choice.scores(bench, porting)
    done = Transferred(inputs.given, inputs.others, ported, found, scores)
    return transfer_report(bench, porting, pair, done, watch.seconds)


def _run_folder() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


def places(config: DictConfig, key: str) -> list[str]:
    """Return the adapters that an option names.

    Raises:
        ConfigurationError: one is named twice, or is no text.
    """
    given = listed(config, key, str)
    twice = sorted({place for place in given if given.count(place) > 1})
    if twice:
        raise ConfigurationError(
            f"{key} names {', '.join(twice)} twice; name it once, and give it weight by "
            "merge.weights"
        )
    return given


def chosen_mapper(config: DictConfig) -> Mapper:
    """Return the mapper of ``mapper=``, or of ``ckpt=`` where that is given.

    Raises:
        ConfigurationError: a learned mapper lacks its checkpoint, or another one has one.
    """
    hydra = HydraConfig.get()
    name = hydra.runtime.choices["mapper"]
    asked = any(word.startswith("mapper=") for word in hydra.overrides.task)
    built: Mapper = build(config.mapper)
    ckpt = optional(config, "ckpt", str)
    if ckpt is None:
        if isinstance(built, LearnedMapper):
            raise ConfigurationError(
                f"mapper={name} is learned, and there is no checkpoint of it: fit it by `python "
                f"train.py mapper={name} pair={config.pair.name}` and give its mapper.ckpt as ckpt="
            )
        return built
    loaded = load_mapper(Path(ckpt).expanduser())
    if not loaded.fitted:
        raise ConfigurationError(
            f"ckpt={ckpt} holds a {type(loaded).__name__} that was never fitted; give the "
            "mapper.ckpt of a run that came to its end"
        )
    if asked and type(loaded) is not type(built):
        raise ConfigurationError(
            f"ckpt={ckpt} holds a {type(loaded).__name__}, but mapper={name} is a "
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
    place = device(option(bench.config, "device", str))
    return BasePair(**models, factors=FactorCache(bench.cache / "factors"), device=place)


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
