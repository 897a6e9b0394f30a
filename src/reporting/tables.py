"""The information classes of methods and controls, in the order of what they cost."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from typing import NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..evaluation.records import (
    CARTRIDGE,
    BenchmarkResults,
    Ends,
    Margin,
    MethodResult,
    Number,
    Results,
    TaskResult,
)
from ..evaluation.statistics import is_usable

INFORMATION_CLASSES = (
    "weights only",
    "generic text",
    "anchors",
    "unlabelled prompts",
    "few-shot",
)
"""In the words of the evaluation protocol, the cheapest first."""


def cost_rank(data_access: str) -> int:
    """Return the place of a class in the order of cost; an unknown one comes last.

    >>> cost_rank("weights only"), cost_rank("few-shot"), cost_rank("magic")
    (0, 4, 5)
    """
    if data_access in INFORMATION_CLASSES:
        return INFORMATION_CLASSES.index(data_access)
    return len(INFORMATION_CLASSES)


# What the numbers of a run mean, in words.


def verdict(results: Results) -> str:
    """Return two sentences that say how well the mapper works and how sure that is.

    A difference counts only where its 95 % interval lies on one side of 0.
    """
    return f"{_gap_sentence(results)} {_margin_sentence(results)}"


def interval_text(ends: Ends, digits: int = 2) -> str:
    """Return an interval as ``[0.12, 0.34]``; an end without bound is ``inf``.

    >>> interval_text((0.123, None))
    '[0.12, inf]'
    """
    if ends is None:
        return "[none]"
    low, high = ends
    low_text = "-inf" if low is None else f"{low:.{digits}f}"
    high_text = "inf" if high is None else f"{high:.{digits}f}"
    return f"[{low_text}, {high_text}]"


def _gap_sentence(results: Results) -> str:
    summary = results.summary
    if summary.gap_recovered is None:
        return (
            f"Nothing can be said about the gap that {results.mapper} recovers: on none of the "
            f"{summary.tasks} held-out tasks is the oracle 3 points above the base."
        )
    share = f"{summary.gap_recovered:.0%}"
    told = (
        f"{results.mapper} recovers {share} of what the oracle gains over the base, mean over "
        f"{summary.usable} usable of {summary.tasks} held-out tasks, 95 % interval "
        f"{interval_text(summary.ci95)}"
    )
    low, high = summary.ci95 if summary.ci95 is not None else (None, None)
    if high is not None and high < 0:
        return f"{told}: it is worse than no adapter at all."
    if low is None or low <= 0:
        return f"{told}: the interval contains 0, so a gain over no adapter is not shown."
    return f"{told}: better than no adapter."


def _margin_sentence(results: Results) -> str:
    summary = results.summary
    if results.mapper == "mean":
        return "It is itself the anchors' mean adapter, which every learned mapper has to beat."
    over_mean, best = summary.margin_over_mean, summary.margin
    sentence = _compared(over_mean, "the anchors' mean adapter")
    if best.control == over_mean.control:
        return sentence
    name = "the base without adapter" if best.control == "base" else f"the {best.control} control"
    return f"{sentence} The strongest control is {name}: {_points(best)} against it."


def _compared(margin: Margin, name: str) -> str:
    if margin.value is None or margin.ci95 is None:
        return f"There is no comparison with {name}."
    low, high = margin.ci95
    if low is not None and low > 0:
        return f"It beats {name}: {_points(margin)}."
    if high is not None and high < 0:
        return f"It is worse than {name}: {_points(margin)}."
    if margin.value == low == high == 0:
        return f"It is right and wrong on the same rows as {name}."
    return f"It is not told apart from {name}: {_points(margin)}."


def _points(margin: Margin) -> str:
    if margin.value is None or margin.ci95 is None:
        return "an unknown number of points"
    low, high = (None if end is None else 100 * end for end in margin.ci95)
    return (
        f"{100 * margin.value:+.1f} points of accuracy, interval "
        f"{interval_text((low, high), digits=1)}"
    )


# A table as every report writes it: the same cells for terminal, page, Markdown, LaTeX and CSV.

NOTHING = "-"
"""What stands where there is no number."""


class Estimated(NamedTuple):
    """A value and the ends of its 95 % interval."""

    value: Number
    ends: Ends


Cell = str | int | float | Estimated | None
"""What a table holds; None where there is nothing."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: Its name in CSV files.
        heading: What stands above it elsewhere.
        digits: Behind the decimal point.
        meaning: What the heading alone does not say.
    """

    key: str
    heading: str
    digits: int = 2
    meaning: str = ""


@dataclass(frozen=True)
class ReportTable:
    """A named table.

    Attributes:
        name: Of its file, without an ending.
        title: Above it.
        caption: What its numbers mean.
        columns: In the order in which they are shown.
        rows: One cell a column each.

    Raises:
        ValueError: a row has another number of cells than there are columns.
    """

    name: str
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(f"{self.name} has {len(self.columns)} columns, but a row {wrong[0]}")

    def filled(self) -> "ReportTable":
        """Return the table without the columns in which no row holds anything."""
        kept = [place for place in range(len(self.columns)) if self._has(place)]
        return ReportTable(
            self.name,
            self.title,
            self.caption,
            tuple(self.columns[place] for place in kept),
            tuple(tuple(row[place] for place in kept) for row in self.rows),
        )

    def numeric(self, place: int) -> bool:
        """Return whether a column holds numbers, so that it is set to the right."""
        return any(is_number(row[place]) for row in self.rows)

    def texts(self) -> Iterator[tuple[str, ...]]:
        """Give every row as text, as people read it."""
        for row in self.rows:
            yield tuple(
                cell_text(cell, column.digits)
                for cell, column in zip(row, self.columns, strict=True)
            )

    def _has(self, place: int) -> bool:
        return any(_holds(row[place]) for row in self.rows)


def is_number(cell: Cell) -> bool:
    """Return whether a cell holds a number, with an interval or without."""
    if isinstance(cell, Estimated):
        return cell.value is not None
    return isinstance(cell, int | float)


def cell_text(cell: Cell, digits: int) -> str:
    """Return a cell as people read it.

    >>> cell_text(Estimated(0.5, (0.25, None)), 2), cell_text(None, 2), cell_text(3, 2)
    ('0.50 [0.25, inf]', '-', '3')
    """
    if isinstance(cell, Estimated):
        if cell.value is None:
            return NOTHING
        interval = f" {interval_text(cell.ends, digits)}" if cell.ends is not None else ""
        return f"{cell_text(cell.value, digits)}{interval}"
    if cell is None:
        return NOTHING
    if isinstance(cell, float):
        # Without the zero of -0.00: what is shown as nothing has no sign.
        return f"{round(cell, digits) + 0.0:.{digits}f}"
    return str(cell)


def _holds(cell: Cell) -> bool:
    return cell is not None and cell != "" and (not isinstance(cell, Estimated) or is_number(cell))


# Tables as CSV: plain numbers, an interval in columns of its own, nothing where there is none.


def csv_text(table: ReportTable) -> str:
    """Return a table as CSV with one line of headings.

    A column with intervals is followed by ``KEY_low`` and ``KEY_high``. Numbers have six
    significant digits.
    """
    spread = [
        any(isinstance(row[place], Estimated) for row in table.rows)
        for place in range(len(table.columns))
    ]
    written = StringIO()
    writer = csv.writer(written, lineterminator="\n")
    headings: list[str] = []
    for column, wide in zip(table.columns, spread, strict=True):
        ends = (f"{column.key}_low", f"{column.key}_high") if wide else ()
        headings.extend((column.key, *ends))
    writer.writerow(headings)
    for row in table.rows:
        values: list[str] = []
        for cell, wide in zip(row, spread, strict=True):
            if isinstance(cell, Estimated):
                values.extend(_plain(part) for part in (cell.value, *(cell.ends or (None, None))))
            else:
                values.extend((_plain(cell), *(("", "") if wide else ())))
        writer.writerow(values)
    return written.getvalue()


def _plain(value: str | int | float | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


# Tables as LaTeX, in the style of booktabs.

_LONG = 45
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "→": r"$\rightarrow$",
    "²": r"$^2$",
    "≥": r"$\geq$",
}


def latex_text(text: str) -> str:
    r"""Return text as LaTeX shows it, whatever is in it.

    >>> latex_text("50_% of {x}")
    '50\\_\\% of \\{x\\}'
    """
    # A line break would end the row, and a blank line the paragraph.
    return "".join(_SPECIAL.get(letter, letter) for letter in " ".join(text.split()))


def latex_table(table: ReportTable) -> str:
    r"""Return a table that a document takes in with ``\input``.

    Tables of more than a page break over pages and take the package longtable.
    """
    return _longtable(table) if len(table.rows) > _LONG else _floating(table)


def _floating(table: ReportTable) -> str:
    lines = [
        "% takes \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{_caption(table)}}}",
        f"\\label{{tab:{_label(table)}}}",
        f"\\begin{{tabular}}{{{_alignment(table)}}}",
        "\\toprule",
        _headings(table),
        "\\midrule",
        *_rows(table),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _longtable(table: ReportTable) -> str:
    lines = [
        "% takes \\usepackage{booktabs} and \\usepackage{longtable}",
        f"\\begin{{longtable}}{{{_alignment(table)}}}",
        f"\\caption{{{_caption(table)}}}\\label{{tab:{_label(table)}}}\\\\",
        "\\toprule",
        _headings(table),
        "\\midrule",
        "\\endhead",
        "\\bottomrule",
        "\\endfoot",
        *_rows(table),
        "\\end{longtable}",
    ]
    return "\n".join(lines) + "\n"


def _caption(table: ReportTable) -> str:
    return latex_text(f"{table.title}. {table.caption}")


def _label(table: ReportTable) -> str:
    return table.name.replace("_", "-")


def _alignment(table: ReportTable) -> str:
    return "".join("r" if table.numeric(place) else "l" for place in range(len(table.columns)))


def _headings(table: ReportTable) -> str:
    return " & ".join(latex_text(column.heading) for column in table.columns) + r" \\"


def _rows(table: ReportTable) -> Iterator[str]:
    for row in table.rows:
        cells = [
            _cell(cell, column.digits) for cell, column in zip(row, table.columns, strict=True)
        ]
        # Braces in front: a row that begins with a bracket would be read as an option of \\.
        yield "{}" + " & ".join(cells) + r" \\"


def _cell(cell: Cell, digits: int) -> str:
    if isinstance(cell, Estimated) and cell.value is not None and cell.ends is not None:
        value, _, interval = cell_text(cell, digits).partition(" ")
        return (
            f"${value}$ {{\\scriptsize {interval.replace('-', '$-$').replace('inf', _INFINITE)}}}"
        )
    text = cell_text(cell, digits)
    return f"${text}$" if text.startswith("-") and text[1:2].isdigit() else latex_text(text)


_INFINITE = r"$\infty$"


# The table that a run ends with: every condition of every held-out task, and what it means.

_PIPED_WIDTH = 120
_FIRST = ("base", "source_base", "source", "oracle")
_HEADINGS = {"source_base": "source\nbase"}


def score_columns(results: Results) -> tuple[str, ...]:
    """Return the conditions in the order in which they are shown: the prediction last."""
    controls = dict.fromkeys(["mean", *results.controls])
    scored = any(CARTRIDGE in task.scores for task in results.tasks.values())
    return (*_FIRST, *controls, *([CARTRIDGE] if scored else []), "predicted")


def results_table(results: Results) -> Table:
    """Return the table of all held-out tasks, with the mean over the usable ones as last row."""
    space = f", space {results.space}" if results.space else ""
    pair = results.pair
    table = Table(
        title=Text(f"{results.mapper}{space}, seed {results.seed}: {pair.source} -> {pair.target}"),
        caption="accuracy on the test rows; gap recovered = (predicted - base) / (oracle - base)",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        title_style="bold",
        caption_style="",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("task", no_wrap=True, vertical="bottom")
    conditions = score_columns(results)
    for condition in conditions:
        heading = _HEADINGS.get(condition, condition)
        style = "bold" if condition == "predicted" else None
        table.add_column(heading, justify="right", no_wrap=True, style=style, vertical="bottom")
    table.add_column("gap recovered\n[95 % interval]", justify="right", no_wrap=True)
    table.add_column("NLL\ngap", justify="right", no_wrap=True)
    table.add_column("cos", justify="right", no_wrap=True, vertical="bottom")
    for name, task in results.tasks.items():
        cells = (name, *_cells(task, conditions))
        # Text, because a name or an interval in brackets must not be read as markup.
        table.add_row(*map(Text, cells), style=None if task.usable else "dim")
    if results.tasks:
        table.add_section()
        table.add_row(*map(Text, _summary_cells(results, conditions)))
    return table


def print_results(results: Results) -> None:
    """Print the table and the verdict to the standard output.

    In colours and at the terminal's width where there is one, else without colours and 120 wide.
    """
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    _print(console, results)


def _print(console: Console, results: Results) -> None:
    table = results_table(results)
    # In a narrow terminal lines wrap; at that width rich would cut the numbers instead.
    width = console.width
    natural = console.measure(table, options=console.options.update(width=1000)).maximum
    console.width = max(width, natural)
    console.print(table, soft_wrap=True)
    console.width = width
    console.print(verdict(results), markup=False, highlight=False)
    gap = results.summary.cartridge_gap
    if gap is not None:
        console.print(
            f"As a cartridge, before it is made linear, it recovers {gap:.2f} of the gap.",
            markup=False,
            highlight=False,
        )
    left_out = [name for name, task in results.tasks.items() if not task.usable]
    if left_out:
        console.print(
            f"Not usable, and left out of the mean: {', '.join(left_out)} (the oracle is less than "
            "3 points above the base).",
            markup=False,
            highlight=False,
        )


def _cells(task: TaskResult, conditions: Sequence[str]) -> list[str]:
    scores = [_number(task.scores.get(condition)) for condition in conditions]
    gap = "not usable"
    if task.gap_recovered is not None:
        gap = f"{task.gap_recovered:.2f} {interval_text(task.ci95)}"
    return [*scores, gap, _number(task.gap_recovered_nll), _number(task.weight_cosine)]


def _summary_cells(results: Results, conditions: Sequence[str]) -> list[str]:
    summary = results.summary
    usable = [task for task in results.tasks.values() if task.usable]
    scores = [_number(_mean([t.scores.get(condition) for t in usable])) for condition in conditions]
    gap = "not usable"
    if summary.gap_recovered is not None:
        gap = f"{summary.gap_recovered:.2f} {interval_text(summary.ci95)}"
    cosine = _number(_mean([task.weight_cosine for task in usable]))
    name = f"mean of {summary.usable}"
    return [name, *scores, gap, _number(summary.gap_recovered_nll), cosine]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


# The lines of the benchmark's main table: each method with each seed, and the controls.

CONTROL_NAMES = {
    "base": "base (no adapter)",
    "random": "random adapter (control)",
    "copy": "copied factors (control)",
    "mean": "mean of anchors (control)",
    "few_shot_8": "few-shot 8 (control)",
    "few_shot_32": "few-shot 32 (control)",
    "oracle": "oracle (trained on the target)",
}
"""The conditions that stand as lines of their own, in the order in which they are shown."""

_CONTROL_CLASSES = {
    "copy": "weights only",
    "mean": "anchors",
    "few_shot_8": "few-shot",
    "few_shot_32": "few-shot",
}
# Mappers that are there to be beaten; what they are refined to is a method again.
_CONTROL_MAPPERS = frozenset({"noop", "copy", "mean", "random"})


@dataclass(frozen=True)
class ControlLine:
    """What a control scores on a pair's usable tasks, in one run with one seed.

    Attributes:
        condition: As in the tasks' scores.
        pair: Name of the pair.
        seed: Of the run; None where all seeds give the same.
        gap: Mean gap recovered; None where a usable task lacks the control.
        gap_nll: The same on minus the negative log-likelihood.
        accuracy: Its mean.
        retention: Mean of accuracy over the source's.
    """

    condition: str
    pair: str
    seed: int | None
    gap: Number
    gap_nll: Number
    accuracy: Number
    retention: Number

    @property
    def data_access(self) -> str:
        """What it may use; empty for the two bounds and what uses nothing."""
        return _CONTROL_CLASSES.get(self.condition, "")


def is_control(method: MethodResult) -> bool:
    """Return whether a method is there to be beaten, such as the anchors' mean."""
    return method.refine is None and method.mapper in _CONTROL_MAPPERS


