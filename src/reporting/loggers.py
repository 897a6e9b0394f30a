"""What runs log to W&B, TensorBoard and CSV: numbers, tables, charts and pages.

Numbers have the names that docs/sweeps.md lists; the dashboard asks for them by these names. Every
Lightning logger gets the numbers; a :class:`RunLogger` also shows tables, charts and pages, as far
as its service does.
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

from ..component import Component
from ..evaluation.records import BenchmarkResults, Condition, MethodResult, Number, Results
from ..exceptions import ConfigurationError, LoraportError, OutputError
from ..progress import shown_progress
from .tables import ReportTable, changes_table, divergence_table, methods_table, tasks_table

Metrics = dict[str, float]


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
    found: dict[str, Number] = {}
    if method.summary is not None:
        low, high = method.ci95 or (None, None)
        found |= {
            f"summary/{label}/gap_recovered": method.gap_recovered,
            f"summary/{label}/gap_recovered_low": low,
            f"summary/{label}/gap_recovered_high": high,
            f"summary/{label}/gap_recovered_nll": method.summary.gap_recovered_nll,
            f"summary/{label}/usable": method.summary.usable,
            f"summary/{label}/margin": method.summary.margin.value,
            f"summary/{label}/margin_over_mean": method.summary.margin_over_mean.value,
            f"summary/{label}/retention": method.retention,
        }
    for name, task in method.tasks.items():
        found |= {
            f"gap/{label}/{name}": task.gap_recovered,
            f"gap_nll/{label}/{name}": task.gap_recovered_nll,
            f"retention/{label}/{name}": task.retention,
            f"accuracy/{label}/{name}": task.scores.get("predicted"),
            f"nll/{label}/{name}": task.nll.get("predicted"),
        }
    found |= {f"cost/{label}/{step}": seconds for step, seconds in method.seconds.items()}
    return _known(found)


def _known(numbers: dict[str, Number]) -> Metrics:
    return {name: float(number) for name, number in numbers.items() if number is not None}


def benchmark_metrics(results: BenchmarkResults) -> dict[int, Metrics]:
    """Return all single numbers of a benchmark by seed, the seeds in rising order.

    What has no seed, such as the base's scores on a suite, stands with the first one.
    """
    seeds = sorted({method.seed for method in results.methods}) or [0]
    found: dict[int, Metrics] = {seed: {} for seed in seeds}

    def of(condition: Condition) -> tuple[Metrics, str]:
        seed = seeds[0] if condition.seed is None else condition.seed
        return found.setdefault(seed, {}), condition_label(condition, results.pairs)

    for method in results.methods:
        label = method_label(method, results.pairs)
        found[method.seed] |= method_metrics(method, label)
        drift = results.generic_kl(method.pair, method.name, method.seed)
        known = [divergence.kl for divergence in drift if divergence.kl is not None]
        if known:
            found[method.seed][f"summary/{label}/drift"] = sum(known) / len(known)
    for suite in results.suites:
        for scores in suite.scores:
            metrics, label = of(scores.condition)
            for name, mean in scores.means.items():
                metrics |= _known({f"suites/{suite.name}/{name}/{label}": mean})
    for divergence in results.divergences:
        metrics, label = of(divergence.condition)
        numbers = {"kl": divergence.kl, "js": divergence.js, "top1": divergence.top1}
        metrics |= _known({f"drift/{divergence.texts}/{w}/{label}": n for w, n in numbers.items()})
    return dict(sorted(found.items()))


def plain_summary(results: Results) -> Metrics:
    """Return a training run's means under names without its mapper.

    They compare the runs of a sweep: ``summary/gap_recovered`` is that of whatever each ran.
    """
    start = f"summary/{results.mapper}/"
    found = {
        f"summary/{name.removeprefix(start)}": number
        for name, number in method_metrics(results.as_method(), results.mapper).items()
        if name.startswith(start)
    }
    # What a run was told to go by, where it was; less is better.
    objective = results.mapper_report.get("objective", {}).get("value")
    return found if objective is None else found | {"summary/objective": float(objective)}


class RunLogger(Logger):
    """A logger that shows more than numbers; what it does not override it does not show."""

    def show_table(self, table: ReportTable) -> None:
        """Log a table."""

    def show_chart(self, file: Path) -> None:
        """Log a chart, a PNG."""

    def show_page(self, file: Path) -> None:
        """Log a page, HTML that needs no other file."""

    def close(self, status: str) -> str | None:
        """End the run for good, and return where its record lies; None for nowhere.

        Unlike ``finalize``, which Lightning calls after every fit.
        """
        self.finalize(status)
        return str(self.log_dir) if self.log_dir else None


class TensorBoardRunLogger(TensorBoardLogger, RunLogger):
    """Logs one run as an event file for TensorBoard, in ``tensorboard/`` of the run's folder.

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

    def show_table(self, table: ReportTable) -> None:
        """Log a table as Markdown."""
        self.experiment.add_text(f"benchmark/{table.name}", table.markdown())

    def show_chart(self, file: Path) -> None:
        """Log a chart as floats between 0 and 1, height x width x channels."""
        self.experiment.add_image(f"charts/{file.stem}", imread(file), dataformats="HWC")


