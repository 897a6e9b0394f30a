"""What a transfer prints: what became of the adapter, role by role, and what to know of it."""

from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..evaluation.records import AdapterRecord, Free, IntersectionMap, TransferReport
from .summaries import mean_fit, refinement_remarks

_PIPED_WIDTH = 120
_HEADINGS = {
    "kept_norm": "norm kept",
    "r2": "R\N{SUPERSCRIPT TWO} of LoRA",
    "input_r2": "R\N{SUPERSCRIPT TWO} in",
    "output_r2": "R\N{SUPERSCRIPT TWO} out",
    "gradient_r2": "R\N{SUPERSCRIPT TWO} gradients",
    "restricted_r2": "R\N{SUPERSCRIPT TWO} adapter",
}
_LEGEND = {
    "r2": "of LoRA, how near it comes to the cartridge",
    "input_r2": "in, of what the source's modules read from what the target's read",
    "output_r2": "out, of what the target's modules write from what the source's write",
    "gradient_r2": "gradients, of the source's from the target's",
    "restricted_r2": "adapter, of what the adapter makes of its input",
}
# Told of each site in report.json, but their mean over sites says nothing.
_UNTOLD = (
    *("norm", "singular_vectors", "strength", "input_strength", "output_strength"),
    *("size", "lost", "linear_share"),
)

_PREDICTED = {"restricted_r2": "the adapter reads", "output_r2": "it writes"}


def heading(name: str) -> str:
    """Return what a column of the table is called."""
    return _HEADINGS.get(name, name.replace("_", " "))


def legend(report: TransferReport) -> str:
    """Return what the columns of the table mean, as far as their names do not say it."""
    shown = {name for facts in diagnostics(report).values() for name in facts}
    told = [words for name, words in _LEGEND.items() if name in shown]
    text = "Means over the sites of a role; report.json has every site."
    if told:
        text += (
            " R\N{SUPERSCRIPT TWO} is on held-out text, 1 exact and 0 no better than the mean: "
            f"{'; '.join(told)}."
        )
    return text


def from_zero(report: TransferReport) -> bool:
    """Return whether a refinement alone has made the adapter, and the mapper nothing."""
    return report.refinement is not None and report.mapper == "noop"


def diagnostics(report: TransferReport) -> dict[str, dict[str, float]]:
    """Return for each role the number of sites, and the mean over them of what was found.

    Of a refinement that began from zero there is nothing to tell site by site.
    """
    if from_zero(report):
        return {}
    found: dict[str, dict[str, list[float]]] = {}
    for mapping in report.mapping:
        for label, facts in mapping.get("sites", {}).items():
            numbers = found.setdefault(label.rpartition(".")[2], {})
            for name, value in facts.items():
                if isinstance(value, int | float) and name not in _UNTOLD:
                    numbers.setdefault(name, []).append(float(value))
            numbers.setdefault("sites", []).append(1.0)
    return {
        role: {"sites": float(len(numbers["sites"]))}
        | {name: sum(v) / len(v) for name, v in numbers.items() if name != "sites"}
        for role, numbers in found.items()
    }


def transfer_table(report: TransferReport) -> Table:
    """Return one row a role: how many sites, and what the mapper found there on average."""
    rows = diagnostics(report)
    names = list(dict.fromkeys(name for facts in rows.values() for name in facts))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("role")
    for name in names:
        table.add_column(heading(name), justify="right")
    for role, facts in rows.items():
        cells = [f"{facts[n]:.0f}" if n == "sites" else _cell(facts.get(n)) for n in names]
        table.add_row(role, *cells)
    return table


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def transfer_remarks(report: TransferReport) -> Iterator[str]:
    """Give in words what was lost, and what the adapter does on the target."""
    for record, mapping in zip(report.adapters, report.mapping, strict=True):
        for remark in () if from_zero(report) else _mapped(record, mapping):
            yield f"{record.place}: {remark}"
    if report.refinement is not None:
        yield from refinement_remarks(report.refinement)
    for step in report.steps:
        yield f"{step.name}: cutting back to the rank lost {step.lost_energy:.1%} of the energy"
    found = report.verification
    yield (
        f"verified: PEFT reads {found['sites']} sites; logits change by up to "
        f"{found['logit_change']:.3g}, the most likely token at "
        f"{found['changed_top_token']:.0%} of the probe's positions"
    )
    if report.compatibility is None:
        yield "diagnosis: left out, so that nothing is known of how alike the two models are"
    else:
        yield report.compatibility.words
    yield from report.warnings
    if report.refinement is not None:
        taken = {name: float(seconds or 0) for name, seconds in report.timing.items()}
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in taken.items())
        yield f"took {sum(taken.values()):.1f} s: {parts}"


def _mapped(record: AdapterRecord, mapping: Free) -> Iterator[str]:
    """Give in words what the mapper left out of an adapter, and where it saw nothing."""
    if mapping.get("dropped_sites"):
        yield (
            f"{len(mapping['dropped_sites'])} of {record.sites} source sites "
            f"feed no target layer; they hold {mapping['dropped_energy']:.0%} of its squared "
            "norm, which is not carried over"
        )
    if mapping.get("repeated_sites"):
        yield (
            f"{mapping['repeated_sites']} target sites share the source site that feeds them with "
            "another target layer"
        )
    if mapping.get("left_out"):
        yield (
            f"left out, since text predicts too little there (mapper.min_r2): "
            f"{_few(mapping['left_out'])}"
        )
    facts = mapping.get("sites", {})
    for name, what in _PREDICTED.items():
        bad = [label for label, found in facts.items() if found.get(name, 1) <= 0]
        if bad:
            yield (
                f"text predicts nothing of what {what} at {len(bad)} of {len(facts)} target sites "
                f"(R\N{SUPERSCRIPT TWO} at most 0: {_few(bad)}); what is written there is noise"
            )


def _few(labels: Sequence[str]) -> str:
    return ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else "")


def print_transfer(report: TransferReport, console: Console | None = None) -> None:
    """Print the table and the remarks."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=_PIPED_WIDTH)
    # Above and below the table rather than its title and caption: those wrap to its width.
    steps = f"{report.mapper}, {report.refinement.name}" if report.refinement else report.mapper
    console.print(Text(f"{steps}: {report.pair.source} -> {report.pair.target}", "bold"))
    if diagnostics(report):
        console.print(transfer_table(report))
        console.print(Text(legend(report), "italic"))
    for remark in transfer_remarks(report):
        console.print(remark, highlight=False, markup=False, soft_wrap=True)


# What a diagnosis prints: the verdict, the layers, the modules, and what to know of them.

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
    for line in (*diagnosis_remarks(content), content.verdict.words, *content.warnings):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def diagnosis_remarks(content: IntersectionMap) -> list[str]:
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
