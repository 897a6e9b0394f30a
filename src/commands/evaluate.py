"""``evaluate.py``: the whole benchmark, and a page that says what came of it."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from rich.console import Console

from ..data import Task, ZooPairs
from ..evaluation.records import (
    BenchmarkResults,
    Example,
    PairRecord,
    Provenance,
    git_revision,
    library_versions,
)
from ..evaluation.verdict import verdicts
from ..exceptions import ConfigurationError
from ..reporting.console import print_benchmark
from ..reporting.dashboard import save_dashboard
from ..reporting.loggers import finish_loggers, log_benchmark
from ..reporting.pages import write_report
from .benchmark import (
    Benchmark,
    MethodRun,
    asked_models,
    built_suites,
    calibration,
    chosen_methods,
    divergences,
    given_words,
    suite_results,
)
from .collect import collect
from .compatibility import Compatibility, check_compatibility, kept_at
from .context import (
    SharedContext,
    Stopwatch,
    build,
    listed,
    option,
    optional,
    plain_config,
    quiet_libraries,
)
from .train import zoo_pairs


def run(config: DictConfig) -> None:
    """Run the whole of ``evaluate.py``, or gather what others have run.

    It returns no number: a sweep that chose options by one would choose by held-out tasks.

    Raises:
        LoraportError: something that was asked for or given cannot be used, or the two models
            are not compatible.
    """
    quiet_libraries()
    dashboard = optional(config, "dashboard", str)
    if dashboard is not None:
        make_dashboard(dashboard, config)
        return
    collected = optional(config, "collect", str)
    if collected is not None:
        collected_runs(Path(collected).expanduser(), config)
        return
    context, watch = SharedContext(config), Stopwatch()
    refuse_single_method()
    methods, seeds, suites = chosen_methods(config), chosen_seeds(config), built_suites(context)
    with watch.step("diagnose"):
        check_compatibility(context)
    with watch.step("zoo"):
        zoo = zoo_pairs(context)
        tasks = held_out_tasks(context, zoo)
    with watch.step("methods"):
        runs = list(Benchmark(context, zoo, tasks).runs(methods, seeds))
    asked = asked_models(context, {name: zoo.target[name] for name in tasks}, runs)
    with watch.step("suites"):
        found = suite_results(context, suites, asked)
    with watch.step("drift"):
        moved = divergences(context, suites, asked)
    with watch.step("calibration"):
        calibrated = calibration(context, {name: zoo.source[name] for name in tasks}, runs)
    evidence = tuple(made.result for made in runs)
    results = BenchmarkResults(
        config=plain_config(config),
        pairs={config.pair.name: pair_record(context)},
        methods=evidence,
        suites=found,
        divergences=moved,
        calibration=calibrated,
        similarities=similarities(context),
        verdicts=verdicts(evidence, found),
        examples=examples(context, tasks, runs),
        timing={name: round(value, 2) for name, value in watch.seconds.items()},
        provenance=provenance(context, zoo, tasks),
    )
    reported(results, config)


def make_dashboard(place: str, config: DictConfig) -> None:
    """Create the workspace of a W&B project that shows what benchmarks log.

    Raises:
        ConfigurationError: the place is no ``ENTITY/PROJECT``, or W&B does not take it.
    """
    entity, slash, project = place.partition("/")
    if not (entity and slash and project):
        raise ConfigurationError(f"dashboard is {place!r}; it takes ENTITY/PROJECT, as W&B has it")
    methods = [method.name for method in chosen_methods(config)]
    address = save_dashboard(entity, project, methods, listed(config, "tasks.held_out", str))
    Console().print(f"dashboard  {address}", highlight=False, soft_wrap=True)


def collected_runs(place: Path, config: DictConfig) -> None:
    """Report on the runs of a multirun as on one benchmark.

    Raises:
        DataError: there is none, or one of them is damaged.
    """
    results, warnings = collect(place)
    judged = results.model_copy(update={"verdicts": verdicts(results.methods, results.suites)})
    for warning in warnings:
        Console(stderr=True).print(warning, markup=False, highlight=False, soft_wrap=True)
    reported(judged, config)


def reported(results: BenchmarkResults, config: DictConfig) -> None:
    """Write results and report, log them, print the table and where things lie."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    written = [results.write(folder / "results.json"), *write_report(results, folder)]
    loggers: list[Logger] = [build(node) for node in (config.get("logger") or {}).values()]
    log_benchmark(loggers, results, written)
    records = finish_loggers(loggers)
    print_benchmark(results)
    console = Console()
    for what, where in (
        ("results", written[0]),
        ("report", written[1]),
        *(("log", record) for record in records),
    ):
        console.print(f"{what:>8}  {where}", highlight=False, soft_wrap=True)