_LONGEST_NAME = 128  # what W&B takes for the name of a run or a group


class WandbRunLogger(WandbLogger, RunLogger):
    """Logs one run to W&B: quietly, offline unless the user has logged in, one group a sweep.

    The run begins with :func:`begun_loggers`, or the first thing that is logged. ``WANDB_DISABLED``
    and ``WANDB_MODE`` overrule everything; a user who has logged in but has no network gets an
    offline run. Call :func:`finish_loggers` at
    the end, so that the next job of a sweep in the same process gets a run of its own.

    The options are described in ``conf/logger/wandb.yaml``; a name that is too long is cut.
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

    def show_table(self, table: ReportTable) -> None:
        """Log a table of plain numbers."""
        numbers = table.numbers()
        rows = numbers.astype(object).where(numbers.notna(), None).to_numpy().tolist()
        self.log_table(f"benchmark/{table.name}", list(numbers.columns), rows)

    def show_chart(self, file: Path) -> None:
        """Log a chart."""
        self.log_image(f"charts/{file.stem}", [str(file)])

    def show_page(self, file: Path) -> None:
        """Log a page, which W&B shows as it is."""
        page = wandb.Html(file.read_text(encoding="utf-8"), inject=False)
        self.experiment.log({f"pages/{file.stem}": page})

    def close(self, status: str) -> str | None:
        """End the run; the record is the folder of an offline run, else an address."""
        self.finalize(status)
        run = self._experiment
        # No run: nothing was logged. Disabled by WANDB_MODE: nothing is kept.
        if not isinstance(run, wandb.Run):
            return None
        record = f"{run.settings.sync_dir} (offline: `wandb sync` uploads it)"
        if not run.offline:
            record = str(run.url)
        disabled = run.disabled
        run.finish(exit_code=0 if status == "success" else 1)
        return None if disabled else record


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
    """Return W&B's mode: None where the user has chosen it, online where they have logged in.

    Raises:
        ConfigurationError: online is chosen without a login, or the login cannot be used.
    """
    if os.environ.get("WANDB_DISABLED", "").lower() not in ("", "0", "false", "no", "off"):
        return "disabled"
    chosen = os.environ.get("WANDB_MODE")
    if chosen and chosen != "online":
        return None
    wandb.setup(settings=wandb.Settings(silent=True))
    try:
        if wandb.login(prompt=False, verify=False):
            return "online"
        if chosen is None:
            return "offline"
        raise ConfigurationError(
            "WANDB_MODE=online, but nobody has logged in to W&B; run `wandb login`, set "
            "WANDB_API_KEY, or leave WANDB_MODE out for an offline run"
        )
    except wandb.errors.AuthenticationError as error:
        raise ConfigurationError(
            f"W&B's credentials cannot be used ({error}); run `wandb login` again, or choose "
            "logger=csv"
        ) from None


def log_benchmark(
    loggers: Sequence[Logger],
    results: BenchmarkResults,
    files: Sequence[Path] = (),
    also: Metrics | None = None,
) -> None:
    """Log everything under the names that docs/sweeps.md lists, the numbers with the seed as step.

    Tables, charts and pages go to the loggers that show such things; of ``files`` charts are
    ``*.png`` and pages ``*.html``. The numbers of ``also`` are logged with the first seed's.
    """
    numbers = benchmark_metrics(results)
    numbers[min(numbers)] |= also or {}
    for logger in loggers:
        logger.log_hyperparams(results.config)
        for seed, metrics in numbers.items():
            logger.log_metrics({"seed": float(seed), **metrics}, step=seed)
        if isinstance(logger, RunLogger):
            for table in logged_tables(results):
                if table.rows:
                    logger.show_table(table)
            for file in files:
                if file.suffix == ".png":
                    logger.show_chart(file)
                elif file.suffix == ".html":
                    logger.show_page(file)
        logger.save()


def logged_tables(results: BenchmarkResults) -> list[ReportTable]:
    """Return the tables that are logged."""
    return [make(results) for make in (methods_table, tasks_table, changes_table, divergence_table)]


def log_results(loggers: Sequence[Logger], results: Results, chart: Path | None = None) -> None:
    """Log a training run to every logger, under the names that a benchmark has for the same.

    The means are logged without the mapper's name as well, to compare the runs of a sweep by.
    """
    files = [] if chart is None else [chart]
    log_benchmark(loggers, results.as_benchmark(), files, also=plain_summary(results))


def begun_loggers(named: Mapping[str, Component]) -> list[Logger]:
    """Build loggers, and begin what each writes to, before the work that it is to log.

    Raises:
        ConfigurationError: the options of one, or what the environment says of it, cannot be used.
        OutputError: its folder cannot be written.
    """
    loggers: list[Logger] = []
    for name, component in named.items():
        try:
            loggers.append(component.build())
            getattr(loggers[-1], "experiment", None)
        except LoraportError:
            raise
        except Exception as error:  # whatever its library makes of options and environment
            if isinstance(error, OSError) and error.errno is not None:
                raise OutputError(
                    f"logger={name} cannot write {error.filename or 'its files'} "
                    f"({error.strerror}); set hydra.run.dir to another folder, or logger=none"
                ) from error
            why = " ".join(str(error).split()) or type(error).__name__
            raise ConfigurationError(
                f"logger={name} cannot be used ({why}); correct its options or its environment "
                f"variables{_named_variables()}, or choose logger=csv"
            ) from error
    return loggers


def _named_variables() -> str:
    names = sorted(name for name in os.environ if name.startswith("WANDB_"))
    return f" ({', '.join(names)})" if names else ""


def finish_loggers(loggers: Sequence[Logger], status: str = "success") -> list[str]:
    """Close every logger and return where the record of each is.

    ``status`` is ``success`` or ``failed``, as Lightning's loggers take it.
    """
    records = []
    for logger in loggers:
        if isinstance(logger, RunLogger):
            records.append(logger.close(status))
        else:
            logger.finalize(status)
            records.append(logger.log_dir)
    return [str(record) for record in records if record]


class FitProgress(Callback):
    """Shows epochs, the time that is left and the last losses on stderr."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar on the first device."""
        self._progress = shown_progress("epochs", hidden=trainer.global_rank > 0)
        described = f"fitting {type(pl_module).__name__}"
        self._bar = self._progress.add_task(described, total=trainer.max_epochs)
        self._progress.start()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Advance by one epoch."""
        losses = [f"{name} {float(value):.3f}" for name, value in trainer.callback_metrics.items()]
        described = " ".join([f"fitting {type(pl_module).__name__}", *losses])
        self._progress.update(self._bar, advance=1, description=described)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._progress.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: Any) -> None:
        """Close the bar, so that an error is readable."""
        if hasattr(self, "_progress"):
            self._progress.stop()
