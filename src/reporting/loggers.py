"""The names under which loggers know the numbers of a benchmark; docs/sweeps.md lists them.

A dashboard asks for them by name, so that they are all made here.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.image import imread
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..evaluation.records import (
    BenchmarkResults,
    Condition,
    Divergence,
    MethodResult,
    Results,
    SuiteResult,
)
from ..exceptions import ConfigurationError
from .benchmark_tables import (
    belongs,
    benchmark_table,
    changes_table,
    divergence_table,
    generic_drift,
)
from .tables import Cell, Estimated, ReportTable, mean_retention, task_table

Metrics = dict[str, float]

GAP_RECOVERED = "summary/gap_recovered"
"""Of a run of train.py, whatever its mapper."""

OBJECTIVE = "summary/objective"
"""What a run was told to go by, where it was; less is better."""


def gap_name(method: str, task: str) -> str:
    """Return the name of the gap that a method recovers on a task."""
    return f"gap/{method}/{task}"


def summary_name(method: str, what: str) -> str:
    """Return the name of one of a method's means over the tasks."""
    return f"summary/{method}/{what}"


def cost_name(method: str, step: str) -> str:
    """Return the name of the seconds that a step of a method takes."""
    return f"cost/{method}/{step}"


def suite_name(suite: str, metric: str, label: str) -> str:
    """Return the name of what an adapter scores on a suite."""
    return f"suites/{suite}/{metric}/{label}"


def drift_name(texts: str, what: str, label: str) -> str:
    """Return the name of a divergence of an adapter on some texts."""
    return f"drift/{texts}/{what}/{label}"


def chart_name(stem: str) -> str:
    """Return the name of an image, made of its file's."""
    return f"charts/{stem}"


def table_name(name: str) -> str:
    """Return the name of a table, made of its file's."""
    return f"benchmark/{name}"


def page_name(stem: str) -> str:
    """Return the name of a page, made of its file's."""
    return f"pages/{stem}"


def method_label(method: MethodResult, pairs: Iterable[str] = ()) -> str:
    """Return a method's name, with its variant, and with its pair where there are several.

    The seed is not in it: it is the step of what is logged.
    """
    variant = ",".join(f"{key}={value}" for key, value in method.variant.items())
    label = f"{method.name}[{variant}]" if variant else method.name
    return f"{label}@{method.pair}" if len(set(pairs)) > 1 else label


def condition_label(condition: Condition, pairs: Iterable[str] = ()) -> str:
    """Return which model was asked: the method and, where there is one, the adapter's task."""
    label = "/".join(part for part in (condition.method, condition.task) if part)
    return f"{label}@{condition.pair}" if len(set(pairs)) > 1 else label


def method_metrics(method: MethodResult, label: str) -> Metrics:
    """Return everything of one method and seed that is a single number."""
    found: dict[str, float | None] = {}
    if method.summary is not None:
        low, high = method.summary.ci95 or (None, None)
        found |= {
            summary_name(label, "gap_recovered"): method.summary.gap_recovered,
            summary_name(label, "gap_recovered_low"): low,
            summary_name(label, "gap_recovered_high"): high,
            summary_name(label, "gap_recovered_nll"): method.summary.gap_recovered_nll,
            summary_name(label, "usable"): method.summary.usable,
            summary_name(label, "margin"): method.summary.margin.value,
            summary_name(label, "margin_over_mean"): method.summary.margin_over_mean.value,
            summary_name(label, "retention"): mean_retention(method),
        }
    for name, task in method.tasks.items():
        found |= {
            gap_name(label, name): task.gap_recovered,
            f"gap_nll/{label}/{name}": task.gap_recovered_nll,
            f"retention/{label}/{name}": task.retention,
            f"accuracy/{label}/{name}": task.scores.get("predicted"),
            f"nll/{label}/{name}": task.nll.get("predicted"),
        }
    found |= {cost_name(label, step): seconds for step, seconds in method.seconds.items()}
    return {name: float(number) for name, number in found.items() if number is not None}


def suite_metrics(suite: SuiteResult, pairs: Iterable[str]) -> dict[int | None, Metrics]:
    """Return a suite's means for each seed; None is the seed of models without a method."""
    found: dict[int | None, Metrics] = {}
    for scores in suite.scores:
        of_seed = found.setdefault(scores.condition.seed, {})
        label = condition_label(scores.condition, pairs)
        for metric, mean in scores.means.items():
            if mean is not None:
                of_seed[suite_name(suite.name, metric, label)] = float(mean)
    return found


