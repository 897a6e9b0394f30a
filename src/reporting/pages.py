"""``report.html``: the whole benchmark on one page that needs no other file and no network."""

import base64
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..evaluation.records import BenchmarkResults, IntersectionMap
from ..files import write_whole
from .benchmark_tables import (
    benchmark_table,
    changes_table,
    divergence_table,
    retention_table,
    suite_table,
)
from .cards import provenance_rows
from .console import FIT_COLUMNS, diagnosis_remarks, fit_rows, layer_rows, measure_rows, number
from .figures import Chart, benchmark_charts, file_part
from .summaries import HYPOTHESES, NO_VERDICT, benchmark_remarks, class_words
from .tables import (
    Cell,
    Estimated,
    ReportTable,
    calibration_table,
    cell_text,
    confidence_table,
    csv_text,
    is_number,
    latex_table,
    points_table,
    refused_methods,
    sorted_methods,
    task_names,
    task_table,
    transfer_table,
)

GLOSSARY = (
    (
        "gap recovered",
        "(method - base) / (oracle - base) in accuracy: 0 is the target without an adapter, 1 the "
        "adapter that was trained on the target with the task's data.",
    ),
    ("NLL gap", "The same on the negative log-likelihood of the right label; it has more power."),
    ("usable", "A task on which the oracle is at least 3 points above the base."),
    (
        "over best control",
        "Accuracy above the best of base, copied factors, mean of the anchors, random adapter and "
        "swapped: the bar that a method has to clear.",
    ),
    ("swapped", "The gap recovered when another task's adapter is ported: near 0 is good."),
    ("retention", "Accuracy over that of the source with its adapter; not 0 for doing nothing."),
    (
        "intervals",
        "In brackets: 95 %, paired bootstrap over test rows, for means over tasks as well. One "
        "that contains 0 shows no effect. Seeds stand beside each other and are never pooled.",
    ),
    (
        "may use",
        "Weights only, generic text, adapters of other tasks (anchors), the task's inputs without "
        "labels, or labelled examples: a method is compared with its class and the cheaper ones.",
    ),
)
"""What the columns mean."""

_SIGNS = {"supported": "✓", "falsified": "✗", "open": "?", "not tested": "○"}


class _PageCell(NamedTuple):
    """A cell as the template needs it; ``sort`` is None where the text itself sorts."""

    text: str
    interval: str
    numeric: bool
    sort: str | None


def benchmark_page(results: BenchmarkResults, charts: Mapping[str, Sequence[Chart]]) -> str:
    """Return the page.

    Args:
        results: What was found.
        charts: By the part of the page; see
            :func:`~loraport.reporting.figures.benchmark_charts`.
    """
    environment = Environment(
        loader=PackageLoader("loraport.reporting"), undefined=StrictUndefined, autoescape=True
    )
    environment.filters["unbroken"] = _unbroken
    template = environment.get_template("benchmark.html.j2", globals={"cells": _cells})
    record = results.provenance
    return template.render(
        results=results,
        title=title(results),
        facts=facts(results),
        hypotheses=HYPOTHESES,
        signs=_SIGNS,
        no_verdict=NO_VERDICT,
        best=class_words(results),
        remarks=benchmark_remarks(results),
        contents=_contents(results, charts),
        methods=benchmark_table(results),
        transfer=transfer_table(results),
        tasks=task_table(results),
        suites=[(suite, suite_table(suite, results)) for suite in results.suites],
        retention=retention_table(results),
        divergences=divergence_table(results),
        calibration=calibration_table(results),
        confidence=confidence_table(results),
        drawn=defaultdict(list, charts),
        glossary=GLOSSARY,
        provenance=provenance_rows(record, record.hashes),
        number=lambda value: cell_text(value, 1),
        config=json.dumps(results.config, indent=1, ensure_ascii=False),
    )


def title(results: BenchmarkResults) -> str:
    """Return the pairs in words."""
    pairs = [f"{pair.source} → {pair.target}" for pair in results.pairs.values()]
    return " and ".join(dict.fromkeys(pairs)) or "no pair"


def facts(results: BenchmarkResults) -> str:
    """Return in one line how much was measured."""
    used = sorted_methods(results)
    seeds = {method.seed for method in used}
    rows = {task.n for method in used for task in method.tasks.values()}
    counts = [
        (len({method.name for method in used}), "method"),
        (len(task_names(results)), "held-out task"),
        (len(seeds), "seed"),
        (len(results.pairs), "pair"),
        (len(results.suites), "suite"),
        (len({method.name for method in refused_methods(results)}), "refused method"),
    ]
    parts = [f"{count} {name}{'s' if count > 1 else ''}" for count, name in counts if count]
    if rows:
        least, most = min(rows), max(rows)
        parts.append(f"{least if least == most else f'{least} to {most}'} test rows a task")
    return " · ".join(parts)


