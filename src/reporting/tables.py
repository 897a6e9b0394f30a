"""Every table of every report: the same cells on console, page, in Markdown, LaTeX and CSV.

First what a table is and how it is written, through one pandas data frame; then the tables of
``train.py``, of a port, of a diagnosis, and of ``evaluate.py``.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import pandas as pd

from ..evaluation.assembly import CONTROL_NAMES, control_lines
from ..evaluation.records import (
    CARTRIDGE,
    BenchmarkResults,
    Divergence,
    Ends,
    IntersectionMap,
    MethodResult,
    Number,
    Results,
    SuiteChange,
    SuiteResult,
    TaskResult,
    TransferReport,
    complete_mean,
    interval_text,
)
from ..exceptions import one_line

NOTHING = "-"  # what stands where there is no number


class Estimated(NamedTuple):
    """A value and the ends of its 95 % interval; see :func:`estimated`."""

    value: float
    ends: Ends


Cell = str | int | float | Estimated | None  # what a table holds; None where there is nothing

# Columns; one whose heading is its key, in words, may be given by it alone.
Columns = Sequence["Column | str"]

Row = Mapping[str, Cell]  # cells by the keys of their columns; one that is missing is None


def estimated(value: Number, ends: Ends) -> Estimated | None:
    """Return a value with its interval; None where the value is not known."""
    return None if value is None else Estimated(value, ends)


class Column(NamedTuple):
    """A column of a table.

    The key is its name in rows and CSV files, the heading stands above it elsewhere; ``meaning``
    is what the heading alone does not say, ``format`` that of its floats.
    """

    key: str
    heading: str
    format: str = ".2f"
    meaning: str = ""


@dataclass(frozen=True)
class ReportTable:
    """A table."""

    name: str  # of its file, without an ending
    title: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    # One entry a row: where it changes the console draws a line. Empty without groups.
    groups: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        name: str,
        title: str,
        caption: str,
        columns: Columns,
        rows: Sequence[Row],
        *,
        without: Sequence[str] = (),
        groups: Sequence[str] = (),
    ) -> "ReportTable":
        """Return a table without the columns in which no row holds anything.

        Those of ``without`` are left out too, such as the pair where there is only one.
        """
        every = [c if isinstance(c, Column) else Column(c, c.replace("_", " ")) for c in columns]
        shown = tuple(
            column
            for column in every
            if column.key not in without
            and any(row.get(column.key) not in (None, "") for row in rows)
        )
        return cls(name, title, caption, shown, tuple(rows), tuple(groups))

    @property
    def numeric(self) -> list[bool]:
        """Whether each column holds numbers, so that it is set to the right."""
        return [
            any(isinstance(row.get(column.key), int | float | Estimated) for row in self.rows)
            for column in self.columns
        ]

    def texts(self) -> pd.DataFrame:
        """Return every cell as people read it; the columns have their keys."""
        return pd.DataFrame(
            [[cell_text(row.get(c.key), c.format) for c in self.columns] for row in self.rows],
            columns=[column.key for column in self.columns],
        )

    def numbers(self) -> pd.DataFrame:
        """Return plain values, the ends of intervals in columns ``KEY_low`` and ``KEY_high``.

        A word among numbers, such as "not usable", counts as missing.
        """
        series: dict[str, pd.Series] = {}
        for column in self.columns:
            cells = [row.get(column.key) for row in self.rows]
            values = [cell.value if isinstance(cell, Estimated) else cell for cell in cells]
            series[column.key] = _series(values)
            if any(isinstance(cell, Estimated) for cell in cells):
                ends = [
                    (c.ends if isinstance(c, Estimated) else None) or (None, None) for c in cells
                ]
                series[f"{column.key}_low"] = _series([low for low, _ in ends])
                series[f"{column.key}_high"] = _series([high for _, high in ends])
        return pd.DataFrame(series)

    def csv(self) -> str:
        """Return the numbers as CSV, with six significant digits."""
        return str(self.numbers().to_csv(index=False, float_format="%.6g", lineterminator="\n"))

    def markdown(self) -> str:
        """Return the table in Markdown; numbers stand to the right."""
        marks = ["---:" if numeric else "---" for numeric in self.numeric]
        lines = [
            markdown_line(column.heading for column in self.columns),
            f"| {' | '.join(marks)} |",
        ]
        lines.extend(markdown_line(row) for row in self.texts().itertuples(index=False))
        return "\n".join(lines)

    def latex(self) -> str:
        r"""Return a table in the style of booktabs that a document takes in with ``\input``.

        Tables of more than a page break over pages and take the package longtable.
        """
        long = len(self.rows) > _LONGEST_FLOAT
        text = (
            self.texts()
            .map(latex_text)
            .to_latex(
                index=False,
                escape=False,
                # pandas takes headings for format strings.
                header=[
                    latex_text(c.heading).replace("{", "{{").replace("}", "}}")
                    for c in self.columns
                ],
                column_format="".join("r" if numeric else "l" for numeric in self.numeric),
                caption=latex_text(f"{self.title}. {self.caption}"),
                label=f"tab:{self.name.replace('_', '-')}",
                longtable=long,
            )
        )
        packages = r"\usepackage{booktabs}" + (r" and \usepackage{longtable}" if long else "")
        return f"% takes {packages}\n{text}"


_LONGEST_FLOAT = 45  # rows


def _series(values: Sequence[str | int | float | None]) -> pd.Series:
    known = [value for value in values if value is not None]
    if any(isinstance(value, float) for value in known):
        return pd.Series([None if isinstance(v, str) else v for v in values], dtype="float64")
    if known and all(isinstance(value, int) for value in known):
        return pd.Series(values, dtype="Int64")
    return pd.Series(values, dtype="object")


def cell_text(cell: Cell, form: str = ".2f") -> str:
    """Return a cell as people read it.

    >>> cell_text(Estimated(0.5, (0.25, 0.75))), cell_text(None), cell_text(3), cell_text(-0.001)
    ('0.50 [0.25, 0.75]', '-', '3', '0.00')
    """
    if isinstance(cell, Estimated):
        digits = int(form[1:-1])
        return f"{cell_text(cell.value, form)} {interval_text(cell.ends, digits)}"
    if cell is None:
        return NOTHING
    if isinstance(cell, float):
        text = f"{cell:{form}}"
        return text.removeprefix("-") if float(text) == 0 else text
    return one_line(str(cell))


_MARKDOWN = str.maketrans({**{c: f"\\{c}" for c in "\\`*_[]<>|#~$"}, "&": "&amp;"})
_LATEX = str.maketrans(
    {
        **{letter: f"\\{letter}" for letter in "&%$#_{}"},
        "\\": r"\textbackslash{}",
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
)


def markdown_text(text: str) -> str:
    r"""Return text as Markdown shows it, whatever is in it, on one line.

    >>> markdown_text("a|b\n<i>c_d</i>")
    'a\\|b \\<i\\>c\\_d\\</i\\>'
    """
    return one_line(" ".join(text.split())).translate(_MARKDOWN)


def markdown_code(text: str, *, in_table: bool = False) -> str:
    """Return text as code inside a line of Markdown, whatever is in it.

    >>> markdown_code("a_`b`")
    '`` a_`b` ``'
    """
    shown = one_line(" ".join(text.split()))
    fence = "`" * (max(map(len, re.findall("`+", shown)), default=0) + 1)
    shown = f" {shown} " if len(fence) > 1 else shown
    return fence + (shown.replace("|", "\\|") if in_table else shown) + fence


def markdown_line(cells: Iterable[str]) -> str:
    """Return a line of a table in Markdown."""
    return f"| {' | '.join(map(markdown_text, cells))} |"


def latex_text(text: str) -> str:
    r"""Return text as LaTeX shows it, whatever is in it.

    >>> latex_text("50_% of {x}")
    '50\\_\\% of \\{x\\}'
    """
    # A line break would end the row, and a blank line the paragraph.
    shown = one_line(" ".join(text.split())).translate(_LATEX)
    # A row that begins with a bracket would be read as an option of the one above.
    shown = "{}" + shown if shown.startswith("[") else shown
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", shown)


def _mean(values: Iterable[Number]) -> Number:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


_NLL_GAP = Column("gap_recovered_nll", "NLL gap", meaning="the same, negative log-likelihood")

# The table that train.py ends with.

NOT_USABLE = "not usable"


def score_columns(results: Results) -> tuple[str, ...]:
    """Return the conditions in the order in which they are shown: the prediction last."""
    controls = dict.fromkeys(["mean", *results.controls])
    scored = any(CARTRIDGE in task.scores for task in results.tasks.values())
    cartridge = [CARTRIDGE] if scored else []
    return ("base", "source_base", "source", "oracle", *controls, *cartridge, "predicted")


def results_table(results: Results) -> ReportTable:
    """Return every condition of every held-out task, and the mean over the usable ones."""
    conditions, summary = score_columns(results), results.summary
    rows = [
        {
            "task": name,
            **{condition: task.scores.get(condition) for condition in conditions},
            "gap_recovered": _task_gap(task),
            "gap_recovered_nll": task.gap_recovered_nll,
            "weight_cosine": task.weight_cosine,
        }
        for name, task in results.tasks.items()
    ]
    if results.tasks:
        usable = [task for task in results.tasks.values() if task.usable]
        rows.append(
            {
                "task": f"mean of {summary.usable}",
                **{c: complete_mean([task.scores.get(c) for task in usable]) for c in conditions},
                "gap_recovered": estimated(summary.gap_recovered, summary.ci95) or NOT_USABLE,
                "gap_recovered_nll": summary.gap_recovered_nll,
                "weight_cosine": complete_mean([task.weight_cosine for task in usable]),
            }
        )
    columns: Columns = (
        *("task", *conditions, "gap_recovered"),
        _NLL_GAP,
        Column("weight_cosine", "cos"),
    )
    caption = "accuracy on the test rows; gap recovered = (predicted - base) / (oracle - base)"
    groups = ["tasks"] * len(results.tasks) + ["mean"]
    return ReportTable.of("tasks", "Tasks", caption, columns, rows, groups=groups)


def _task_gap(task: TaskResult) -> Cell:
    return estimated(task.gap_recovered, task.ci95) if task.usable else NOT_USABLE


# The table of a port: what the mapper reports of each site, as means over the sites of a role.

_SITE_COLUMNS = {
    "kept_norm": ("norm kept", ""),
    "r2": ("R² of LoRA", "how near it comes to the cartridge"),
    "input_r2": ("R² in", "of what the source's modules read from what the target's read"),
    "output_r2": ("R² out", "of what the target's modules write from what the source's write"),
    "gradient_r2": ("R² gradients", "of the source's from the target's"),
    "restricted_r2": ("R² adapter", "of what the adapter makes of its input"),
}
# Told of each site in report.json, but their mean over sites says nothing.
_NOT_AVERAGED = frozenset(
    {
        *("norm", "singular_vectors", "strength", "input_strength", "output_strength"),
        *("size", "lost", "linear_share"),
    }
)


def sites_table(report: TransferReport) -> ReportTable:
    """Return one row a role: how many sites, and what the mapper found there on average.

    Of a refinement that began from zero there is nothing to tell site by site.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for mapping in () if report.from_zero else report.mapping:
        for label, facts in mapping.get("sites", {}).items():
            numbers = {
                name: float(value)
                for name, value in facts.items()
                if isinstance(value, int | float) and name not in _NOT_AVERAGED
            }
            found.setdefault(label.rpartition(".")[2], []).append(numbers)
    rows: list[Row] = []
    for role, sites in found.items():
        names = dict.fromkeys(name for site in sites for name in site)
        means = {name: _mean(site.get(name) for site in sites) for name in names}
        rows.append({"role": role, "sites": len(sites), **means})
    columns = []
    for name in dict.fromkeys(name for row in rows for name in row):
        heading, meaning = _SITE_COLUMNS.get(name, (name.replace("_", " "), ""))
        columns.append(Column(name, heading, ".3g", meaning))
    caption = "Means over the sites of a role; report.json has every site."
    meanings = [f"{c.heading.removeprefix('R² ')}, {c.meaning}" for c in columns if c.meaning]
    if meanings:
        caption += (
            " R² is on held-out text, 1 exact and 0 no better than the mean: "
            f"{'; '.join(meanings)}."
        )
    return ReportTable.of("sites", "Sites", caption, columns, rows)


