"""Charts: one style, drawn as PNG for files and as SVG for the page.

First the style and what all charts share, then the chart of ``train.py``, those of ``evaluate.py``,
and the heat maps of a diagnosis.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from ..evaluation.records import (
    CARTRIDGE,
    BenchmarkResults,
    Ends,
    IntersectionMap,
    MethodResult,
    Number,
    Results,
    SuiteChange,
    SuiteResult,
    cost_rank,
)
from ..evaluation.statistics import wilson
from ..evaluation.verdict import HARMFUL, HARMFUL_RESPONSE, HARMLESS
from ..files import write_whole
from .tables import Estimated, cell_text, estimated

INK = "#222222"
GRID = "#e5e5e5"
# Okabe and Ito's palette: told apart with every common kind of colour blindness, and in grey; and
# a mark of its own for each data access, for who sees no colours.
ACCESS_MARKS = {
    "weights only": ("#0072b2", "o"),
    "generic text": ("#009e73", "s"),
    "anchors": ("#e69f00", "^"),
    "unlabelled prompts": ("#cc79a7", "D"),
    "few-shot": ("#d55e00", "P"),
}
OTHER_MARK = ("#8a8a8a", "X")
ORACLE_MARK = ("#8a8a8a", "*")

# What the page's style sheet may replace: in dark mode some colours need more light.
_VARIABLES = {
    INK: "currentColor",
    GRID: "var(--grid)",
    "#0072b2": "var(--weights)",
    "#009e73": "var(--text)",
    "#e69f00": "var(--anchors)",
    "#cc79a7": "var(--prompts)",
    "#d55e00": "var(--few)",
    "#8a8a8a": "var(--other)",
}
_STYLE: Any = {
    "text.parse_math": False,  # a dollar in a name is no formula
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
    # Grows evenly in lightness, so that it reads in grey and with every kind of colour blindness.
    "image.cmap": "viridis",
    "image.origin": "lower",
    "image.aspect": "auto",
    "image.interpolation": "none",
}
_HIGHEST = 60.0  # inches
_LONGEST_NAME = 34
_PIXELS_A_POINT = 1.55
_GAP_AXIS = "gap recovered (0: base, 1: oracle)"


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    The PNG is for files, on white; the SVG for the page, in the page's own colours.
    """

    name: str
    title: str
    caption: str
    png: bytes
    svg: str

    def write(self, folder: Path) -> Path:
        """Write the PNG into a folder, whole or not at all, and return its path."""
        return write_whole(folder / f"{self.name}.png", self.png)


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the charts' style within the block; the settings before come back."""
    with matplotlib.rc_context(_STYLE):
        yield


