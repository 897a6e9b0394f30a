"""The jobs of a multirun, as they lie on disk."""

import csv
import io
import json
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

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
from ..files import write_whole

_BOOKKEEPING = ("hydra", "logger", "callbacks", "output", "overwrite", "sweep", "collect")
"""Options that decide where and how a job reports, and nothing of what it finds."""


@dataclass(frozen=True)
class SweptJob:
    """One job of a multirun.

    Attributes:
        folder: Where it wrote.
    """

    folder: Path

    @cached_property
    def asked(self) -> dict[str, str]:
        """Options of its command line to their values; none where Hydra left no record."""
        record = self.folder / ".hydra" / "overrides.yaml"
        if not record.is_file():
            return {}
        words = [str(word).lstrip("+").partition("=") for word in OmegaConf.load(record)]
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
    return [SweptJob(path) for path in sorted(records | results, key=_natural)]


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
        (place % 2 == 0 and part != "", float(part) if place % 2 else 0.0, part)
        for place, part in enumerate(parts)
    )


def _natural(path: Path) -> tuple[tuple[tuple[bool, float, str], ...], ...]:
    return tuple(natural(part) for part in path.parts)


# What several runs found, put together: of each thing one, and a warning where they disagree.

Item = TypeVar("Item")


class Found(NamedTuple):
    """A job and what it found."""

    job: SweptJob
    results: BenchmarkResults


def latest(
    found: Sequence[Found],
    items: Callable[[BenchmarkResults], Iterable[Item]],
    key: Callable[[Item], Hashable],
    what: str,
    warnings: list[str],
) -> list[Item]:
    """Return every item once, that of the newest run."""
    by_age = sorted(found, key=lambda one: one.job.results.stat().st_mtime)
    kept: dict[Hashable, Item] = {}
    replaced = 0
    for one in by_age:
        for item in items(one.results):
            replaced += kept.get(key(item), item) != item
            kept[key(item)] = item
    if replaced:
        warnings.append(
            f"{what} differs between runs in {replaced} cases of the same pair, method, task and "
            "seed; that of the newest run counts"
        )
    return list(kept.values())


def merged_suites(found: Sequence[Found], warnings: list[str]) -> tuple[SuiteResult, ...]:
    """Return every suite once, with the scores of all runs that asked the same items."""
    names = dict.fromkeys(suite.name for one in found for suite in one.results.suites)
    merged = []
    for name in names:
        mine = [(one, suite) for one in found for suite in one.results.suites if suite.name == name]
        shape = (mine[-1][1].items, mine[-1][1].metrics)
        same = [(one, suite) for one, suite in mine if (suite.items, suite.metrics) == shape]
        odd = [one.job.folder.name for one, suite in mine if (suite.items, suite.metrics) != shape]
        if odd:
            warnings.append(
                f"the suite {name} has other items in the runs {', '.join(odd)}, which are left out"
            )
        parts = [Found(one.job, one.results.model_copy(update={"suites": (s,)})) for one, s in same]
        merged.append(
            same[-1][1].model_copy(
                update={
                    "scores": tuple(
                        latest(
                            parts,
                            lambda results: results.suites[0].scores,
                            lambda scores: scores.condition,
                            f"a score of the suite {name}",
                            warnings,
                        )
                    ),
                    "changes": tuple(
                        latest(
                            parts,
                            lambda results: results.suites[0].changes,
                            lambda change: (change.condition, change.metric),
                            f"a change of the suite {name}",
                            warnings,
                        )
                    ),
                }
            )
        )
    return tuple(merged)


def merged_examples(found: Iterable[Found]) -> dict[str, tuple[Example, ...]]:
    """Return every example once, with what the methods of all runs answered."""
    merged: dict[str, dict[tuple[str, str], Example]] = {}
    for task, examples in chain.from_iterable(one.results.examples.items() for one in found):
        rows = merged.setdefault(task, {})
        for example in examples:
            before = rows.get((example.text, example.label), example)
            rows[example.text, example.label] = example.model_copy(
                update={"answers": {**before.answers, **example.answers}}
            )
    return {task: tuple(rows.values()) for task, rows in merged.items()}


def summed_timing(found: Iterable[Found]) -> dict[str, float | None]:
    """Return the seconds of each step, summed over the runs."""
    total: dict[str, float | None] = {}
    for one in found:
        for step, seconds in one.results.timing.items():
            total[step] = round((total.get(step) or 0.0) + (seconds or 0.0), 2)
    return total


def merged_provenance(found: Sequence[Found], warnings: list[str]) -> Provenance:
    """Return what all runs were made from; warn where that was not the same."""
    parts = [one.results.provenance for one in found]
    for field in ("versions", "hashes", "revisions"):
        several = _several(getattr(part, field) for part in parts)
        if several:
            warnings.append(f"the runs differ in their {field} of {', '.join(several)}")
    return Provenance(
        versions={k: v for part in parts for k, v in part.versions.items()},
        hashes={k: v for part in parts for k, v in part.hashes.items()},
        revisions={k: v for part in parts for k, v in part.revisions.items()},
    )


