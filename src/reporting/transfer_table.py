"""What a transfer prints: what became of the adapter, role by role, and what to know of it."""

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .transfer_report import TransferReport

_PIPED_WIDTH = 120
_HEADINGS = {"kept_norm": "norm kept"}
# Told of each site in report.json, but their mean over sites says nothing.
_UNTOLD = ("norm", "singular_vectors")


def diagnostics(report: TransferReport) -> dict[str, dict[str, float]]:
    """Return for each role the number of sites, and the mean over them of what was found."""
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
        table.add_column(_HEADINGS.get(name, name.replace("_", " ")), justify="right")
    for role, facts in rows.items():
        cells = [f"{facts[n]:.0f}" if n == "sites" else _cell(facts.get(n)) for n in names]
        table.add_row(role, *cells)
    return table


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def remarks(report: TransferReport) -> Iterator[str]:
    """Give in words what was lost, and what the adapter does on the target."""
    for record, mapping in zip(report.adapters, report.mapping, strict=True):
        if mapping.get("dropped_sites"):
            yield (
                f"{record.place}: {len(mapping['dropped_sites'])} of {record.sites} source sites "
                f"feed no target layer; they hold {mapping['dropped_energy']:.0%} of its squared "
                "norm, which is not carried over"
            )
        if mapping.get("repeated_sites"):
            yield (
                f"{record.place}: {mapping['repeated_sites']} target sites get an update that "
                "another target layer gets as well, since the target has more layers"
            )
    for step in report.steps:
        yield f"{step.name}: cutting back to the rank lost {step.lost_energy:.1%} of the energy"
    found = report.verification
    yield (
        f"verified: PEFT reads {found['sites']} sites; logits change by up to "
        f"{found['logit_change']:.3g}, the most likely token at "
        f"{found['changed_top_token']:.0%} of the probe's positions"
    )
    yield from report.warnings


def print_transfer(report: TransferReport, console: Console | None = None) -> None:
    """Print the table and the remarks."""
    if console is None:
        console = Console()
        if not console.is_terminal:
            console = Console(width=_PIPED_WIDTH)
    # Above and below the table rather than its title and caption: those wrap to its width.
    console.print(Text(f"{report.mapper}: {report.pair.source} -> {report.pair.target}", "bold"))
    if diagnostics(report):
        console.print(transfer_table(report))
        console.print("means over the sites of a role; report.json has every site", style="italic")
    for remark in remarks(report):
        console.print(remark, highlight=False, markup=False, soft_wrap=True)
