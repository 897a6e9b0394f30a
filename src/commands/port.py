"""Whether a port is refined: by default, unless a mapper is named."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ..adapters import LoraAdapter, read_adapter
from ..adapters.peft_io import write_peft_files
from ..adapters.sparsify import Combined
from ..data import Task
from ..data.zoo import SIDES
from ..evaluation.records import (
    AdapterRecord,
    CompatibilityRecord,
    PairRecord,
    Provenance,
    RefinementRecord,
    StepRecord,
    TransferReport,
    git_revision,
    library_versions,
)
from ..evaluation.scoring import TaskScore
from ..exceptions import ConfigurationError
from ..files import staged_folder, writing
from ..mappers import BasePair, LearnedMapper, Mapper
from ..mappers.base import Progress
from ..mappers.cartridge import CartridgeMapper
from ..models import BaseModel, ModelSource, StreamedWeights
from ..models.streaming import FactorCache
from ..models.verify import Verification, verify
from ..refinement.base import RefinementReport
from ..refinement.expected_recovery import AnchorCalibration
from ..reporting.cards import ported_card
from ..reporting.console import print_transfer
from ..store import Store
from .compatibility import check_compatibility
from .context import (
    RunContext,
    Stopwatch,
    build,
    costliest,
    listed,
    option,
    optional,
    plain_config,
    quiet_libraries,
    shown_bars,
)
from .porting import (
    Plan,
    Ported,
    Porting,
    Refining,
    chosen_mapper,
    give_models,
    given_adapter,
    given_calibration,
    refinement_record,
    refining_progress,
)


def settled(config: DictConfig) -> DictConfig:
    """Return the configuration with what ``refine`` is meant to be.

    Who names a mapper, or a checkpoint of one, asks for what that mapper makes; who names a
    refinement as well gets both, and who names neither the default port.
    """
    if not _mapper_alone(HydraConfig.get().overrides.task):
        return config
    plain = config.copy()
    OmegaConf.update(plain, "refine", {}, merge=False)
    return plain


def _mapper_alone(words: Sequence[str]) -> bool:
    named = {word.lstrip("+~").partition("=")[0] for word in words}
    refined = any(name.partition(".")[0] in ("refine", "refine_texts") for name in named)
    return not refined and bool(named & {"mapper", "ckpt"})


# Scores on anchor tasks, by which the options of a transfer may be chosen.


@dataclass(frozen=True)
class AnchorChoice:
    """Ports the source adapters of anchor tasks in the same way, and scores them on the target.

    An option such as ``sparsify.p`` is then chosen by what it does for them, and never by the
    task that the ported adapter is of.

    Attributes:
        anchors: Tasks of the pair's zoo.
        rows: Test rows scored of each.
        held_out: Tasks that are kept for evaluation.
        ported: What is ported itself: tasks, or folders called like them.
        merged_with: Folders of target adapters with which each is merged as well; none: each is
            scored by itself.

    Raises:
        ConfigurationError: an anchor is held out, ported itself, or merged with.
    """

    anchors: tuple[str, ...]
    rows: int
    held_out: tuple[str, ...] = ()
    ported: tuple[str, ...] = ()
    merged_with: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given = sorted(set(self.anchors) & {Path(place).name for place in self.merged_with})
        if given:
            raise ConfigurationError(
                f"choose.anchors has {', '.join(given)}, whose adapter of the target merge.with "
                "has: it would be scored with its own answer; choose options on other tasks"
            )
        own = sorted(set(self.anchors) & {Path(place).name for place in self.ported})
        if own:
            raise ConfigurationError(
                f"choose.anchors has {', '.join(own)}, which is ported itself; choose options on "
                "other tasks of the zoo"
            )
        wrong = sorted(set(self.anchors) & set(self.held_out))
        if wrong:
            raise ConfigurationError(
                f"choose.anchors has {', '.join(wrong)}, which tasks.held_out keeps for "
                "evaluation; choose options on other tasks of the zoo"
            )

    @classmethod
    def of(cls, context: RunContext) -> "AnchorChoice":
        """Return what ``choose`` asks for.

        Raises:
            ConfigurationError: as above, or ``choose.rows`` is no number of rows.
        """
        config = context.config
        rows = config.choose.rows
        if type(rows) is not int or rows < 1:
            raise ConfigurationError(
                f"choose.rows is {rows!r}; it takes a whole number of at least 1"
            )
        return cls(
            _names(config.choose.anchors),
            rows,
            _names(config.tasks.held_out),
            _names(config.adapter),
            _names(config.merge["with"]) if option(config, "choose.merged", bool) else (),
        )

    def scores(
        self, context: RunContext, porting: Porting, others: Sequence[LoraAdapter] = ()
    ) -> dict[str, Any]:
        """Return accuracy and NLL of each anchor task: base, ported, oracle; {} without anchors.

        Args:
            context: Of the pair.
            porting: What is done to each.
            others: The adapters of ``merge.with``, which are used where :attr:`merged_with` says.

        Raises:
            LoraportError: the zoo lacks an anchor, or the task source its rows.
        """
        if not self.anchors:
            return {}
        zoo = context.zoo().read(list(self.anchors))
        tasks = context.task_source().load(list(self.anchors))
        target = context.model("target")
        # There is one adapter of each task: without others nothing to merge it with.
        alone = porting if self.merged_with else replace(porting, merge=None, weights=None)
        beside = others if self.merged_with else ()
        found = {}
        for name in self.anchors:
            ported = alone.port([zoo.source[name]], beside).adapter
            few = tasks[name].limited(self.rows)
            found[name] = _compared(context, target, few, ported, zoo.target[name])
        gains = [row["nll_gain"] for row in found.values()]
        return {
            "rows": self.rows,
            "anchors": found,
            "mean_nll_gain": None if None in gains else sum(gains) / len(gains),
        }

    def value(self, scores: dict[str, Any]) -> float | None:
        """Return what a sweep maximises: the mean gain in log-likelihood over the base, in nats."""
        return scores.get("mean_nll_gain")


def _names(given: Any) -> tuple[str, ...]:
    """Return one name, several, or none."""
    return (given,) if isinstance(given, str) else tuple(given or ())


def _compared(
    context: RunContext, target: BaseModel, task: Task, ported: LoraAdapter, oracle: LoraAdapter
) -> dict[str, Any]:
    conditions: Sequence[tuple[str, LoraAdapter | None]]
    conditions = (("base", None), ("ported", ported), ("oracle", oracle))
    scores: dict[str, TaskScore] = {
        name: context.scores.score(target, adapter, task) for name, adapter in conditions
    }
    base, made = scores["base"].nll, scores["ported"].nll
    return {
        "accuracy": {name: score.accuracy for name, score in scores.items()},
        "nll": {name: score.nll for name, score in scores.items()},
        "nll_gain": None if base is None or made is None else base - made,
    }


# From what a transfer did to its report.

Given = dict[str, LoraAdapter]
"""Adapters by the places that they were given as."""


class Transferred(NamedTuple):
    """What went into a transfer and what came out of it."""

    given: Given
    others: Given
    compatibility: CompatibilityRecord | None
    ported: Ported
    refinement: RefinementRecord | None
    verification: Verification
    anchor_scores: dict[str, Any]


def transfer_report(
    context: RunContext,
    porting: Porting,
    pair: BasePair,
    done: Transferred,
    seconds: dict[str, float],
) -> TransferReport:
    """Return everything that ``report.json`` holds."""
    config = plain_config(context.config)
    result = done.ported.adapter
    models = {side: getattr(pair, side) for side in ("source", "target")}
    store = Store(context.cache)
    hashes = {f"{side} model": store.folder_hash(model.folder) for side, model in models.items()}
    given, others = (
        tuple(_record(place, adapter) for place, adapter in adapters.items())
        for adapters in (done.given, done.others)
    )
    hashes |= {str(record.place): record.sha256 for record in (*given, *others)}
    ckpt = optional(context.config, "ckpt", str)
    if ckpt is not None:
        content = Path(ckpt).expanduser().read_bytes()
        hashes["checkpoint"] = hashlib.sha256(content).hexdigest()
    options = {"sparsify": config["sparsify"], "merge": config["merge"]}
    refined = () if done.refinement is None else (done.refinement.data_access,)
    return TransferReport(
        config=config,
        pair=PairRecord(
            name=config["pair"]["name"], source=pair.source.name, target=pair.target.name
        ),
        compatibility=done.compatibility,
        # One mapper a file, each called like its YAML.
        mapper=type(porting.mapper).__module__.rpartition(".")[2],
        trained_with=_trained_with(porting.mapper),
        data_access=costliest(porting.mapper.data_access, *refined),
        adapters=given,
        merged_with=others,
        mapping=done.ported.mapping,
        refinement=done.refinement,
        steps=tuple(_step(name, step, options) for name, step in done.ported.steps.items()),
        output=_record(None, result),
        dtype=str(porting.dtype).removeprefix("torch."),
        scale=porting.scale,
        verification=asdict(done.verification),
        anchor_scores=done.anchor_scores,
        warnings=tuple(_warnings(pair, done)),
        timing={name: round(value, 2) for name, value in seconds.items()},
        provenance=Provenance(
            versions=library_versions(), hashes=hashes, revisions={"checkout": git_revision()}
        ),
    )


def _trained_with(mapper: Mapper) -> dict[str, Any]:
    """Return the options of a learned mapper; a checkpoint has nothing but plain data."""
    return dict(mapper.hparams) if isinstance(mapper, LearnedMapper) else {}


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


def _step(name: str, step: Combined, options: dict[str, Any]) -> StepRecord:
    return StepRecord(
        name=name,
        options=options.get(name.split()[0], {}),
        lost_energy=step.total_lost_energy,
        sites={
            site.label: {"lost_energy": lost, **step.notes[site]}
            for site, lost in step.lost_energy.items()
        },
    )


def _warnings(pair: BasePair, done: Transferred) -> Iterator[str]:
    result = done.ported.adapter
    idle = sum(update.norm() == 0 for update in result.values())
    if done.refinement is not None and idle == len(result):
        yield "the refined adapter is zero at every site, and does nothing on the target"
    if 0 < idle < len(result):
        yield f"{idle} of {len(result)} sites have an update of zero, and do nothing on the target"
    for side, adapters in (("source", done.given), ("target", done.others)):
        model = getattr(pair, side).name
        for place, adapter in adapters.items():
            if adapter.base_model and adapter.base_model != model:
                yield (
                    f"{place} says that it was trained on {adapter.base_model}, and is taken as "
                    f"one of {model}, whose shapes it fits"
                )


# What a transfer is asked for: adapters and options, read and checked before anything is made.


class Inputs(NamedTuple):
    """What a transfer is asked for, read and checked before anything is made."""

    given: Given
    others: Given
    mapper: Mapper
    plan: Plan
    choice: AnchorChoice
    cartridge: Path | None
    refining: Refining | None
    calibration: AnchorCalibration | None

    @classmethod
    def of(cls, context: RunContext) -> "Inputs":
        """Read the options and the adapters.

        Raises:
            LoraportError: something cannot be used, or does not go with something else.
        """
        config = context.config
        mapper, choice, plan = chosen_mapper(config), AnchorChoice.of(context), Plan.of(config)
        given = {place: given_adapter(context, place) for place in places(config, "adapter")}
        others = {p: read_adapter(Path(p).expanduser()) for p in places(config, "merge.with")}
        cartridge = cartridge_folder(config, mapper, list(given))
        refining = Refining.of(context, given)
        if refining is not None:
            check_refinable(refining.name, choice, cartridge)
        calibration = None if refining is None else given_calibration(context)
        return cls(given, others, mapper, plan, choice, cartridge, refining, calibration)


def check_refinable(name: str, choice: AnchorChoice, cartridge: Path | None) -> None:
    """Raise ConfigurationError where something else takes what the mapper alone makes."""
    if choice.anchors:
        raise ConfigurationError(
            f"choose.anchors ports every anchor as well, and refine={name} would refine each for "
            "minutes; set refine=none and a mapper, such as mapper=cross_lora"
        )
    if cartridge is not None:
        raise ConfigurationError(
            f"cartridge={cartridge} holds the adapter behind its heads, which refine={name} does "
            "not change; leave one of them out"
        )


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


# ``transfer.py``: one adapter in, one adapter of the target out, verified.


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
    context, watch = RunContext(settled(config)), Stopwatch()
    output = Path(optional(config, "output", str) or _run_folder() / "adapter").expanduser()
    with watch.step("read"):
        inputs = Inputs.of(context)
    with watch.step("diagnose"):
        compatible = check_compatibility(context)
    with staged_folder(output, overwrite=option(config, "overwrite", bool)) as folder:
        report = ported_into(folder, output, inputs, compatible, context, watch)
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
    context: RunContext,
    watch: Stopwatch,
) -> TransferReport:
    """Port into a folder that will take the place of ``output``; return what is to be reported."""
    with watch.step("open"):
        pair = base_pair(context)
    porting = inputs.plan.porting(inputs.mapper, pair)
    others = list(inputs.others.values())
    porting.check_others(others)
    with watch.step("port"), shown_progress() as progress:
        give_models(inputs.mapper, pair, context.config, progress)
        mapped = porting.mapped(list(inputs.given.values()))
    reports: list[RefinementReport] = []
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
        scores = inputs.choice.scores(context, porting, others)
    done = Transferred(inputs.given, inputs.others, compatible, ported, refinement, found, scores)
    return transfer_report(context, porting, pair, done, watch.seconds)


def _run_folder() -> Path:
    return Path(HydraConfig.get().runtime.output_dir)


def base_pair(context: RunContext) -> BasePair:
    """Open both models' weights on disk.

    Raises:
        ModelError: one of them cannot be found, or its architecture is not known.
    """
    models: dict[str, StreamedWeights] = {}
    for side in SIDES:
        source: ModelSource = build(context.config.pair[side])
        models[side] = source.weights(context.cache)
    place = device(option(context.config, "device", str))
    return BasePair(**models, factors=FactorCache(context.cache), device=place)


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
