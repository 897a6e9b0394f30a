"""``evaluate.py``: every method on every held-out task, and a page that says what came of it.

:func:`run` tells the story: the two models are compared, the zoo is read, methods and controls are
run (:mod:`~loraport.commands.benchmark`), suites and divergences are measured, and verdicts and
report are written. ``collect=DIR`` writes the same report of runs that others have made.
"""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import Logger
from rich.console import Console

from ..data import Task, ZooPairs
from ..data.zoo import SIDES
from ..evaluation.records import (
    BenchmarkResults,
    Example,
    PairRecord,
    Provenance,
)
from ..evaluation.verdict import verdicts
from ..exceptions import ConfigurationError
from ..reporting.console import print_benchmark, print_line
from ..reporting.dashboard import save_dashboard
from ..reporting.loggers import begun_loggers, finish_loggers, log_benchmark
from ..reporting.pages import write_report
from ..settings import EvaluateSettings
from .benchmark import (
    Benchmark,
    MethodRun,
    asked_models,
    built_suites,
    calibration,
    divergences,
    suite_results,
)
from .collect import collect
from .compatibility import check_compatibility, known_compatibility
from .context import RunContext, Stopwatch, quiet_libraries
from .train import zoo_pairs


def run(settings: EvaluateSettings) -> None:
    """Run the whole of ``evaluate.py``, or gather what others have run.

    It returns no number: a sweep that chose options by one would choose by held-out tasks.

    Raises:
        LoraportError: an option, a model, the zoo or a suite cannot be used, or the two models are
            not compatible.
    """
    quiet_libraries()
    if settings.dashboard is not None:
        make_dashboard(settings.dashboard, settings)
        return
    if settings.collect is not None:
        report(_collected(settings.collect), settings, begun_loggers(settings.logger))
        return
    context, watch = RunContext(settings), Stopwatch()
    suites = built_suites(context)
    with watch.step("diagnose"):
        each = (settings.of_method(method, settings.seed) for method in settings.asked_methods)
        check_compatibility(context, (method.mapper.type for method in each))
    with watch.step("zoo"):
        zoo = zoo_pairs(context)
        tasks = held_out_tasks(context, zoo)
    loggers = begun_loggers(settings.logger)
    with watch.step("methods"):
        benchmark = Benchmark(context, zoo, tasks)
        runs = list(benchmark.runs(settings.asked_methods, settings.asked_seeds))
    asked = asked_models(context, {name: zoo.target[name] for name in tasks}, runs)
    with watch.step("suites"):
        suite_scores = suite_results(context, suites, asked)
    with watch.step("drift"):
        moved = divergences(context, suites, asked)
    with watch.step("calibration"):
        calibrated = calibration(context, {name: zoo.source[name] for name in tasks}, runs)
    compatibility = known_compatibility(context)
    source, target = (context.model(side) for side in SIDES)
    methods = tuple(made.result for made in runs)
    results = BenchmarkResults(
        config=settings.plain(),
        pairs={
            settings.pair.name: PairRecord(
                name=settings.pair.name, source=source.name, target=target.name
            )
        },
        methods=methods,
        suites=suite_scores,
        divergences=moved,
        calibration=calibrated,
        similarities={}
        if compatibility is None
        else {settings.pair.name: [list(row) for row in compatibility.similarity]},
        verdicts=verdicts(methods, suite_scores),
        examples=examples(tasks, runs, settings.shown_examples),
        timing=watch.rounded(),
        provenance=provenance(context, zoo, tasks),
    )
    report(results, settings, loggers)


def report(results: BenchmarkResults, settings: EvaluateSettings, loggers: list[Logger]) -> None:
    """Write results and report, log them, print the table and where things lie."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    written = [results.write(folder / "results.json"), *write_report(results, folder)]
    log_benchmark(loggers, results, written)
    records = finish_loggers(loggers)
    print_benchmark(results)
    for what, path in (
        ("results", written[0]),
        ("report", written[1]),
        *(("log", record) for record in records),
    ):
        print_line(f"{what:>8}  {path}")


def make_dashboard(project: str, settings: EvaluateSettings) -> None:
    """Create the workspace of a W&B project, ``ENTITY/PROJECT``, that shows what benchmarks log.

    Raises:
        ConfigurationError: W&B does not take it.
    """
    entity, _, name = project.partition("/")
    methods = [method.name for method in settings.asked_methods]
    address = save_dashboard(entity, name, methods, list(settings.tasks.held_out))
    print_line(f"dashboard  {address}")


def _collected(folder: Path) -> BenchmarkResults:
    """Return the runs under a folder as one benchmark, and print what is missing or replaced.

    Raises:
        DataError: there is none, or one of them is damaged.
    """
    results, warnings = collect(folder)
    for warning in warnings:
        print_line(warning, Console(stderr=True))
    return results.model_copy(update={"verdicts": verdicts(results.methods, results.suites)})


def held_out_tasks(context: RunContext, zoo: ZooPairs) -> dict[str, Task]:
    """Return the held-out tasks that the zoo has adapters of.

    Raises:
        ConfigurationError: there is none.
    """
    asked = list(context.settings.tasks.held_out)
    names = [name for name in asked if name in zoo.source]
    if not names:
        raise ConfigurationError(
            f"none of tasks.held_out={asked} is in the zoo, so that nothing is left to port; it "
            f"has {', '.join(zoo.source)}: name at least one of them"
        )
    return context.tasks(names)


def examples(
    tasks: dict[str, Task], runs: list[MethodRun], count: int
) -> dict[str, tuple[Example, ...]]:
    """Return the first test rows of each task, and what every condition answers them."""
    shown: dict[str, tuple[Example, ...]] = {}
    for name, task in tasks.items():
        scores: dict[str, Any] = {}
        for made in runs:
            if made.scores:  # of a method that did not refuse
                of_task = made.scores[name]
                scores |= {c: of_task[c] for c in ("base", "source", "oracle") if c in of_task}
                scores.setdefault(made.result.name, of_task["predicted"])
        shown[name] = tuple(
            Example(
                text=row.text,
                label=row.label,
                answers={condition: score.predictions[n] for condition, score in scores.items()},
            )
            for n, row in enumerate(task.test[:count])
        )
    return shown


def provenance(context: RunContext, zoo: ZooPairs, tasks: dict[str, Task]) -> Provenance:
    """Return versions, and the hashes of models, adapters and tasks."""
    models = [context.model(side) for side in SIDES]
    hashes = {f"model/{model.name}": model.fingerprint for model in models}
    hashes |= {f"task/{name}": task.content_hash() for name, task in tasks.items()}
    for name in tasks:
        hashes[f"source/{name}"] = zoo.source[name].content_hash()
        hashes[f"oracle/{name}"] = zoo.target[name].content_hash()
    return Provenance.of(hashes)