# The tables of a diagnosis.


def measures_table(content: IntersectionMap) -> ReportTable:
    """Return one row a measure: its mean over the target's best source layers."""
    rows: list[Row] = [
        {
            "measure": measure.title,
            "raw": _mean_of_best(measure.raw),
            "calibrated": _mean_of_best(measure.calibrated),
            "rows": measure.rows,
        }
        for measure in content.measures.values()
    ]
    caption = "mean over the target's layers of the best source layer"
    columns = ("measure", "raw", "calibrated", "rows")
    return ReportTable.of("measures", "Measures", caption, columns, rows)


def _mean_of_best(grid: Sequence[Sequence[Number]]) -> Number:
    rows = ([value for value in row if value is not None] for row in grid)
    return _mean(max(row, default=None) for row in rows)


def layers_table(content: IntersectionMap) -> ReportTable:
    """Return one row a target layer: its counterpart, and how sure that is."""
    rows: list[Row] = [
        {
            "target": layer.target,
            "fed_by": ", ".join(
                str(source) if weight == 1 else f"{source} ({weight:.2f})"
                for source, weight in feeds
            )
            or NOTHING,
            "source": layer.source,
            "similarity": layer.similarity,
            "covered": "yes" if layer.covered else "no",
            "agreement": layer.agreement,
            "procrustes_error": layer.procrustes_error,
            "anchor_coverage": layer.anchor_coverage,
        }
        for layer, feeds in zip(content.layers, content.pairing, strict=True)
    ]
    columns: Columns = (
        *(Column("target", "target layer"), "fed_by", Column("source", "best source")),
        *("similarity", "covered", "agreement", Column("procrustes_error", "rotation error")),
        "anchor_coverage",
    )
    caption = "the best source layer of each target layer, and the layers that feed it"
    return ReportTable.of("layers", "Layers", caption, columns, rows)