def drift_metrics(divergence: Divergence, pairs: Iterable[str]) -> Metrics:
    """Return how far an adapter moves a model's distributions."""
    label = condition_label(divergence.condition, pairs)
    numbers = {"kl": divergence.kl, "js": divergence.js, "top1": divergence.top1}
    return {
        drift_name(divergence.texts, what, label): float(number)
        for what, number in numbers.items()
        if number is not None
    }


def mean_drift(method: MethodResult, results: BenchmarkResults) -> float | None:
    """Return how far a method's adapters move generic text: mean KL over the tasks, in nats."""
    found = [
        float(divergence.kl)
        for divergence in generic_drift(results)
        if divergence.kl is not None and belongs(divergence.condition, method)
    ]
    return sum(found) / len(found) if found else None


def benchmark_metrics(results: BenchmarkResults) -> dict[int, Metrics]:
    """Return all single numbers of a benchmark by seed, the seeds in rising order.

    What has no seed, such as the base's scores on a suite, stands with the first one.
    """
    seeds = sorted({method.seed for method in results.methods}) or [0]
    found: dict[int, Metrics] = {seed: {} for seed in seeds}
    for method in results.methods:
        label = method_label(method, results.pairs)
        found[method.seed] |= method_metrics(method, label)
        drift = mean_drift(method, results)
        if drift is not None:
            found[method.seed][summary_name(label, "drift")] = drift
    for suite in results.suites:
        for seed, metrics in suite_metrics(suite, results.pairs).items():
            found.setdefault(seeds[0] if seed is None else seed, {}).update(metrics)
    for divergence in results.divergences:
        seed = divergence.condition.seed
        metrics = drift_metrics(divergence, results.pairs)
        found.setdefault(seeds[0] if seed is None else seed, {}).update(metrics)
    return dict(sorted(found.items()))


def plain_summary(results: Results) -> Metrics:
    """Return a training run's means under names without its mapper.

    They compare the runs of a sweep: ``summary/gap_recovered`` is that of whatever each ran.
    """
    label = results.mapper
    found = {
        name.replace(f"summary/{label}/", "summary/", 1): number
        for name, number in method_metrics(method_of(results), label).items()
        if name.startswith(f"summary/{label}/")
    }
    objective = results.mapper_report.get("objective", {}).get("value")
    if objective is not None:
        found[OBJECTIVE] = float(objective)
    return found


def method_of(results: Results, variant: Mapping[str, str] | None = None) -> MethodResult:
    """Return the evidence of a run of ``train.py`` as that of a method of a benchmark.

    Args:
        results: Of the run.
        variant: Options in which runs of a sweep differ.
    """
    return MethodResult(
        name=results.mapper,
        mapper=results.mapper,
        data_access=results.data_access,
        pair=results.pair.name,
        seed=results.seed,
        variant=dict(variant or {}),
        controls=results.controls,
        tasks=results.tasks,
        summary=results.summary,
        seconds={"fit": results.timing.get("fit")},
        report=results.mapper_report,
    )


def benchmark_of(results: Results) -> BenchmarkResults:
    """Return the evidence of a run of ``train.py`` as that of a benchmark with one method."""
    return BenchmarkResults(
        config=results.config,
        pairs={results.pair.name: results.pair},
        methods=(method_of(results),),
        timing=results.timing,
        provenance=results.provenance,
    )


# A progress bar over the epochs of a fit that leaves nothing behind.


