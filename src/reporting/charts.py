"""The bar chart of a run: what every held-out task scored under the conditions that matter."""

import math
from io import BytesIO
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import write_whole
from .results import CARTRIDGE, Results

# Okabe and Ito's palette: told apart with every common kind of colour blindness, and in grey.
_BARS = {
    "base": ("base", "#BBBBBB"),
    "mean": ("mean of the anchors", "#56B4E9"),
    CARTRIDGE: ("as a cartridge", "#E69F00"),
    "predicted": ("predicted", "#D55E00"),
    "oracle": ("oracle", "#009E73"),
}
_GROUP_WIDTH = 0.8


def write_chart(results: Results, path: str | Path) -> Path:
    """Draw the accuracies as a PNG, whole or not at all, and return its path.

    Whiskers are 95 % Wilson intervals of each accuracy over the test rows.
    """
    path = Path(path)
    tasks = list(results.tasks)
    figure = Figure(figsize=(min(max(6.4, 1.6 + 1.15 * len(tasks)), 40.0), 4.4), dpi=150)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shown = [(c, *bar) for c, bar in _BARS.items() if c != CARTRIDGE or _has_cartridge(results)]
    width = _GROUP_WIDTH / len(shown)
    for place, (condition, label, colour) in enumerate(shown):
        heights, below, above = [], [], []
        for task in results.tasks.values():
            score = task.scores.get(condition)
            low, high = wilson_interval(score, task.n) if score is not None else (0.0, 0.0)
            heights.append(score or 0.0)
            below.append(max((score or 0.0) - low, 0.0))
            above.append(max(high - (score or 0.0), 0.0))
        offset = (place - (len(shown) - 1) / 2) * width
        axes.bar(
            [task + offset for task in range(len(tasks))],
            heights,
            width=width,
            label=label,
            color=colour,
            edgecolor="white",
            linewidth=0.5,
            yerr=(below, above),
            error_kw={"ecolor": "#333333", "elinewidth": 0.9, "capsize": 2},
        )
    names = [name if results.tasks[name].usable else f"{name}\n(not usable)" for name in tasks]
    axes.set_xticks(range(len(tasks)), names)
    if len(tasks) > 6 or any(len(name) > 16 for name in tasks):
        axes.tick_params(axis="x", labelrotation=30)
        for tick in axes.get_xticklabels():
            tick.set_horizontalalignment("right")
    axes.set_ylim(0, 1)
    axes.set_ylabel("accuracy (whiskers: 95 % intervals)")
    space = f", space {results.space}" if results.space else ""
    axes.set_title(
        f"{results.mapper}{space}, seed {results.seed}\n{results.pair.source} → "
        f"{results.pair.target}",
        fontsize=10,
        pad=28,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.grid(visible=True, color="#E5E5E5", linewidth=0.8)
    axes.set_axisbelow(True)
    # Above the bars: below them, the names of the tasks need any height.
    axes.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(shown), frameon=False, fontsize=9
    )
    drawn = BytesIO()
    figure.savefig(drawn, format="png", bbox_inches="tight", metadata={"Software": None})
    figure.clear()
    return write_whole(path, drawn.getvalue())


def _has_cartridge(results: Results) -> bool:
    return any(CARTRIDGE in task.scores for task in results.tasks.values())


def wilson_interval(share: float, rows: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of ``rows`` independent rows.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference,
    1927.

    >>> [round(end, 3) for end in wilson_interval(0.5, 100)]
    [0.404, 0.596]
    """
    z = 1.959963984540054
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    spread = math.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    half = z * spread / (1 + z * z / rows)
    return max(centre - half, 0.0), min(centre + half, 1.0)