_FITS = (
    *(Column("inputs", "R² of inputs"), Column("outputs", "R² of outputs")),
    *(Column("adapter_inputs", "adapter's inputs"), Column("adapter_outputs", "adapter's outputs")),
)


def fits_table(content: IntersectionMap) -> ReportTable:
    """Return one row a role: the mean held-out R^2 of the linear maps between modules."""
    roles = dict.fromkeys(fit.target.rpartition(".")[2] for fit in content.modules)
    rows: list[Row] = []
    for role in roles:
        own = [fit for fit in content.modules if fit.target.rpartition(".")[2] == role]
        means = {c.key: _mean(getattr(fit, c.key) for fit in own) for c in _FITS}
        rows.append({"role": role, **means})
    title, caption = "Linear maps between modules", "held-out R², mean over the layers"
    return ReportTable.of("fits", title, caption, ("role", *_FITS), rows)


def modules_table(content: IntersectionMap) -> ReportTable:
    """Return one row a module: the held-out R^2 of the linear maps to its counterpart."""
    rows = [fit.model_dump() for fit in content.modules]
    columns = ("target", "source", *_FITS)
    return ReportTable.of("modules", f"{len(rows)} modules", "held-out R²", columns, rows)


def transport_table(content: IntersectionMap) -> ReportTable:
    """Return one row a pair of layers: entropic Gromov-Wasserstein between them."""
    columns: Columns = (
        *(Column("target", "target layer"), Column("source", "source layer")),
        *(Column("diagonal_mass", "diagonal mass", ".3f"), Column("matched", "matched", ".3f")),
        Column("ratio", "distance / permuted"),
    )
    rows = [cell.model_dump() for cell in content.transport]
    caption = "mass that stays with its own row, and rows whose likeliest partner is their own"
    return ReportTable.of("transport", "Entropic Gromov-Wasserstein", caption, columns, rows)


