"""The largest scale whose load stays within a limit, by few evaluations of the load."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice, pairwise
from math import inf

import torch

from ..adapters import LoraAdapter, LowRank
from ..data.corpora import VALIDATION
from ..exceptions import ConfigurationError, DataError
from ..models.kl import KlToBase, KlToBaseGauge
from .base import DistillationInputs, Refined, Refinement, RefinementReport

_NARROWEST = 1.001  # ratio of scales, below which a load that still jumps is taken as it is
_SLACK = 0.01  # by which a load may fall before it counts as falling
_POWERS = 0.25, 8.0  # of the scale, by which a load is taken to grow
_EDGES = 0.05, 0.95  # an interpolated scale keeps so far, in shares, from the ends


@dataclass(frozen=True)
class Bisection:
    """What was found.

    Attributes:
        scale: The largest scale found within the limit; 0 where none was.
        loads: The load of each scale that was tried, in the order of the trials.
        monotone: Whether the load rose with the scale, as far as was seen.
    """

    scale: float
    loads: dict[float, float]
    monotone: bool


def largest_within(
    load: Callable[[float], float],
    *,
    largest: float = 1.0,
    tolerance: float = 0.05,
    most: int = 24,
) -> Bisection:
    """Find a scale up to ``largest`` whose load lies between ``1 - tolerance`` and 1.

    ``largest`` is taken where its load is at most 1. Otherwise the first guess is that of a load
    which grows with the square of the scale, and guesses below it follow the power last seen.
    Once there is a scale on either side, the bracket is shrunk in the logarithm of the scale, in
    turn by interpolation and by halving. At the end one scale half way up is tried: a load that
    fell again there was not monotone, and the largest scale within the limit is taken.

    Args:
        load: What a scale above 0 costs, relative to the limit.
        largest: The largest scale allowed.
        tolerance: How far below the limit is near enough.
        most: Evaluations at most.
    """
    loads = {largest: load(largest)}
    if loads[largest] > 1:
        _close_in(load, loads, 1 - tolerance, most - 1)
        inside = max((scale for scale in loads if loads[scale] <= 1), default=None)
        if inside is not None:
            between = math.sqrt(inside * largest)
            loads[between] = load(between)
    within = [scale for scale, value in loads.items() if value <= 1]
    rising = [loads[scale] for scale in sorted(loads)]
    monotone = all(upper >= (1 - _SLACK) * lower for lower, upper in pairwise(rising))
    return Bisection(max(within, default=0.0), loads, monotone)


def _close_in(
    load: Callable[[float], float], loads: dict[float, float], least: float, most: int
) -> None:
    """Try scales below the only one in ``loads``, until one's load is between ``least`` and 1."""
    aim = (least + 1) / 2
    high = max(loads)
    low: float | None = None
    power = 2.0
    halve = False
    while len(loads) < most:
        if low is None:
            scale = high * (aim / loads[high]) ** (1 / power)
        else:
            share = 0.5 if halve else _interpolated(loads[low], loads[high], aim)
            scale = low * (high / low) ** share
            halve = not halve
        loads[scale] = load(scale)
        if loads[scale] > 1:
            slope = math.log(loads[high] / loads[scale]) / math.log(high / scale)
            high, power = scale, min(max(slope, _POWERS[0]), _POWERS[1])
        elif loads[scale] >= least:
            return
        else:
            low = scale
        if low is not None and high / low < _NARROWEST:
            return


def _interpolated(lower: float, upper: float, aim: float) -> float:
    """Return where between two loads ``aim`` is met by a power law, as a share of log scale."""
    if lower <= 0:
        return 0.5
    share = math.log(aim / lower) / math.log(upper / lower)
    return min(max(share, _EDGES[0]), _EDGES[1])


