"""The jobs of a multirun, as they lie on disk: as one benchmark, and as the table of a sweep.

:func:`collect` is ``evaluate.py collect=DIR``: results of ``train.py`` and ``evaluate.py`` become
one benchmark, in which every thing stands once, with a warning where two runs disagree.
:class:`SweepSummary` is the callback of ``conf/sweep``: one line a job, its options against its
main numbers.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from ..evaluation.calibration import calibrate
from ..evaluation.records import (
    CARTRIDGE,
    BenchmarkResults,
    CalibrationResult,
    Example,
    MethodResult,
    PairRecord,
    Provenance,
    Results,
    SuiteResult,
)
from ..exceptions import DataError
from ..files import read_json, reading, write_whole
from ..reporting.console import print_line, print_tables
from ..reporting.tables import Column, ReportTable

Item = TypeVar("Item")

# Options that decide where and how a job reports, and nothing of what it finds.
_BOOKKEEPING = ("hydra", "logger", "callbacks", "output", "overwrite", "sweep", "collect")
# Options that are no variant of a method: the results name them in fields of their own.
_FIELDS = (
    *("mapper", "refine", "methods", "seed", "seeds", "pair", "experiment", "suite"),
    *("suite_methods", "suite_tasks", "suite_dtype", "calibration", "shown_examples", "logger"),
    *("few_shot", "dashboard"),
)
# Columns on anchors, by which options may be chosen; 1 where less is better.
_CHOOSING = {"NLL gain": -1, "objective": 1}
_SIGNED = ("NLL gain", "gap recovered", "NLL gap", "margin over mean")
_TAKES = "the results of a run: remove the run's folder, or run it again"
_FORMATS = {**dict.fromkeys(_SIGNED, "+.3f"), "seconds": ".1f"}


@dataclass(frozen=True)
class SweptJob:
    """One job of a multirun.

    Attributes:
        folder: Where it wrote.
    """

    folder: Path

    @cached_property
    def asked(self) -> dict[str, str]:
        """Options of its command line to their values; none where Hydra left no record.

        Raises:
            DataError: the record cannot be read.
        """
        record = self.folder / ".hydra" / "overrides.yaml"
        if not record.is_file():
            return {}
        takes = (
            "the words of a command line as a list in YAML, as Hydra writes them: remove the "
            "run's folder, or run it again"
        )
        with reading(record, takes, DataError):
            # Plain data: what a record of somebody else refers to here is nobody's to know.
            given = yaml.safe_load(record.read_text(encoding="utf-8")) or []
            # Not str(word): lists that hold each other may be longer than any memory.
            words = [str.lstrip(word, "+").partition("=") for word in given]
        return {key: value for key, _, value in words if key.split(".")[0] not in _BOOKKEEPING}

    @property
    def results(self) -> Path:
        """Its ``results.json``, which a job that failed lacks."""
        return self.folder / "results.json"

    @property
    def transfer_report(self) -> Path:
        """Its ``report.json``, where it is a job of ``transfer.py``."""
        return self.folder / "adapter" / "report.json"

    @property
    def done(self) -> bool:
        """Whether it came to its end."""
        return self.results.is_file() or self.transfer_report.is_file()


def jobs_in(folder: Path) -> list[SweptJob]:
    """Return all jobs under a folder, of one multirun or several, in the order of their names."""
    records = {path.parent for path in folder.rglob(".hydra") if path.is_dir()}
    results = {path.parent for path in folder.rglob("results.json")}
    return [SweptJob(p) for p in sorted(records | results, key=lambda p: [*map(natural, p.parts)])]


def differing(jobs: Iterable[SweptJob]) -> list[str]:
    """Return the options in which jobs differ, in the order in which they were given."""
    jobs = list(jobs)
    keys = dict.fromkeys(key for job in jobs for key in job.asked)
    return [key for key in keys if len({job.asked.get(key) for job in jobs}) > 1]


def natural(text: str) -> tuple[tuple[bool, float, str], ...]:
    """Return a key that sorts ``16`` behind ``4``, and words behind numbers.

    >>> sorted(["16", "4", "null", "0.5", "[1e-3]", "[10]"], key=natural)
    ['0.5', '4', '16', '[1e-3]', '[10]', 'null']
    """
    parts = re.split(r"(\d+\.?\d*(?:e[+-]?\d+)?)", text)
    return tuple(
        (index % 2 == 0 and part != "", float(part) if index % 2 else 0.0, part)
        for index, part in enumerate(parts)
    )


# The runs of a multirun as one benchmark.


class FinishedRun(NamedTuple):
    """A job and its results."""

    job: SweptJob
    results: BenchmarkResults


class Collected(NamedTuple):
    """The results of the runs under a folder.

    Attributes:
        results: All of it as one benchmark, its calibration computed anew from all points. Its
            verdicts are empty: they are to be computed anew from the whole.
        warnings: What is missing or was replaced, a sentence each.
    """

    results: BenchmarkResults
    warnings: tuple[str, ...]


def collect(folder: Path) -> Collected:
    """Gather the results of every run of ``train.py`` and ``evaluate.py`` under a folder.

    Options in which runs differ become the variant of their methods. Where two runs say something
    of the same method, pair, seed and variant, the later one counts: that whose file is newer.

    Raises:
        DataError: there is no result, one is damaged, or one name stands for two pairs.
    """
    jobs = jobs_in(folder)
    warnings = [_missing(job, folder) for job in jobs if not job.results.is_file()]
    runs = [FinishedRun(job, _read(job)) for job in jobs if job.results.is_file()]
    if not runs:
        raise DataError(
            f"no run under {folder} has a results.json; give the folder of a multirun of train.py "
            "or evaluate.py, such as multirun/train/RUN"
        )
    by_age = sorted(runs, key=lambda run: run.job.results.stat().st_mtime)
    results = BenchmarkResults(
        config={
            "collect": str(folder),
            "runs": {str(run.job.folder.relative_to(folder)): run.job.asked for run in runs},
        },
        pairs=_pairs(runs),
        methods=_methods(by_age, [run.job for run in runs], warnings),
        suites=_suites(runs, by_age, warnings),
        divergences=tuple(
            _newest(
                (one for run in by_age for one in run.results.divergences),
                lambda one: (one.condition, one.texts),
                "a divergence",
                warnings,
            )
        ),
        calibration=_calibration(runs),
        similarities={
            pair: rows for run in runs for pair, rows in run.results.similarities.items()
        },
        examples=_examples(runs),
        timing=_timing(runs),
        provenance=_provenance(runs, warnings),
    )
    return Collected(results, tuple(warnings))


def _missing(job: SweptJob, folder: Path) -> str:
    name = job.folder.relative_to(folder)
    asked = " ".join(f"{key}={value}" for key, value in job.asked.items())
    if job.transfer_report.is_file():
        return f"run {name} is one of transfer.py, which measures no held-out task ({asked})"
    return f"run {name} has no results.json: it failed or goes on ({asked})"


def _read(job: SweptJob) -> BenchmarkResults:
    if read_json(job.results, _TAKES, DataError).get("command") == "evaluate":
        return BenchmarkResults.read(job.results)
    return Results.read(job.results).as_benchmark()


def _pairs(runs: Iterable[FinishedRun]) -> dict[str, PairRecord]:
    pairs: dict[str, PairRecord] = {}
    for job, results in runs:
        for name, pair in results.pairs.items():
            if pairs.setdefault(name, pair) != pair:
                other = pairs[name]
                raise DataError(
                    f"pair={name} is {other.source} -> {other.target} in one run and {pair.source} "
                    f"-> {pair.target} in {job.folder}; collect them apart, or name them apart by "
                    "pair.name=..."
                )
    return pairs


def _methods(
    by_age: Sequence[FinishedRun], order: Sequence[SweptJob], warnings: list[str]
) -> tuple[MethodResult, ...]:
    """Return every method once, the newer one of two, in the order of their runs."""
    kept: dict[Hashable, tuple[SweptJob, MethodResult]] = {}
    for job, results in by_age:
        for method in results.methods:
            # Options in which runs of other methods differ are none of this one's.
            same = [
                run.job
                for run in by_age
                if any((m.pair, m.name) == (method.pair, method.name) for m in run.results.methods)
            ]
            keys = [key for key in differing(same) if _is_variant(key) and key in job.asked]
            variant = {key: job.asked[key] for key in keys} | method.variant
            key = (method.pair, method.name, method.seed, tuple(sorted(variant.items())))
            now = method.model_copy(update={"variant": variant})
            before = kept.get(key)
            if before is not None and before[1] != now:
                options = "".join(f", {name}={value}" for name, value in variant.items())
                warnings.append(
                    f"{method.name} on {method.pair}, seed {method.seed}{options}, is in the runs "
                    f"{before[0].folder} and {job.folder}; the latter, which is newer, counts"
                )
            kept[key] = (job, now)
    by_run = sorted(kept.values(), key=lambda one: order.index(one[0]))
    return tuple(method for _, method in by_run)


def _is_variant(key: str) -> bool:
    return key not in _FIELDS and not key.startswith("paths.")


def _newest(
    items: Iterable[Item], key: Callable[[Item], Hashable], what: str, warnings: list[str]
) -> list[Item]:
    """Return every item once, the last of those with the same key; the oldest come first."""
    kept: dict[Hashable, Item] = {}
    replaced = 0
    for item in items:
        replaced += kept.get(key(item), item) != item
        kept[key(item)] = item
    if replaced:
        warnings.append(
            f"{what} differs between runs in {replaced} cases of the same pair, method, task and "
            "seed; that of the newest run counts"
        )
    return list(kept.values())


def _suites(
    runs: Sequence[FinishedRun], by_age: Sequence[FinishedRun], warnings: list[str]
) -> tuple[SuiteResult, ...]:
    """Return every suite once, with the scores of all runs that asked the same items."""
    merged = []
    for name in dict.fromkeys(suite.name for run in runs for suite in run.results.suites):
        asked = [(r.job, suite) for r in by_age for suite in r.results.suites if suite.name == name]
        last = asked[-1][1]
        same = [s for _, s in asked if (s.items, s.metrics) == (last.items, last.metrics)]
        odd = [job.folder.name for job, suite in asked if not any(suite is s for s in same)]
        if odd:
            warnings.append(
                f"the suite {name} has other items in the runs {', '.join(odd)}, which are left out"
            )
        scores = _newest(
            (score for suite in same for score in suite.scores),
            lambda score: score.condition,
            f"a score of the suite {name}",
            warnings,
        )
        changes = _newest(
            (change for suite in same for change in suite.changes),
            lambda change: (change.condition, change.metric),
            f"a change of the suite {name}",
            warnings,
        )
        merged.append(last.model_copy(update={"scores": tuple(scores), "changes": tuple(changes)}))
    return tuple(merged)


def _calibration(runs: Iterable[FinishedRun]) -> CalibrationResult | None:
    """Return what the diagnosis says over the ports of all runs, each port once."""
    known = [run.results.calibration for run in runs if run.results.calibration is not None]
    points = {point.condition: point for calibration in known for point in calibration.points}
    return calibrate(list(points.values()), known[0].success) if known else None


def _examples(runs: Iterable[FinishedRun]) -> dict[str, tuple[Example, ...]]:
    """Return every example once, with what the methods of all runs answered."""
    merged: dict[str, dict[tuple[str, str], Example]] = {}
    for run in runs:
        for task, examples in run.results.examples.items():
            rows = merged.setdefault(task, {})
            for example in examples:
                before = rows.get((example.text, example.label), example)
                rows[example.text, example.label] = example.model_copy(
                    update={"answers": {**before.answers, **example.answers}}
                )
    return {task: tuple(rows.values()) for task, rows in merged.items()}


def _timing(runs: Iterable[FinishedRun]) -> dict[str, float | None]:
    """Return the seconds of each step, summed over the runs."""
    total: dict[str, float | None] = {}
    for run in runs:
        for step, seconds in run.results.timing.items():
            total[step] = round((total.get(step) or 0.0) + (seconds or 0.0), 2)
    return total


def _provenance(runs: Sequence[FinishedRun], warnings: list[str]) -> Provenance:
    """Return what all runs were made from; warn where that was not the same."""
    merged: dict[str, dict[str, str | None]] = {"versions": {}, "hashes": {}, "revisions": {}}
    for field, known in merged.items():
        records: list[Mapping[str, str | None]] = [
            getattr(run.results.provenance, field) for run in runs
        ]
        several = []
        for record in records:
            several += [name for name, value in record.items() if known.get(name, value) != value]
            known.update(record)
        if several:
            names = ", ".join(dict.fromkeys(several))
            warnings.append(f"the runs differ in their {field} of {names}")
    return Provenance.model_validate(merged)


# After a sweep: one line a job, its options against its main numbers.


class SweepRow(NamedTuple):
    """The options of one job of a sweep, and its main numbers."""

    options: dict[str, str]
    numbers: dict[str, float | None]
    run: str


class SweepSummary(Callback):
    """Prints the jobs of a sweep and writes them to ``sweep.csv`` in its folder.

    It reads what the jobs wrote, so that it does not matter which process ran them.

    Args:
        best_first: Order jobs by what they score on anchors. Else, and where nothing is scored on
            anchors, by their options: an order by the held-out tasks would be a choice by them.
    """

    def __init__(self, best_first: bool = True) -> None:
        self.best_first = best_first

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Gather the jobs under the sweep's folder, print and write them."""
        folder = Path(config.hydra.sweep.dir)
        jobs = jobs_in(folder)
        swept = [*(config.hydra.sweeper.get("params") or {}), *differing(jobs)]
        rows = sweep_rows(jobs, list(dict.fromkeys(swept)), best_first=self.best_first)
        if not rows:
            return
        table = sweep_table(rows)
        write_whole(folder / "sweep.csv", table.csv())
        print_tables([table.title], [table], [f"{table.caption}."])
        without = [job.folder.name for job in jobs if not job.done]
        if without:
            print_line(f"without results: {', '.join(without)}")
        print_line(f"   sweep  {folder / 'sweep.csv'}")