# The tables of evaluate.py. Without several pairs no table has a column of them.

_POINTS = "in points of accuracy, mean over all held-out tasks"


def _no_pair(results: BenchmarkResults) -> tuple[str, ...]:
    return ("pair",) if len(results.pairs) == 1 else ()


def _method_cells(method: MethodResult) -> dict[str, Cell]:
    return {
        **{"pair": method.pair, "method": method.label, "seed": method.seed},
        **{"data_access": method.data_access, "retention": method.retention},
        "gap_recovered": estimated(method.gap_recovered, method.ci95),
    }


def methods_table(results: BenchmarkResults) -> ReportTable:
    """Return one line a method and seed, the cheapest class first, and behind them the controls."""
    rows: list[Row] = []
    groups: list[str] = []
    for method in results.ranked():
        summary = method.summary
        row = _method_cells(method) | {
            "accuracy": method.mean_accuracy("predicted"),
            "seconds": method.total_seconds,
        }
        if method.is_control:
            labels = " that uses labels" if method.uses_labels else ""
            row["method"] = f"{method.label} (control{labels})"
        if summary is not None:
            known = summary.margin.value is not None
            row |= {
                "gap_recovered_nll": estimated(summary.gap_recovered_nll, summary.ci95_nll),
                "margin": estimated(*summary.margin.points),
                "best_control": summary.margin.control if known else None,
                "margin_over_mean": estimated(*summary.margin_over_mean.points),
                "swapped": summary.control_gaps.get("swapped"),
            }
        rows.append(row)
        groups.append(method.data_access)
    for line in control_lines(results):
        cells: Row = asdict(line) | {
            "method": CONTROL_NAMES[line.condition],
            "data_access": line.data_access,
            "gap_recovered": line.gap,
            "gap_recovered_nll": line.gap_nll,
        }
        rows.append(cells)
        groups.append("controls")
    columns: Columns = (
        *("pair", "method"),
        Column("data_access", "may use", meaning="what the method may use, by what it costs"),
        Column("seed", "seed", meaning="of everything that is drawn; none where all give the same"),
        Column(
            "gap_recovered", "gap recovered", meaning="(method - base) / (oracle - base), accuracy"
        ),
        _NLL_GAP,
        Column("margin", "over best control", ".1f", _POINTS),
        Column("best_control", "best control", meaning="the strongest of base and controls"),
        Column(
            "margin_over_mean", "over mean", ".1f", f"over the anchors' mean adapter, {_POINTS}"
        ),
        Column(
            "swapped", "swapped", meaning="gap recovered from another task's adapter: 0 is good"
        ),
        Column("accuracy", "accuracy", meaning="mean over the usable tasks"),
        Column("retention", "retention", meaning="accuracy over that of the source's adapter"),
        Column("seconds", "seconds", ".1f", "of fitting once a pair and of porting one adapter"),
    )
    caption = (
        "gap recovered: 0 is the base without adapter, 1 the oracle; in brackets 95 % intervals "
        "over tasks and test rows; seeds are never pooled"
    )
    return ReportTable.of(
        "methods", "Methods", caption, columns, rows, without=_no_pair(results), groups=groups
    )