class FitProgress(Callback):
    """Shows epochs, the time that is left and the last losses on stderr, and then vanishes.

    Where stderr is no terminal nothing is printed.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar on the first device."""
        columns = (
            TextColumn("fitting {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(
            *columns, console=Console(stderr=True), transient=True, disable=trainer.global_rank > 0
        )
        self._bar = self._progress.add_task(type(pl_module).__name__, total=trainer.max_epochs)
        self._progress.start()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Advance by one epoch."""
        losses = [f"{name} {float(value):.3f}" for name, value in trainer.callback_metrics.items()]
        described = " ".join([type(pl_module).__name__, *losses])
        self._progress.update(self._bar, advance=1, description=described)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._progress.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: Any) -> None:
        """Close the bar, so that an error is readable."""
        if hasattr(self, "_progress"):
            self._progress.stop()


# TensorBoard as a logger, for those who have no W&B.


class TensorBoardRunLogger(TensorBoardLogger):
    """Logs one run as an event file for TensorBoard.

    Args:
        save_dir: The run's folder; the file lies in ``tensorboard/`` in it.

    Raises:
        ConfigurationError: TensorBoard is not installed.
    """

    def __init__(self, save_dir: str | Path) -> None:
        try:
            super().__init__(save_dir, name="tensorboard", version="", default_hp_metric=False)
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                f"logger=tensorboard cannot be used ({error.name or 'tensorboard'} is not "
                "installed); install the extra by `pip install 'loraport[dashboards]'`, or choose "
                "logger=csv"
            ) from None


# What a benchmark found, for W&B, TensorBoard and CSV: numbers, tables, charts and pages.

_IMAGES, _PAGES = (".png",), (".html",)

Plain = str | int | float | None


def log_benchmark(
    loggers: Sequence[Logger],
    results: BenchmarkResults,
    files: Sequence[Path] = (),
    also: Metrics | None = None,
) -> None:
    """Log everything under the names of :mod:`.metric_names`; docs/sweeps.md lists them.

    Numbers are logged once a seed, with the seed as step. Tables, charts and pages go to the
    loggers that show such things: all to W&B, tables and charts to TensorBoard.

    Args:
        loggers: Of the run.
        results: Of the benchmark.
        files: Charts (``*.png``) and pages (``*.html``); others are left out.
        also: More numbers, logged with those of the first seed.
    """
    numbers = benchmark_metrics(results)
    first = min(numbers)
    tables = [table for table in benchmark_tables(results) if table.rows]
    for logger in loggers:
        logger.log_hyperparams(results.config)
        for seed, metrics in numbers.items():
            extra = (also or {}) if seed == first else {}
            logger.log_metrics({"seed": float(seed), **metrics, **extra}, step=seed)
        for table in tables:
            log_table(logger, table)
        for file in files:
            if file.suffix in _IMAGES:
                log_image(logger, file)
            elif file.suffix in _PAGES:
                log_page(logger, file)
        logger.save()


def benchmark_tables(results: BenchmarkResults) -> tuple[ReportTable, ...]:
    """Return the tables that are logged."""
    makers = (benchmark_table, task_table, changes_table, divergence_table)
    return tuple(maker(results) for maker in makers)


def log_table(logger: Logger, table: ReportTable) -> None:
    """Log a table: as such to W&B, as Markdown to TensorBoard."""
    columns, rows = plain_table(table)
    if isinstance(logger, WandbLogger):
        logger.log_table(table_name(table.name), columns, rows)
    elif isinstance(logger, TensorBoardLogger):
        lines = [columns, ["---"] * len(columns), *table_texts(rows)]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        logger.experiment.add_text(table_name(table.name), text)


def log_image(logger: Logger, file: Path) -> None:
    """Log a chart."""
    if isinstance(logger, WandbLogger):
        logger.log_image(chart_name(file.stem), [str(file)])
    elif isinstance(logger, TensorBoardLogger):
        # Floats between 0 and 1, height x width x channels.
        logger.experiment.add_image(chart_name(file.stem), imread(file), dataformats="HWC")


def log_page(logger: Logger, file: Path) -> None:
    """Log a page, which W&B shows as it is."""
    if isinstance(logger, WandbLogger):
        page = wandb.Html(file.read_text(encoding="utf-8"), inject=False)
        logger.experiment.log({page_name(file.stem): page})


def plain_table(table: ReportTable) -> tuple[list[str], list[list[Plain]]]:
    """Return headings and rows of plain numbers; ends of intervals in columns of their own."""
    columns: list[str] = []
    places: list[tuple[int, str]] = []
    for place, column in enumerate(table.columns):
        wide = any(isinstance(row[place], Estimated) for row in table.rows)
        parts = ("value", "low", "high") if wide else ("value",)
        columns += [column.key if part == "value" else f"{column.key}_{part}" for part in parts]
        places += [(place, part) for part in parts]
    rows = [[_part(row[place], part) for place, part in places] for row in table.rows]
    # A word among numbers, such as "not usable", would make a column of words of them.
    numeric = [any(isinstance(row[at], float) for row in rows) for at in range(len(columns))]
    return columns, [
        [
            None if is_number and isinstance(cell, str) else cell
            for cell, is_number in zip(row, numeric, strict=True)
        ]
        for row in rows
    ]


def table_texts(rows: Sequence[Sequence[Plain]]) -> list[list[str]]:
    """Return rows as text, numbers with four digits."""
    return [
        ["" if c is None else f"{c:.4g}" if isinstance(c, float) else str(c) for c in row]
        for row in rows
    ]


def _part(cell: Cell, part: str) -> Plain:
    if not isinstance(cell, Estimated):
        return cell if part == "value" else None
    low, high = cell.ends or (None, None)
    return {"value": cell.value, "low": low, "high": high}[part]


# Loggers of a run: W&B that stays offline until the user logs in, and what results go there.

_LONGEST_NAME = 128
"""What W&B takes for the name of a run or a group."""


class WandbRunLogger(WandbLogger):
    """Logs one run to W&B: quietly, offline unless the user has logged in, one group a sweep.

    The run begins with the first thing that is logged. ``WANDB_MODE`` overrules everything; a
    user who has logged in but has no network gets an offline run. Call :func:`finish_loggers` at
    the end, so that the next job of a sweep in the same process gets a run of its own.

    Args:
        save_dir: The run's folder; the files lie in ``wandb/`` in it.
        project: Project in W&B.
        name: Name of the run; None lets W&B invent one. Overlong names are cut.
        sweep_dir: Folder of the sweep; the runs that lie in it form a group of its name. A run
            that does not is in no group.
        group: Name of the group, in place of the sweep's.
        init_timeout: Seconds to wait for the server before the run goes on offline.
    """

    def __init__(
        self,
        save_dir: str | Path,
        project: str = "loraport",
        name: str | None = None,
        sweep_dir: str | Path | None = None,
        group: str | None = None,
        init_timeout: float = 30.0,
    ) -> None:
        group = group or _sweep_group(Path(save_dir), sweep_dir)
        super().__init__(
            name=name[:_LONGEST_NAME] if name else None,
            save_dir=save_dir,
            project=project,
            group=group[:_LONGEST_NAME] if group else None,
            settings=wandb.Settings(
                silent=True, console="off", x_disable_stats=True, init_timeout=init_timeout
            ),
        )

    @property
    def experiment(self) -> Any:
        """The W&B run, begun where there is none yet."""
        begins = self._experiment is None and getattr(rank_zero_only, "rank", 0) == 0
        if begins and "mode" not in self._wandb_init:
            Path(self.save_dir or ".").mkdir(parents=True, exist_ok=True)
            self._wandb_init["mode"] = _mode()
        try:
            return super().experiment
        except wandb.errors.CommError:
            self._wandb_init["mode"] = "offline"
            return super().experiment


def log_results(loggers: Sequence[Logger], results: Results, chart: Path | None = None) -> None:
    """Log a training run to every logger, under the names that a benchmark has for the same.

    The means are logged without the mapper's name as well, to compare the runs of a sweep by.
    """
    files = [] if chart is None else [chart]
    log_benchmark(loggers, benchmark_of(results), files, also=plain_summary(results))


def finish_loggers(loggers: Sequence[Logger], status: str = "success") -> list[str]:
    """Close every logger and return a line for each, that says where its record is.

    Args:
        loggers: Of this run.
        status: ``success`` or ``failed``, as Lightning's loggers take it.
    """
    places = []
    for logger in loggers:
        logger.finalize(status)
        if isinstance(logger, WandbLogger):
            places += _finish_run(logger, status)
        elif logger.log_dir:
            places.append(str(logger.log_dir))
    return places


def _finish_run(logger: WandbLogger, status: str) -> list[str]:
    run = logger._experiment
    # No run: nothing was logged. Disabled by WANDB_MODE: nothing is kept.
    if not isinstance(run, wandb.Run):
        return []
    place = f"{run.settings.sync_dir} (offline: `wandb sync` uploads it)"
    if not run.offline:
        place = str(run.url)
    disabled = run.disabled
    run.finish(exit_code=0 if status == "success" else 1)
    return [] if disabled else [place]


def _sweep_group(save_dir: Path, sweep_dir: str | Path | None) -> str | None:
    """Return a name made of the last two parts of the sweep's folder, if the run lies in it."""
    if sweep_dir is None:
        return None
    parts = Path(sweep_dir).parts
    # Hydra gives the sweep's folder relative and the run's absolute.
    ours = save_dir.parts
    inside = any(ours[at : at + len(parts)] == parts for at in range(len(ours) - len(parts)))
    return "-".join(part.strip(os.sep) for part in parts[-2:]) if inside else None


def _mode() -> str | None:
    """Return W&B's mode: None where the user has chosen it, online where they have logged in."""
    if os.environ.get("WANDB_MODE"):
        return None
    wandb.setup(settings=wandb.Settings(silent=True))
    try:
        return "online" if wandb.login(prompt=False, verify=False) else "offline"
    except wandb.errors.AuthenticationError as error:
        raise ConfigurationError(
            f"W&B's credentials cannot be used ({error}); run `wandb login` again, or choose "
            "logger=csv"
        ) from None