def line_label(method: MethodResult) -> str:
    """Return the name of a method with the options in which it differs from its namesakes."""
    options = ", ".join(f"{name}={value}" for name, value in method.variant.items())
    return f"{method.name} ({options})" if options else method.name


def line_gap(method: MethodResult) -> Estimated:
    """Return the mean gap recovered over the usable tasks, with its interval."""
    summary = method.summary
    return (
        Estimated(None, None) if summary is None else Estimated(summary.gap_recovered, summary.ci95)
    )


def sorted_methods(results: BenchmarkResults) -> list[MethodResult]:
    """Return the methods that could be used: the cheapest class first, in it the highest gap.

    Of several pairs the first comes first.
    """
    used = [method for method in results.methods if method.refused is None]
    places = list(results.pairs)
    return sorted(used, key=lambda method: (places.index(method.pair), *_order(method)))


def refused_methods(results: BenchmarkResults) -> list[MethodResult]:
    """Return the methods that could not be used."""
    return [method for method in results.methods if method.refused is not None]


def mean_over_usable(tasks: Sequence[TaskResult], condition: str) -> Number:
    """Return the mean accuracy under a condition; None where a usable task lacks it."""
    return _mean_benchmark_lines([task.scores.get(condition) for task in tasks if task.usable])


def mean_retention(method: MethodResult) -> Number:
    """Return the mean retention over the usable tasks."""
    return _mean_benchmark_lines([task.retention for task in method.tasks.values() if task.usable])