def chosen_seeds(config: DictConfig) -> list[int]:
    """Return ``seeds``, each once, or ``seed`` where there are none."""
    if config.seeds is None:
        return [option(config, "seed", int)]
    return list(dict.fromkeys(listed(config, "seeds", int)))


def refuse_single_method() -> None:
    """Refuse what asks for one method in a way that asks for none here.

    Raises:
        ConfigurationError: ``mapper=`` or ``refine=`` is given.
    """
    for word in given_words():
        if word.partition("=")[0] in ("mapper", "refine"):
            raise ConfigurationError(
                f"evaluate.py compares methods, but {word} is given; write methods=[MAPPER, "
                "MAPPER+REFINE, default], and options of one of them into method_options"
            )


def held_out_tasks(context: SharedContext, zoo: ZooPairs) -> dict[str, Task]:
    """Return the held-out tasks that the zoo has adapters of.

    Raises:
        ConfigurationError: there is none.
    """
    asked = list(context.config.tasks.held_out)
    names = [name for name in asked if name in zoo.source]
    if not names:
        raise ConfigurationError(
            f"none of tasks.held_out={asked} is in the zoo, so that nothing is left to port; it "
            f"has {', '.join(zoo.source)}: name at least one of them"
        )
    return context.tasks(names)


def pair_record(context: SharedContext) -> PairRecord:
    """Return the pair's name and those of its models."""
    return PairRecord(
        name=context.config.pair.name,
        source=context.model("source").name,
        target=context.model("target").name,
    )


def similarities(context: SharedContext) -> dict[str, list[list[float | None]]]:
    """Return the pair's intersection map, as the diagnosis has found it."""
    config = context.config
    if "_target_" not in config.diagnosis:
        return {}
    found = Compatibility.read(kept_at(context, build(config.diagnosis), build(config.probes)))
    return {} if found is None else {config.pair.name: [list(row) for row in found.similarity]}


def examples(
    context: SharedContext, tasks: dict[str, Task], runs: list[MethodRun]
) -> dict[str, tuple[Example, ...]]:
    """Return the first test rows of each task, and what every condition answers them."""
    shown = option(context.config, "shown_examples", int)
    answered = [made for made in runs if made.scores]
    found: dict[str, tuple[Example, ...]] = {}
    for name, task in tasks.items():
        told: dict[str, Any] = {}
        for made in answered:
            scores = made.scores[name]
            told |= {c: scores[c] for c in ("base", "source", "oracle") if c in scores}
            told.setdefault(made.result.name, scores["predicted"])
        found[name] = tuple(
            Example(
                text=row.text,
                label=row.label,
                answers={condition: score.predictions[place] for condition, score in told.items()},
            )
            for place, row in enumerate(task.test[:shown])
        )
    return found


def provenance(context: SharedContext, zoo: ZooPairs, tasks: dict[str, Task]) -> Provenance:
    """Return versions, and the hashes of models, adapters and tasks."""
    hashes = {
        f"model/{context.model(s).name}": context.model(s).fingerprint for s in ("source", "target")
    }
    hashes |= {f"task/{name}": task.content_hash() for name, task in tasks.items()}
    for name in tasks:
        hashes[f"source/{name}"] = zoo.source[name].content_hash()
        hashes[f"oracle/{name}"] = zoo.target[name].content_hash()
    return Provenance(
        versions=library_versions(), hashes=hashes, revisions={"checkout": git_revision()}
    )
