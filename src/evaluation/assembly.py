"""From the scores of single rows and items to the evidence that the files of records hold."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .records import (
    CARTRIDGE,
    CONDITIONS,
    BenchmarkResults,
    Condition,
    Margin,
    Number,
    SuiteChange,
    SuiteResult,
    SuiteScores,
    Summary,
    TaskResult,
    complete_mean,
    ends_of,
)
from .scoring import TaskScore
from .statistics import (
    PairedScores,
    is_usable,
    item_change,
    item_mean,
    mean_difference,
    mean_gap,
    ratio,
    task_gap,
    why_no_interval,
)
from .suite import SuiteScore

Conditions = Mapping[str, TaskScore]  # score of one task under each condition; see CONDITIONS

# The conditions that stand beside the methods, in the order in which they are shown.
CONTROL_NAMES = {
    "base": "base (no adapter)",
    "random": "random adapter (control)",
    "copy": "copied factors (control)",
    "mean": "mean of anchors (control)",
    "nearest": "nearest anchor (control)",
    "few_shot_8": "few-shot 8 (control)",
    "few_shot_32": "few-shot 32 (control)",
    "oracle": "oracle (trained on the target)",
}

_CONTROL_ACCESS = {
    "copy": "weights only",
    "mean": "anchors",
    "nearest": "anchors",
    "few_shot_8": "few-shot",
    "few_shot_32": "few-shot",
}


def task_result(
    scores: Conditions,
    controls: Sequence[str],
    weight_cosine: float | None = None,
    relative_error: float | None = None,
    seed: int = 0,
) -> TaskResult:
    """Return the evidence of one task; cosine and error are those of the predicted update.

    Of ``scores`` at least ``base``, ``oracle`` and ``predicted`` are there; ``controls`` names
    those that are controls.
    """
    accuracy = {name: score.accuracy for name, score in scores.items()}
    predicted = accuracy["predicted"]
    paired, paired_nll = _paired(scores, "predicted"), _paired_nll(scores, "predicted")
    gap = task_gap(paired, seed)
    gap_nll = None if paired_nll is None else task_gap(paired_nll, seed)
    missing: dict[str, Number] = dict.fromkeys(CONDITIONS)
    return TaskResult(
        usable=paired.usable,
        n=len(scores["base"].correct),
        scores={**missing, **accuracy},
        nll=missing | {name: score.nll for name, score in scores.items()},
        gap_recovered=gap.value,
        ci95=ends_of(gap.interval),
        gap_recovered_nll=None if gap_nll is None else gap_nll.value,
        ci95_nll=None if gap_nll is None else ends_of(gap_nll.interval),
        why_no_ci95=why_no_interval(paired, gap),
        why_no_ci95_nll=(
            "" if paired_nll is None or gap_nll is None else why_no_interval(paired_nll, gap_nll)
        ),
        retention=ratio(predicted, accuracy.get("source", 0.0)),
        relative_to_oracle=ratio(predicted, accuracy["oracle"]),
        margin=predicted - max(accuracy[n] for n in ("base", *controls) if n in accuracy),
        weight_cosine=weight_cosine,
        relative_error=relative_error,
    )


def summarise(tasks: Mapping[str, Conditions], controls: Sequence[str], seed: int = 0) -> Summary:
    """Return the evidence over all tasks, with bootstrap intervals over tasks and rows.

    A control that a task lacks is left out.
    """
    everywhere = [c for c in controls if all(c in scores for scores in tasks.values())]
    paired = [_paired(scores, "predicted") for scores in tasks.values()]
    paired_nll = [_paired_nll(scores, "predicted") for scores in tasks.values()]
    gap = mean_gap(paired, seed)
    gap_nll = mean_gap([task for task in paired_nll if task is not None], seed)
    best = max(
        ("base", *everywhere),
        key=lambda control: sum(scores[control].accuracy for scores in tasks.values()),
    )

    def in_its_place(condition: str, *, nll: bool = False) -> float | None:
        """Return the gap that a condition recovers in place of the prediction."""
        if not all(condition in scores for scores in tasks.values()):
            return None
        pair = _paired_nll if nll else _paired
        rows = [pair(scores, condition) for scores in tasks.values()]
        return mean_gap([task for task in rows if task is not None], seed, draws=1).value

    return Summary(
        tasks=len(tasks),
        usable=sum(task.usable for task in paired),
        gap_recovered=gap.value,
        ci95=ends_of(gap.interval),
        gap_recovered_nll=gap_nll.value,
        ci95_nll=ends_of(gap_nll.interval),
        control_gaps={control: in_its_place(control) for control in everywhere},
        margin=_margin(tasks, best, seed),
        margin_over_mean=_margin(tasks, "mean", seed),
        cartridge_gap=in_its_place(CARTRIDGE),
        cartridge_gap_nll=in_its_place(CARTRIDGE, nll=True),
    )


def _paired(scores: Conditions, method: str) -> PairedScores:
    return PairedScores(scores["base"].correct, scores[method].correct, scores["oracle"].correct)


def _paired_nll(scores: Conditions, method: str) -> PairedScores | None:
    """Return minus the rows' negative log-likelihoods, of which more is better."""
    base, own, oracle = (scores[condition].row_nll for condition in ("base", method, "oracle"))
    if base is None or own is None or oracle is None:
        return None
    return PairedScores(-base, -own, -oracle)


