"""Heat maps of the intersection map: one picture a measure, with the layer pairing drawn in."""

import math
from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..files import write_whole
from .intersection_map import Grid, IntersectionMap

# Grows evenly in lightness, so that it reads in grey and with every kind of colour blindness.
_COLOURS = "viridis"
_PAIRING = "#D55E00"
_INCHES_A_LAYER = 0.16


def write_heat_maps(content: IntersectionMap, folder: str | Path) -> dict[str, Path]:
    """Draw every measure as a PNG into ``folder`` and return the files by the measures' names."""
    return {
        name: write_whole(Path(folder) / f"{name}.png", _drawn(content, name))
        for name in content.measures
    }


def _drawn(content: IntersectionMap, name: str) -> bytes:
    measure = content.measures[name]
    targets, sources = len(measure.raw), len(measure.raw[0])
    width = min(max(3.4, 1.4 + _INCHES_A_LAYER * sources), 9.0)
    height = min(max(3.2, 1.6 + _INCHES_A_LAYER * targets), 9.0)
    figure = Figure(figsize=(2 * width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, grid, title in zip(
        panels,
        (measure.calibrated, measure.raw),
        ("calibrated: above permuted rows", "raw"),
        strict=True,
    ):
        _panel(figure, axes, grid, content.pairing)
        axes.set_title(title, fontsize=9)
    panels[0].set_ylabel(f"layer of {content.pair.target}")
    figure.suptitle(f"{measure.title}, {measure.rows} rows", fontsize=11)
    # Below both panels: inside of them it would hide layers.
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", frameon=False)
    for axes in panels:
        axes.set_xlabel(f"layer of {content.pair.source}")
    picture = BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    figure.clear()
    return picture.getvalue()


def _panel(
    figure: Figure, axes: Axes, grid: Grid, pairing: tuple[tuple[tuple[int, float], ...], ...]
) -> None:
    values = [[math.nan if value is None else value for value in row] for row in grid]
    image = axes.imshow(values, origin="lower", aspect="auto", cmap=_COLOURS)
    bar = figure.colorbar(image, ax=axes)
    bar.ax.tick_params(labelsize=8)
    feeds = [
        (source, target, weight) for target, row in enumerate(pairing) for source, weight in row
    ]
    axes.scatter(
        [source for source, _, _ in feeds],
        [target for _, target, _ in feeds],
        s=[12 + 28 * weight for _, _, weight in feeds],
        facecolors="none",
        edgecolors=_PAIRING,
        linewidths=1.4,
        label="layer pairing",
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8)