def total_seconds(method: MethodResult) -> Number:
    """Return the seconds of fitting and porting; None where none is known."""
    known = [seconds for seconds in method.seconds.values() if seconds is not None]
    return sum(known) if known else None


def control_lines(results: BenchmarkResults) -> list[ControlLine]:
    """Return the controls of each pair and seed.

    They are the same for all methods. Where one of them is among the methods it stands there,
    with an interval, and not here.
    """
    found: list[ControlLine] = []
    for pair in results.pairs:
        seeds = sorted({m.seed for m in results.methods if m.pair == pair and m.tasks})
        for condition in CONTROL_NAMES:
            lines = [_control_line(results, condition, pair, seed) for seed in seeds]
            found.extend(_merged([line for line in lines if line is not None]))
    return found


def unusable_tasks(results: BenchmarkResults) -> dict[str, list[str]]:
    """Return of each pair the tasks on which the oracle is too near to the base."""
    found: dict[str, dict[str, None]] = {pair: {} for pair in results.pairs}
    for method in results.methods:
        for name, task in method.tasks.items():
            if not task.usable:
                found.setdefault(method.pair, {})[name] = None
    return {pair: list(names) for pair, names in found.items() if names}


def task_names(results: BenchmarkResults) -> list[str]:
    """Return the tasks of all methods in the order in which they appear."""
    return list(dict.fromkeys(name for method in results.methods for name in method.tasks))


