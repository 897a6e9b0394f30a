"""Whether what is known before a transfer tells what it recovers: rank correlation and thresholds.

Each diagnostic, such as the coverage of a pair, is compared with the gap recovered by the same
ports: by Spearman's correlation, and by a threshold whose hit rate is measured on tasks that it was
not fitted on.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from .records import CalibrationPoint, CalibrationResult, DiagnosticResult, ends_of
from .statistics import LEAST_POINTS, spearman


@dataclass(frozen=True)
class Threshold:
    """A port is expected to succeed on one side of a value.

    It is ``above`` the value or below; ``right`` is how often that held where it was fitted.
    """

    value: float
    above: bool
    right: float

    def expects(self, diagnostic: float) -> bool:
        """Return whether a port with this diagnostic is expected to succeed."""
        return (diagnostic > self.value) == self.above


def calibrate(
    points: Sequence[CalibrationPoint], success: float = 0.5, seed: int = 0
) -> CalibrationResult:
    """Relate every diagnostic to the gap recovered, over all ports and for each method alone.

    A port without a gap (its task is not usable) is kept, and counts for nothing; one that recovers
    more than ``success`` of the gap succeeds.
    """
    names = list(dict.fromkeys(name for point in points for name in point.diagnostics))
    methods = list(dict.fromkeys(point.condition.method for point in points))
    return CalibrationResult(
        success=success,
        points=tuple(points),
        diagnostics=tuple(
            _calibrated(name, method, points, success, seed)
            for method in (None, *(methods if len(methods) > 1 else ()))
            for name in names
        ),
    )


def _calibrated(
    name: str, method: str | None, points: Sequence[CalibrationPoint], success: float, seed: int
) -> DiagnosticResult:
    known = [
        (value, point.gap_recovered, point.condition.task)
        for point in points
        if method in (None, point.condition.method)
        and (value := point.diagnostics.get(name)) is not None
        and point.gap_recovered is not None
    ]
    values, gaps = [value for value, _, _ in known], [gap for _, gap, _ in known]
    tasks = [task for _, _, task in known]
    succeeded = [gap > success for gap in gaps]
    correlation = spearman(values, gaps, tasks, seed)
    threshold = fitted_threshold(values, succeeded) if len(known) >= LEAST_POINTS else None
    return DiagnosticResult(
        name=name,
        method=method,
        points=len(known),
        spearman=None if correlation is None else correlation.value,
        ci95=None if correlation is None else ends_of(correlation.interval),
        threshold=None if threshold is None else threshold.value,
        above=threshold is None or threshold.above,
        hit_rate=None if threshold is None else held_out_rate(values, succeeded, tasks),
        majority_rate=majority_rate(succeeded),
    )


def fitted_threshold(values: Sequence[float], succeeded: Sequence[bool]) -> Threshold | None:
    """Return the threshold, and the side of success, that are right most often.

    It lies halfway between two neighbouring values. Of equally good ones the one with the
    greatest Youden index (share of the successes expected minus share of the failures expected)
    is taken, then the one between the values that lie farthest apart.

    Source: Youden, Index for rating diagnostic tests, 1950.

    Returns:
        None where the values do not vary, or all ports ended alike.
    """
    wins, count = sum(succeeded), len(succeeded)
    if wins in (0, count):
        return None
    best: tuple[tuple[float, float, float], Threshold] | None = None
    for low, high in pairwise(sorted(set(values))):
        middle = low + (high - low) / 2
        over = [won for value, won in zip(values, succeeded, strict=True) if value > middle]
        hits, alarms = sum(over), len(over) - sum(over)
        for above in (True, False):
            right = (hits + count - wins - alarms) if above else (wins - hits + alarms)
            youden = hits / wins - alarms / (count - wins)
            merit = (right / count, youden if above else -youden, high - low)
            if best is None or merit > best[0]:
                best = merit, Threshold(middle, above, right / count)
    return None if best is None else best[1]


def held_out_rate(
    values: Sequence[float], succeeded: Sequence[bool], tasks: Sequence[Hashable]
) -> float:
    """Return how often thresholds are right about tasks that they were not fitted on.

    Each task's ports are predicted by a threshold that is fitted on those of all other tasks;
    where none can be fitted there, by what is more frequent among them. NaN with a single task.
    """
    if len(set(tasks)) < 2:
        return math.nan
    right = 0
    for task in dict.fromkeys(tasks):
        rest = [index for index, other in enumerate(tasks) if other != task]
        won = [succeeded[index] for index in rest]
        threshold = fitted_threshold([values[index] for index in rest], won)
        usual = 2 * sum(won) > len(won)
        for index, other in enumerate(tasks):
            if other == task:
                expected = usual if threshold is None else threshold.expects(values[index])
                right += expected == succeeded[index]
    return right / len(values)


def majority_rate(succeeded: Sequence[bool]) -> float:
    """Return how often it is right to expect always what is more frequent; NaN of nothing.

    >>> majority_rate([True, False, False])
    0.6666666666666666
    """
    wins = sum(succeeded)
    return max(wins, len(succeeded) - wins) / len(succeeded) if succeeded else math.nan
