"""What adapters change beside their task: suites, drift, and what retention costs in drift."""

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..evaluation.records import (
    BenchmarkResults,
    Condition,
    Divergence,
    Margin,
    MethodResult,
    Number,
    SuiteChange,
    SuiteResult,
)
from .summaries import plain_words
from .tables import (
    CONTROL_NAMES,
    Cell,
    Column,
    ControlLine,
    Estimated,
    ReportTable,
    control_lines,
    is_control,
    line_gap,
    line_label,
    mean_over_usable,
    mean_retention,
    sorted_methods,
    total_seconds,
    without_single_pair,
)

GENERIC = "generic"
"""The name of generic text in divergences."""

_CONDITION = (
    *(Column("pair", "pair"), Column("method", "model"), Column("task", "adapter of task")),
    Column("seed", "seed"),
)


def suite_table(suite: SuiteResult, results: BenchmarkResults) -> ReportTable:
    """Return what every model scores on a suite, and how adapters change its main metric."""
    changes = {(change.condition, change.metric): change for change in suite.changes}
    main = suite.metrics[0] if suite.metrics else ""
    columns = (
        *_CONDITION,
        *(Column(metric, metric.replace("_", " "), 3) for metric in suite.metrics),
        Column("change", f"change of {main.replace('_', ' ')}", 3, "against the model without it"),
        Column("n", "items", meaning="that count for the change"),
        Column("gained", "0 to 1", meaning="items"),
        Column("lost", "1 to 0", meaning="items"),
        Column("p", "McNemar p", 3),
    )
    rows = []
    for scores in suite.scores:
        change = changes.get((scores.condition, main))
        rows.append(
            (
                *_condition_cells(scores.condition),
                *(Estimated(scores.means.get(m), scores.ci95.get(m)) for m in suite.metrics),
                *_change_cells(change),
            )
        )
    caption = f"{suite.items} items; intervals over items, changes paired"
    title = f"Suite {suite.name}"
    table = ReportTable(f"suite_{suite.name}", title, caption, columns, tuple(rows))
    return without_single_pair(table, results).filled()


def changes_table(results: BenchmarkResults) -> ReportTable:
    """Return every change of every metric of every suite by an adapter."""
    columns = (
        *(Column("pair", "pair"), Column("suite", "suite"), Column("metric", "metric")),
        *_CONDITION[1:],
        Column("change", "change", 3),
        *(Column("n", "items"), Column("gained", "0 to 1"), Column("lost", "1 to 0")),
        Column("p", "McNemar p", 3),
    )
    rows = tuple(
        (
            c.condition.pair,
            suite.name,
            c.metric,
            *_condition_cells(c.condition)[1:],
            *_change_cells(c),
        )
        for suite in results.suites
        for c in suite.changes
    )
    caption = "paired differences to the same model without the adapter, with 95 % intervals"
    table = ReportTable("suites", "Changes of suites", caption, columns, rows)
    return without_single_pair(table, results)


def divergence_table(results: BenchmarkResults) -> ReportTable:
    """Return how far every adapter moves the next-token distributions, by text."""
    columns = (
        *_CONDITION,
        *(Column("texts", "texts"), Column("positions", "positions")),
        *(Column("kl", "KL", 4, "nats a token, mean"), Column("kl_p95", "KL, 95 %", 4)),
        *(Column("js", "JS", 4, "nats a token, at most 0.693"), Column("top1", "same top-1", 3)),
    )
    rows = tuple(
        (*_condition_cells(d.condition), d.texts, d.positions, d.kl, d.kl_p95, d.js, d.top1)
        for d in results.divergences
    )
    caption = "divergence of the next-token distribution from that of the model without the adapter"
    table = ReportTable("divergences", "Drift", caption, columns, rows)
    return without_single_pair(table, results).filled()