def _order(method: MethodResult) -> tuple[int, float, str, int]:
    value = line_gap(method).value
    height = float("inf") if value is None else -value
    return cost_rank(method.data_access), height, line_label(method), method.seed


def _merged(lines: list[ControlLine]) -> list[ControlLine]:
    """Return one line where the seeds do not differ, such as for the base."""
    alike = [replace(line, seed=None) for line in lines]
    return alike[:1] if len(set(alike)) == 1 else lines


def _control_line(
    results: BenchmarkResults, condition: str, pair: str, seed: int
) -> ControlLine | None:
    run = [m for m in results.methods if (m.pair, m.seed) == (pair, seed) and m.tasks]
    if any(m.name == condition and m.refused is None for m in run):
        return None
    having = [m for m in run if any(t.scores.get(condition) is not None for t in m.tasks.values())]
    if not having:
        return None
    tasks = list(having[0].tasks.values())
    return ControlLine(
        condition=condition,
        pair=pair,
        seed=seed,
        gap=_mean_gap([task.scores for task in tasks], condition, 1),
        gap_nll=_mean_gap([task.nll for task in tasks], condition, -1),
        accuracy=mean_over_usable(tasks, condition),
        retention=_mean_benchmark_lines(
            [_ratio(task.scores, condition) for task in tasks if task.usable]
        ),
    )