_TASK_CONDITIONS = (
    *("base", "source_base", "source", "oracle", "copy", "mean", "nearest", "random", "swapped"),
    *(Column("few_shot_8", "few-shot 8"), Column("few_shot_32", "few-shot 32")),
    *(CARTRIDGE, Column("predicted", "method")),
)


_TASK_NUMBERS = {"retention", "relative_to_oracle", "margin", "weight_cosine", "relative_error"}


def tasks_table(results: BenchmarkResults) -> ReportTable:
    """Return one line a method, seed and task, with every column of the evaluation protocol."""
    columns: Columns = (
        *("pair", "method", "seed", "task", Column("rows", "rows", meaning="test rows")),
        *(*_TASK_CONDITIONS, "gap_recovered", _NLL_GAP, "retention"),
        Column("relative_to_oracle", "of oracle"),
        Column("margin", "margin", meaning="accuracy over the best of base and controls"),
        Column("weight_cosine", "cosine", meaning="of the predicted and the oracle's update"),
        Column("relative_error", "error", meaning="of the predicted update to the oracle's"),
    )
    rows: list[Row] = [
        {
            **_method_cells(method),
            **task.scores,
            **task.model_dump(include=_TASK_NUMBERS),
            "task": name,
            "rows": task.n,
            "gap_recovered": _task_gap(task),
            "gap_recovered_nll": estimated(task.gap_recovered_nll, task.ci95_nll),
        }
        for method in results.ranked()
        for name, task in method.tasks.items()
    ]
    caption = "accuracies of all conditions on the same test rows; intervals over these rows"
    return ReportTable.of("tasks", "Every task", caption, columns, rows, without=_no_pair(results))


_MOST_TASK_COLUMNS = 8


