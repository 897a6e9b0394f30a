"""The main table of the benchmark: a line a method and seed, and the controls."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .benchmark_lines import (
    CONTROL_NAMES,
    ControlLine,
    control_lines,
    gap,
    is_control,
    label,
    mean_over_usable,
    mean_retention,
    sorted_methods,
    total_seconds,
)
from .benchmark_results import BenchmarkResults, MethodResult
from .benchmark_words import plain_words
from .report_table import Cell, Column, Estimated, ReportTable
from .results import Margin
from .task_tables import without_single_pair

_PIPED_WIDTH = 120
_POINTS = "in points of accuracy, mean over all held-out tasks"

_COLUMNS = (
    Column("pair", "pair"),
    Column("method", "method"),
    Column("information_class", "may use", meaning="what the method may use, by what it costs"),
    Column("seed", "seed", meaning="of everything that is drawn; none where all give the same"),
    Column("gap_recovered", "gap recovered", 2, "(method - base) / (oracle - base), accuracy"),
    Column("gap_recovered_nll", "NLL gap", 2, "the same on minus the negative log-likelihood"),
    Column("margin", "over best control", 1, _POINTS),
    Column("best_control", "best control", 1, "the strongest of base and controls"),
    Column("margin_over_mean", "over mean", 1, f"over the anchors' mean adapter, {_POINTS}"),
    Column("swapped", "swapped", 2, "gap recovered from another task's adapter: 0 is good"),
    Column("accuracy", "accuracy", 2, "mean over the usable tasks"),
    Column("retention", "retention", 2, "accuracy over that of the source with its adapter"),
    Column("seconds", "seconds", 1, "of fitting once a pair and of porting one adapter"),
)


def benchmark_table(results: BenchmarkResults) -> ReportTable:
    """Return one line a method and seed, the cheapest class first, and behind them the controls.

    The pair is left out where there is only one, and so is a column in which nothing stands.
    """
    lines: list[tuple[Cell, ...]] = [_method_cells(method) for method in sorted_methods(results)]
    lines.extend(_control_cells(line) for line in control_lines(results))
    table = ReportTable(
        "methods",
        "Methods",
        "gap recovered: 0 is the base without adapter, 1 the oracle; in brackets 95 % intervals "
        "over tasks and test rows; seeds are never pooled",
        _COLUMNS,
        tuple(lines),
    )
    return without_single_pair(table, results).filled()


def print_benchmark(results: BenchmarkResults) -> None:
    """Print the table, the verdicts and what was left out to the standard output.

    In colours and at the terminal's width where there is one, else without colours and 120 wide;
    a table that needs more is never cut.
    """
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    _print(console, results)


def _print(console: Console, results: BenchmarkResults) -> None:
    for pair in results.pairs.values():
        console.print(Text(f"{pair.name}: {pair.source} -> {pair.target}", "bold"))
    content = benchmark_table(results)
    if content.rows:
        table = _rich(content)
        width = console.width
        natural = console.measure(table, options=console.options.update(width=1000)).maximum
        # In a narrow terminal lines wrap; at that width rich would cut the numbers instead.
        console.width = max(width, natural)
        console.print(table, soft_wrap=True)
        console.width = width
        console.print(f"{content.caption}.", markup=False, highlight=False)
    for line in plain_words(results):
        console.print(line, markup=False, highlight=False)


def _rich(content: ReportTable) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for place, column in enumerate(content.columns):
        # A column is as wide as its numbers: intervals and headings stand on lines of their own.
        heading = column.heading.replace(" ", "\n")
        table.add_column(
            heading,
            justify="right" if content.numeric(place) else "left",
            no_wrap=True,
            vertical="bottom",
        )
    group = ""
    for cells, row in zip(content.rows, content.texts(), strict=True):
        if group and group != _group(content, cells):
            table.add_section()
        group = _group(content, cells)
        # Text, because a name or an interval in brackets must not be read as markup.
        table.add_row(*map(Text, row))
    return table


def _group(content: ReportTable, row: tuple[Cell, ...]) -> str:
    keys = [column.key for column in content.columns]
    if row[keys.index("method")] in CONTROL_NAMES.values() or "information_class" not in keys:
        return "controls"
    return str(row[keys.index("information_class")])


def _method_cells(method: MethodResult) -> tuple[Cell, ...]:
    summary = method.summary
    likely, margin, over_mean, swapped = None, None, None, None
    if summary is not None:
        likely = Estimated(summary.gap_recovered_nll, summary.ci95_nll)
        margin, over_mean = summary.margin, summary.margin_over_mean
        swapped = summary.control_gaps.get("swapped")
    tasks = list(method.tasks.values())
    return (
        *(method.pair, _name(method), method.information_class, method.seed),
        *(gap(method), likely, _points(margin), _control(margin)),
        *(_points(over_mean), swapped, mean_over_usable(tasks, "predicted")),
        *(mean_retention(method), total_seconds(method)),
    )


def _name(method: MethodResult) -> str:
    return f"{label(method)} (control)" if is_control(method) else label(method)


def _control_cells(line: ControlLine) -> tuple[Cell, ...]:
    return (
        *(line.pair, CONTROL_NAMES[line.condition], line.information_class or None, line.seed),
        *(line.gap, line.gap_nll, None, None, None, None),
        *(line.accuracy, line.retention, None),
    )


def _control(margin: Margin | None) -> str | None:
    return None if margin is None or margin.value is None else margin.control


def _points(margin: Margin | None) -> Estimated | None:
    if margin is None or margin.value is None:
        return None
    ends = None
    if margin.ci95 is not None:
        low, high = (None if end is None else 100 * end for end in margin.ci95)
        ends = (low, high)
    return Estimated(100 * margin.value, ends)
