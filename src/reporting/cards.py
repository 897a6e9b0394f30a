"""The README cards of predicted and of ported adapters: what they are, how well, how to load them.

The front matter is what PEFT and the hub read.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from ..evaluation.records import PairRecord, Results, TransferReport
from ..exceptions import one_line
from .summaries import recovery_verdict, task_summary, training_summary, transfer_remarks
from .tables import (
    Cell,
    cell_text,
    estimated,
    markdown_code,
    markdown_text,
    score_columns,
    sites_table,
)

Report = TypeVar("Report", Results, TransferReport)
_CONDITIONS = {
    "base": "target without adapter (base)",
    "source_base": "source without adapter",
    "source": "source with its adapter",
    "oracle": "target with an adapter trained on it (oracle)",
    "mean": "control: mean of the anchors",
    "nearest": "control: the anchor whose source adapter is most like this one's",
    "random": "control: random adapter of equal norm",
    "swapped": "control: mapped from another task's adapter",
    "cartridge": "the same as a nonlinear cartridge, before it is made linear",
    "predicted": Markup("**this adapter**"),
}
_MAPPERS = {
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
_REFINEMENTS = {
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

_TEMPLATES: dict[str, Any] = {
    "loader": PackageLoader("loraport.reporting"),
    "undefined": StrictUndefined,
    "keep_trailing_newline": True,
}
# What a template puts out is escaped for its format; "safe" marks what is of that format already.
PAGES = Environment(**_TEMPLATES, autoescape=select_autoescape(["html.j2"], default=False))
_CARDS = Environment(
    **_TEMPLATES,
    finalize=lambda value: value if isinstance(value, Markup) else markdown_text(str(value)),
)
_CARDS.filters["code"] = lambda value, **how: Markup(markdown_code(str(value), **how))


def adapter_card(results: Results, task: str) -> str:
    """Return the card of the adapter that was predicted for one held-out task."""
    results = _without_paths(results)
    result = results.tasks[task]
    others = set(results.tasks) - {task}
    hashes = results.provenance.hashes.items()
    # Without what concerns other held-out tasks only.
    kept = {name: value for name, value in hashes if not others & set(name.split("/"))}
    report = {key: value for key, value in results.mapper_report.items() if key != "anchors"}

    def value(number: Cell) -> str:
        return cell_text(number, ".3f")

    return _card(
        "adapter_card.md.j2",
        results.pair,
        task=task,
        results=results,
        result=result,
        value=value,
        estimated=estimated,
        task_summary=task_summary(result),
        training_summary=training_summary(results),
        conditions={
            name: _CONDITIONS.get(name, f"control: {name}") for name in score_columns(results)
        },
        anchors=results.mapper_report.get("anchors"),
        settings=json.dumps(results.config.get("mapper", {}), indent=2),
        report=json.dumps(report, indent=2) if report else "",
        provenance=results.provenance.model_copy(update={"hashes": kept}).rows(),
    )


def ported_card(report: TransferReport) -> str:
    """Return the card of a ported adapter."""
    report = _without_paths(report)
    refinement, table = report.refinement, sites_table(report)
    # A checkpoint's mapper has the options that it was trained with, whatever mapper= is.
    unused = "mapper" if report.config.get("ckpt") else "ckpt"
    settings = {n: report.config[n] for n in _SETTINGS if n in report.config and n != unused}
    if report.trained_with:
        settings["mapper"] = report.trained_with
    done = [] if report.from_zero else [_MAPPERS.get(report.mapper, "")]
    if refinement is not None:
        done.append(_REFINEMENTS.get(refinement.name, ""))
    return _card(
        "ported_card.md.j2",
        report.pair,
        report=report,
        done=" ".join(filter(None, done)),
        recovery=recovery_verdict(refinement.expected, refinement.measured) if refinement else "",
        remarks=list(transfer_remarks(report)),
        table=table,
        caution="" if refinement else _CAUTION.get(report.data_access, ""),
        settings=json.dumps(settings, indent=1),
        provenance=report.provenance.rows(),
    )


def _without_paths(report: Report) -> Report:
    """Return a report in which a folder stands for every absolute path: those are nobody's to know.

    They are found in the options that the report was made with, and in what adapters say of their
    base models.
    """
    content = report.model_dump(mode="json", by_alias=True)
    named = [content.get(part) for part in ("config", "pair", "adapters", "merged_with")]
    paths = {text for text in _texts(named) if text.startswith(("/", "~/"))} - {"/", "~/"}
    names = {path: Path(path).name for path in sorted(paths, key=len, reverse=True)}
    pattern = re.compile(rf"(?<![\w./-])(?:{'|'.join(map(re.escape, names))})(?![\w-])")

    def shortened(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda found: names[found.group()], value)
        if isinstance(value, dict):
            return {shortened(key): shortened(inner) for key, inner in value.items()}
        return [shortened(inner) for inner in value] if isinstance(value, list) else value

    return type(report).model_validate(shortened(content)) if names else report


def _texts(value: Any) -> Iterator[str]:
    """Give every text of plain data."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _texts(inner)


def _card(template: str, pair: PairRecord, **values: Any) -> str:
    data = ModelCardData(
        base_model=one_line(pair.target),
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["lora", "loraport", "adapter-transfer"],
    )
    body = _CARDS.get_template(template).render(pair=pair, **values)
    return f"---\n{data.to_yaml()}\n---\n\n{body}"
