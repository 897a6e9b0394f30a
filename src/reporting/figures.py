"""How charts look: colours, marks, and one drawing as PNG for files and as SVG for the page."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from ..evaluation.records import (
    CARTRIDGE,
    BenchmarkResults,
    CalibrationPoint,
    CalibrationResult,
    DiagnosticResult,
    Grid,
    IntersectionMap,
    MethodResult,
    Number,
    Results,
    SuiteChange,
    SuiteResult,
)
from ..evaluation.verdict import HARMFUL, HARMLESS
from ..files import write_whole
from .benchmark_tables import belongs, generic_drift
from .summaries import HARMFUL_RESPONSE
from .tables import (
    Estimated,
    cell_text,
    cost_rank,
    is_control,
    line_gap,
    line_label,
    sorted_methods,
    task_names,
    total_seconds,
)

_LONGEST_NAME = 34
_PIXELS_A_POINT = 1.55
INK = "#222222"
GRID = "#e5e5e5"
# Okabe and Ito's palette: told apart with every common kind of colour blindness, and in grey; and
# a mark of its own for each class, for who sees no colours.
CLASS_MARKS = {
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
_SETTINGS: Any = {
    "text.parse_math": False,  # a dollar in a name is no formula
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Chart:
    """A drawn chart.

    Attributes:
        name: Of its file, without an ending.
        title: Above it.
        caption: What is to be seen.
        png: For files, on white.
        svg: For the page, in the page's own colours.
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
    with matplotlib.rc_context(_SETTINGS):
        yield


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of so many inches, to be drawn on within :func:`styled`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def finished(figure: Figure, name: str, title: str, caption: str) -> Chart:
    """Return the chart that was drawn, within :func:`styled`."""
    png = BytesIO()
    figure.savefig(png, format="png", dpi=130, facecolor="white", metadata={"Software": None})
    svg = StringIO()
    # The second drawing has the layout of the first.
    figure.set_layout_engine("none")
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
    figure.clear()
    return Chart(name, title, caption, png.getvalue(), page_svg(svg.getvalue(), name))


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


def mark_of(data_access: str) -> tuple[str, str]:
    """Return colour and mark of an information class."""
    return CLASS_MARKS.get(data_access, OTHER_MARK)


def class_legend(figure: Figure, classes: list[str], extra: tuple[Line2D, ...] = ()) -> None:
    """Put what the marks mean above the panels: inside of them it would hide points."""
    handles = [
        Line2D([], [], linestyle="", color=mark_of(c)[0], marker=mark_of(c)[1], label=c)
        for c in classes
    ]
    shown = [*handles, *extra]
    if shown:
        figure.legend(
            handles=shown, loc="outside upper center", ncols=min(len(shown), 4), handlelength=1.4
        )


def limits_of(values: Iterable[float | None]) -> tuple[float, float]:
    """Return how far an axis of gaps recovered reaches: from 0 to 1, and as far as the values.

    Not below -1 or above 1.5: beyond these a value is noise divided by next to nothing, and
    :func:`place` puts it at the edge.

    >>> limits_of([0.2, 9.0])
    (0.0, 1.5)
    """
    known = [value for value in values if value is not None]
    return max(min([*known, 0.0]), -1.0), min(max([*known, 1.0]), 1.5)


def place(value: float, limits: tuple[float, float]) -> float:
    """Return where a value is drawn: itself, or the edge beyond which it lies.

    >>> place(5.0, (-1.0, 1.5)), place(0.5, (-1.0, 1.5))
    (1.5, 0.5)
    """
    return min(max(value, limits[0]), limits[1])


