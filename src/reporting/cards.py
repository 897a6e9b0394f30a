"""What all cards have in common: how their templates are read, and their last table."""

import json
from collections.abc import Mapping

from jinja2 import Environment, PackageLoader, StrictUndefined

from ..evaluation.records import Provenance, Results, TaskResult, TransferReport
from .console import diagnostics, from_zero, heading, legend, transfer_remarks
from .summaries import recovery_verdict
from .tables import interval_text, score_columns, verdict


def card_environment() -> Environment:
    """Return the environment of the cards' templates."""
    # Plain text, not HTML: a card that escaped "it's" would not be read as Markdown.
    return Environment(
        loader=PackageLoader("loraport.reporting"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )


def provenance_rows(record: Provenance, hashes: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return versions, hashes and revisions by what they are of; ``hashes`` may leave some out."""
    return [
        *record.versions.items(),
        *((f"SHA-256 of {name}", value) for name, value in hashes.items()),
        *((f"revision of {name}", value) for name, value in record.revisions.items() if value),
    ]


# The README card of a predicted adapter: what it is, how well it works, how to load it.

_CONDITIONS = {
    "base": "target without adapter (base)",
    "source_base": "source without adapter",
    "source": "source with its adapter",
    "oracle": "target with an adapter trained on it (oracle)",
    "mean": "control: mean of the anchors",
    "random": "control: random adapter of equal norm",
    "swapped": "control: mapped from another task's adapter",
    "cartridge": "the same as a nonlinear cartridge, before it is made linear",
    "predicted": "**this adapter**",
}


def adapter_card(results: Results, task: str) -> str:
    """Return the card of the adapter that was predicted for one held-out task.

    Its front matter is what PEFT and the hub read: base model, library and tags.
    """
    environment = card_environment()
    environment.filters["number"] = lambda value: "-" if value is None else f"{value:.3f}"
    result = results.tasks[task]
    report = {key: value for key, value in results.mapper_report.items() if key != "anchors"}
    return environment.get_template("adapter_card.md.j2").render(
        task=task,
        results=results,
        result=result,
        pair=results.pair,
        judgement=_judgement(result),
        verdict=verdict(results),
        conditions={
            name: _CONDITIONS.get(name, f"control: {name}") for name in score_columns(results)
        },
        interval=lambda ends: "" if ends is None else interval_text(ends),
        anchors=results.mapper_report.get("anchors"),
        settings=json.dumps(results.config.get("mapper", {}), indent=2),
        report=json.dumps(report, indent=2),
        provenance=_provenance_rows(results, task),
    )


def _provenance_rows(results: Results, task: str) -> list[tuple[str, str]]:
    """Return what the adapter was made from, without what concerns other held-out tasks only."""
    record = results.provenance
    others = set(results.tasks) - {task}
    hashes = {name: h for name, h in record.hashes.items() if not others & set(name.split("/"))}
    return provenance_rows(record, hashes)


def _judgement(result: TaskResult) -> str:
    """Return one sentence about this task alone."""
    if not result.usable or result.gap_recovered is None:
        return (
            "On this task even the adapter that was trained on the target is less than 3 points "
            "above the base, so that nothing can be said about the prediction."
        )
    low = result.ci95[0] if result.ci95 is not None else None
    sure = "" if low is not None and low > 0 else ", so a gain is not shown"
    margin = 0.0 if result.margin is None else 100 * result.margin
    against = "above" if margin > 0 else "below"
    rank = f"{abs(margin):.1f} points {against}" if round(margin, 1) else "as high as"
    return (
        f"It recovers {result.gap_recovered:.0%} of what training on the target gains over the "
        f"base, 95 % interval {interval_text(result.ci95)}{sure}. Its accuracy is {rank} the best "
        "of the base and the controls."
    )


# The README card of a ported adapter: what it was made from, what was lost, how to load it.

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
            verdict=recovery_verdict(refinement.expected, refinement.measured)
            if refinement
            else "",
            remarks=list(transfer_remarks(report)),
            rows=rows,
            names=list(dict.fromkeys(name for facts in rows.values() for name in facts)),
            heading=heading,
            legend=legend(report),
            caution="" if refinement else _CAUTION.get(report.data_access, ""),
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