def retention_table(results: BenchmarkResults) -> ReportTable:
    """Return what each method keeps of the source's accuracy, and how far it moves the model."""
    columns = (
        *(Column("pair", "pair"), Column("method", "method"), Column("seed", "seed")),
        Column("retention", "retention", 2, "accuracy over that of the source with its adapter"),
        Column("gap_recovered", "gap recovered"),
        Column("kl", "KL", 4, "on generic text, nats a token, mean over the tasks"),
        *(Column("kl_p95", "KL, 95 %", 4), Column("js", "JS", 4)),
        Column("top1", "same top-1", 3, "share of positions with the same most likely token"),
    )
    rows: list[tuple[Cell, ...]] = []
    for method in sorted_methods(results):
        drift = [d for d in generic_drift(results) if belongs(d.condition, method)]
        figures = [_mean([getattr(d, n) for d in drift]) for n in ("kl", "kl_p95", "js", "top1")]
        rows.append(
            (
                method.pair,
                line_label(method),
                method.seed,
                mean_retention(method),
                line_gap(method),
                *figures,
            )
        )
    for pair in results.pairs:
        drift = [
            d
            for d in generic_drift(results)
            if (d.condition.pair, d.condition.method) == (pair, "oracle")
        ]
        if drift:
            figures = [
                _mean([getattr(d, n) for d in drift]) for n in ("kl", "kl_p95", "js", "top1")
            ]
            rows.append((pair, "oracle (trained on the target)", None, None, 1.0, *figures))
    caption = "accuracy kept and gap recovered against drift on generic text"
    table = ReportTable(
        "retention_tradeoff", "Merge retention trade-off", caption, columns, tuple(rows)
    )
    return without_single_pair(table, results)


def generic_drift(results: BenchmarkResults) -> Iterator[Divergence]:
    """Give the divergences on generic text."""
    return (d for d in results.divergences if d.texts == GENERIC)


def belongs(condition: Condition, method: MethodResult) -> bool:
    """Return whether a condition is a model with an adapter of that method."""
    return (condition.pair, condition.method, condition.seed) == (
        *(method.pair, method.name, method.seed),
    )


def _condition_cells(condition: Condition) -> tuple[Cell, ...]:
    return condition.pair, condition.method, condition.task, condition.seed


def _change_cells(change: SuiteChange | None) -> tuple[Cell, ...]:
    if change is None:
        return (None,) * 5
    return Estimated(change.value, change.ci95), change.n, change.gained, change.lost, change.p


def _mean(values: list[Number]) -> Number:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


# The main table of the benchmark: a line a method and seed, and the controls.

_PIPED_WIDTH = 120
_POINTS = "in points of accuracy, mean over all held-out tasks"

_COLUMNS = (
    Column("pair", "pair"),
    Column("method", "method"),
    Column("data_access", "may use", meaning="what the method may use, by what it costs"),
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
    if row[keys.index("method")] in CONTROL_NAMES.values() or "data_access" not in keys:
        return "controls"
    return str(row[keys.index("data_access")])


def _method_cells(method: MethodResult) -> tuple[Cell, ...]:
    summary = method.summary
    likely, margin, over_mean, swapped = None, None, None, None
    if summary is not None:
        likely = Estimated(summary.gap_recovered_nll, summary.ci95_nll)
        margin, over_mean = summary.margin, summary.margin_over_mean
        swapped = summary.control_gaps.get("swapped")
    tasks = list(method.tasks.values())
    return (
        *(method.pair, _name(method), method.data_access, method.seed),
        *(line_gap(method), likely, _points(margin), _control(margin)),
        *(_points(over_mean), swapped, mean_over_usable(tasks, "predicted")),
        *(mean_retention(method), total_seconds(method)),
    )


def _name(method: MethodResult) -> str:
    return f"{line_label(method)} (control)" if is_control(method) else line_label(method)


def _control_cells(line: ControlLine) -> tuple[Cell, ...]:
    return (
        *(line.pair, CONTROL_NAMES[line.condition], line.data_access or None, line.seed),
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
