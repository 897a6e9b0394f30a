"""What commands print: a heading, tables, and sentences about them.

In colours where there is a terminal. Tables are as wide as it, elsewhere as ``COLUMNS`` says or 80
columns: what does not fit beside stands below, with the names of the rows again.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..evaluation.records import BenchmarkResults, IntersectionMap, Results, TransferReport
from ..exceptions import one_line
from .summaries import benchmark_lines, diagnosis_remarks, training_remarks, transfer_remarks
from .tables import (
    Column,
    ReportTable,
    fits_table,
    layers_table,
    measures_table,
    methods_table,
    results_table,
    sites_table,
)

_PIPED_WIDTH = 80


def print_results(results: Results) -> None:
    """Print the scores of ``train.py`` and what they mean."""
    space = f", space {results.space}" if results.space else ""
    pair = f"{results.pair.source} -> {results.pair.target}"
    heading = f"{results.mapper}{space}, seed {results.seed}: {pair}"
    table = results_table(results)
    print_tables([heading], [table], [f"{table.caption}.", *training_remarks(results)])


def print_benchmark(results: BenchmarkResults) -> None:
    """Print the methods of ``evaluate.py``, the verdicts and what was left out."""
    headings = [f"{pair.name}: {pair.source} -> {pair.target}" for pair in results.pairs.values()]
    table = methods_table(results)
    caption = [f"{table.caption}."] if table.rows else []
    print_tables(headings, [table], [*caption, *benchmark_lines(results)])


def print_transfer(report: TransferReport) -> None:
    """Print what became of the adapter, role by role, and what to know of it."""
    steps = f"{report.mapper}, {report.refinement.name}" if report.refinement else report.mapper
    heading = f"{steps}: {report.pair.source} -> {report.pair.target}"
    table = sites_table(report)
    caption = [table.caption] if table.rows else []
    print_tables([heading], [table], [*caption, *transfer_remarks(report)])


def print_diagnosis(content: IntersectionMap) -> None:
    """Print how alike the models are by measure, layer and module, the verdict and warnings."""
    heading = f"{content.pair.source} -> {content.pair.target}, {content.probes.name}"
    tables = [measures_table(content), layers_table(content), fits_table(content)]
    lines = [*diagnosis_remarks(content), content.verdict.words, *content.warnings]
    print_tables([heading], tables, lines)


def print_tables(
    headings: Iterable[str], tables: Sequence[ReportTable], lines: Iterable[str]
) -> None:
    """Print headings, tables and what is to be said of them."""
    console = Console()
    if not console.is_terminal:
        given = os.environ.get("COLUMNS", "")
        console.width = int(given) if given.isdecimal() and int(given) else _PIPED_WIDTH
    for heading in headings:
        console.print(Text(one_line(heading), "bold"), soft_wrap=True)
    for content in tables:
        for index, part in enumerate(stacked(content, console) if content.rows else ()):
            if index:
                console.print()
            console.print(rich_table(part))
    for line in lines:
        # In a pipe a sentence is one line, so that it can be searched for.
        print_line(line, console, wrapped=console.is_terminal)


def print_line(text: str, console: Console | None = None, *, wrapped: bool = False) -> None:
    """Print a line as it is: what looks like markup in a name or a path is none.

    Args:
        text: The line.
        console: Where; None stands for standard output.
        wrapped: Break it at the terminal's width.
    """
    (console or Console()).print(
        one_line(text), markup=False, highlight=False, emoji=False, soft_wrap=not wrapped
    )


def stacked(content: ReportTable, console: Console) -> Iterator[ReportTable]:
    """Give a table as one or more that fit the console, each with the columns that name the rows.

    Those are the first ones that tell the rows apart.
    """

    def fits(columns: Sequence[Column]) -> bool:
        table = rich_table(replace(content, columns=tuple(columns)))
        wide = console.measure(table, options=console.options.update(width=10_000)).maximum
        return wide <= console.width

    if fits(content.columns):
        yield content
        return
    texts, every = content.texts(), list(range(len(content.columns)))

    def distinct(columns: Sequence[int]) -> bool:
        return not texts.iloc[:, list(columns)].duplicated().any()

    keys = next((every[:count] for count in every[1:] if distinct(every[:count])), every[:1])
    for key in keys[:0:-1]:
        without = [other for other in keys if other != key]
        keys = without if distinct(without) else keys
    # Names that take the whole width would leave no room for what they name.
    while len(keys) > 1 and not all(
        fits([content.columns[at] for at in (*keys, other)]) for other in every if other not in keys
    ):
        keys.pop()
    names = [content.columns[key] for key in keys]
    beside = list(names)
    for column in (column for column in content.columns if column not in names):
        if len(beside) > len(names) and not fits([*beside, column]):
            yield replace(content, columns=tuple(beside))
            beside = list(names)
        beside.append(column)
    yield replace(content, columns=tuple(beside))


def rich_table(content: ReportTable) -> Table:
    """Return a table for the console, with a line between groups of rows."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for column, numeric in zip(content.columns, content.numeric, strict=True):
        # A column is as wide as its numbers: intervals and headings stand on lines of their own.
        table.add_column(
            Text(column.heading.replace(" ", "\n")),
            justify="right" if numeric else "left",
            no_wrap=numeric,  # names may go on in a second line where they are very long
            overflow="fold",
            vertical="bottom",
        )
    groups = content.groups or ("",) * len(content.rows)
    for index, row in enumerate(content.texts().itertuples(index=False)):
        if index and groups[index] != groups[index - 1]:
            table.add_section()
        # Text, because a name or an interval in brackets must not be read as markup.
        table.add_row(*map(Text, row))
    return table
