"""The largest scale whose load stays within a limit, by few evaluations of the load."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

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
