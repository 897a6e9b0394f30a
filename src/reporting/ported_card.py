"""The README card of a ported adapter: what it was made from, what was lost, how to load it."""

import json

from .card_parts import card_environment, provenance_rows
from .transfer_report import TransferReport
from .transfer_table import diagnostics, heading, legend, remarks

_MEANING = {
    "copy": "The factors are the source's own, as they were: where a width differs they were "
    "cut off, or filled up with zeros. Nothing aligns the two models' coordinates.",
    "random": "It is a control: random factors of the source's norm at every site.",
    "transport": "Linear maps between the two models' activations on text carry its factors.",
    "adjoint_transport": "Linear maps between the two models' activations, and between gradients, "
    "on text carry its factors.",
    "procrustes": "Rotations between the two models' activations on text carry its factors.",
    "cast": "It is the LoRA that comes nearest, on text, to the source's adapter behind trained "
    "projection heads.",
    "residual_transport": "It is fitted on text to what the source's adapter does to the residual "
    "stream, whichever modules that one adapts.",
    "noop": "It is a control: an update of zero, which leaves the target as it is.",
}
_CAUTION = {
    "weights only": "between models that were pre-trained apart, methods that use the weights "
    "alone have hardly been better",
    "generic text": "that text predicts one model's activations from the other's does not say that "
    "the task is solved",
}
_SETTINGS = (
    *("mapper", "ckpt", "sparsify", "merge", "scale", "output_rank", "dtype", "seed"),
    *("diagnosis", "force"),
)


def ported_card(report: TransferReport) -> str:
    """Return the card; its front matter is what PEFT and the hub read."""
    rows = diagnostics(report)
    # A checkpoint's mapper has the options that it was trained with, whatever mapper= is.
    unused = "mapper" if report.config.get("ckpt") else "ckpt"
    settings = {n: report.config[n] for n in _SETTINGS if n in report.config and n != unused}
    if report.trained_with:
        settings["mapper"] = report.trained_with
    return (
        card_environment()
        .get_template("ported_card.md.j2")
        .render(
            report=report,
            meaning=_MEANING.get(report.mapper, ""),
            remarks=list(remarks(report)),
            rows=rows,
            names=list(dict.fromkeys(name for facts in rows.values() for name in facts)),
            heading=heading,
            legend=legend(report),
            caution=_CAUTION.get(report.information_class, ""),
            settings=json.dumps(settings, indent=1),
            provenance=provenance_rows(report.provenance, report.provenance.hashes),
        )
    )