def shortened(name: str) -> str:
    """Return a name as charts show it: one that is too long would leave no room for the panel.

    >>> shortened("a" * 40)
    'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…'
    """
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def plain_logarithm(axis: Axis) -> None:
    """Write the ticks of a logarithmic axis as plain numbers: formulas are not drawn."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


# The bar chart of a run: what every held-out task scored under the conditions that matter.

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


# Charts of the gap recovered: by task, and against what it costs.

_MOST_PANELS = 8
_ALL = "all usable tasks"


def gap_chart(results: BenchmarkResults, pair: str, name: str) -> Chart | None:
    """Draw the gap recovered of every method with intervals: over all tasks, and task by task.

    With more than eight tasks every task is a dot in one panel. None where no gap is known.
    """
    methods = [m for m in sorted_methods(results) if m.pair == pair and _gaps(m)]
    if not methods:
        return None
    usable = [t for t in task_names(results) if any(t in _gaps(method) for method in methods)]
    labels = list(dict.fromkeys(map(line_label, methods)))
    dots = len(usable) > _MOST_PANELS
    panels = [_ALL] if dots else [_ALL, *usable]
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    height = rows * (0.7 + 0.26 * len(labels)) + 0.9
    figure = new_figure(9.0 if columns > 1 else 7.5, min(height, 60.0))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    limits = limits_of(_all_numbers(methods))
    for turn, axes in enumerate(grid.flat):
        if turn >= len(panels):
            axes.set_visible(False)
            continue
        if dots:
            _dots(axes, methods, labels, limits)
        _marks(axes, methods, labels, panels[turn], limits)
        axes.tick_params(labelbottom=True)
    pad = 0.04 * (limits[1] - limits[0])
    grid[0, 0].set_xlim(limits[0] - pad, limits[1] + pad)
    grid[0, 0].set_yticks(range(len(labels)), [shortened(name) for name in labels])
    grid[0, 0].set_ylim(len(labels) - 0.4, -0.6)
    figure.supxlabel("gap recovered (0: base, 1: oracle)", fontsize=9)
    class_legend(figure, _classes(methods), _seed_marks(methods))
    caption = (
        "Gap recovered by every method, with 95 % intervals; 0 is the base without adapter, 1 the "
        "oracle. What lies beyond the panel is drawn at its edge."
    )
    if dots:
        caption += f" Each of the {len(usable)} usable tasks is a small dot."
    return finished(figure, name, "Gap recovered by task", caption)


def cost_chart(results: BenchmarkResults, pair: str, name: str) -> Chart | None:
    """Draw the gap recovered against the seconds; None where none has both."""
    methods = [m for m in sorted_methods(results) if m.pair == pair]
    shown = [
        (m, seconds, line_gap(m))
        for m in methods
        if (seconds := total_seconds(m)) is not None
        and seconds > 0
        and line_gap(m).value is not None
    ]
    if not shown:
        return None
    figure = new_figure(7.5, 5.0)
    axes = figure.subplots()
    limits = limits_of(end for _, _, found in shown for end in (found.value, *(found.ends or ())))
    for method, seconds, found in shown:
        colour, mark = mark_of(method.data_access)
        value = place(found.value or 0.0, limits)
        axes.plot([seconds, seconds], _whisker(found, limits), color=colour, linewidth=1, alpha=0.5)
        axes.plot([seconds], [value], mark, color=colour, markersize=6)
    axes.set_xscale("log")
    plain_logarithm(axes.xaxis)
    axes.set_ylim(limits[0] - 0.06, limits[1] + 0.08)
    _named(axes, shown)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.grid(visible=True)
    axes.set_xlabel("seconds of fitting and porting (log scale)")
    axes.set_ylabel("gap recovered (0: base, 1: oracle)")
    class_legend(figure, _classes([method for method, _, _ in shown]))
    caption = (
        "Gap recovered against the wall-clock seconds of fitting once and porting one adapter; "
        "whiskers are 95 % intervals, and every seed is a mark."
    )
    return finished(figure, name, "Recovery against cost", caption)


def _named(axes: Axes, shown: Sequence[tuple[MethodResult, float, Estimated]]) -> None:
    """Write the names of the best method of each class beside its mark; more would overlap."""
    middle = math.sqrt(math.prod(f([s for _, s, _ in shown]) for f in (min, max)))
    best: dict[str, tuple[MethodResult, float, Estimated]] = {}
    for line in shown:
        if not is_control(line[0]):
            best.setdefault(line[0].data_access, line)
    for method, seconds, found in best.values():
        right = seconds <= middle
        axes.annotate(
            shortened(line_label(method)),
            (seconds, place(found.value or 0.0, axes.get_ylim())),
            xytext=(8 if right else -8, 4),
            textcoords="offset points",
            horizontalalignment="left" if right else "right",
            fontsize=8,
        )


def _marks(
    axes: Axes,
    methods: Sequence[MethodResult],
    labels: Sequence[str],
    task: str,
    limits: tuple[float, float],
) -> None:
    """Draw one panel: a line of marks with whiskers a method."""
    seeds = _seeds(methods)
    # Drawn together by colour, mark and seed: hundreds of single lines would take seconds.
    groups: dict[tuple[str, str, bool], list[tuple[float, float, float, float]]] = {}
    for method in methods:
        found = _gaps(method).get(task)
        if found is None:
            continue
        height = labels.index(line_label(method)) + _shift(seeds, method)
        key = (*mark_of(method.data_access), method.seed == seeds[0])
        low, high = _whisker(found, limits)
        line = (height, place(found.value or 0.0, limits), low, high)
        groups.setdefault(key, []).append(line)
    for (colour, mark, first), lines in groups.items():
        heights, values, lows, highs = zip(*lines, strict=True)
        axes.hlines(heights, lows, highs, color=colour, linewidth=1.3)
        fill = colour if first else "none"
        axes.plot(
            *(values, heights, mark),
            markersize=5,
            markerfacecolor=fill,
            markeredgecolor=colour,
        )
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.axvline(1, color=INK, linewidth=0.8, linestyle=":")
    axes.grid(visible=True)
    axes.set_title(shortened(task), fontsize=9, fontweight="bold" if task == _ALL else "normal")


def _dots(
    axes: Axes,
    methods: Sequence[MethodResult],
    labels: Sequence[str],
    limits: tuple[float, float],
) -> None:
    """Draw every task of every method as a dot, spread so that near ones stay apart."""
    seeds = _seeds(methods)
    for method in methods:
        gaps = [e.value or 0.0 for task, e in _gaps(method).items() if task != _ALL]
        height = labels.index(line_label(method)) + _shift(seeds, method)
        spread = 0.6 / len(seeds)
        # Steps of the golden ratio fill an interval evenly, whatever their number.
        heights = [height + spread * (0.618034 * n % 1 - 0.5) for n in range(len(gaps))]
        colour, _ = mark_of(method.data_access)
        values = [place(value, limits) for value in gaps]
        axes.plot(values, heights, ".", color=colour, alpha=0.4, markersize=3.5)


def _shift(seeds: Sequence[int], method: MethodResult) -> float:
    return 0.5 * (seeds.index(method.seed) - (len(seeds) - 1) / 2) / len(seeds)


def _all_numbers(methods: Sequence[MethodResult]) -> Iterator[float | None]:
    for method in methods:
        for found in _gaps(method).values():
            yield from (found.value, *(found.ends or ()))


def _gaps(method: MethodResult) -> dict[str, Estimated]:
    """Return the known gaps of a method by task, and over all of them."""
    over_all = line_gap(method)
    gaps = {} if over_all.value is None else {_ALL: over_all}
    for name, task in method.tasks.items():
        if task.gap_recovered is not None:
            gaps[name] = Estimated(task.gap_recovered, task.ci95)
    return gaps


def _whisker(found: Estimated, limits: tuple[float, float]) -> tuple[float, float]:
    low, high = found.ends or (found.value, found.value)
    left = limits[0] if low is None else place(low, limits)
    right = limits[1] if high is None else place(high, limits)
    return left, right


def _classes(methods: Sequence[MethodResult]) -> list[str]:
    return sorted({method.data_access for method in methods}, key=cost_rank)


def _seeds(methods: Sequence[MethodResult]) -> list[int]:
    return sorted({method.seed for method in methods})


def _seed_marks(methods: Sequence[MethodResult]) -> tuple[Line2D, ...]:
    seeds = _seeds(methods)
    if len(seeds) < 2:
        return ()
    others = ", ".join(map(str, seeds[1:]))
    first = Line2D([], [], linestyle="", color=INK, marker="o", label=f"seed {seeds[0]}")
    rest = Line2D([], [], linestyle="", color=INK, marker="o", label=f"seed {others}")
    rest.set_markerfacecolor("none")
    return first, rest


# Charts of what adapters do beside their task: drift against retention, and suites' changes.

_MOST_INTERVALS = 150
_MOST_METRICS = 3


def drift_chart(results: BenchmarkResults, pair: str, name: str) -> Chart | None:
    """Draw gap recovered and retention of every ported adapter against its drift."""
    points = _points(results, pair)
    if not points:
        return None
    figure = new_figure(9.0, 4.6)
    left, right = figure.subplots(1, 2)
    oracle = [
        d.kl
        for d in generic_drift(results)
        if (d.condition.pair, d.condition.method) == (pair, "oracle") and d.kl
    ]
    limits = limits_of(gap for _, _, gap, _ in points)
    for method, kl, gap, retention in points:
        colour, mark = mark_of(method.data_access)
        style = {"color": colour, "marker": mark, "linestyle": "", "markersize": 4.5, "alpha": 0.8}
        if gap is not None:
            left.plot([kl], [place(gap, limits)], **style)
        if retention is not None:
            right.plot([kl], [retention], **style)
    for axes, heading in ((left, "gap recovered (0: base, 1: oracle)"), (right, "retention")):
        axes.set_xscale("log")
        plain_logarithm(axes.xaxis)
        axes.set_xlabel("KL on generic text, nats a token (log scale)")
        axes.set_ylabel(heading)
        axes.grid(visible=True)
        if oracle:
            axes.axvspan(min(oracle), max(oracle), color=OTHER_MARK[0], alpha=0.18, linewidth=0)
    left.axhline(0, color=INK, linewidth=0.8)
    left.axhline(1, color=INK, linewidth=0.8, linestyle=":")
    classes = sorted({m.data_access for m, *_ in points}, key=cost_rank)
    class_legend(figure, classes, (_span_mark(),) if oracle else ())
    caption = "Every mark is a ported adapter, by task and seed: better is up and to the left."
    return finished(figure, name, "Drift against retention", caption)


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
    names = list(dict.fromkeys(c.condition.method for c in changes))
    kinds = {m.name: m.data_access for m in results.methods}
    names.sort(key=lambda method: (cost_rank(kinds.get(method, "")), method))
    most = max(
        sum(c.condition.method == n and c.metric == metrics[0] for c in changes) for n in names
    )
    height = 1.4 + len(names) * min(max(0.3, 0.09 * most), 1.2)
    figure = new_figure(max(4.4 * len(metrics), 6.5), min(height, 60.0))
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        _changes(axes, [c for c in changes if c.metric == metric], names, kinds)
        axes.set_title(metric.replace("_", " "), fontsize=9)
        axes.set_xlabel("change against the model without adapter")
    _legend(figure, [kinds[n] for n in names if n in kinds], "oracle" in names)
    caption = (
        f"Every mark is an adapter, by task and seed, on {suite.items} items; whiskers are paired "
        "95 % intervals. Filled: the change is told from none (McNemar p < 0.05; where a metric "
        "is not 0 or 1, its interval excludes 0)."
    )
    if HARMFUL_RESPONSE in metrics:
        caption += " Dashed: the 10 and 20 points of the hypothesis that safety is preserved."
    return finished(figure, name, f"Suite {suite.name}: change by adapter", caption)


def _changes(
    axes: Axes, changes: Sequence[SuiteChange], names: Sequence[str], kinds: dict[str, str]
) -> None:
    for row, method in enumerate(names):
        own = [change for change in changes if change.condition.method == method]
        colour, mark = mark_of(kinds.get(method, ""))
        if method == "oracle":
            colour, mark = ORACLE_MARK
        for turn, change in enumerate(own):
            height = row + 0.8 * ((turn + 0.5) / len(own) - 0.5)
            value = change.value or 0.0
            if change.ci95 is not None and len(changes) <= _MOST_INTERVALS:
                ends = [value if end is None else end for end in change.ci95]
                axes.plot(ends, [height, height], color=colour, linewidth=0.9, alpha=0.6)
            fill = colour if _is_told(change) else "none"
            axes.plot(
                *([value], [height], mark),
                markersize=7 if mark == "*" else 4,
                markerfacecolor=fill,
                markeredgecolor=colour,
            )
    axes.axvline(0, color=INK, linewidth=0.8)
    if changes[0].metric == HARMFUL_RESPONSE:
        for line in (HARMLESS, HARMFUL):
            axes.axvline(line, color=INK, linewidth=0.8, linestyle="--")
    axes.set_yticks(range(len(names)), [shortened(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=True, axis="x")


def _is_told(change: SuiteChange) -> bool:
    if change.p is not None:
        return change.p < 0.05
    low, high = change.ci95 or (None, None)
    return (low is not None and low > 0) or (high is not None and high < 0)


def _points(
    results: BenchmarkResults, pair: str
) -> list[tuple[MethodResult, float, Number, Number]]:
    found: list[tuple[MethodResult, float, Number, Number]] = []
    drift = [d for d in generic_drift(results) if d.kl and d.kl > 0]
    for method in sorted_methods(results):
        for d in drift:
            task = method.tasks.get(d.condition.task or "")
            if method.pair == pair and belongs(d.condition, method) and task and task.usable:
                found.append((method, d.kl or 0.0, task.gap_recovered, task.retention))
    return [point for point in found if point[2] is not None or point[3] is not None]


def _span_mark() -> Line2D:
    return Line2D([], [], color=OTHER_MARK[0], alpha=0.3, linewidth=8, label="oracle's own drift")


def _legend(figure: Figure, kinds: Sequence[str], oracle: bool) -> None:
    classes = sorted(set(kinds), key=cost_rank)
    colour, mark = ORACLE_MARK
    extra = (Line2D([], [], linestyle="", color=colour, marker=mark, label="oracle"),)
    class_legend(figure, classes, extra if oracle else ())


# Charts of the diagnosis: the intersection map, and each diagnostic against what came of it.

# Grows evenly in lightness, so that it reads in grey and with every kind of colour blindness.
_COLOURS = "viridis"
_BEST = "#d55e00"
_COLUMNS = 3


def map_chart(results: BenchmarkResults, pair: str, name: str) -> Chart | None:
    """Draw the similarity of every target layer with every source layer; None without any."""
    grid = results.similarities.get(pair)
    if not grid or not any(value is not None for row in grid for value in row):
        return None
    values = [[math.nan if value is None else value for value in row] for row in grid]
    figure = new_figure(7.5, min(max(2.6, 1.4 + 7.0 * len(grid) / max(len(grid[0]), 1)), 9.0))
    axes = figure.subplots()
    image = axes.imshow(values, origin="lower", aspect="auto", cmap=_COLOURS, interpolation="none")
    bar = figure.colorbar(image, ax=axes, label="calibrated similarity")
    bar.outline.set_visible(False)
    best = [
        (max(range(len(row)), key=lambda s: row[s] if row[s] == row[s] else -math.inf), target)
        for target, row in enumerate(values)
        if any(value == value for value in row)
    ]
    axes.plot(
        *zip(*best, strict=True),
        "o",
        markersize=5,
        markerfacecolor="none",
        markeredgecolor=_BEST,
        markeredgewidth=1.4,
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer of the source")
    axes.set_ylabel("layer of the target")
    caption = (
        "Similarity of what the layers make of the same text, above that of rows in random order; "
        "rings mark the best source layer of each target layer."
    )
    return finished(figure, name, "Intersection map", caption)


def calibration_chart(results: BenchmarkResults, name: str) -> Chart | None:
    """Draw every diagnostic against the gap recovered by the same port; None without any."""
    record = results.calibration
    if record is None:
        return None
    overall = {d.name: d for d in record.diagnostics if d.method is None}
    names = [n for n in dict.fromkeys(d.name for d in record.diagnostics) if _known(record, n)]
    if not names:
        return None
    columns = min(len(names), _COLUMNS)
    rows = math.ceil(len(names) / columns)
    figure = new_figure(max(3.0 * columns, 5.0), min(2.6 * rows + 0.8, 60.0))
    kinds = {method.name: method.data_access for method in results.methods}
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for turn, axes in enumerate(grid.flat):
        if turn >= len(names):
            axes.set_visible(False)
            continue
        _scatter(axes, _known(record, names[turn]), names[turn], kinds)
        _judged(axes, overall.get(names[turn]), names[turn])
        axes.axhline(record.success, color=INK, linewidth=0.8, linestyle=":")
    figure.supylabel("gap recovered", fontsize=9)
    classes = {kinds[p.condition.method] for p in record.points if p.condition.method in kinds}
    class_legend(figure, sorted(classes, key=cost_rank))
    caption = (
        "What was known before the transfer against what the port recovered: every mark is an "
        "adapter by task and seed, the dotted lines are success and the fitted threshold."
    )
    return finished(figure, name, "Calibration of the diagnosis", caption)


def _known(record: CalibrationResult, name: str) -> list[CalibrationPoint]:
    return [
        point
        for point in record.points
        if point.gap_recovered is not None and point.diagnostics.get(name) is not None
    ]


def _scatter(
    axes: Axes, points: Sequence[CalibrationPoint], name: str, kinds: dict[str, str]
) -> None:
    limits = limits_of(point.gap_recovered for point in points)
    marks: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for point in points:
        value, gap = point.diagnostics[name] or 0.0, place(point.gap_recovered or 0.0, limits)
        marks.setdefault(mark_of(kinds.get(point.condition.method, "")), []).append((value, gap))
    for (colour, mark), places in marks.items():
        axes.plot(*zip(*places, strict=True), mark, color=colour, markersize=4, alpha=0.75)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.grid(visible=True)


def _judged(axes: Axes, found: DiagnosticResult | None, name: str) -> None:
    title = name.replace("_", " ")
    if found is not None and found.spearman is not None:
        title += f"\nSpearman {cell_text(Estimated(found.spearman, found.ci95), 2)}"
    axes.set_title(title, fontsize=9)
    if found is not None and found.threshold is not None:
        axes.axvline(found.threshold, color=INK, linewidth=0.8, linestyle=":")


# Heat maps of the intersection map: one picture a measure, with the layer pairing drawn in.

# Grows evenly in lightness, so that it reads in grey and with every kind of colour blindness.
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


# All charts of the benchmark, as far as there is something to draw.


def benchmark_charts(results: BenchmarkResults) -> dict[str, list[Chart]]:
    """Draw the charts, by the part of the report that they belong to.

    Parts are ``gap``, ``cost``, ``drift``, ``map``, ``calibration`` and ``suite SUITE``. With
    several pairs each has charts of its own, apart from the calibration.
    """
    found: dict[str, list[Chart]] = {}
    with styled():
        for part, chart in _all(results):
            if chart is not None:
                found.setdefault(part, []).append(chart)
    return found


def file_part(text: str) -> str:
    """Return text as a part of a file's name, whatever is in it.

    >>> file_part("a/../b c")
    'a_b_c'
    """
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_") or "unnamed"


def _all(results: BenchmarkResults) -> Iterator[tuple[str, Chart | None]]:
    several = len(results.pairs) > 1
    for place, pair in enumerate(results.pairs):
        # Numbered, since two names may become the same where only letters and digits stay.
        ending = f"_{place + 1}_{file_part(pair)}" if several else ""
        yield "gap", gap_chart(results, pair, f"gap_by_task{ending}")
        yield "cost", cost_chart(results, pair, f"recovery_against_cost{ending}")
        yield "drift", drift_chart(results, pair, f"drift_against_retention{ending}")
        yield "map", map_chart(results, pair, f"intersection_map{ending}")
        for suite in results.suites:
            name = f"suite_{file_part(suite.name)}{ending}"
            yield f"suite {suite.name}", suite_chart(results, suite, pair, name)
    yield "calibration", calibration_chart(results, "calibration")
