"""Writes the figures of README.md out of the committed results; a test compares.

``python docs/readme.py``. The results are made by

- ``docs/tiny_results.json``: ``python train.py mapper=pca_mlp``,
- ``docs/benchmark/results.json``: the benchmark of docs/results.md,
- ``docs/benchmark/corpus_alone.json``: its default port with generic text alone.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import fmean

from loraport.evaluation.assembly import control_lines
from loraport.evaluation.records import (
    BenchmarkResults,
    MethodResult,
    Results,
    TaskResult,
    interval_text,
)

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
SHOWN = 2  # tasks of the first port
CONDITIONS = ("base", "source", "oracle", "mean", "nearest", "random", "swapped", "predicted")
# The rows of mappers: what they learn from, and what they may use.
CLASSES = {
    "generic text": "mappers that learn from generic text",
    "weights only": "mappers that need the weights alone",
    "anchors": "mappers that learn from anchors",
}


def first_port() -> Iterator[str]:
    """Give the table of ``python train.py mapper=pca_mlp``."""
    found = Results.read(DOCS / "tiny_results.json")
    tasks = list(found.tasks.items())
    yield f"| task | {' | '.join(CONDITIONS)} | gap recovered, 95 % |"
    yield "|---" * (len(CONDITIONS) + 2) + "|"
    for name, task in tasks[:SHOWN]:
        scores = [f"{task.scores[condition]:.2f}" for condition in CONDITIONS]
        yield _row(name, *scores, _gap(task.gap_recovered, task.ci95))
    yield _row("…", *[""] * (len(CONDITIONS) + 1))
    means = [f"{_mean([t for _, t in tasks], condition):.2f}" for condition in CONDITIONS]
    summary = found.summary
    yield _row(f"mean of {len(tasks)}", *means, _gap(summary.gap_recovered, summary.ci95))


def benchmark() -> Iterator[str]:
    """Give the table of the default port, the best mapper of each class, and the controls."""
    whole = BenchmarkResults.read(DOCS / "benchmark" / "results.json")
    alone = BenchmarkResults.read(DOCS / "benchmark" / "corpus_alone.json")
    ports = [method for method in whole.methods if method.name == "default"]
    base, oracle = (ports[0].mean_accuracy(name) for name in ("base", "oracle"))
    yield _row(
        *("", "may use", f"gap recovered, 95 % (base {base:.2f}, oracle {oracle:.2f})"),
        "points above the best control without labels",
    )
    yield "|---|---|---|---|"
    for name in ("random", "copy", "mean"):
        yield _control(f"`{name}`", name, whole)
    yield _method("**the default port**, a corpus alone", alone.methods)
    yield _method("the default port, with texts of anchor tasks as well", ports)
    for data_access, called in CLASSES.items():
        of_class: dict[str, list[MethodResult]] = {}
        for method in whole.methods:
            if method.data_access == data_access and method.summary and method.refine is None:
                of_class.setdefault(method.name, []).append(method)
        best = max(of_class, key=lambda name: fmean(run.merit for run in of_class[name]))
        yield _method(f"best of {len(of_class)} {called}: `{best}`", of_class[best])
    yield _control("32 labelled examples", "few_shot_32", whole)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _gap(value: float | None, ends: tuple[float, float] | None) -> str:
    return f"{value:.2f} {interval_text(ends)}"


def _both(values: list[str]) -> str:
    """Return the values of all seeds; the first for all where they are alike."""
    return " and ".join(dict.fromkeys(values))


def _mean(tasks: list[TaskResult], condition: str) -> float:
    return sum(task.scores[condition] for task in tasks) / len(tasks)


def _control(called: str, condition: str, results: BenchmarkResults) -> str:
    """Return the row of a control, its seeds side by side."""
    lines = [line for line in control_lines(results) if line.condition == condition]
    gaps = _both([f"{line.gap:.2f}" for line in lines])
    return _row(f"control: {called}", lines[0].data_access or "", gaps, "")


def _method(called: str, runs: Iterable[MethodResult]) -> str:
    """Return the row of a method, its seeds side by side."""
    found = [(run, run.summary) for run in runs if run.summary is not None]
    gaps = [_gap(summary.gap_recovered, summary.ci95) for _, summary in found]
    margins = []
    for _, summary in found:
        points, ends = summary.margin.points
        margins.append(f"{points:.1f} {interval_text(ends, 1)} ({summary.margin.control})")
    return _row(called, found[0][0].data_access, _both(gaps), _both(margins))


BLOCKS = {"first port": first_port, "benchmark": benchmark}


def written(text: str) -> str:
    """Return the text of README.md with its tables as the results have them."""
    for name, lines in BLOCKS.items():
        begin, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}{chr(10).join(lines())}\n{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