def _mean_gap(scores: Sequence[dict[str, Number]], condition: str, sign: int) -> Number:
    """Return the mean share of the oracle's gain over the tasks that have headroom."""
    shares: list[Number] = []
    for task in scores:
        base, score, oracle = (task.get(name) for name in ("base", condition, "oracle"))
        if base is None or oracle is None or not is_usable(sign * base, sign * oracle):
            continue
        shares.append(None if score is None else (score - base) / (oracle - base))
    return _mean_benchmark_lines(shares)


def _ratio(scores: dict[str, Number], condition: str) -> Number:
    score, source = scores.get(condition), scores.get("source")
    return score / source if score is not None and source else None


def _mean_benchmark_lines(values: Sequence[Number]) -> Number:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


# What every method does on every task: all conditions, and the cross-family transfer table.

_WIDEST = 8
_NOT_USABLE = "not usable"
_CONDITIONS = {
    "base": "base",
    "source_base": "source base",
    "source": "source",
    "oracle": "oracle",
    "copy": "copy",
    "mean": "mean",
    "random": "random",
    "swapped": "swapped",
    "few_shot_8": "few-shot 8",
    "few_shot_32": "few-shot 32",
    CARTRIDGE: "cartridge",
    "predicted": "method",
}


def task_table(results: BenchmarkResults) -> ReportTable:
    """Return one line a method, seed and task, with every column of the evaluation protocol."""
    columns = (
        *(Column("pair", "pair"), Column("method", "method"), Column("seed", "seed")),
        *(Column("task", "task"), Column("rows", "rows", meaning="test rows")),
        *(Column(name, heading) for name, heading in _CONDITIONS.items()),
        Column("gap_recovered", "gap recovered"),
        Column("gap_recovered_nll", "NLL gap"),
        *(Column("retention", "retention"), Column("relative_to_oracle", "of oracle")),
        Column("margin", "margin", 2, "accuracy over the best of base and controls"),
        Column("weight_cosine", "cosine", 2, "of the predicted and the oracle's update"),
        Column("relative_error", "error", 2, "of the predicted update, relative to the oracle's"),
    )
    rows: list[tuple[Cell, ...]] = []
    for method in sorted_methods(results):
        for name, task in method.tasks.items():
            gap: Cell = Estimated(task.gap_recovered, task.ci95) if task.usable else _NOT_USABLE
            rows.append(
                (
                    *(method.pair, line_label(method), method.seed, name, task.n),
                    *(task.scores.get(condition) for condition in _CONDITIONS),
                    *(gap, Estimated(task.gap_recovered_nll, task.ci95_nll), task.retention),
                    *(task.relative_to_oracle, task.margin),
                    *(task.weight_cosine, task.relative_error),
                )
            )
    caption = "accuracies of all conditions on the same test rows; intervals over these rows"
    table = ReportTable("tasks", "Every task", caption, columns, tuple(rows))
    return without_single_pair(table, results).filled()


