"""Writes the figures of README.md out of the committed results; a test compares.

``python docs/readme.py``. The results are made by

- ``docs/tiny_results.json``: ``python train.py mapper=pca_mlp``,
- ``docs/benchmark/results.json``: the benchmark of docs/results.md,
- ``docs/benchmark/corpus_alone.json``: its default port with generic text alone.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from loraport.evaluation.records import (
    BenchmarkResults,
    MethodResult,
    Results,
    TaskResult,
    in_points,
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
    found = Results.model_validate_json((DOCS / "tiny_results.json").read_bytes())
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
    whole = _benchmark("results.json")
    alone = _benchmark("corpus_alone.json")
    ports = [m for m in whole.methods if m.name == "default"]
    first = ports[0]
    base, oracle = (_mean(list(first.tasks.values()), name) for name in ("base", "oracle"))
    yield _row(
        *("", "may use", f"gap recovered, 95 % (base {base:.2f}, oracle {oracle:.2f})"),
        "points above the best control without labels",
    )
    yield "|---|---|---|---|"
    for name in ("random", "copy", "mean"):
        gaps = [m.summary.control_gaps[name] for m in ports if m.summary is not None]
        used = {"copy": "weights only", "mean": "anchors"}.get(name, "")
        yield _row(f"control: `{name}`", used, _both([f"{gap:.2f}" for gap in gaps]), "")
    yield _method("**the default port**, a corpus alone", alone.methods)
    yield _method("the default port, with texts of anchor tasks as well", ports)
    for data_access, called in CLASSES.items():
        of_class: dict[str, list[MethodResult]] = {}
        for method in whole.methods:
            if method.data_access == data_access and method.summary and method.refine is None:
                of_class.setdefault(method.name, []).append(method)
        best = max(of_class, key=lambda name: _merit(of_class[name]))
        yield _method(f"best of {len(of_class)} {called}: `{best}`", of_class[best])
    few = [_control_gap(m, "few_shot_32") for m in ports]
    yield _row("control: 32 labelled examples", "few-shot", _both([f"{g:.2f}" for g in few]), "")


def _benchmark(name: str) -> BenchmarkResults:
    return BenchmarkResults.model_validate_json((DOCS / "benchmark" / name).read_bytes())


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _gap(value: float | None, ends: tuple[float, float] | None) -> str:
    return f"{value:.2f} {interval_text(ends)}"


def _both(values: list[str]) -> str:
    """Return the values of all seeds; the first for all where they are alike."""
    return " and ".join(dict.fromkeys(values))


def _mean(tasks: list[TaskResult], condition: str) -> float:
    return sum(task.scores[condition] for task in tasks) / len(tasks)


def _merit(runs: list[MethodResult]) -> float:
    return sum(m.summary.gap_recovered or 0.0 for m in runs if m.summary is not None) / len(runs)


def _control_gap(method: MethodResult, control: str) -> float:
    """Return the gap that a control recovers, mean over the usable tasks."""
    usable = [task.scores for task in method.tasks.values() if task.usable]
    gaps = [(s[control] - s["base"]) / (s["oracle"] - s["base"]) for s in usable]
    return sum(gaps) / len(gaps)


def _method(called: str, runs: Iterable[MethodResult]) -> str:
    """Return the row of a method, its seeds side by side."""
    found = [(run, run.summary) for run in runs if run.summary is not None]
    gaps = [_gap(summary.gap_recovered, summary.ci95) for _, summary in found]
    margins = [
        f"{100 * summary.margin.value:.1f} {interval_text(in_points(summary.margin.ci95), 1)}"
        f" ({summary.margin.control})"
        for _, summary in found
    ]
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