# Scaling an adapter down until it moves the target no further than allowed on generic text.

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

    data_access = "generic text"

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

    def refine(self, start: LoraAdapter, distillation_inputs: DistillationInputs) -> Refined:
        """Return the scaled adapter, and the drift before and after.

        Raises:
            DataError: there are no generic texts.
            ModelError: the adapter does not fit the target.
        """
        texts = _generic_texts(distillation_inputs, self.texts)
        beside = _source_drift(distillation_inputs, texts, self.positions)
        gauge = KlToBaseGauge(
            distillation_inputs.target,
            texts,
            positions=self.positions,
            seed=distillation_inputs.seed,
        )
        search = _Search(self, start, gauge, distillation_inputs)
        found = search.run()
        adapter = search.at(found.scale)
        after = search.drifts[found.scale] if found.scale in search.drifts else gauge.of(adapter)
        # Of an adapter that is left without effect, what was too much of it before.
        shares = self.shares(after if found.scale else search.drifts[1.0])
        report = _report(after, beside, len(texts), self.texts) | {
            "data_access": self.data_access,
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

    def shares(self, drift: KlToBase) -> dict[str, float]:
        """Return how much of each budget a drift takes; of a budget of zero any takes too much."""
        spent = zip(self.budgets.items(), (drift.mean, drift.p95), strict=True)
        return {name: value / budget if budget > 0 else inf for (name, budget), value in spent}


@dataclass
class _Search:
    """The drift of one adapter at common scales from 0 to 1, 1 being the largest allowed."""

    budget: "DriftBudget"
    start: LoraAdapter
    gauge: KlToBaseGauge
    distillation_inputs: DistillationInputs
    drifts: dict[float, KlToBase] = field(default_factory=dict)

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
            self.distillation_inputs.progress("drift budget", len(self.drifts), _EVALUATIONS)
            self.drifts[scale] = self.gauge.of(self.at(scale))
        return max(self.budget.shares(self.drifts[scale]).values())


def check_drift(
    adapter: LoraAdapter,
    distillation_inputs: DistillationInputs,
    *,
    texts: int = 64,
    positions: int = 8,
) -> RefinementReport:
    """Measure the drift of a target's adapter and of the source's own on validation texts.

    Returns:
        ``drift`` and ``source_drift``, each with ``mean`` and ``p95`` in nats and the number of
        ``positions``; the number of ``drift_texts``; ``notes``.

    Raises:
        DataError: there are no generic texts.
        ModelError: the adapter does not fit the target.
    """
    chosen = _generic_texts(distillation_inputs, texts)
    beside = _source_drift(distillation_inputs, chosen, positions)
    gauge = KlToBaseGauge(
        distillation_inputs.target, chosen, positions=positions, seed=distillation_inputs.seed
    )
    return _report(gauge.of(adapter), beside, len(chosen), texts)


def _generic_texts(distillation_inputs: DistillationInputs, count: int) -> tuple[str, ...]:
    """Return the first validation texts that are not blank, at most ``count``."""
    given = () if distillation_inputs.texts is None else distillation_inputs.texts.texts(VALIDATION)
    texts = tuple(islice((text for text in given if text.strip()), count))
    if not texts:
        missing = (
            "there is no corpus"
            if distillation_inputs.texts is None
            else "the validation split has none"
        )
        raise DataError(
            f"drift is measured on generic text, and {missing}; give texts, such as corpus=folder "
            "paths.corpus=DIR"
        )
    return texts


def _source_drift(
    distillation_inputs: DistillationInputs, texts: Sequence[str], positions: int
) -> KlToBase:
    """Return the drift of the source's own adapter on the source: what the skill takes there."""
    distillation_inputs.progress("drift of the source", 0, 1)
    gauge = KlToBaseGauge(
        distillation_inputs.teacher.base, texts, positions=positions, seed=distillation_inputs.seed
    )
    return gauge.of(distillation_inputs.teacher.adapter)


def _report(drift: KlToBase, source: KlToBase, texts: int, asked: int) -> RefinementReport:
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
