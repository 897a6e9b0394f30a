"""``transfer.py``: one adapter of the source in, one adapter of the target out, verified.

:func:`run` tells it from reading to reporting; what it calls stands behind it in the same order,
and the parts that evaluate.py uses as well are in porting.py.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig

from ..adapters import LoraAdapter, read_adapter
from ..adapters.peft_io import write_peft_files
from ..adapters.sparsify import Combined
from ..data import Task
from ..data.zoo import SIDES
from ..evaluation.records import (
    AdapterRecord,
    CompatibilityRecord,
    DriftRecord,
    PairRecord,
    Provenance,
    StepRecord,
    TransferReport,
)
from ..exceptions import ConfigurationError
from ..files import staged_folder, writing
from ..mappers import BasePair, Mapper
from ..mappers.base import Progress
from ..models import BaseModel
from ..models.streaming import FactorCache
from ..models.verify import Verification, verify
from ..progress import shown_progress, shown_steps
from ..refinement.base import RefinementReport
from ..refinement.expected_recovery import AnchorCalibration
from ..reporting.cards import ported_card
from ..reporting.console import print_line, print_transfer
from ..settings import PortingSettings, TransferSettings
from ..store import Store, results_first
from .compatibility import check_compatibility
from .context import RunContext, Stopwatch, costliest, quiet_libraries
from .porting import (
    Ported,
    Porting,
    Refining,
    chosen_mapper,
    given_adapter,
    given_calibration,
    port_setting,
    porting_for,
    refinement_record,
)


@results_first()
def run(settings: TransferSettings) -> float | None:
    """Port one adapter, or several that are merged into one.

    Returns:
        The mean gain in log-likelihood on ``choose.anchors``, for sweeps; None without anchors.

    Raises:
        LoraportError: something that was asked for or given cannot be used, the pair is not
            compatible, or the adapter that was made does not do on the target what it should;
            then nothing is left of it.
    """
    quiet_libraries()
    context, watch = RunContext(settings), Stopwatch()
    output = settings.output or Path(HydraConfig.get().runtime.output_dir) / "adapter"

    with watch.step("read"):
        inputs = Inputs.of(context)
    with watch.step("open"):
        pair = base_pair(context)
        porting = porting_for(settings, inputs.mapper, pair.target.sites)
        others = list(inputs.others.values())
        porting.check_others(others)
    with watch.step("diagnose"):
        compatibility = check_compatibility(context, [type(inputs.mapper)])

    with ExitStack() as staged:
        folder = staged.enter_context(staged_folder(output, overwrite=settings.overwrite))
        if settings.cartridge is not None:
            heads = staged_folder(settings.cartridge, overwrite=settings.overwrite)
            cartridge_folder = staged.enter_context(heads)
        with watch.step("port"), mapping_progress() as mapping:
            inputs.mapper.use(pair, mapping)
            mapped = porting.mapped(list(inputs.given.values()))
        reports: list[RefinementReport] = []
        if inputs.refining is not None:
            with watch.step("refine"), shown_steps() as refining:
                mapped, reports = inputs.refining.refine_all(inputs.given, mapped, refining)
        with watch.step("port"):
            ported = porting.combined(mapped, others)
        drift = None
        if inputs.refining is not None:
            with watch.step("drift"), shown_steps() as measuring:
                drift = inputs.refining.drift(inputs.given, ported.adapter, measuring)
        with watch.step("verify"):
            with writing(output):
                write_peft_files(ported.adapter, folder)
            verification = verify(folder, pair.target, ported.adapter, called=output)
        with watch.step("choose"):
            scores = anchor_scores(context, porting, others)

        done = Done(compatibility, ported, reports, drift, verification, scores)
        report = transfer_report(context, porting, pair, inputs, done, watch)
        with writing(output):
            (folder / "report.json").write_text(report.json_text(), encoding="utf-8")
            (folder / "README.md").write_text(ported_card(report), encoding="utf-8")
        if settings.cartridge is not None:
            (adapter,) = inputs.given.values()
            with writing(settings.cartridge):
                inputs.mapper.cartridge(adapter).write(cartridge_folder)

    print_transfer(report)
    print_line(f"adapter  {output}")
    if settings.cartridge is not None:
        print_line(f"cartridge  {settings.cartridge}")
    return scores.get("mean_nll_gain")


# Read and check.

Given = dict[str, LoraAdapter]
"""Adapters by the places that they were given as."""


class Inputs(NamedTuple):
    """What a port is made of, read and checked before anything is made.

    Attributes:
        given: The source's adapters.
        others: The target's, with which they are merged.
        mapper: Fitted, if it is a learned one.
        refining: The refinement; None where there is none.
        calibration: Anchors by which to say what to expect of a refined adapter.
    """

    given: Given
    others: Given
    mapper: Mapper
    refining: Refining | None
    calibration: AnchorCalibration | None

    @classmethod
    def of(cls, context: RunContext) -> "Inputs":
        """Read them.

        Raises:
            LoraportError: something cannot be used, or does not go with something else.
        """
        settings: TransferSettings = context.settings
        mapper = chosen_mapper(settings)
        if settings.cartridge is not None and not mapper.has_cartridge:
            raise ConfigurationError(
                f"cartridge={settings.cartridge} takes ckpt= of mapper=cast, but this mapper is a "
                f"{type(mapper).__name__}, which has no heads; leave cartridge= out"
            )
        given = {place: given_adapter(context, place) for place in settings.adapter}
        others = {place: read_adapter(place) for place in settings.merge.others}
        refining = Refining.of(context, given)
        calibration = None if refining is None else given_calibration(settings)
        return cls(given, others, mapper, refining, calibration)


def base_pair(context: RunContext) -> BasePair:
    """Open both models' weights on disk.

    Raises:
        ModelError: one of them cannot be found, or its architecture is not known.
        ConfigurationError: there is no such device here.
    """
    settings: PortingSettings = context.settings
    source, target = (context.weights(side) for side in SIDES)
    factors = FactorCache(context.cache)
    return BasePair(source, target, factors=factors, device=device(settings.device))


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


# Map.


@contextmanager
def mapping_progress() -> Iterator[Progress]:
    """Show how many sites are mapped, and how long the rest takes."""
    with shown_progress("sites") as progress:
        bar = progress.add_task("porting", total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


# Score anchors, by which a sweep chooses options: never the task that is ported.


def anchor_scores(
    context: RunContext, porting: Porting, others: Sequence[LoraAdapter] = ()
) -> dict[str, Any]:
    """Port the source adapters of ``choose.anchors`` alike, and score them on the target.

    Args:
        context: Of the pair.
        porting: What is done to each.
        others: The adapters of ``merge.with``, with which each is merged by ``choose.merged``.

    Returns:
        Accuracy and NLL of each anchor task: base, ported, oracle; {} without anchors. A sweep
        maximises ``mean_nll_gain``, the mean gain in log-likelihood over the base, in nats.

    Raises:
        LoraportError: the zoo lacks an anchor, or the task source its rows.
    """
    settings: TransferSettings = context.settings
    choose = settings.choose
    if not choose.anchors:
        return {}
    zoo = context.zoo().read(list(choose.anchors))
    tasks = context.task_source().load(list(choose.anchors))
    if not (choose.merged and settings.merge.others):
        # There is one adapter of each task: without others nothing to merge it with.
        porting, others = replace(porting, merge=None, weights=None), ()
    target, found = context.model("target"), {}
    for name in choose.anchors:
        ported = porting.port([zoo.source[name]], others).adapter
        few = tasks[name].limited(choose.rows)
        found[name] = _compared(context, target, few, ported, zoo.target[name])
    gains = [row["nll_gain"] for row in found.values()]
    return {
        "rows": choose.rows,
        "anchors": found,
        "mean_nll_gain": None if None in gains else sum(gains) / len(gains),
    }


def _compared(
    context: RunContext, target: BaseModel, task: Task, ported: LoraAdapter, oracle: LoraAdapter
) -> dict[str, Any]:
    conditions = {"base": None, "ported": ported, "oracle": oracle}
    scores = {n: context.scores.score(target, adapter, task) for n, adapter in conditions.items()}
    base, made = scores["base"].nll, scores["ported"].nll
    return {
        "accuracy": {name: score.accuracy for name, score in scores.items()},
        "nll": {name: score.nll for name, score in scores.items()},
        "nll_gain": None if base is None or made is None else base - made,
    }


# Report.


class Done(NamedTuple):
    """What a port has made and measured.

    Attributes:
        compatibility: Of the two models.
        ported: The adapter.
        refinements: What the refinement reports of each source adapter.
        drift: Of the finished adapter, where it was refined.
        verification: On the target.
        scores: On anchors.
    """

    compatibility: CompatibilityRecord | None
    ported: Ported
    refinements: Sequence[RefinementReport]
    drift: DriftRecord | None
    verification: Verification
    scores: dict[str, Any]


def transfer_report(
    context: RunContext,
    porting: Porting,
    pair: BasePair,
    inputs: Inputs,
    done: Done,
    watch: Stopwatch,
) -> TransferReport:
    """Return everything that ``report.json`` holds."""
    settings: TransferSettings = context.settings
    config, mapper, store = settings.plain(), inputs.mapper, Store(context.cache)
    given, others = (
        tuple(_record(place, adapter) for place, adapter in adapters.items())
        for adapters in (inputs.given, inputs.others)
    )
    hashes = {f"{side} model": store.folder_hash(getattr(pair, side).folder) for side in SIDES}
    hashes |= {str(record.place): record.sha256 for record in (*given, *others)}
    if settings.ckpt is not None:
        hashes["checkpoint"] = hashlib.sha256(settings.ckpt.read_bytes()).hexdigest()
    refinement = None
    if inputs.refining is not None and done.drift is not None:
        refinement = refinement_record(
            inputs.refining,
            tuple(inputs.given),
            done.refinements,
            done.drift,
            made_with(context, porting, inputs.refining, done),
            inputs.calibration,
        )
    used = [] if refinement is None else [refinement.data_access]
    steps = done.ported.steps.items()
    return TransferReport(
        config=config,
        pair=PairRecord(name=settings.pair.name, source=pair.source.name, target=pair.target.name),
        compatibility=done.compatibility,
        mapper=mapper.name,
        # A checkpoint has nothing but plain data.
        trained_with=mapper.options,
        data_access=costliest(mapper.data_access, *used),
        adapters=given,
        merged_with=others,
        mapping=done.ported.mapping,
        refinement=refinement,
        steps=tuple(_step(name, step, config.get(name.split()[0])) for name, step in steps),
        output=_record(None, done.ported.adapter),
        dtype=settings.dtype,
        scale=porting.scale,
        verification=asdict(done.verification),
        anchor_scores=done.scores,
        warnings=tuple(_warnings(pair, inputs, done.ported.adapter)),
        timing=watch.rounded(),
        provenance=Provenance.of(hashes),
    )


def made_with(
    context: RunContext, porting: Porting, refining: Refining, done: Done
) -> dict[str, Any]:
    """Return what a refined adapter was made with."""
    settings: TransferSettings = context.settings
    mapper = porting.mapper
    options = settings.mapper.options if settings.ckpt is None else mapper.options
    return port_setting(
        (mapper.name, options),
        {} if settings.refine is None else settings.refine.options,
        refining.data["texts"],
        done.ported.adapter,
        done.refinements[0],
        {side: context.model(side).fingerprint for side in SIDES},
        {"scale": porting.scale, "steps": list(done.ported.steps)},
    )


def _record(place: str | None, adapter: LoraAdapter) -> AdapterRecord:
    ranks = [update.rank for update in adapter.values()]
    return AdapterRecord(
        place=place,
        base_model=adapter.base_model,
        sites=len(adapter),
        roles=tuple(role.value for role in adapter.roles),
        ranks=(min(ranks), max(ranks)),
        norm=adapter.norm(),
        sha256=adapter.content_hash(),
    )


def _step(name: str, step: Combined, options: Any) -> StepRecord:
    return StepRecord(
        name=name,
        options=options if isinstance(options, dict) else {},
        lost_energy=step.total_lost_energy,
        sites={
            site.label: {"lost_energy": lost, **step.notes[site]}
            for site, lost in step.lost_energy.items()
        },
    )


def _warnings(pair: BasePair, inputs: Inputs, result: LoraAdapter) -> Iterator[str]:
    idle = sum(update.norm() == 0 for update in result.values())
    if inputs.refining is not None and idle == len(result):
        yield "the refined adapter is zero at every site, and does nothing on the target"
    if 0 < idle < len(result):
        yield f"{idle} of {len(result)} sites have an update of zero, and do nothing on the target"
    for side, adapters in (("source", inputs.given), ("target", inputs.others)):
        model = getattr(pair, side).name
        for place, adapter in adapters.items():
            if adapter.base_model and adapter.base_model != model:
                yield (
                    f"{place} says that it was trained on {adapter.base_model}, and is taken as "
                    f"one of {model}, whose shapes it fits"
                )