def transfer_table(results: BenchmarkResults) -> ReportTable:
    """Return the gap recovered by every method on every task, the cross-family transfer table.

    Tasks are columns; where there are more than eight, they are rows and the methods columns.
    """
    methods, tasks = sorted_methods(results), task_names(results)
    title, caption = "Cross-family transfer", "gap recovered by task, with 95 % intervals over rows"
    if len(tasks) > _WIDEST:
        columns = (
            Column("task", "task"),
            *(Column(_key(method, results), _key(method, results)) for method in methods),
        )
        rows = tuple((name, *(_gap(method, name) for method in methods)) for name in tasks)
        return ReportTable("cross_family_transfer", title, caption, columns, rows)
    columns = (
        *(Column("pair", "pair"), Column("method", "method")),
        *(Column("data_access", "may use"), Column("seed", "seed")),
        *(Column(name, name) for name in tasks),
    )
    rows = tuple(
        (
            *(method.pair, line_label(method), method.data_access, method.seed),
            *(_gap(method, name) for name in tasks),
        )
        for method in methods
    )
    table = ReportTable("cross_family_transfer", title, caption, columns, rows)
    return without_single_pair(table, results)


def without_single_pair(table: ReportTable, results: BenchmarkResults) -> ReportTable:
    """Return a table without its first column, the pair, where there is only one pair."""
    if len(results.pairs) != 1:
        return table
    rows = tuple(row[1:] for row in table.rows)
    return ReportTable(table.name, table.title, table.caption, table.columns[1:], rows)