def _contents(
    results: BenchmarkResults, charts: Mapping[str, Sequence[Chart]]
) -> list[tuple[str, str]]:
    used = bool(sorted_methods(results))
    parts = [
        ("methods", "Methods", used),
        ("gap", "Gap by task", used),
        ("cost", "Cost", "cost" in charts),
        ("suites", "Suites", bool(results.suites)),
        ("drift", "Drift", bool(results.divergences)),
        ("calibration", "Calibration", results.calibration is not None),
        ("map", "Intersection map", bool(results.similarities)),
        ("examples", "Examples", bool(results.examples)),
        ("words", "What the columns mean", True),
        ("provenance", "Provenance", True),
    ]
    return [(anchor, name) for anchor, name, there in parts if there]


def _unbroken(text: str) -> str:
    """Return text whose intervals no line break parts."""
    return re.sub(r"\[(\S+), (\S+)\]", "[\\1,\N{NO-BREAK SPACE}\\2]", text)


def _cells(table: ReportTable) -> Iterator[list[_PageCell]]:
    numeric = [table.numeric(place) for place in range(len(table.columns))]
    for row in table.rows:
        yield [
            _cell(cell, column.digits, wide)
            for cell, column, wide in zip(row, table.columns, numeric, strict=True)
        ]


def _cell(cell: Cell, digits: int, numeric: bool) -> _PageCell:
    text = cell_text(cell, digits)
    if isinstance(cell, Estimated) and is_number(cell):
        value, _, interval = text.partition(" ")
        # The interval stands beside the value in smaller print, and does not take part in sorting.
        return _PageCell(value, interval, numeric, f"{cell.value:.6g}")
    exact = f"{cell:.6g}" if isinstance(cell, float) else None
    return _PageCell(text, "", numeric, exact if exact != text else None)


# ``report.md``: the benchmark as Markdown, with the same words and tables as the page.

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~$])")
_LONGEST = 60


def markdown_text(text: str) -> str:
    r"""Return text as Markdown shows it, whatever is in it, on one line.

    >>> markdown_text("a|b\n<i>c_d</i>")
    'a\\|b \\<i\\>c\\_d\\</i\\>'
    """
    return _SPECIAL.sub(r"\\\1", " ".join(text.split())).replace("&", "&amp;")


def markdown_table(table: ReportTable) -> str:
    """Return a table in Markdown; numbers stand to the right."""
    marks = ["---:" if table.numeric(place) else "---" for place in range(len(table.columns))]
    lines = [_line(column.heading for column in table.columns), f"| {' | '.join(marks)} |"]
    lines.extend(_line(row) for row in table.texts())
    return "\n".join(lines)


def benchmark_markdown(
    results: BenchmarkResults, charts: Mapping[str, Sequence[Chart]], folder: Path
) -> str:
    """Return the report.

    Args:
        results: What was found.
        charts: By the part of the report.
        folder: Where their files lie, relative to the report.
    """
    blocks = [f"# {markdown_text(title(results))}", markdown_text(facts(results)), *_words(results)]
    for part, tables in _parts(results).items():
        filled = [table for table in tables if table.rows]
        drawn = charts.get(part, ())
        if filled or drawn:
            heading = filled[0].title if filled else drawn[0].title
            blocks.append(f"## {markdown_text(heading)}")
        for chart in drawn:
            place = (folder / f"{chart.name}.png").as_posix()
            blocks.append(f"![{markdown_text(chart.title)}]({place})")
            blocks.append(markdown_text(chart.caption))
        for table in filled:
            blocks.extend(_shown(table, first=table is filled[0]))
    blocks.append("## What the columns mean")
    blocks.append("\n".join(f"- **{term}**: {markdown_text(said)}" for term, said in GLOSSARY))
    record = results.provenance
    blocks.append("## Provenance")
    rows = provenance_rows(record, record.hashes)
    blocks.append("\n".join([_line(("what", "value")), "| --- | --- |", *map(_line, rows)]))
    return "\n\n".join(blocks) + "\n"


