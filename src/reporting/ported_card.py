"""The README card of a ported adapter: what it was made from, what was lost, how to load it."""

import json

from .card_parts import card_environment, provenance_rows
from .transfer_report import TransferReport
from .transfer_table import diagnostics, remarks

_MEANING = {
    "copy": "The factors are the source's own, as they were: where a width differs they were "
    "cut off, or filled up with zeros. Nothing aligns the two models' coordinates.",
    "random": "It is a control: random factors of the source's norm at every site.",
    "noop": "It is a control: an update of zero, which leaves the target as it is.",
}
_SETTINGS = ("mapper", "ckpt", "sparsify", "merge", "scale", "output_rank", "dtype", "seed")


def ported_card(report: TransferReport) -> str:
    """Return the card; its front matter is what PEFT and the hub read."""
    rows = diagnostics(report)
    # A checkpoint's mapper has the options that it was trained with, whatever mapper= is.
    unused = "mapper" if report.config.get("ckpt") else "ckpt"
    settings = {n: report.config[n] for n in _SETTINGS if n in report.config and n != unused}
    return (
        card_environment()
        .get_template("ported_card.md.j2")
        .render(
            report=report,
            meaning=_MEANING.get(report.mapper, ""),
            remarks=list(remarks(report)),
            rows=rows,
            names=list(dict.fromkeys(name for facts in rows.values() for name in facts)),
            settings=json.dumps(settings, indent=1),
            provenance=provenance_rows(report.provenance, report.provenance.hashes),
        )
    )