def _key(method: MethodResult, results: BenchmarkResults) -> str:
    place = f", {method.pair}" if len(results.pairs) > 1 else ""
    return f"{line_label(method)}, seed {method.seed}{place}"


def _gap(method: MethodResult, task: str) -> Cell:
    found = method.tasks.get(task)
    if found is None:
        return None
    return Estimated(found.gap_recovered, found.ci95) if found.usable else _NOT_USABLE


# How sure the match of layers is: the best source layer of each target layer and the second.


def confidence_table(results: BenchmarkResults) -> ReportTable:
    """Return the best source layer of every target layer, and how far the second lies behind."""
    columns = (
        *(Column("pair", "pair"), Column("target_layer", "target layer")),
        *(Column("source_layer", "best source layer"), Column("similarity", "similarity", 3)),
        *(Column("second_layer", "second"), Column("second_similarity", "its similarity", 3)),
        Column("margin", "margin", 3, "similarity of the best minus that of the second"),
    )
    rows: list[tuple[Cell, ...]] = [
        (pair, layer, *_two_best(row))
        for pair, grid in results.similarities.items()
        for layer, row in enumerate(grid)
    ]
    caption = "a match is stable where its margin is wide: on other rows the same layer wins"
    title = "Intersection map: confidence against stability"
    table = ReportTable("intersection_map", title, caption, columns, tuple(rows))
    return without_single_pair(table, results)


def _two_best(row: list[Number]) -> tuple[Cell, ...]:
    known = [(value, place) for place, value in enumerate(row) if value is not None]
    # Of equal values the lower layer, so that the order does not hang on the search.
    ranked = sorted(known, key=lambda pair: (-pair[0], pair[1]))
    if not ranked:
        return (None,) * 5
    similarity, best = ranked[0]
    if len(ranked) == 1:
        return best, similarity, None, None, None
    second, other = ranked[1]
    return best, similarity, other, second, similarity - second


# What a diagnosis before a transfer is worth: each diagnostic against what came of the port.


def calibration_table(results: BenchmarkResults) -> ReportTable:
    """Return how well each diagnostic tells in advance what a port recovers."""
    columns = (
        *(Column("diagnostic", "diagnostic"), Column("method", "ports of")),
        Column("points", "ports"),
        Column("spearman", "Spearman", 2, "rank correlation with the gap recovered"),
        Column("threshold", "expected to succeed"),
        Column("hit_rate", "hit rate", 2, "leave-one-task-out cross-validation"),
        Column("majority_rate", "majority", 2, "hit rate of always saying what is more frequent"),
    )
    record = results.calibration
    rows: list[tuple[Cell, ...]] = []
    for found in record.diagnostics if record is not None else ():
        side = "≥" if found.above else "<"
        rule = None if found.threshold is None else f"{side} {found.threshold:.3g}"
        rows.append(
            (
                *(found.name.replace("_", " "), found.method or "all methods", found.points),
                *(Estimated(found.spearman, found.ci95), rule),
                *(found.hit_rate, found.majority_rate),
            )
        )
    success = "" if record is None else f"; success is a gap recovered above {record.success:g}"
    caption = f"known before the transfer against what came of it{success}"
    return ReportTable("calibration", "Calibration of the diagnosis", caption, columns, tuple(rows))


def points_table(results: BenchmarkResults) -> ReportTable:
    """Return every ported adapter with its diagnostics, which the calibration rests on."""
    points = results.calibration.points if results.calibration is not None else ()
    names = list(dict.fromkeys(name for point in points for name in point.diagnostics))
    columns = (
        *(Column("pair", "pair"), Column("method", "method"), Column("task", "task")),
        *(Column("seed", "seed"), Column("gap_recovered", "gap recovered")),
        Column("gap_recovered_nll", "NLL gap"),
        *(Column(name, name.replace("_", " "), 3) for name in names),
    )
    rows = tuple(
        (
            *(p.condition.pair, p.condition.method, p.condition.task, p.condition.seed),
            *(p.gap_recovered, p.gap_recovered_nll),
            *(p.diagnostics.get(name) for name in names),
        )
        for p in points
    )
    title, caption = "Ported adapters", "what was known before, and what was recovered"
    table = ReportTable("calibration_points", title, caption, columns, rows)
    return without_single_pair(table, results)
