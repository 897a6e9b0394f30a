"""The reports: one HTML page of a benchmark and one of a diagnosis, and the benchmark as Markdown.

A page needs no other file and no network. Page and Markdown hold the same sentences and tables in
the same order; tables lie beside them as CSV and LaTeX, charts as PNG.
"""

import base64
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..evaluation.records import BenchmarkResults, IntersectionMap
from ..evaluation.verdict import HYPOTHESES
from ..files import write_whole
from .cards import PAGES
from .figures import Chart, benchmark_charts, file_part
from .summaries import NO_VERDICT, benchmark_remarks, best_methods, diagnosis_remarks
from .tables import (
    Column,
    Estimated,
    ReportTable,
    Row,
    calibration_table,
    cell_text,
    changes_table,
    confidence_table,
    divergence_table,
    fits_table,
    layers_table,
    markdown_line,
    markdown_text,
    measures_table,
    methods_table,
    modules_table,
    points_table,
    retention_table,
    suite_table,
    tasks_table,
    transfer_table,
    transport_table,
)

PAGE = "report.html"  # the report's main file

# What the columns mean.
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

_SIGNS = {
    **{"supported": "✓", "falsified": "✗", "open": "?"},
    **{"cannot be told": "○", "not tested": "○"},
}
_DIAGNOSIS_SETTINGS = ("probes", "diagnosis", "pairing", "adapter", "force", "seed")
_MOST_MARKDOWN_ROWS = 60


def write_report(results: BenchmarkResults, folder: str | Path) -> list[Path]:
    """Write the report of a benchmark into a folder and return its files, the page first.

    ``report.html`` needs none of the others; ``report.md`` shows those in ``charts/``. Every
    file appears whole or not at all. What there is nothing to show of has no file.

    Raises:
        OutputError: the folder cannot be written.
    """
    folder = Path(folder)
    charts = benchmark_charts(results)
    written = [
        write_whole(folder / PAGE, benchmark_page(results, charts)),
        write_whole(folder / "report.md", benchmark_markdown(results, charts)),
    ]
    for table in report_tables(results):
        if table.rows:
            path = folder / "tables" / table.name
            written.append(write_whole(path.with_suffix(".csv"), table.csv()))
            written.append(write_whole(path.with_suffix(".tex"), table.latex()))
    written.extend(c.write(folder / "charts") for found in charts.values() for c in found)
    return written


def report_tables(results: BenchmarkResults) -> Iterator[ReportTable]:
    """Give every table that has files; some of them have no rows."""
    for _, tables in _parts(results):
        for table in tables:
            yield replace(table, name=file_part(table.name))
    yield changes_table(results)
    yield points_table(results)


def _parts(results: BenchmarkResults) -> list[tuple[str, list[ReportTable]]]:
    """Return the tables by the part that they and charts stand in, in the order of the report."""
    return [
        ("methods", [methods_table(results)]),
        ("gap", [transfer_table(results), tasks_table(results)]),
        ("cost", []),
        *((f"suite {suite.name}", [suite_table(suite, results)]) for suite in results.suites),
        ("drift", [retention_table(results), divergence_table(results)]),
        ("calibration", [calibration_table(results)]),
        ("map", [confidence_table(results)]),
    ]