def _several(records: Iterable[Mapping[str, str | None]]) -> list[str]:
    """Return the names that stand for several values."""
    values: dict[str, set[str | None]] = {}
    for record in records:
        for name, value in record.items():
            values.setdefault(name, set()).add(value)
    return [name for name, found in values.items() if len(found) > 1]


# The runs of a multirun as one benchmark: ``evaluate.py collect=DIR``.

_FIELDS = (
    *("mapper", "refine", "methods", "seed", "seeds", "pair", "experiment", "suite"),
    *("suite_methods", "suite_tasks", "suite_dtype", "calibration", "shown_examples", "logger"),
    *("few_shot", "dashboard"),
)
"""Options that are no variant: the results name them in fields of their own."""


class Collected(NamedTuple):
    """What the runs under a folder found.

    Attributes:
        results: All of it as one benchmark, its calibration found anew from all points. Its
            verdicts are empty: they are to be found anew from the whole.
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
    missing = [job for job in jobs if not job.results.is_file()]
    done = sorted(
        (job for job in jobs if job.results.is_file()), key=lambda job: job.results.stat().st_mtime
    )
    if not done:
        raise DataError(
            f"no run under {folder} has a results.json; give the folder of a multirun of train.py "
            "or evaluate.py, such as multirun/train/RUN"
        )
    warnings = [_missing(job, folder) for job in missing]
    found = [Found(job, _read(job)) for job in done]
    methods = _methods(found, warnings)
    order = [job.folder for job in jobs]
    found.sort(key=lambda one: order.index(one.job.folder))
    results = BenchmarkResults(
        config={
            "collect": str(folder),
            "runs": {str(one.job.folder.relative_to(folder)): one.job.asked for one in found},
        },
        pairs=_pairs(found),
        methods=tuple(
            method for _, method in sorted(methods, key=lambda one: order.index(one[0].folder))
        ),
        suites=merged_suites(found, warnings),
        divergences=tuple(
            latest(
                found,
                lambda results: results.divergences,
                lambda one: (one.condition, one.texts),
                "a divergence",
                warnings,
            )
        ),
        calibration=_calibrated(found),
        similarities={
            pair: rows for one in found for pair, rows in one.results.similarities.items()
        },
        examples=merged_examples(found),
        timing=summed_timing(found),
        provenance=merged_provenance(found, warnings),
    )
    return Collected(results, tuple(warnings))


def _is_variant(key: str) -> bool:
    return key not in _FIELDS and not key.startswith("paths.")


def _missing(job: SweptJob, folder: Path) -> str:
    place = job.folder.relative_to(folder)
    asked = " ".join(f"{key}={value}" for key, value in job.asked.items())
    if job.transfer_report.is_file():
        return f"run {place} is one of transfer.py, which measures no held-out task ({asked})"
    return f"run {place} has no results.json: it failed or goes on ({asked})"


def _read(job: SweptJob) -> BenchmarkResults:
    try:
        command = json.loads(job.results.read_text(encoding="utf-8"))["command"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{job.results} is no results.json of a run ({error}); remove the run's folder, or run "
            "it again"
        ) from None
    if command == "evaluate":
        return BenchmarkResults.read(job.results)
    return Results.read(job.results).as_benchmark()


def _methods(found: Sequence[Found], warnings: list[str]) -> list[tuple[SweptJob, MethodResult]]:
    """Return every method once, the later one of two, and the run that it is of."""
    kept: dict[Hashable, tuple[SweptJob, MethodResult]] = {}
    for job, results in found:
        for method in results.methods:
            # Options in which runs of other methods differ are none of this one's.
            same = [one.job for one in found if _has(one.results, method)]
            keys = [key for key in differing(same) if _is_variant(key) and key in job.asked]
            told = {key: job.asked[key] for key in keys}
            variant = told | method.variant
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
    return list(kept.values())


def _has(results: BenchmarkResults, method: MethodResult) -> bool:
    return any((m.pair, m.name) == (method.pair, method.name) for m in results.methods)


def _calibrated(found: Iterable[Found]) -> CalibrationResult | None:
    """Return what the diagnosis tells over the ports of all runs, each port once."""
    known = [one.results.calibration for one in found if one.results.calibration is not None]
    points = {point.condition: point for calibration in known for point in calibration.points}
    return calibrate(list(points.values()), known[0].success) if known else None


def _pairs(found: Iterable[Found]) -> dict[str, PairRecord]:
    pairs: dict[str, PairRecord] = {}
    for job, results in found:
        for name, pair in results.pairs.items():
            if pairs.setdefault(name, pair) != pair:
                other = pairs[name]
                raise DataError(
                    f"pair={name} is {other.source} -> {other.target} in one run and {pair.source} "
                    f"-> {pair.target} in {job.folder}; collect them apart, or name them apart by "
                    "pair.name=..."
                )
    return pairs


# After a sweep: one line a job, its options against what it found.

_PIPED_WIDTH = 120
_CHOOSING = {"NLL gain": -1, "objective": 1}
"""Columns on anchors, by which options may be chosen; 1 where less is better."""
_SIGNED = ("NLL gain", "gap recovered", "NLL gap", "margin over mean")


class SweepRow(NamedTuple):
    """What one job of a sweep was asked, and what it found."""

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
        write_whole(folder / "sweep.csv", csv_text(rows))
        console = Console()
        if not console.is_terminal:
            console = Console(width=_PIPED_WIDTH)
        console.print(sweep_table(rows))
        without = [job.folder.name for job in jobs if not job.done]
        if without:
            console.print(f"without results: {', '.join(without)}", highlight=False)
        console.print(f"   sweep  {folder / 'sweep.csv'}", highlight=False, soft_wrap=True)


def sweep_rows(jobs: Sequence[SweptJob], swept: list[str], *, best_first: bool) -> list[SweepRow]:
    """Return a row for each job that has numbers to show."""
    rows = []
    for job in jobs:
        numbers = job_numbers(job)
        if any(number is not None for number in numbers.values()):
            options = {key: job.asked[key] for key in swept if key in job.asked}
            rows.append(SweepRow(options or job.asked, numbers, job.folder.name))
    names = _options(rows)
    rows.sort(key=lambda row: [natural(row.options.get(name, "")) for name in names])
    by = next((name for name in _CHOOSING if any(name in row.numbers for row in rows)), None)
    if by is not None and best_first:
        rows.sort(key=lambda row: _worth(row.numbers.get(by), _CHOOSING[by]))
    return rows


def job_numbers(job: SweptJob) -> dict[str, float | None]:
    """Return the main numbers of a job of ``train.py`` or ``transfer.py``; none of others."""
    if job.results.is_file():
        content = json.loads(job.results.read_text(encoding="utf-8"))
        return train_numbers(Results.read(job.results)) if content["command"] == "train" else {}
    if job.transfer_report.is_file():
        return transfer_numbers(json.loads(job.transfer_report.read_text(encoding="utf-8")))
    return {}


def train_numbers(results: Results) -> dict[str, float | None]:
    """Return what is chosen by, if anything, what was recovered, and the seconds it took."""
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


def sweep_table(rows: Sequence[SweepRow]) -> Table:
    """Return a table of the jobs: their options, then their numbers."""
    options, numbers = _options(rows), _numbers(rows)
    table = Table(
        title="accuracies and gaps are means over tasks",
        caption=_caption(numbers),
        box=box.SIMPLE_HEAD,
        show_edge=False,
        caption_justify="left",
    )
    for name in options:
        table.add_column(_short(name, options))
    for name in (*numbers, "run"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = [_rounded(row.options.get(name, "")) for name in options]
        cells += [_cell(name, row.numbers.get(name)) for name in numbers]
        # Text, because a value in brackets must not be read as markup.
        table.add_row(*map(Text, (*cells, row.run)))
    return table


def csv_text(rows: Sequence[SweepRow]) -> str:
    """Return the same as CSV, with all digits."""
    options, numbers = _options(rows), _numbers(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*options, *numbers, "run"])
    for row in rows:
        found = [row.numbers.get(name) for name in numbers]
        writer.writerow([*(row.options.get(name, "") for name in options), *found, row.run])
    return text.getvalue()


def _options(rows: Sequence[SweepRow]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.options))


def _numbers(rows: Sequence[SweepRow]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.numbers))


def _short(name: str, among: Sequence[str]) -> str:
    """Return the last part of an option's name, where no other one has the same."""
    last = name.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in among) == 1 else name


def _rounded(value: str) -> str:
    """Return a value with four digits, where it is a number that an optimiser drew."""
    try:
        return value if len(value) <= 6 else f"{float(value):.4g}"
    except ValueError:
        return value


def _worth(value: float | None, sign: int) -> tuple[bool, float]:
    return (value is None, sign * (value or 0.0))


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "seconds":
        return f"{value:.1f}"
    return f"{value:+.3f}" if name in _SIGNED else f"{value:.3f}"


def _caption(numbers: Sequence[str]) -> str:
    if "NLL gain" in numbers:
        return "on the anchors; NLL gain: of the right label, ported against the target as it is"
    if "objective" in numbers:
        return "objective: on anchors, less is better; gaps: on the held-out tasks, not chosen by"
    return "gaps: on the held-out tasks; choose options by objective=, never by these"
