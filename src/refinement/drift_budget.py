"""Scaling an adapter down until it moves the target no further than allowed on generic text."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from math import inf

import torch

from ..adapters import LoraAdapter, LowRank
from ..data.text_source import VALIDATION
from ..exceptions import ConfigurationError, DataError
from ..models.drift import Drift, DriftGauge
from .base import Lesson, Refined, Refinement, Report
from .bisection import Bisection, largest_within

_TAIL = 5.0  # the budget of the 95th percentile where none is given, in multiples of the mean's
_EVALUATIONS = 24


class DriftBudget(Refinement):
    """Scales the adapter so that drift on generic text stays within a budget.

    The largest scale is sought whose mean divergence is within ``budget`` and whose 95th
    percentile is within ``p95_budget``, by bisection on its logarithm until one of them is met
    to 5 %. An adapter that is within both as it is, is given back as it is.

    Source: Arditi et al., 2024, who discard interventions that move harmless prompts by more
    than 0.1 nats.

    Args:
        budget: Of the mean divergence, in nats; 0 leaves an adapter that does nothing.
        p95_budget: Of the 95th percentile; None is five times the mean's.
        largest: The largest scale allowed.
        texts: Generic texts of the validation split to measure on.
        positions: Positions a text at most.

    Raises:
        ConfigurationError: a budget is negative, or a number is not positive.
    """

    information_class = "generic text"

    def __init__(
        self,
        budget: float = 0.1,
        *,
        p95_budget: float | None = None,
        largest: float = 1.0,
        texts: int = 64,
        positions: int = 8,
    ) -> None:
        tail = _TAIL * budget if p95_budget is None else p95_budget
        given = {"largest": largest, "texts": texts, "budget": budget, "p95_budget": tail}
        for name, value in given.items():
            if not (value >= 0 if name.endswith("budget") else value > 0):
                raise ConfigurationError(
                    f"drift_budget got {name}={value}; it takes a positive number, and for a "
                    f"budget also 0, which leaves nothing of an adapter: set refine.{name}"
                )
        self.budgets, self.largest = {"budget": budget, "p95_budget": tail}, largest
        self.texts, self.positions = texts, positions

    def refine(self, start: LoraAdapter, lesson: Lesson) -> Refined:
        """Return the scaled adapter, and the drift before and after.

        Raises:
            DataError: there are no generic texts.
            ModelError: the adapter does not fit the target.
        """
        texts = _generic_texts(lesson, self.texts)
        beside = _source_drift(lesson, texts, self.positions)
        gauge = DriftGauge(lesson.target, texts, positions=self.positions, seed=lesson.seed)
        search = _Search(self, start, gauge, lesson)
        found = search.run()
        adapter = search.at(found.scale)
        after = search.drifts[found.scale] if found.scale in search.drifts else gauge.of(adapter)
        # Of an adapter that is left without effect, what was too much of it before.
        shares = self.shares(after if found.scale else search.drifts[1.0])
        report = _report(after, beside, len(texts), self.texts) | {
            "information_class": self.information_class,
            **self.budgets,
            "scale": found.scale * self.largest,
            "drift_before": asdict(search.drifts[1.0]),
            "binds": max(shares, key=lambda name: shares[name]) if found.scale < 1 else None,
            "evaluations": len(search.drifts),
        }
        if not found.monotone:
            report["notes"] += ["drift falls with the scale in places; kept: the largest within"]
        if found.scale == 0:
            report["notes"] += ["no scale that was tried is within the budget: nothing is left"]
        return Refined(adapter, report)

    def shares(self, drift: Drift) -> dict[str, float]:
        """Return how much of each budget a drift takes; of a budget of zero any takes too much."""
        spent = zip(self.budgets.items(), (drift.mean, drift.p95), strict=True)
        return {name: value / budget if budget > 0 else inf for (name, budget), value in spent}


@dataclass
class _Search:
    """The drift of one adapter at common scales from 0 to 1, 1 being the largest allowed."""

    budget: "DriftBudget"
    start: LoraAdapter
    gauge: DriftGauge
    lesson: Lesson
    drifts: dict[float, Drift] = field(default_factory=dict)

    def run(self) -> Bisection:
        """Find the largest scale within the budget."""
        full = self.load(1.0)
        if full <= 1 or full == inf:
            return Bisection(float(full <= 1), {1.0: full}, True)
        return largest_within(self.load, most=_EVALUATIONS)

    def at(self, scale: float) -> LoraAdapter:
        """Return the adapter at a common scale: at 1 as it is, at 0 without effect."""
        if scale == 0:
            return self.start.map(_silenced)
        if scale == 1 == self.budget.largest:
            return self.start
        return self.start.map(lambda update: update.scaled(self.budget.largest * scale))

    def load(self, scale: float) -> float:
        """Return how much of the budget that binds is taken: above 1 is too much."""
        if scale not in self.drifts:
            self.lesson.progress("drift budget", len(self.drifts), _EVALUATIONS)
            self.drifts[scale] = self.gauge.of(self.at(scale))
        return max(self.budget.shares(self.drifts[scale]).values())


def check_drift(
    adapter: LoraAdapter, lesson: Lesson, *, texts: int = 64, positions: int = 8
) -> Report:
    """Measure the drift of a target's adapter and of the source's own on validation texts.

    Returns:
        ``drift`` and ``source_drift``, each with ``mean`` and ``p95`` in nats and the number of
        ``positions``; the number of ``drift_texts``; ``notes``.

    Raises:
        DataError: there are no generic texts.
        ModelError: the adapter does not fit the target.
    """
    chosen = _generic_texts(lesson, texts)
    beside = _source_drift(lesson, chosen, positions)
    gauge = DriftGauge(lesson.target, chosen, positions=positions, seed=lesson.seed)
    return _report(gauge.of(adapter), beside, len(chosen), texts)


def _generic_texts(lesson: Lesson, count: int) -> tuple[str, ...]:
    """Return the first validation texts that are not blank, at most ``count``."""
    given = () if lesson.texts is None else lesson.texts.texts(VALIDATION)
    texts = tuple(islice((text for text in given if text.strip()), count))
    if not texts:
        missing = "there is no corpus" if lesson.texts is None else "the validation split has none"
        raise DataError(
            f"drift is measured on generic text, and {missing}; give texts, such as corpus=folder "
            "paths.corpus=DIR"
        )
    return texts


def _source_drift(lesson: Lesson, texts: Sequence[str], positions: int) -> Drift:
    """Return the drift of the source's own adapter on the source: what the skill takes there."""
    lesson.progress("drift of the source", 0, 1)
    gauge = DriftGauge(lesson.teacher.base, texts, positions=positions, seed=lesson.seed)
    return gauge.of(lesson.teacher.adapter)


def _report(drift: Drift, source: Drift, texts: int, asked: int) -> Report:
    """Return what a drift check and a drift budget have in common."""
    few = f"drift was measured on {texts} texts, as the corpus has no more; {asked} were asked for"
    return {
        "drift": asdict(drift),
        "source_drift": asdict(source),
        "drift_texts": texts,
        "notes": [few] if texts < asked else [],
    }


def _silenced(update: LowRank) -> LowRank:
    """Return an update that is exactly zero, and can be trained again."""
    return LowRank(update.A, torch.zeros_like(update.B), update.scale)
