"""The table that a run ends with: every condition of every held-out task, and what it means."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .results import CARTRIDGE, Results, TaskResult
from .verdict import interval_text, verdict

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
