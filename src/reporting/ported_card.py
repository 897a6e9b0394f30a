"""The README card of a ported adapter: what it was made from, what was lost, how to load it."""

import json

from .card_parts import card_environment, provenance_rows
from .refinement_words import verdict
from .transfer_report import TransferReport
from .transfer_table import diagnostics, from_zero, heading, legend, remarks

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
    "noop": "It is a control: an update of zero, which leaves the target as it is.",
}
_TAUGHT = {
    "drift_budget": "It was scaled so that it moves the target on generic text no further than "
    "allowed.",
    "corpus_distill": "The source with its adapter answered prompts made of generic text, and the "
    "target learned to answer alike.",
    "prompt_distill": "The source with its adapter answered unlabelled inputs of the task, and the "
    "target learned to answer alike.",
    "few_shot": "The target learned a few labelled examples of the task, and what the source with "
    "its adapter answers to generic text.",
}
_CAUTION = {
    "weights only": "between models that were pre-trained apart, methods that use the weights "
    "alone have hardly been better",
    "generic text": "that text predicts one model's activations from the other's does not say that "
    "the task is solved",
}
_SETTINGS = (
    *("mapper", "ckpt", "sparsify", "merge", "scale", "output_rank", "dtype", "seed"),
    *("diagnosis", "force", "refine", "refine_texts", "drift"),
)


def ported_card(report: TransferReport) -> str:
    """Return the card; its front matter is what PEFT and the hub read."""
    rows, refinement = diagnostics(report), report.refinement
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
            zero=from_zero(report),
            taught=_taught(report),
            verdict=verdict(refinement.expected, refinement.measured) if refinement else "",
            remarks=list(remarks(report)),
            rows=rows,
            names=list(dict.fromkeys(name for facts in rows.values() for name in facts)),
            heading=heading,
            legend=legend(report),
            caution="" if refinement else _CAUTION.get(report.information_class, ""),
            settings=json.dumps(settings, indent=1),
            provenance=provenance_rows(report.provenance, report.provenance.hashes),
        )
    )


def _taught(report: TransferReport) -> str:
    """Return in words what mapper and refinement did, one after the other."""
    if report.refinement is None:
        return ""
    before = "" if from_zero(report) else _MEANING.get(report.mapper, "")
    return f"{before} {_TAUGHT.get(report.refinement.name, '')}".strip()
