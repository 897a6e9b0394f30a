"""What a diagnosis prints: the verdict, the layers, the modules, and what to know of them."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .diagnosis_words import mean_fit
from .intersection_map import IntersectionMap

_PIPED_WIDTH = 120
FIT_COLUMNS = {
    "inputs": "R² of inputs",
    "outputs": "R² of outputs",
    "adapter_inputs": "adapter's inputs",
    "adapter_outputs": "adapter's outputs",
}
"""The held-out R^2 of the linear maps, as they are headed in tables."""


def number(value: float | None, digits: int = 2) -> str:
    """Return a number as tables show it; a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def layer_rows(content: IntersectionMap) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and one row a target layer."""
    headings = (
        *("target layer", "fed by", "best source", "similarity", "covered", "agreement"),
        *("rotation error", "anchor coverage"),
    )
    rows: list[tuple[str, ...]] = []
    for layer, feeds in zip(content.layers, content.pairing, strict=True):
        fed = ", ".join(
            str(source) if weight == 1 else f"{source} ({weight:.2f})" for source, weight in feeds
        )
        rows.append(
            (
                *(str(layer.target), fed or "-", str(layer.source), number(layer.similarity)),
                *("yes" if layer.covered else "no", number(layer.agreement)),
                *(number(layer.procrustes_error), number(layer.anchor_coverage)),
            )
        )
    return headings, rows


def fit_rows(content: IntersectionMap) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and one row a role: the mean held-out R^2 of the maps between modules."""
    found = mean_fit(content.modules)
    names = [name for name in FIT_COLUMNS if any(name in facts for facts in found.values())]
    rows: list[tuple[str, ...]] = [
        (role, *(number(facts.get(n)) for n in names)) for role, facts in found.items()
    ]
    return ("role", *(FIT_COLUMNS[name] for name in names)), rows


def measure_rows(content: IntersectionMap) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return headings and one row a measure: its mean over the target's best source layers."""
    rows: list[tuple[str, ...]] = []
    for measure in content.measures.values():
        best = [
            [max((v for v in row if v is not None), default=0.0) for row in grid]
            for grid in (measure.raw, measure.calibrated)
        ]
        means = [number(sum(values) / max(len(values), 1)) for values in best]
        rows.append((measure.title, *means, str(measure.rows)))
    return ("measure", "best raw", "best calibrated", "rows"), rows


def print_diagnosis(content: IntersectionMap, console: Console | None = None) -> None:
    """Print the verdict, the tables and the warnings."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=_PIPED_WIDTH)
    pair = content.pair
    console.print(Text(f"{pair.source} -> {pair.target}, {content.probes.name}", "bold"))
    for headings, rows in (measure_rows(content), layer_rows(content), fit_rows(content)):
        if rows:
            console.print(_table(headings, rows))
    for line in (*remarks(content), content.verdict.words, *content.warnings):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def remarks(content: IntersectionMap) -> list[str]:
    """Return what was compared, and the figures of the rotations, in words."""
    probes, geometry = content.probes, content.geometry
    return [
        f"compared: {probes.rows} rows with {probes.tokens} distinct tokens, of {probes.aligned} "
        f"aligned word ends in {probes.texts} texts",
        f"rotations: relative error on held-out rows {number(geometry.mean_error)} on average, "
        f"{number(geometry.max_error)} at most; roughness {number(geometry.roughness)}; anchors "
        f"determine directions with {number(geometry.anchor_coverage)} of the variance",
    ]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place == 0 else "right")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
