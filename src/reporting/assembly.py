"""From the scores of single rows to the evidence that ``results.json`` holds."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..evaluation.scoring import TaskScore
from ..evaluation.statistics import (
    Estimate,
    Interval,
    PairedScores,
    mean_difference,
    mean_gap,
    relative_to_oracle,
    retention,
    task_gap,
)
from .results import CARTRIDGE, CONDITIONS, Ends, Margin, Summary, TaskResult

Conditions = Mapping[str, TaskScore]
"""Score of one task under each condition; see :data:`~loraport.reporting.results.CONDITIONS`."""

_NOTHING = Estimate(math.nan, Interval(math.nan, math.nan))


def task_result(
    scores: Conditions,
    controls: Sequence[str],
    weight_cosine: float | None = None,
    relative_error: float | None = None,
    seed: int = 0,
) -> TaskResult:
    """Return the evidence of one task.

    Args:
        scores: At least ``base``, ``oracle`` and ``predicted``; other conditions may be missing.
        controls: Which of the conditions are controls.
        weight_cosine: Of the predicted and the oracle's update, where it is known.
        relative_error: Of the predicted update to the oracle's, where it is known.
        seed: Of the bootstrap.
    """
    accuracy = {name: score.accuracy for name, score in scores.items()}
    predicted = accuracy["predicted"]
    paired = _paired(scores, "predicted")
    gap = task_gap(paired, seed)
    likely = _paired_nll(scores, "predicted")
    gap_nll = task_gap(likely, seed) if likely is not None else _NOTHING
    rivals = [accuracy[name] for name in ("base", *controls) if name in accuracy]
    return TaskResult(
        usable=paired.usable,
        n=len(scores["base"].correct),
        scores=_complete(accuracy),
        nll=_complete({name: score.nll for name, score in scores.items()}),
        gap_recovered=gap.value,
        ci95=ends(gap.interval),
        gap_recovered_nll=gap_nll.value,
        ci95_nll=ends(gap_nll.interval),
        retention=retention(predicted, accuracy.get("source", 0.0)),
        relative_to_oracle=relative_to_oracle(predicted, accuracy["oracle"]),
        margin=predicted - max(rivals),
        weight_cosine=weight_cosine,
        relative_error=relative_error,
    )


def summarise(tasks: Mapping[str, Conditions], controls: Sequence[str], seed: int = 0) -> Summary:
    """Return the evidence over all tasks, with bootstrap intervals over tasks and rows.

    Args:
        tasks: Of each task the same conditions as for :func:`task_result`.
        controls: Which of the conditions are controls; one that a task lacks is left out.
        seed: Of the bootstrap.
    """
    everywhere = [c for c in controls if all(c in scores for scores in tasks.values())]
    paired = [_paired(scores, "predicted") for scores in tasks.values()]
    gap = mean_gap(paired, seed)
    likely = [_paired_nll(scores, "predicted") for scores in tasks.values()]
    gap_nll = mean_gap([task for task in likely if task is not None], seed)
    best = max(
        ("base", *everywhere),
        key=lambda control: sum(scores[control].accuracy for scores in tasks.values()),
    )
    return Summary(
        tasks=len(tasks),
        usable=sum(task.usable for task in paired),
        gap_recovered=gap.value,
        ci95=ends(gap.interval),
        gap_recovered_nll=gap_nll.value,
        ci95_nll=ends(gap_nll.interval),
        control_gaps={control: _gap_of(tasks, control, seed) for control in everywhere},
        margin=_margin(tasks, best, seed),
        margin_over_mean=_margin(tasks, "mean", seed),
        cartridge_gap=_gap_of(tasks, CARTRIDGE, seed),
        cartridge_gap_nll=_gap_nll_of(tasks, CARTRIDGE, seed),
    )


def ends(interval: Interval) -> Ends:
    """Return an interval as the file holds it: None without one, None for an end without bound."""
    if math.isnan(interval.low):
        return None
    low, high = (end if math.isfinite(end) else None for end in interval)
    return low, high


def _gap_of(tasks: Mapping[str, Conditions], condition: str, seed: int) -> float | None:
    """Return the gap that a condition recovers in place of the prediction."""
    if not all(condition in scores for scores in tasks.values()):
        return None
    return mean_gap([_paired(s, condition) for s in tasks.values()], seed, draws=1).value


def _gap_nll_of(tasks: Mapping[str, Conditions], condition: str, seed: int) -> float | None:
    if not all(condition in scores for scores in tasks.values()):
        return None
    likely = [_paired_nll(scores, condition) for scores in tasks.values()]
    return mean_gap([task for task in likely if task is not None], seed, draws=1).value


def _complete(scores: Mapping[str, float | None]) -> dict[str, float | None]:
    return dict.fromkeys(CONDITIONS) | dict(scores)


def _paired(scores: Conditions, method: str) -> PairedScores:
    return PairedScores(scores["base"].correct, scores[method].correct, scores["oracle"].correct)


def _paired_nll(scores: Conditions, method: str) -> PairedScores | None:
    """Return minus the rows' negative log-likelihoods, of which more is better."""
    rows: list[Tensor] = []
    for condition in ("base", method, "oracle"):
        nll = scores[condition].row_nll
        if nll is None:
            return None
        rows.append(-nll)
    return PairedScores(*rows)


def _margin(tasks: Mapping[str, Conditions], control: str, seed: int) -> Margin:
    known = [scores for scores in tasks.values() if control in scores]
    difference = mean_difference(
        [scores["predicted"].correct for scores in known],
        [scores[control].correct for scores in known],
        seed,
    )
    return Margin(control=control, value=difference.value, ci95=ends(difference.interval))