def transfer_table(results: BenchmarkResults) -> ReportTable:
    """Return the gap recovered by every method on every task, the cross-family transfer table.

    Tasks are columns; where there are more than eight, they are rows and the methods columns.
    """
    methods, tasks = results.ranked(), results.task_names()
    if len(tasks) <= _MOST_TASK_COLUMNS:
        own = ("pair", "method", "data_access", "seed")
        keys = {task: f"task {task}" if task in own else task for task in tasks}
        columns: Columns = [
            *("pair", "method", Column("data_access", "may use"), "seed"),
            *(Column(key, task) for task, key in keys.items()),
        ]
        rows: list[Row] = [
            _method_cells(method)
            | {keys[name]: _task_gap(task) for name, task in method.tasks.items()}
            for method in methods
        ]
    else:
        names = {}
        for method in methods:
            pair = f", {method.pair}" if len(results.pairs) > 1 else ""
            names[f"{method.label}, seed {method.seed}{pair}"] = method
        columns = ["task", *(Column(name, name) for name in names)]
        rows = [
            {"task": task}
            | {name: _task_gap(m.tasks[task]) for name, m in names.items() if task in m.tasks}
            for task in tasks
        ]
    title, caption = "Cross-family transfer", "gap recovered by task, with 95 % intervals over rows"
    return ReportTable.of(
        "cross_family_transfer", title, caption, columns, rows, without=_no_pair(results)
    )


_CONDITION = ("pair", Column("method", "model"), Column("task", "adapter of task"), "seed")
_CHANGE = (
    Column("change", "change", ".3f", "against the model without the adapter"),
    Column("n", "items", meaning="that count for the change"),
    *(Column("gained", "0 to 1", meaning="items"), Column("lost", "1 to 0", meaning="items")),
    Column("p", "McNemar p", ".3f"),
)


def _change_cells(change: SuiteChange | None) -> dict[str, Cell]:
    if change is None:
        return {}
    return {
        "change": estimated(change.value, change.ci95),
        **{"n": change.n, "gained": change.gained, "lost": change.lost, "p": change.p},
    }


def suite_table(suite: SuiteResult, results: BenchmarkResults) -> ReportTable:
    """Return what every model scores on a suite, and how adapters change its main metric."""
    main = suite.metrics[0] if suite.metrics else ""
    changes = {c.condition: c for c in suite.changes if c.metric == main}
    change = _CHANGE[0]._replace(heading=f"change of {main.replace('_', ' ')}")
    columns: Columns = (
        *_CONDITION,
        *(Column(metric, metric.replace("_", " "), ".3f") for metric in suite.metrics),
        *(change, *_CHANGE[1:]),
    )
    rows: list[Row] = [
        {
            metric: estimated(scores.means.get(metric), scores.ci95.get(metric))
            for metric in suite.metrics
        }
        | scores.condition.model_dump()
        | _change_cells(changes.get(scores.condition))
        for scores in suite.scores
    ]
    name, title = f"suite_{suite.name}", f"Suite {suite.name}"
    caption = f"{suite.items} items; intervals over items, changes paired"
    return ReportTable.of(name, title, caption, columns, rows, without=_no_pair(results))


def changes_table(results: BenchmarkResults) -> ReportTable:
    """Return every change of every metric of every suite by an adapter."""
    columns: Columns = ("pair", "suite", "metric", *_CONDITION[1:], *_CHANGE)
    rows: list[Row] = [
        {"suite": suite.name, "metric": change.metric}
        | change.condition.model_dump()
        | _change_cells(change)
        for suite in results.suites
        for change in suite.changes
    ]
    caption = "paired differences to the same model without the adapter, with 95 % intervals"
    return ReportTable.of(
        "suites", "Changes of suites", caption, columns, rows, without=_no_pair(results)
    )


_KL = (
    Column("kl", "KL", ".4f", "to the base, nats a token, mean"),
    *(Column("kl_p95", "KL, 95 %", ".4f"), Column("js", "JS", ".4f", "nats, at most 0.693")),
    Column("top1", "same top-1", ".3f", "share of positions with the same most likely token"),
)


def divergence_table(results: BenchmarkResults) -> ReportTable:
    """Return how far every adapter moves the next-token distributions, by text."""
    columns = (*_CONDITION, "texts", "positions", *_KL)
    rows: list[Row] = [
        found.model_dump(exclude={"condition"}) | found.condition.model_dump()
        for found in results.divergences
    ]
    caption = "divergence of the next-token distribution from that of the model without the adapter"
    return ReportTable.of("divergences", "Drift", caption, columns, rows, without=_no_pair(results))


