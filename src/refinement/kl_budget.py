"""Scaling an adapter until it moves the target no further than allowed on generic text.

The move is the KL divergence of the target's next-token distributions with the adapter from those
without it; reports call it drift. :func:`largest_within` searches the scale.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise
from typing import ClassVar

import torch

from ..adapters import LoraAdapter
from ..data.corpora import VALIDATION
from ..exceptions import ConfigurationError, DataError
from ..models.kl import KlToBase, KlToBaseGauge
from .base import DistillationInputs, Refined, Refinement, RefinementReport

_TAIL = 5.0  # the budget of the 95th percentile where none is given, in multiples of the mean's
_EVALUATIONS = 24
_LEAST = 0.95  # load that is near enough to the limit
_NARROWEST = 1.001  # ratio of scales, below which a load that still jumps is taken as it is
_SLACK = 0.01  # by which a load may fall before it counts as falling
_POWERS = 0.25, 8.0  # range of the exponent with which a load is assumed to grow
_EDGES = 0.05, 0.95  # range of an interpolated scale, as a share of the bracket


@dataclass(frozen=True)
class Bisection:
    """The largest tried scale within the limit, 0 where none was, and every tried scale's load.

    ``monotone`` tells whether the load rose with the scale at those.
    """

    scale: float
    loads: dict[float, float]
    monotone: bool


def largest_within(
    load: Callable[[float], float],
    *,
    most: int = _EVALUATIONS,
) -> Bisection:
    """Find a scale up to 1 whose load lies between 0.95 and 1.

    1 is taken where its load is at most 1. Otherwise the first guess is that of a load which
    grows with the square of the scale, and guesses below it follow the power last seen. Once
    there is a scale on either side, the bracket is shrunk in the logarithm of the scale, in turn
    by interpolation and by halving. At the end one scale half way up is tried: if the load falls
    again there, it is not monotone, and the largest scale within the limit is taken.

    Args:
        load: The load of a scale above 0, relative to the limit.
        most: Evaluations at most.
    """
    loads = {1.0: load(1.0)}
    if loads[1.0] > 1:
        _close_in(load, loads, most - 1)
        inside = max((scale for scale in loads if loads[scale] <= 1), default=None)
        if inside is not None:
            between = math.sqrt(inside)
            loads[between] = load(between)
    within = [scale for scale, value in loads.items() if value <= 1]
    rising = [loads[scale] for scale in sorted(loads)]
    monotone = all(upper >= (1 - _SLACK) * lower for lower, upper in pairwise(rising))
    return Bisection(max(within, default=0.0), loads, monotone)


def _close_in(load: Callable[[float], float], loads: dict[float, float], most: int) -> None:
    """Try scales below 1, until one's load is near enough to the limit or the bracket is narrow."""
    aim = (_LEAST + 1) / 2
    high, power, halve = 1.0, 2.0, False
    low: float | None = None
    while len(loads) < most:
        if low is None:
            scale = high * (aim / loads[high]) ** (1 / power)
        else:
            share = 0.5
            if not halve and loads[low] > 0:  # where a power law between the two meets the aim
                share = math.log(aim / loads[low]) / math.log(loads[high] / loads[low])
                share = min(max(share, _EDGES[0]), _EDGES[1])
            scale = low * (high / low) ** share
            halve = not halve
        loads[scale] = load(scale)
        if loads[scale] > 1:
            slope = math.log(loads[high] / loads[scale]) / math.log(high / scale)
            high, power = scale, min(max(slope, _POWERS[0]), _POWERS[1])
        elif loads[scale] >= _LEAST:
            return
        else:
            low = scale
        if low is not None and high / low < _NARROWEST:
            return


