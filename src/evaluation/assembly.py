"""From the scores of single rows to the evidence that ``results.json`` holds."""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from ..models.kl import Divergences
from .records import (
    CARTRIDGE,
    CONDITIONS,
    CalibrationPoint,
    CalibrationResult,
    Condition,
    DiagnosticResult,
    Divergence,
    Ends,
    Margin,
    SuiteChange,
    SuiteResult,
    SuiteScores,
    Summary,
    TaskResult,
)
from .scoring import TaskScore
from .statistics import (
    Estimate,
    Interval,
    PairedScores,
    item_change,
    item_mean,
    mean_difference,
    mean_gap,
    relative_to_oracle,
    retention,
    task_gap,
)
from .suite import SuiteScore
from .verdict import DiagnosedPort, calibrated

Conditions = Mapping[str, TaskScore]
"""Score of one task under each condition; see :data:`~loraport.evaluation.records.CONDITIONS`."""

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


# From the answers to single items to what ``results.json`` holds of a suite.


def suite_result(
    name: str,
    metrics: Sequence[str],
    scores: Mapping[Condition, SuiteScore],
    bases: Mapping[Condition, Condition],
    seed: int = 0,
) -> SuiteResult:
    """Return what every model scores on a suite, and how adapters change that.

    Args:
        name: Of the suite.
        metrics: In the order in which they are shown, and whose changes are told; one that a
            score lacks is left out there.
        scores: Of every condition.
        bases: Condition of a model with an adapter to that of the same model without it, for
            all whose change is asked for.
        seed: Of the bootstrap.

    Raises:
        ValueError: two scores have different numbers of items, or a base has no score.
    """
    counts = {len(score.answers) for score in scores.values()}
    if len(counts) > 1:
        raise ValueError(f"the suite {name} was answered with {sorted(counts)} items")
    unknown = [base for base in bases.values() if base not in scores]
    if unknown:
        raise ValueError(f"the suite {name} has no score of {unknown[0]}")
    return SuiteResult(
        name=name,
        items=max(counts, default=0),
        metrics=tuple(metrics),
        scores=tuple(
            _scores(condition, score, metrics, seed) for condition, score in scores.items()
        ),
        changes=tuple(
            change
            for condition, base in bases.items()
            if condition in scores
            for change in _changes(condition, scores[base], scores[condition], metrics, seed)
        ),
    )


def divergence_record(condition: Condition, texts: str, found: Divergences) -> Divergence:
    """Return divergences as the file holds them.

    Args:
        condition: The model with the adapter.
        texts: ``generic``, or the name of the suite whose prompts they are.
        found: What was measured.
    """
    return Divergence(
        condition=condition,
        texts=texts,
        positions=found.positions,
        kl=found.kl,
        kl_p95=found.kl_p95,
        js=found.js,
        top1=found.top1,
    )


def _scores(
    condition: Condition, score: SuiteScore, metrics: Sequence[str], seed: int
) -> SuiteScores:
    """Return the means of one condition; what is measured on all answers has no interval."""
    means = {name: item_mean(rows, seed) for name, rows in score.rows.items()}
    values = {name: estimate.value for name, estimate in means.items()} | {**score.whole}
    order = [*(name for name in metrics if name in values), *values]
    return SuiteScores(
        condition=condition,
        means={name: values[name] for name in order},
        ci95={name: ends(estimate.interval) for name, estimate in means.items()},
    )


def _changes(
    condition: Condition, base: SuiteScore, score: SuiteScore, metrics: Sequence[str], seed: int
) -> list[SuiteChange]:
    changes = []
    for metric in metrics:
        if metric in score.rows and metric in base.rows:
            found = item_change(base.rows[metric], score.rows[metric], seed)
            changes.append(
                SuiteChange(
                    condition=condition,
                    metric=metric,
                    value=found.difference.value,
                    ci95=ends(found.difference.interval),
                    n=found.items,
                    gained=None if found.test is None else found.test.gained,
                    lost=None if found.test is None else found.test.lost,
                    p=None if found.test is None else found.test.p,
                )
            )
        elif metric in score.whole and metric in base.whole:
            value = score.whole[metric] - base.whole[metric]
            changes.append(
                SuiteChange(
                    condition=condition, metric=metric, value=value, ci95=None, n=len(score.answers)
                )
            )
    return changes


# From ported adapters to what ``results.json`` holds of the diagnosis' calibration.


def calibrate(
    points: Sequence[CalibrationPoint], success: float = 0.5, seed: int = 0
) -> CalibrationResult:
    """Relate every diagnostic to the gap recovered, over all ports and for each method alone.

    Args:
        points: Every ported adapter; one without a gap (its task is not usable) is kept, and
            counts for nothing.
        success: A port succeeds that recovers more than this of the gap.
        seed: Of the bootstrap.
    """
    names = list(dict.fromkeys(name for point in points for name in point.diagnostics))
    methods = list(dict.fromkeys(point.condition.method for point in points))
    return CalibrationResult(
        success=success,
        points=tuple(points),
        diagnostics=tuple(
            _diagnostic(name, method, points, success, seed)
            for method in (None, *(methods if len(methods) > 1 else ()))
            for name in names
        ),
    )


def _diagnostic(
    name: str, method: str | None, points: Sequence[CalibrationPoint], success: float, seed: int
) -> DiagnosticResult:
    ports = [
        DiagnosedPort(
            diagnostic=_number(point.diagnostics.get(name)),
            recovered=_number(point.gap_recovered),
            task=point.condition.task,
        )
        for point in points
        if method is None or point.condition.method == method
    ]
    found = calibrated(ports, success, seed)
    correlation, threshold = found.correlation, found.threshold
    return DiagnosticResult(
        name=name,
        method=method,
        points=found.points,
        spearman=None if correlation is None else correlation.value,
        ci95=None if correlation is None else ends(correlation.interval),
        threshold=None if threshold is None else threshold.value,
        above=threshold is None or threshold.above,
        hit_rate=found.hit_rate,
        majority_rate=found.majority_rate,
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