def benchmark_page(results: BenchmarkResults, charts: Mapping[str, Sequence[Chart]]) -> str:
    """Return the page of a benchmark, with the charts of every part."""
    parts = dict(_parts(results))
    drawn = defaultdict(list, charts)
    used = bool(results.ranked())
    contents = [
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
    return _page(
        "benchmark.html.j2",
        results=results,
        title=title(results),
        facts=facts(results),
        hypotheses=HYPOTHESES,
        signs=_SIGNS,
        no_verdict=NO_VERDICT,
        best=best_methods(results),
        remarks=list(benchmark_remarks(results)),
        contents=[(anchor, name) for anchor, name, there in contents if there],
        parts=parts,
        drawn=drawn,
        glossary=GLOSSARY,
        provenance=results.provenance.rows(),
        number=lambda value: cell_text(value, ".1f"),
        unbroken=_unbroken,
        config=json.dumps(results.config, indent=1, ensure_ascii=False),
    )


def _page(template: str, **values: object) -> str:
    # Imported macros see the template's globals, not what it is rendered with.
    made = PAGES.get_template(template, globals={"cell": _cell})
    return made.render(**values)


class _PageCell(NamedTuple):
    """A cell as the template needs it; ``sort`` is None where the text itself sorts."""

    text: str
    interval: str
    sort: str | None


def _cell(row: Row, column: Column) -> _PageCell:
    cell = row.get(column.key)
    text = cell_text(cell, column.format)
    if isinstance(cell, Estimated):
        value, _, interval = text.partition(" ")
        # The interval stands beside the value in smaller print, and does not take part in sorting.
        return _PageCell(value, interval, f"{cell.value:.6g}")
    exact = f"{cell:.6g}" if isinstance(cell, float) else None
    return _PageCell(text, "", exact if exact != text else None)


def _unbroken(text: str) -> str:
    """Return text whose intervals no line break parts."""
    return re.sub(r"\[(\S+), (\S+)\]", "[\\1,\N{NO-BREAK SPACE}\\2]", text)


def title(results: BenchmarkResults) -> str:
    """Return the pairs as a heading."""
    pairs = [f"{pair.source} → {pair.target}" for pair in results.pairs.values()]
    return " and ".join(dict.fromkeys(pairs)) or "no pair"


def facts(results: BenchmarkResults) -> str:
    """Return in one line how much was measured."""
    used = results.ranked()
    counts = [
        (len({method.name for method in used}), "method"),
        (len(results.task_names()), "held-out task"),
        (len({method.seed for method in used}), "seed"),
        (len(results.pairs), "pair"),
        (len(results.suites), "suite"),
        (len({method.name for method in results.refused()}), "refused method"),
    ]
    parts = [f"{count} {name}{'s' if count > 1 else ''}" for count, name in counts if count]
    rows = {task.n for method in used for task in method.tasks.values()}
    if rows:
        least, most = min(rows), max(rows)
        parts.append(f"{least if least == most else f'{least} to {most}'} test rows a task")
    return " · ".join(parts)


def benchmark_markdown(results: BenchmarkResults, charts: Mapping[str, Sequence[Chart]]) -> str:
    """Return the report of a benchmark in Markdown, with the charts of ``charts/`` beside it."""
    blocks = [f"# {markdown_text(title(results))}", markdown_text(facts(results))]
    for verdict in results.verdicts:
        said = markdown_text(verdict.words)
        blocks.append(f"**{verdict.hypothesis}: {verdict.state}.** {said}")
    if not results.verdicts:
        blocks.append(f"**{NO_VERDICT}**")
    lines = []
    for best in best_methods(results):
        on = f" on {best.pair}" if len(results.pairs) > 1 else ""
        heading = markdown_text(f"best with {best.data_access}{on}")
        lines.append(f"- **{heading}**: {markdown_text(best.text)}")
    lines.extend(f"- {markdown_text(remark)}" for remark in benchmark_remarks(results))
    if lines:
        blocks.append("\n".join(lines))
    for part, tables in _parts(results):
        filled = [table for table in tables if table.rows]
        drawn = charts.get(part, ())
        if filled or drawn:
            first = filled[0].title if filled else drawn[0].title
            blocks.append(f"## {markdown_text(first)}")
        for chart in drawn:
            blocks.append(f"![{markdown_text(chart.title)}](charts/{chart.name}.png)")
            blocks.append(markdown_text(chart.caption))
        for index, table in enumerate(filled):
            if index:
                blocks.append(f"### {markdown_text(table.title)}")
            if len(table.rows) > _MOST_MARKDOWN_ROWS:
                blocks.append(f"{len(table.rows)} lines: see tables/{file_part(table.name)}.csv.")
            else:
                blocks.extend([f"{markdown_text(table.caption)}.", table.markdown()])
    blocks.append("## What the columns mean")
    blocks.append("\n".join(f"- **{term}**: {markdown_text(said)}" for term, said in GLOSSARY))
    provenance = [markdown_line(("what", "value")), "| --- | --- |"]
    provenance.extend(map(markdown_line, results.provenance.rows()))
    blocks.extend(["## Provenance", "\n".join(provenance)])
    return "\n\n".join(blocks) + "\n"


def diagnosis_page(content: IntersectionMap, pictures: Mapping[str, Path]) -> str:
    """Return the page of a diagnosis, which holds the heat map of each measure inline."""
    config = content.config
    return _page(
        "diagnosis.html.j2",
        content=content,
        pictures=[(content.measures[n].title, _inline(file)) for n, file in pictures.items()],
        remarks=diagnosis_remarks(content),
        tables=[
            make(content) for make in (measures_table, layers_table, fits_table, transport_table)
        ],
        modules=modules_table(content),
        number=cell_text,
        settings=json.dumps({n: config[n] for n in _DIAGNOSIS_SETTINGS if n in config}, indent=1),
        provenance=content.provenance.rows(),
    )


def write_diagnosis_page(
    content: IntersectionMap, pictures: Mapping[str, Path], path: str | Path
) -> Path:
    """Write the page of a diagnosis, whole or not at all, and return its path."""
    return write_whole(Path(path), diagnosis_page(content, pictures))


def _inline(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"