def sweep_rows(jobs: Sequence[SweptJob], swept: list[str], *, best_first: bool) -> list[SweepRow]:
    """Return a row for each job that has numbers to show."""
    rows = []
    for job in jobs:
        numbers = job_numbers(job)
        if any(number is not None for number in numbers.values()):
            options = {key: job.asked[key] for key in swept if key in job.asked}
            rows.append(SweepRow(options or job.asked, numbers, job.folder.name))
    names = list(dict.fromkeys(name for row in rows for name in row.options))
    rows.sort(key=lambda row: [natural(row.options.get(name, "")) for name in names])
    by = next((name for name in _CHOOSING if any(name in row.numbers for row in rows)), None)
    if by is not None and best_first:
        known = [row for row in rows if row.numbers.get(by) is not None]
        known.sort(key=lambda row: _CHOOSING[by] * (row.numbers[by] or 0.0))
        rows = known + [row for row in rows if row.numbers.get(by) is None]
    return rows


def job_numbers(job: SweptJob) -> dict[str, float | None]:
    """Return the main numbers of a job of ``train.py`` or ``transfer.py``; none of others."""
    if job.results.is_file():
        command = read_json(job.results, _TAKES, DataError).get("command")
        return train_numbers(Results.read(job.results)) if command == "train" else {}
    if job.transfer_report.is_file():
        with reading(job.transfer_report, _TAKES, DataError):
            return transfer_numbers(read_json(job.transfer_report, _TAKES, DataError))
    return {}


