"""The README card of a predicted adapter: what it is, how well it works, how to load it."""

import json

from .card_parts import card_environment, provenance_rows
from .results import Results, TaskResult
from .tables import score_columns
from .verdict import interval_text, verdict

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