def _figure(width: float, height: float) -> Figure:
    """Return a figure of so many inches; pyplot, which has a global state, is not touched."""
    figure = Figure(figsize=(width, min(height, _HIGHEST)), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> bytes:
    content = BytesIO()
    figure.savefig(content, format="png", dpi=130, facecolor="white", metadata={"Software": None})
    return content.getvalue()


def _finished(figure: Figure, name: str, title: str, caption: str) -> Chart:
    png, svg = _png(figure), StringIO()
    # The second drawing has the layout of the first.
    figure.set_layout_engine("none")
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    figure.clear()
    return Chart(name, title, caption, png, page_svg(svg.getvalue(), name))


def page_svg(svg: str, name: str) -> str:
    """Return an SVG as a page holds it inline.

    Without header, metadata and name spaces, which would be addresses; with identifiers of its
    own, and colours that follow the page's.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    # In tags only: between them stand the names of tasks and methods, whatever these hold.
    return re.sub(r"<[^>]+>", lambda tag: _page_tag(tag.group(), name), svg)


def _page_tag(tag: str, name: str) -> str:
    tag = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", tag).replace("xlink:href", "href")
    if tag.startswith("<svg"):
        # As wide as the page lets it be; the proportions are those of the view box.
        natural = re.search(r' width="([0-9.]+)pt"', tag)
        width = _PIXELS_A_POINT * float(natural.group(1)) if natural else 0.0
        tag = re.sub(r' (width|height|version)="[^"]*"', "", tag)
        tag = tag.replace("<svg", f'<svg style="--natural: {width:.0f}px"', 1)
    tag = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", tag)
    tag = re.sub(r"'DejaVu Sans'.*?sans-serif", "var(--font)", tag)
    for colour, variable in _VARIABLES.items():
        tag = re.sub(rf"((?:fill|stroke): ?){colour}", rf"\1{variable}", tag)
    if "base64" in tag:
        return tag
    return re.sub(r"(\.\d\d)\d+", r"\1", tag)


def _mark(data_access: str) -> tuple[str, str]:
    """Return colour and mark of a data access."""
    return ACCESS_MARKS.get(data_access, OTHER_MARK)


def _legend(figure: Figure, accesses: Iterable[str], extra: Sequence[Line2D] = ()) -> None:
    """Put what the marks mean above the panels: inside of them it would hide points."""
    handles = [
        Line2D([], [], linestyle="", color=_mark(a)[0], marker=_mark(a)[1], label=a)
        for a in sorted(set(accesses), key=cost_rank)
    ]
    handles.extend(extra)
    if handles:
        columns = min(len(handles), 4)
        figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=1.4)


def limits_of(values: Iterable[float | None]) -> tuple[float, float]:
    """Return how far an axis of gaps recovered reaches: from 0 to 1, and as far as the values.

    Not below -1 or above 1.5: beyond these a value is noise divided by next to nothing, and
    :func:`clipped` puts it at the edge.

    >>> limits_of([0.2, 9.0])
    (0.0, 1.5)
    """
    known = [value for value in values if value is not None]
    return max(min([*known, 0.0]), -1.0), min(max([*known, 1.0]), 1.5)


def clipped(value: float, limits: tuple[float, float]) -> float:
    """Return where a value is drawn: itself, or the edge beyond which it lies.

    >>> clipped(5.0, (-1.0, 1.5)), clipped(0.5, (-1.0, 1.5))
    (1.5, 0.5)
    """
    return min(max(value, limits[0]), limits[1])


def _whisker(ends: Ends, value: float, limits: tuple[float, float]) -> tuple[float, float]:
    low, high = ends or (value, value)
    return clipped(low, limits), clipped(high, limits)


def shortened(name: str) -> str:
    """Return a name as charts show it: one that is too long would leave no room for the panel.

    >>> shortened("a" * 40)
    'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…'
    """
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _base_and_oracle(axes: Axes, axis: Literal["x", "y"]) -> None:
    """Draw where the base and the oracle lie on an axis of gaps recovered."""
    line = axes.axvline if axis == "x" else axes.axhline
    line(0, color=INK, linewidth=0.8)
    line(1, color=INK, linewidth=0.8, linestyle=":")
    axes.grid(visible=True)


def _log_x(axes: Axes, label: str) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(label)
    # Plain numbers: formulas are not drawn.
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _method_axis(axes: Axes, names: Sequence[str]) -> None:
    """Put a line a method on the vertical axis, the first on top."""
    axes.set_yticks(range(len(names)), [shortened(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)


def _grid(figure: Figure, count: int, columns: int, **shared: Any) -> list[Axes]:
    """Return so many panels, those that are left over hidden."""
    rows = math.ceil(count / columns)
    panels = list(figure.subplots(rows, columns, squeeze=False, **shared).flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    return panels[:count]


_BARS = {
    "base": ("base", "#BBBBBB"),
    "mean": ("mean of the anchors", "#56B4E9"),
    CARTRIDGE: ("as a cartridge", "#E69F00"),
    "predicted": ("predicted", "#D55E00"),
    "oracle": ("oracle", "#009E73"),
}


def write_chart(results: Results, path: str | Path) -> Path:
    """Draw the accuracies of ``train.py`` as a PNG, whole or not at all, and return its path.

    Whiskers are 95 % Wilson intervals of each accuracy over the test rows.
    """
    tasks = results.tasks
    cartridge = any(CARTRIDGE in task.scores for task in tasks.values())
    shown = [(c, *bar) for c, bar in _BARS.items() if c != CARTRIDGE or cartridge]
    width = 0.8 / len(shown)
    with styled():
        figure = _figure(min(max(6.4, 1.6 + 1.15 * len(tasks)), 40.0), 4.4)
        axes = figure.subplots()
        for turn, (condition, label, colour) in enumerate(shown):
            heights, below, above = [], [], []
            for task in tasks.values():
                score = task.scores.get(condition) or 0.0
                low, high = wilson(round(score * task.n), task.n)
                heights.append(score)
                below.append(max(score - low, 0.0))
                above.append(max(high - score, 0.0))
            offset = (turn - (len(shown) - 1) / 2) * width
            axes.bar(
                [index + offset for index in range(len(tasks))],
                heights,
                width=width,
                label=label,
                color=colour,
                edgecolor="white",
                linewidth=0.5,
                yerr=(below, above),
                error_kw={"ecolor": "#333333", "elinewidth": 0.9, "capsize": 2},
            )
        names = [n if task.usable else f"{n}\n(not usable)" for n, task in tasks.items()]
        axes.set_xticks(range(len(tasks)), names)
        if len(tasks) > 6 or any(len(name) > 16 for name in tasks):
            axes.tick_params(axis="x", labelrotation=30)
            for tick in axes.get_xticklabels():
                tick.set_horizontalalignment("right")
        axes.set_ylim(0, 1)
        axes.set_ylabel("accuracy (whiskers: 95 % intervals)")
        axes.yaxis.grid(visible=True)
        space = f", space {results.space}" if results.space else ""
        pair = f"{results.pair.source} → {results.pair.target}"
        figure.suptitle(f"{results.mapper}{space}, seed {results.seed}\n{pair}", fontsize=10)
        figure.legend(loc="outside lower center", ncols=len(shown))
        return write_whole(Path(path), _png(figure))


def benchmark_charts(results: BenchmarkResults) -> dict[str, list[Chart]]:
    """Draw the charts of a benchmark, by the part of the report that they belong to.

    Parts are ``gap``, ``cost``, ``drift``, ``map``, ``calibration`` and ``suite SUITE``. With
    several pairs each has charts of its own, apart from the calibration. What there is nothing to
    draw of has no chart.
    """
    found: dict[str, list[Chart]] = {}

    def keep(part: str, chart: Chart | None) -> None:
        if chart is not None:
            found.setdefault(part, []).append(chart)

    with styled():
        for number, pair in enumerate(results.pairs, 1):
            # Numbered, since two names may become the same where only letters and digits stay.
            ending = f"_{number}_{file_part(pair)}" if len(results.pairs) > 1 else ""
            keep("gap", gap_chart(results, pair, f"gap_by_task{ending}"))
            keep("cost", cost_chart(results, pair, f"recovery_against_cost{ending}"))
            keep("drift", drift_chart(results, pair, f"drift_against_retention{ending}"))
            keep("map", map_chart(results, pair, f"intersection_map{ending}"))
            for suite in results.suites:
                name = f"suite_{file_part(suite.name)}{ending}"
                keep(f"suite {suite.name}", suite_chart(results, suite, pair, name))
        keep("calibration", calibration_chart(results, "calibration"))
    return found


def file_part(text: str) -> str:
    """Return text as a part of a file's name, whatever is in it.

    >>> file_part("a/../b c")
    'a_b_c'
    """
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_") or "unnamed"


_ALL = "all usable tasks"
_MOST_PANELS = 8


def gap_chart(results: BenchmarkResults, pair: str, name: str) -> Chart | None:
    """Draw the gap recovered of every method with intervals: over all tasks, and task by task.

    With more than eight tasks every task is a dot in one panel. None where no gap is known.
    """
    gaps = [(m, known) for m in results.ranked() if m.pair == pair and (known := _gaps(m))]
    if not gaps:
        return None
    usable = [task for task in results.task_names() if any(task in known for _, known in gaps)]
    labels = list(dict.fromkeys(method.label for method, _ in gaps))
    seeds = sorted({method.seed for method, _ in gaps})
    dots = len(usable) > _MOST_PANELS
    panels = [_ALL] if dots else [_ALL, *usable]
    columns = min(len(panels), 3)
    height = math.ceil(len(panels) / columns) * (0.7 + 0.26 * len(labels)) + 0.9
    figure = _figure(9.0 if columns > 1 else 7.5, height)
    grid = _grid(figure, len(panels), columns, sharex=True, sharey=True)
    limits = limits_of(
        number
        for _, known in gaps
        for found in known.values()
        for number in (found.value, *(found.ends or ()))
    )
    # Of each method the line, moved a little by the seed.
    heights = [
        labels.index(m.label) + 0.5 * (seeds.index(m.seed) - (len(seeds) - 1) / 2) / len(seeds)
        for m, _ in gaps
    ]
    for axes, task in zip(grid, panels, strict=True):
        # Drawn together by colour, mark and seed: hundreds of single lines would take seconds.
        groups: dict[tuple[str, str, bool], list[tuple[float, float, float, float]]] = {}
        for (method, known), line in zip(gaps, heights, strict=True):
            colour, mark = _mark(method.data_access)
            if dots:
                values = [clipped(e.value, limits) for t, e in known.items() if t != _ALL]
                # Steps of the golden ratio fill an interval evenly, whatever their number.
                spread = [0.618034 * n % 1 - 0.5 for n in range(len(values))]
                at = [line + 0.6 / len(seeds) * step for step in spread]
                axes.plot(values, at, ".", color=colour, alpha=0.4, markersize=3.5)
            if task in known:
                value, ends = known[task]
                whisker = _whisker(ends, value, limits)
                group = groups.setdefault((colour, mark, method.seed == seeds[0]), [])
                group.append((line, clipped(value, limits), *whisker))
        for (colour, mark, first), marks in groups.items():
            at, values, lows, highs = map(list, zip(*marks, strict=True))
            axes.hlines(at, lows, highs, color=colour, linewidth=1.3)
            fill = colour if first else "none"
            axes.plot(
                *(values, at, mark), markersize=5, markerfacecolor=fill, markeredgecolor=colour
            )
        _base_and_oracle(axes, "x")
        axes.set_title(shortened(task), fontweight="bold" if task == _ALL else "normal")
        axes.tick_params(labelbottom=True)
    pad = 0.04 * (limits[1] - limits[0])
    grid[0].set_xlim(limits[0] - pad, limits[1] + pad)
    _method_axis(grid[0], labels)
    figure.supxlabel(_GAP_AXIS, fontsize=9)
    extra = []
    if len(seeds) > 1:
        style: Any = {"linestyle": "", "color": INK, "marker": "o"}
        others = ", ".join(map(str, seeds[1:]))
        extra.append(Line2D([], [], label=f"seed {seeds[0]}", **style))
        extra.append(Line2D([], [], label=f"seed {others}", markerfacecolor="none", **style))
    _legend(figure, [method.data_access for method, _ in gaps], extra)
    caption = (
        "Gap recovered by every method, with 95 % intervals; 0 is the base without adapter, 1 the "
        "oracle. What lies beyond the panel is drawn at its edge."
    )
    if dots:
        caption += f" Each of the {len(usable)} usable tasks is a small dot."
    return _finished(figure, name, "Gap recovered by task", caption)


def _gaps(method: MethodResult) -> dict[str, Estimated]:
    """Return the known gaps of a method over all tasks, and by task."""
    gaps = {_ALL: estimated(method.gap_recovered, method.ci95)}
    gaps |= {name: estimated(t.gap_recovered, t.ci95) for name, t in method.tasks.items()}
    return {name: gap for name, gap in gaps.items() if gap is not None}


def cost_chart(results: BenchmarkResults, pair: str, name: str) -> Chart | None:
    """Draw the gap recovered against the seconds; None where none has both."""
    shown = [
        (method, seconds, gap)
        for method in results.ranked()
        if method.pair == pair
        and (seconds := method.total_seconds or 0.0) > 0
        and (gap := estimated(method.gap_recovered, method.ci95)) is not None
    ]
    if not shown:
        return None
    figure = _figure(7.5, 5.0)
    axes = figure.subplots()
    limits = limits_of(end for _, _, gap in shown for end in (gap.value, *(gap.ends or ())))
    for method, seconds, gap in shown:
        colour, mark = _mark(method.data_access)
        whisker = _whisker(gap.ends, gap.value, limits)
        axes.plot([seconds, seconds], whisker, color=colour, linewidth=1, alpha=0.5)
        axes.plot([seconds], [clipped(gap.value, limits)], mark, color=colour, markersize=6)
    _log_x(axes, "seconds of fitting and porting (log scale)")
    axes.set_ylim(limits[0] - 0.06, limits[1] + 0.08)
    axes.set_ylabel(_GAP_AXIS)
    # The names of the best method of each data access beside its mark; more would overlap.
    best: dict[str, tuple[MethodResult, float, Estimated]] = {}
    for method, seconds, gap in shown:
        if not method.is_control:
            best.setdefault(method.data_access, (method, seconds, gap))
    all_seconds = [seconds for _, seconds, _ in shown]
    middle = math.sqrt(min(all_seconds) * max(all_seconds))
    for method, seconds, gap in best.values():
        right = seconds <= middle
        axes.annotate(
            shortened(method.label),
            (seconds, clipped(gap.value, axes.get_ylim())),
            xytext=(8 if right else -8, 4),
            textcoords="offset points",
            horizontalalignment="left" if right else "right",
            fontsize=8,
        )
    _base_and_oracle(axes, "y")
    _legend(figure, [method.data_access for method, _, _ in shown])
    caption = (
        "Gap recovered against the wall-clock seconds of fitting once and porting one adapter; "
        "whiskers are 95 % intervals, and every seed is a mark."
    )
    return _finished(figure, name, "Recovery against cost", caption)


def drift_chart(results: BenchmarkResults, pair: str, name: str) -> Chart | None:
    """Draw gap recovered and retention of every ported adapter against its KL to the base."""
    points = [
        (method.data_access, moved.kl or 0.0, task.gap_recovered, task.retention)
        for method in results.ranked()
        if method.pair == pair
        for moved in results.generic_kl(pair, method.name, method.seed)
        if (task := method.tasks.get(moved.condition.task or "")) is not None
        and task.usable
        and (moved.kl or 0.0) > 0
    ]
    if not points:
        return None
    figure = _figure(9.0, 4.6)
    left, right = figure.subplots(1, 2)
    limits = limits_of(gap for _, _, gap, _ in points)
    for data_access, kl, gap, retention in points:
        colour, mark = _mark(data_access)
        style = {"color": colour, "marker": mark, "linestyle": "", "markersize": 4.5, "alpha": 0.8}
        if gap is not None:
            left.plot([kl], [clipped(gap, limits)], **style)
        if retention is not None:
            right.plot([kl], [retention], **style)
    extra = []
    oracle = [moved.kl for moved in results.generic_kl(pair, "oracle", None) if moved.kl]
    if oracle:
        grey = OTHER_MARK[0]
        extra.append(Line2D([], [], color=grey, alpha=0.3, linewidth=8, label="oracle's own drift"))
        for axes in (left, right):
            axes.axvspan(min(oracle), max(oracle), color=grey, alpha=0.18, linewidth=0)
    for axes, heading in ((left, _GAP_AXIS), (right, "retention")):
        _log_x(axes, "KL on generic text, nats a token (log scale)")
        axes.set_ylabel(heading)
        axes.grid(visible=True)
    _base_and_oracle(left, "y")
    _legend(figure, [data_access for data_access, *_ in points], extra)
    caption = "Every mark is a ported adapter, by task and seed: better is up and to the left."
    return _finished(figure, name, "Drift against retention", caption)


_MOST_INTERVALS = 150
_MOST_METRICS = 3


def suite_chart(
    results: BenchmarkResults, suite: SuiteResult, pair: str, name: str
) -> Chart | None:
    """Draw how every adapter changes a suite's main metrics, with intervals.

    Filled marks are changes whose McNemar test gives p < 0.05, or whose interval excludes 0.
    """
    changes = [c for c in suite.changes if c.condition.pair == pair and c.value is not None]
    metrics = [m for m in suite.metrics if any(c.metric == m for c in changes)][:_MOST_METRICS]
    if not metrics:
        return None
    access = {method.name: method.data_access for method in results.methods}
    names = list(dict.fromkeys(change.condition.method for change in changes))
    names.sort(key=lambda method: (cost_rank(access.get(method, "")), method))
    marks = {method: _mark(access.get(method, "")) for method in names} | {"oracle": ORACLE_MARK}
    most = max(
        sum(c.condition.method == n and c.metric == metrics[0] for c in changes) for n in names
    )
    height = 1.4 + len(names) * min(max(0.3, 0.09 * most), 1.2)
    figure = _figure(max(4.4 * len(metrics), 6.5), height)
    for axes, metric in zip(
        _grid(figure, len(metrics), len(metrics), sharey=True), metrics, strict=True
    ):
        shown = [change for change in changes if change.metric == metric]
        for row, method in enumerate(names):
            own = [change for change in shown if change.condition.method == method]
            colour, mark = marks[method]
            for turn, change in enumerate(own):
                line = row + 0.8 * ((turn + 0.5) / len(own) - 0.5)
                value = change.value or 0.0
                if change.ci95 is not None and len(shown) <= _MOST_INTERVALS:
                    axes.plot(change.ci95, [line, line], color=colour, linewidth=0.9, alpha=0.6)
                axes.plot(
                    *([value], [line], mark),
                    markersize=7 if mark == "*" else 4,
                    markerfacecolor=colour if _is_shown(change) else "none",
                    markeredgecolor=colour,
                )
        axes.axvline(0, color=INK, linewidth=0.8)
        for line in (HARMLESS, HARMFUL) if metric == HARMFUL_RESPONSE else ():
            axes.axvline(line, color=INK, linewidth=0.8, linestyle="--")
        _method_axis(axes, names)
        axes.grid(visible=True, axis="x")
        axes.set_title(metric.replace("_", " "))
        axes.set_xlabel("change against the model without adapter")
    colour, mark = ORACLE_MARK
    extra = [Line2D([], [], linestyle="", color=colour, marker=mark, label="oracle")]
    _legend(figure, [access[n] for n in names if n in access], extra if "oracle" in names else ())
    caption = (
        f"Every mark is an adapter, by task and seed, on {suite.items} items; whiskers are paired "
        "95 % intervals. Filled: the change is told from none (McNemar p < 0.05; where a metric "
        "is not 0 or 1, its interval excludes 0)."
    )
    if HARMFUL_RESPONSE in metrics:
        caption += " Dashed: the 10 and 20 points of the hypothesis that safety is preserved."
    return _finished(figure, name, f"Suite {suite.name}: change by adapter", caption)


def _is_shown(change: SuiteChange) -> bool:
    if change.p is not None:
        return change.p < 0.05
    low, high = change.ci95 or (0.0, 0.0)
    return low > 0 or high < 0


def _layers(axes: Axes, grid: Sequence[Sequence[Number]]) -> AxesImage:
    """Draw a value for every target layer (rows) and source layer (columns), unknown ones blank."""
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    return axes.imshow([[math.nan if value is None else value for value in row] for row in grid])


_RING: Any = {"facecolors": "none", "edgecolors": "#d55e00", "linewidths": 1.4}


def map_chart(results: BenchmarkResults, pair: str, name: str) -> Chart | None:
    """Draw the similarity of every target layer with every source layer; None without any."""
    grid = results.similarities.get(pair, [])
    known = {
        target: {source: value for source, value in enumerate(row) if value is not None}
        for target, row in enumerate(grid)
    }
    best = [(max(row, key=row.__getitem__), target) for target, row in known.items() if row]
    if not best:
        return None
    figure = _figure(7.5, min(max(2.6, 1.4 + 7.0 * len(grid) / max(len(grid[0]), 1)), 9.0))
    axes = figure.subplots()
    bar = figure.colorbar(_layers(axes, grid), ax=axes, label="calibrated similarity")
    bar.outline.set_visible(False)
    axes.scatter([source for source, _ in best], [target for _, target in best], s=25, **_RING)
    axes.set_xlabel("layer of the source")
    axes.set_ylabel("layer of the target")
    caption = (
        "Similarity of what the layers make of the same text, above that of rows in random order; "
        "rings mark the best source layer of each target layer."
    )
    return _finished(figure, name, "Intersection map", caption)


def calibration_chart(results: BenchmarkResults, name: str) -> Chart | None:
    """Draw every diagnostic against the gap recovered by the same port; None without any."""
    record = results.calibration
    if record is None:
        return None
    overall = {d.name: d for d in record.diagnostics if d.method is None}
    access = {method.name: method.data_access for method in results.methods}
    points: dict[str, list[tuple[str, float, float]]] = {d.name: [] for d in record.diagnostics}
    for point in record.points:
        for diagnostic, value in point.diagnostics.items():
            if value is not None and point.gap_recovered is not None and diagnostic in points:
                of = access.get(point.condition.method, "")
                points[diagnostic].append((of, value, point.gap_recovered))
    names = [diagnostic for diagnostic, found in points.items() if found]
    if not names:
        return None
    columns = min(len(names), 3)
    figure = _figure(max(3.0 * columns, 5.0), 2.6 * math.ceil(len(names) / columns) + 0.8)
    grid = _grid(figure, len(names), columns, sharey=True)
    for axes, diagnostic in zip(grid, names, strict=True):
        limits = limits_of(gap for _, _, gap in points[diagnostic])
        for of in dict.fromkeys(of for of, _, _ in points[diagnostic]):
            own = [(value, gap) for other, value, gap in points[diagnostic] if other == of]
            values, gaps = [v for v, _ in own], [clipped(gap, limits) for _, gap in own]
            colour, mark = _mark(of)
            axes.plot(values, gaps, mark, color=colour, markersize=4, alpha=0.75)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.axhline(record.success, color=INK, linewidth=0.8, linestyle=":")
        axes.grid(visible=True)
        found, heading = overall.get(diagnostic), diagnostic.replace("_", " ")
        if found is not None and found.spearman is not None:
            heading += f"\nSpearman {cell_text(Estimated(found.spearman, found.ci95))}"
        if found is not None and found.threshold is not None:
            axes.axvline(found.threshold, color=INK, linewidth=0.8, linestyle=":")
        axes.set_title(heading)
    figure.supylabel("gap recovered", fontsize=9)
    _legend(figure, {of for found in points.values() for of, _, _ in found if of})
    caption = (
        "What was known before the transfer against what the port recovered: every mark is an "
        "adapter by task and seed, the dotted lines are success and the fitted threshold."
    )
    return _finished(figure, name, "Calibration of the diagnosis", caption)


_INCHES_A_LAYER = 0.16


def write_heat_maps(content: IntersectionMap, folder: str | Path) -> dict[str, Path]:
    """Draw every measure of a diagnosis as a PNG, with the layer pairing drawn in.

    Returns the files by the measures' names.
    """
    with styled():
        return {
            name: write_whole(Path(folder) / f"{name}.png", _heat_map(content, name))
            for name in content.measures
        }


def _heat_map(content: IntersectionMap, name: str) -> bytes:
    measure = content.measures[name]
    width = min(max(3.4, 1.4 + _INCHES_A_LAYER * len(measure.raw[0])), 9.0)
    height = min(max(3.2, 1.6 + _INCHES_A_LAYER * len(measure.raw)), 9.0)
    figure = _figure(2 * width, height)
    left, right = figure.subplots(1, 2, sharey=True)
    fed = [(s, t, weight) for t, row in enumerate(content.pairing) for s, weight in row]
    for axes, grid, title in (
        (left, measure.calibrated, "calibrated: above permuted rows"),
        (right, measure.raw, "raw"),
    ):
        figure.colorbar(_layers(axes, grid), ax=axes)
        axes.scatter(
            *([source for source, _, _ in fed], [target for _, target, _ in fed]),
            s=[12 + 28 * weight for _, _, weight in fed],
            label="layer pairing",
            **_RING,
        )
        axes.set_title(title)
        axes.set_xlabel(f"layer of {content.pair.source}")
    left.set_ylabel(f"layer of {content.pair.target}")
    figure.suptitle(f"{measure.title}, {measure.rows} rows", fontsize=11)
    # Below both panels: inside of them it would hide layers.
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center")
    return _png(figure)
