"""``transfer.py``: one adapter in, one adapter of the target out, verified."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from ..adapters.peft_folder import write_peft_files
from ..data.zoo import SIDES
from ..exceptions import ConfigurationError
from ..files import staged_folder, writing
from ..mappers import BasePair
from ..mappers.weight_mapper import Progress
from ..models import ModelSource, StreamedWeights
from ..models.factor_cache import FactorCache
from ..models.peft_check import verify
from ..refinement.base import Report
from ..reporting.compatibility_record import CompatibilityRecord
from ..reporting.ported_card import ported_card
from ..reporting.transfer_report import TransferReport
from ..reporting.transfer_table import print_transfer
from .building import Workbench, build
from .chosen_mapper import give_models
from .chosen_refinement import settled
from .compatibility_check import check_compatibility
from .options import option, optional
from .quality_control import refinement_record
from .quiet import quiet_libraries
from .refining_progress import refining_progress
from .shown_bars import shown_bars
from .stopwatch import Stopwatch
from .transfer_inputs import Inputs, save_cartridge
from .transfer_record import Transferred, transfer_report


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
    bench, watch = Workbench(settled(config)), Stopwatch()
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
    others = list(inputs.others.values())
    porting.check_others(others)
    with watch.step("port"), shown_progress() as progress:
        give_models(inputs.mapper, pair, bench.config, progress)
        mapped = porting.mapped(list(inputs.given.values()))
    reports: list[Report] = []
    if inputs.refining is not None:
        with watch.step("refine"), refining_progress() as tell:
            mapped, reports = inputs.refining.refine_all(inputs.given, mapped, tell)
    with watch.step("port"):
        ported = porting.combined(mapped, others)
    refinement = None
    if inputs.refining is not None:
        with watch.step("drift"), refining_progress() as tell:
            drift = inputs.refining.drift(inputs.given, ported.adapter, tell)
        refinement = refinement_record(
            inputs.refining, tuple(inputs.given), reports, drift, inputs.calibration
        )
    with watch.step("verify"):
        with writing(output):
            write_peft_files(ported.adapter, folder)
        found = verify(folder, pair.target, ported.adapter, called=output)
    with watch.step("choose"):
        scores = inputs.choice.scores(bench, porting, others)
    done = Transferred(inputs.given, inputs.others, compatible, ported, refinement, found, scores)
    return transfer_report(bench, porting, pair, done, watch.seconds)


def _run_folder() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


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
def shown_progress() -> Iterator[Progress]:
    """Show how many sites are mapped, and how long the rest takes."""
    with shown_bars("sites") as progress:
        bar = progress.add_task("porting", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)