class KlBudget(Refinement):
    """Scales the adapter so that its KL divergence on generic text stays within a budget.

    The largest scale is sought whose mean divergence is within ``budget`` and whose 95th
    percentile is within ``p95_budget``, by bisection on its logarithm until one of them is met
    to 5 %. An adapter that is within both is returned unchanged.

    Source: Arditi et al., 2024, who discard interventions that move harmless prompts by more
    than 0.1 nats.

    Args:
        budget: In nats; 0 leaves an adapter without effect.
        p95_budget: None is five times the mean's.
        largest: The largest scale allowed.
        texts: Generic texts of the validation split to measure on.
        positions: Positions in a text at most.

    Raises:
        ConfigurationError: a budget is negative, or a number is not positive.
    """

    name: ClassVar[str] = "drift_budget"
    data_access: ClassVar[str] = "generic text"
    learns: ClassVar[bool] = False

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
        self.budgets, self.largest = {"budget": budget, "p95_budget": tail}, largest
        for name, value in {**self.budgets, "largest": largest, "texts": texts}.items():
            if not (value >= 0 if name in self.budgets else value > 0):
                raise ConfigurationError(
                    f"refine.{name}={value}, but it takes a positive number, and for a budget also "
                    "0, which leaves nothing of an adapter"
                )
        self.texts, self.positions = texts, positions

    @property
    def kl_budget(self) -> float | None:
        """The budget of the mean divergence."""
        return float(self.budgets["budget"])

    def refine(self, start: LoraAdapter, data: DistillationInputs) -> Refined:
        """Return the scaled adapter, and the divergence before and after."""
        texts = _generic_texts(data, self.texts)
        source = _source_kl(data, texts, self.positions)
        gauge = KlToBaseGauge(data.target, texts, positions=self.positions, seed=data.seed)
        measured: dict[float, KlToBase] = {}

        # Scales relative to the largest one allowed.
        def scaled(scale: float) -> LoraAdapter:
            if scale == 0:  # exactly zero, and can be trained again
                return start.map(lambda update: replace(update, B=torch.zeros_like(update.B)))
            if scale == 1 == self.largest:
                return start
            return start.map(lambda update: update.scaled(self.largest * scale))

        def load(scale: float) -> float:
            if scale not in measured:
                data.progress("drift budget", len(measured), _EVALUATIONS)
                measured[scale] = gauge.of(scaled(scale))
            return max(self._shares(measured[scale]).values())

        search = Bisection(0.0, {}, True)
        if load(1.0) < math.inf:  # otherwise a budget is 0
            search = largest_within(load)
        adapter = scaled(search.scale)
        after = measured[search.scale] if search.scale in measured else gauge.of(adapter)
        # Where nothing is left, the budget that the unscaled adapter exceeds most.
        shares = self._shares(after if search.scale else measured[1.0])
        report = _report(after, source, len(texts), self.texts) | {
            "data_access": self.data_access,
            **self.budgets,
            "scale": search.scale * self.largest,
            "drift_before": asdict(measured[1.0]),
            "binds": max(shares, key=lambda name: shares[name]) if search.scale < 1 else None,
            "evaluations": len(measured),
        }
        if not search.monotone:
            report["notes"] += ["drift falls with the scale in places; kept: the largest within"]
        if search.scale == 0:
            report["notes"] += ["no scale that was tried is within the budget: nothing is left"]
        return Refined(adapter, report)

    def _shares(self, drift: KlToBase) -> dict[str, float]:
        """Return which share of each budget is used; of a budget of 0 any use is too much."""
        used = zip(self.budgets.items(), (drift.mean, drift.p95), strict=True)
        return {name: value / budget if budget > 0 else math.inf for (name, budget), value in used}


def check_kl(
    adapter: LoraAdapter, data: DistillationInputs, *, texts: int = 64, positions: int = 8
) -> RefinementReport:
    """Measure the KL to the base of a target's adapter, and of the source's own.

    Returns:
        ``drift`` and ``source_drift``, each with ``mean`` and ``p95`` in nats and the number of
        ``positions``; the number of ``drift_texts``; ``notes``.

    Raises:
        DataError: there are no generic texts.
    """
    chosen = _generic_texts(data, texts)
    source = _source_kl(data, chosen, positions)
    gauge = KlToBaseGauge(data.target, chosen, positions=positions, seed=data.seed)
    return _report(gauge.of(adapter), source, len(chosen), texts)


def _generic_texts(data: DistillationInputs, count: int) -> tuple[str, ...]:
    """Return the first validation texts that are not blank, at most ``count``."""
    source = () if data.texts is None else data.texts.texts(VALIDATION)
    texts = tuple(islice((text for text in source if text.strip()), count))
    if not texts:
        missing = "there is no corpus" if data.texts is None else "the validation split has none"
        raise DataError(
            f"drift is measured on generic text, and {missing}; give texts, such as corpus=folder "
            "paths.corpus=DIR"
        )
    return texts


def _source_kl(data: DistillationInputs, texts: Sequence[str], positions: int) -> KlToBase:
    """Measure the source's own adapter on the source: what the skill costs there."""
    data.progress("drift of the source", 0, 1)
    gauge = KlToBaseGauge(data.teacher.base, texts, positions=positions, seed=data.seed)
    return gauge.of(data.teacher.adapter)


def _report(drift: KlToBase, source: KlToBase, texts: int, wanted: int) -> RefinementReport:
    few = f"drift was measured on {texts} texts, as the corpus has no more; {wanted} were asked for"
    return {
        "drift": asdict(drift),
        "source_drift": asdict(source),
        "drift_texts": texts,
        "notes": [few] if texts < wanted else [],
    }
