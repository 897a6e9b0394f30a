"""``transfer.py``: one adapter in, one adapter of the target out, verified."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from ..adapters import read_adapter
from ..adapters.peft_folder import write_peft_files
from ..data.zoo import SIDES
from ..exceptions import ConfigurationError
from ..files import staged_folder, writing
from ..mappers import BasePair, Mapper
from ..mappers.cartridge import CartridgeMapper
from ..mappers.residual_mapper import ResidualMapper
from ..mappers.weight_mapper import Progress
from ..models import ModelSource, StreamedWeights
from ..models.factor_cache import FactorCache
from ..models.peft_check import verify
from ..reporting.compatibility_record import CompatibilityRecord
from ..reporting.ported_card import ported_card
from ..reporting.transfer_report import TransferReport
from ..reporting.transfer_table import print_transfer
from .anchor_choice import AnchorChoice
from .building import Workbench, build
from .chosen_mapper import chosen_mapper, give_models
from .compatibility_check import check_compatibility
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
    cartridge: Path | None

    @classmethod
    def of(cls, bench: Workbench) -> "Inputs":
        """Read the options and the adapters."""
        config = bench.config
        mapper, choice, plan = chosen_mapper(config), AnchorChoice.of(bench), Plan.of(config)
        given = {place: given_adapter(bench, place) for place in places(config, "adapter")}
        others = {p: read_adapter(Path(p).expanduser()) for p in places(config, "merge.with")}
        cartridge = cartridge_folder(config, mapper, list(given))
        return cls(given, others, mapper, plan, choice, cartridge)


def run(config: DictConfig) -> float | None:
    """Port one adapter, or several that are merged into one.

    Returns:
        The mean gain in log-likelihood on ``choose.anchors``, for sweeps; None without anchors.

    Raises:
        LoraportError: something that was asked for or given cannot be used, the pair is not
            compatible, or the adapter that was made does not do on the target what it should;
            then nothing is left of it.
    """
    quiet_libraries()
    bench, watch = Workbench(config), Stopwatch()
    output = Path(optional(config, "output", str) or _run_folder() / "adapter").expanduser()
    with watch.step("read"):
        inputs = Inputs.of(bench)
    with watch.step("diagnose"):
        compatible = check_compatibility(bench)
    with staged_folder(output, overwrite=option(config, "overwrite", bool)) as folder:
        report = ported_into(folder, output, inputs, compatible, bench, watch)
        with writing(output):
            (folder / "report.json").write_text(report.json_text(), encoding="utf-8")
            (folder / "README.md").write_text(ported_card(report), encoding="utf-8")
        save_cartridge(inputs, overwrite=option(config, "overwrite", bool))
    print_transfer(report)
    Console().print(f"adapter  {output}", highlight=False, soft_wrap=True)
    if inputs.cartridge is not None:
        Console().print(f"cartridge  {inputs.cartridge}", highlight=False, soft_wrap=True)
    return inputs.choice.value(report.anchor_scores)


def ported_into(
    folder: Path,
    output: Path,
    inputs: Inputs,
    compatible: CompatibilityRecord | None,
    bench: Workbench,
    watch: Stopwatch,
) -> TransferReport:
    """Port into a folder that will take the place of ``output``; return what is to be reported."""
    with watch.step("open"):
        pair = base_pair(bench)
    porting = inputs.plan.porting(inputs.mapper, pair)
    with watch.step("port"), shown_progress(inputs.mapper) as progress:
        give_models(inputs.mapper, pair, bench, progress)
        ported = porting.port(list(inputs.given.values()), list(inputs.others.values()))
    with watch.step("verify"):
        with writing(output):
            write_peft_files(ported.adapter, folder)
        found = verify(folder, pair.target, ported.adapter, called=output)
    with watch.step("choose"):
        scores = inputs.choice.scores(bench, porting)
    done = Transferred(inputs.given, inputs.others, compatible, ported, found, scores)
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


def cartridge_folder(config: DictConfig, mapper: Mapper, given: list[str]) -> Path | None:
    """Return where ``cartridge=`` asks for the adapter behind its heads.

    Raises:
        ConfigurationError: the mapper makes none, or several adapters are to be merged.
    """
    folder = optional(config, "cartridge", str)
    if folder is None:
        return None
    if not isinstance(mapper, CartridgeMapper):
        raise ConfigurationError(
            f"cartridge={folder} takes ckpt= of mapper=cast, but this mapper is a "
            f"{type(mapper).__name__}, which has no heads; leave cartridge= out"
        )
    if len(given) > 1:
        raise ConfigurationError(
            f"cartridge={folder} holds one adapter, but adapter= names {len(given)}, and what is "
            "behind heads is not merged; give one adapter"
        )
    return Path(folder).expanduser()


def save_cartridge(inputs: Inputs, *, overwrite: bool) -> None:
    """Write the adapter behind its heads, where that is asked for."""
    if inputs.cartridge is not None and isinstance(inputs.mapper, CartridgeMapper):
        (adapter,) = inputs.given.values()
        inputs.mapper.cartridge(adapter).save(inputs.cartridge, overwrite=overwrite)


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
def shown_progress(mapper: Mapper) -> Iterator[Progress]:
    """Show how many sites or layers are mapped, and how long the rest takes."""
    unit = "layers" if isinstance(mapper, ResidualMapper) else "sites"
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}, remaining"),
        TimeRemainingColumn(),
    )
    with ProgressBar(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("porting", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)