def _margin(tasks: Mapping[str, Conditions], control: str, seed: int) -> Margin:
    known = [scores for scores in tasks.values() if control in scores]
    difference = mean_difference(
        [scores["predicted"].correct for scores in known],
        [scores[control].correct for scores in known],
        seed,
    )
    return Margin(control=control, value=difference.value, ci95=ends_of(difference.interval))


@dataclass(frozen=True)
class ControlLine:
    """What a control scores on a pair's usable tasks, in one run with one seed.

    Numbers are None where a usable task lacks the control, the seed where all give the same.
    """

    condition: str
    pair: str
    seed: int | None
    gap: Number
    gap_nll: Number
    accuracy: Number
    retention: Number

    @property
    def data_access(self) -> str | None:
        """What it may use; None for the two bounds and what uses nothing."""
        return _CONTROL_ACCESS.get(self.condition)


def control_lines(results: BenchmarkResults) -> list[ControlLine]:
    """Return the controls of each pair and seed, one line where the seeds do not differ.

    They are the same for all methods. Where one of them is among the methods it stands there,
    with an interval, and not here.
    """
    found: list[ControlLine] = []
    for pair in results.pairs:
        seeds = sorted({m.seed for m in results.methods if m.pair == pair and m.tasks})
        for condition in CONTROL_NAMES:
            known = [_control_line(results, condition, pair, seed) for seed in seeds]
            lines = [line for line in known if line is not None]
            alike = [replace(line, seed=None) for line in lines]
            found.extend(alike[:1] if len(set(alike)) == 1 else lines)
    return found


def _control_line(
    results: BenchmarkResults, condition: str, pair: str, seed: int
) -> ControlLine | None:
    run = [m for m in results.methods if (m.pair, m.seed) == (pair, seed) and m.tasks]
    if any(m.name == condition and m.refused is None for m in run):
        return None
    having = (m for m in run if any(t.scores.get(condition) is not None for t in m.tasks.values()))
    first = next(having, None)
    if first is None:
        return None
    tasks = list(first.tasks.values())
    ratios: list[Number] = []
    for task in tasks:
        if task.usable:
            score, source = task.scores.get(condition), task.scores.get("source")
            ratios.append(score / source if score is not None and source else None)
    return ControlLine(
        condition=condition,
        pair=pair,
        seed=seed,
        gap=_control_gap([task.scores for task in tasks], condition, 1),
        gap_nll=_control_gap([task.nll for task in tasks], condition, -1),
        accuracy=first.mean_accuracy(condition),
        retention=complete_mean(ratios),
    )


def _control_gap(
    scores: Sequence[Mapping[str, Number]], condition: str, sign: Literal[1, -1]
) -> Number:
    """Return the mean share of the oracle's gain over the tasks that have headroom."""
    shares: list[Number] = []
    for task in scores:
        base, score, oracle = (task.get(name) for name in ("base", condition, "oracle"))
        if base is None or oracle is None or not is_usable(sign * base, sign * oracle):
            continue
        shares.append(None if score is None else (score - base) / (oracle - base))
    return complete_mean(shares)


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
        metrics: Whose changes are told, in the order in which they are shown; one that a score
            lacks is left out there.
        scores: Of every condition, on the same items.
        bases: Condition of a model with an adapter to that of the same model without it, for
            all whose change is asked for.
        seed: Of the bootstrap.
    """
    found: list[SuiteScores] = []
    changes: list[SuiteChange] = []
    for condition, score in scores.items():
        means = {name: item_mean(rows, seed) for name, rows in score.rows.items()}
        # What is measured on all answers together has no interval.
        values = {name: estimate.value for name, estimate in means.items()} | {**score.whole}
        order = [*(name for name in metrics if name in values), *values]
        found.append(
            SuiteScores(
                condition=condition,
                means={name: values[name] for name in order},
                ci95={name: ends_of(estimate.interval) for name, estimate in means.items()},
            )
        )
        if condition in bases:
            changes += _changes(condition, scores[bases[condition]], score, metrics, seed)
    return SuiteResult(
        name=name,
        items=max((len(score.answers) for score in scores.values()), default=0),
        metrics=tuple(metrics),
        scores=tuple(found),
        changes=tuple(changes),
    )


def _changes(
    condition: Condition, base: SuiteScore, score: SuiteScore, metrics: Sequence[str], seed: int
) -> Iterator[SuiteChange]:
    for metric in metrics:
        if metric in score.rows and metric in base.rows:
            found = item_change(base.rows[metric], score.rows[metric], seed)
            yield SuiteChange(
                condition=condition,
                metric=metric,
                value=found.difference.value,
                ci95=ends_of(found.difference.interval),
                n=found.items,
                gained=found.gained,
                lost=found.lost,
                p=found.p,
            )
        elif metric in score.whole and metric in base.whole:
            value = score.whole[metric] - base.whole[metric]
            yield SuiteChange(
                condition=condition, metric=metric, value=value, ci95=None, n=len(score.answers)
            )