def _words(results: BenchmarkResults) -> Iterator[str]:
    for verdict in results.verdicts:
        yield f"**{verdict.hypothesis}: {verdict.state}.** {markdown_text(verdict.words)}"
    if not results.verdicts:
        yield f"**{NO_VERDICT}**"
    lines = [
        f"- **{markdown_text(_place(results, words.data_access, words.pair))}**: "
        f"{markdown_text(' '.join(filter(None, (f'{words.method}.', *words[3:]))))}"
        for words in class_words(results)
    ]
    lines.extend(f"- {markdown_text(remark)}" for remark in benchmark_remarks(results))
    if lines:
        yield "\n".join(lines)


def _place(results: BenchmarkResults, data_access: str, pair: str) -> str:
    where = f" on {pair}" if len(results.pairs) > 1 else ""
    return f"best with {data_access}{where}"


def _parts(results: BenchmarkResults) -> dict[str, list[ReportTable]]:
    """Return the tables by part, in the order of the page."""
    return {
        "methods": [benchmark_table(results)],
        "gap": [transfer_table(results), task_table(results)],
        "cost": [],
        **{f"suite {suite.name}": [suite_table(suite, results)] for suite in results.suites},
        "drift": [retention_table(results), divergence_table(results)],
        "calibration": [calibration_table(results)],
        "map": [confidence_table(results)],
    }


def _shown(table: ReportTable, *, first: bool) -> Iterator[str]:
    if not first:
        yield f"### {markdown_text(table.title)}"
    if len(table.rows) > _LONGEST:
        yield f"{len(table.rows)} lines: see tables/{table.name}.csv."
        return
    yield f"{markdown_text(table.caption)}."
    yield markdown_table(table)


def _line(cells: Iterator[str] | Sequence[str]) -> str:
    return f"| {' | '.join(map(markdown_text, cells))} |"


# All files of a benchmark's report: page, Markdown, tables and charts.

PAGE = "report.html"
"""The report's main file."""


def write_report(results: BenchmarkResults, folder: str | Path) -> list[Path]:
    """Write the report into a folder and return its files, the page first.

    ``report.html`` needs none of the others; ``report.md`` shows those in ``charts/``. Every
    file appears whole or not at all. What there is nothing to show of has no file.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder = Path(folder)
    charts = benchmark_charts(results)
    page = write_whole(folder / PAGE, benchmark_page(results, charts))
    text = benchmark_markdown(results, charts, Path("charts"))
    written = [page, write_whole(folder / "report.md", text)]
    for table in report_tables(results):
        if table.rows:
            place = folder / "tables" / table.name
            written.append(write_whole(place.with_suffix(".csv"), csv_text(table)))
            written.append(write_whole(place.with_suffix(".tex"), latex_table(table)))
    written.extend(c.write(folder / "charts") for found in charts.values() for c in found)
    return written


def report_tables(results: BenchmarkResults) -> Iterator[ReportTable]:
    """Give every table of the report; some of them have no rows."""
    yield benchmark_table(results)
    yield transfer_table(results)
    yield task_table(results)
    yield retention_table(results)
    yield divergence_table(results)
    yield confidence_table(results)
    yield changes_table(results)
    for suite in results.suites:
        table = suite_table(suite, results)
        yield replace(table, name=f"suite_{file_part(suite.name)}")
    yield calibration_table(results)
    yield points_table(results)


# ``diagnosis.html``: the whole diagnosis on one page that needs no other file.

_SETTINGS = ("probes", "diagnosis", "pairing", "adapter", "force", "seed")


def diagnosis_page(content: IntersectionMap, pictures: Mapping[str, Path]) -> str:
    """Return the page.

    Args:
        content: What was found.
        pictures: The heat map of each measure, which the page holds inline.
    """
    environment = Environment(
        loader=PackageLoader("loraport.reporting"), undefined=StrictUndefined, autoescape=True
    )
    settings = {name: content.config[name] for name in _SETTINGS if name in content.config}
    return environment.get_template("diagnosis.html.j2").render(
        content=content,
        pictures=[(content.measures[n].title, _inline(file)) for n, file in pictures.items()],
        remarks=diagnosis_remarks(content),
        tables=[
            ("Measures", *measure_rows(content)),
            ("Layers", *layer_rows(content)),
            ("Linear maps between modules, mean over the layers", *fit_rows(content)),
        ],
        fit_columns=FIT_COLUMNS,
        number=number,
        settings=json.dumps(settings, indent=1),
        provenance=provenance_rows(content.provenance, content.provenance.hashes),
    )


def write_diagnosis_page(
    content: IntersectionMap, pictures: Mapping[str, Path], path: str | Path
) -> Path:
    """Write the page, whole or not at all, and return its path."""
    return write_whole(Path(path), diagnosis_page(content, pictures))


def _inline(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"