def retention_table(results: BenchmarkResults) -> ReportTable:
    """Return what each method keeps of the source's accuracy, and how far it moves the model."""

    def moved(found: Iterable[Divergence]) -> dict[str, Cell]:
        known = list(found)
        return {c.key: _mean(getattr(divergence, c.key) for divergence in known) for c in _KL}

    rows: list[Row] = [
        _method_cells(method) | moved(results.generic_kl(method.pair, method.name, method.seed))
        for method in results.ranked()
    ]
    for pair in results.pairs:
        oracle = list(results.generic_kl(pair, "oracle", None))
        if oracle:
            row: Row = {"pair": pair, "method": CONTROL_NAMES["oracle"], "gap_recovered": 1.0}
            rows.append({**row, **moved(oracle)})
    columns: Columns = (
        *("pair", "method", "seed"),
        Column("retention", "retention", meaning="accuracy over that of the source's adapter"),
        *("gap_recovered", *_KL),
    )
    title, caption = "Retention against drift", "accuracy kept against KL on generic text"
    return ReportTable.of(
        "retention_tradeoff", title, caption, columns, rows, without=_no_pair(results)
    )


def confidence_table(results: BenchmarkResults) -> ReportTable:
    """Return the best source layer of every target layer, and how far the second lies behind."""
    rows: list[Row] = []
    for pair, grid in results.similarities.items():
        for layer, similarities in enumerate(grid):
            # Of equal values the lower layer, so that the order does not hang on the search.
            ranked = sorted(
                (-value, source) for source, value in enumerate(similarities) if value is not None
            )
            row: dict[str, Cell] = {"pair": pair, "target_layer": layer}
            for (value, source), which in zip(ranked, ("source", "second"), strict=False):
                prefix = "" if which == "source" else "second_"
                row |= {f"{which}_layer": source, f"{prefix}similarity": -value}
            if len(ranked) > 1:
                row["margin"] = ranked[1][0] - ranked[0][0]
            rows.append(row)
    columns: Columns = (
        *("pair", "target_layer", Column("source_layer", "best source layer")),
        *(Column("similarity", "similarity", ".3f"), Column("second_layer", "second")),
        Column("second_similarity", "its similarity", ".3f"),
        Column("margin", "margin", ".3f", "similarity of the best minus that of the second"),
    )
    title = "Intersection map: confidence against stability"
    caption = "a match is stable where its margin is wide: on other rows the same layer wins"
    return ReportTable.of(
        "intersection_map", title, caption, columns, rows, without=_no_pair(results)
    )


def calibration_table(results: BenchmarkResults) -> ReportTable:
    """Return how well each diagnostic tells in advance what a port recovers."""
    record = results.calibration
    rows: list[Row] = []
    for found in record.diagnostics if record is not None else ():
        side = "≥" if found.above else "<"
        rows.append(
            {
                "diagnostic": found.name.replace("_", " "),
                "method": found.method or "all methods",
                "points": found.points,
                "spearman": estimated(found.spearman, found.ci95),
                "threshold": None if found.threshold is None else f"{side} {found.threshold:.3g}",
                "hit_rate": found.hit_rate,
                "majority_rate": found.majority_rate,
            }
        )
    columns: Columns = (
        *("diagnostic", Column("method", "ports of"), Column("points", "ports")),
        Column("spearman", "Spearman", meaning="rank correlation with the gap recovered"),
        Column("threshold", "expected to succeed"),
        Column("hit_rate", "hit rate", meaning="leave-one-task-out cross-validation"),
        Column("majority_rate", "majority", meaning="always saying what is more frequent"),
    )
    success = "" if record is None else f"; success is a gap recovered above {record.success:g}"
    title = "Calibration of the diagnosis"
    caption = f"known before the transfer against what came of it{success}"
    return ReportTable.of("calibration", title, caption, columns, rows, without=_no_pair(results))


def points_table(results: BenchmarkResults) -> ReportTable:
    """Return every ported adapter with its diagnostics, which the calibration rests on."""
    points = results.calibration.points if results.calibration is not None else ()
    names = dict.fromkeys(name for point in points for name in point.diagnostics)
    rows: list[Row] = [
        point.diagnostics
        | point.condition.model_dump()
        | {"gap_recovered": point.gap_recovered, "gap_recovered_nll": point.gap_recovered_nll}
        for point in points
    ]
    columns: Columns = (
        *("pair", "method", "task", "seed", "gap_recovered", _NLL_GAP),
        *(Column(name, name.replace("_", " "), ".3f") for name in names),
    )
    title, caption = "Ported adapters", "what was known before, and what was recovered"
    return ReportTable.of(
        "calibration_points", title, caption, columns, rows, without=_no_pair(results)
    )