def train_numbers(results: Results) -> dict[str, float | None]:
    """Return the objective, if there is one, what was recovered, and the seconds it took."""
    summary, objective = results.summary, results.mapper_report.get("objective")
    gaps = {"gap recovered": summary.gap_recovered, "NLL gap": summary.gap_recovered_nll}
    if summary.cartridge_gap is not None:
        gaps[CARTRIDGE] = summary.cartridge_gap
    return {
        **({} if objective is None else {"objective": objective["value"]}),
        **gaps,
        "mean adapter": summary.control_gaps.get("mean"),
        "margin over mean": summary.margin_over_mean.value,
        "seconds": results.timing.get("fit"),
    }


def transfer_numbers(report: dict[str, Any]) -> dict[str, float | None]:
    """Return means over the anchors that a transfer was scored on, and the seconds of a port."""
    scores = report.get("anchor_scores", {})
    if scores.get("mean_nll_gain") is None:
        return {}
    rows = scores["anchors"].values()
    means = {
        name: sum(row["accuracy"][name] for row in rows) / len(rows)
        for name in ("ported", "base", "oracle")
    }
    seconds = report.get("timing", {}).get("port")
    return {"NLL gain": scores["mean_nll_gain"], **means, "seconds": seconds}


def sweep_table(rows: Sequence[SweepRow]) -> ReportTable:
    """Return a table of the jobs: their options, then their numbers."""
    options = dict.fromkeys(name for row in rows for name in row.options)
    numbers = dict.fromkeys(name for row in rows for name in row.numbers)
    caption = "gaps: on the held-out tasks; choose options by objective=, never by these"
    if "NLL gain" in numbers:
        caption = "on the anchors; NLL gain: of the right label, ported against the target as it is"
    elif "objective" in numbers:
        caption = (
            "objective: on anchors, less is better; gaps: on the held-out tasks, not chosen by"
        )
    last_parts = [name.rpartition(".")[2] for name in options]
    headings = [
        last if last_parts.count(last) == 1 else name
        for name, last in zip(options, last_parts, strict=True)
    ]
    return ReportTable.of(
        "sweep",
        "accuracies and gaps are means over tasks",
        caption,
        [
            *(Column(name, head, ".4g") for name, head in zip(options, headings, strict=True)),
            *(Column(name, name, _FORMATS.get(name, ".3f")) for name in numbers),
            "run",
        ],
        [
            {name: _option(value) for name, value in row.options.items()}
            | row.numbers
            | {"run": row.run}
            for row in rows
        ],
    )


def _option(value: str) -> str | float:
    """Return a long number, such as an optimiser draws, as one."""
    try:
        return value if len(value) <= 6 else float(value)
    except ValueError:
        return value
