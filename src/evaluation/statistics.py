r"""How much of the oracle's gain a ported adapter recovers, and how sure that is.

Everything here takes scores of which more is better: 1 or 0 for a right or wrong answer, or
minus the negative log-likelihood of the right one, in nats. Base, method and oracle are scored
on the same rows, so that every bootstrap draw is paired. An undefined value is NaN, an interval
without an end on one side is infinite there; nothing here raises because of what was measured.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

HEADROOM = 0.03
"""A task is usable where the oracle is at least so much above the base (accuracy, or nats)."""

DRAWS = 5000
"""Bootstrap draws of an interval."""

_LEVEL = 0.95


class Interval(NamedTuple):
    """A 95 % interval; NaN at both ends where there is none, infinite where it has no end."""

    low: float
    high: float

    def contains(self, value: float) -> bool:
        """Return whether ``value`` lies inside or at an end; never true where there is none."""
        return self.low <= value <= self.high


class Estimate(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    interval: Interval


_UNDEFINED = Estimate(math.nan, Interval(math.nan, math.nan))


@dataclass(frozen=True, eq=False)
class PairedScores:
    """The scores of one task's rows under three conditions of the target model.

    Attributes:
        base: Without an adapter.
        method: With the adapter that is judged.
        oracle: With the adapter that was trained on the target itself.

    Raises:
        ValueError: the three do not have the same number of rows.
    """

    base: Float[Tensor, " rows"] | Bool[Tensor, " rows"]
    method: Float[Tensor, " rows"] | Bool[Tensor, " rows"]
    oracle: Float[Tensor, " rows"] | Bool[Tensor, " rows"]

    def __post_init__(self) -> None:
        _stacked(self.base, self.method, self.oracle)

    @property
    def table(self) -> Float[Tensor, "rows 3"]:
        """Base, method and oracle as the columns of one table."""
        return _stacked(self.base, self.method, self.oracle)

    @property
    def usable(self) -> bool:
        """Whether there is a gap to recover; see :data:`HEADROOM`."""
        base, _, oracle = self.table.mean(dim=0).tolist()
        return is_usable(base, oracle)


def is_usable(base: float, oracle: float, headroom: float = HEADROOM) -> bool:
    """Return whether the oracle is at least ``headroom`` above the base.

    >>> is_usable(0.50, 0.53), is_usable(0.50, 0.52)
    (True, False)
    """
    # Accuracies are multiples of 1/rows: without the tolerance 0.53 - 0.50 would be below 0.03.
    return oracle - base >= headroom - 1e-9


def gap_recovered(base: float, method: float, oracle: float) -> float:
    """Return ``(method - base) / (oracle - base)``, NaN where the oracle equals the base.

    0 is what the base does, 1 what the oracle does. For negative log-likelihoods pass minus them.

    >>> gap_recovered(base=0.25, method=0.5, oracle=0.75)
    0.5
    """
    gap = oracle - base
    return (method - base) / gap if gap != 0 else math.nan


def retention(method: float, source: float) -> float:
    """Return ``method / source``: the share of the source adapter's accuracy that is kept.

    Not zero for an adapter that does nothing, so never to be shown without the gap recovered.
    NaN where the source's accuracy is 0.
    """
    return method / source if source != 0 else math.nan


def relative_to_oracle(method: float, oracle: float) -> float:
    """Return ``method / oracle``, NaN where the oracle's accuracy is 0."""
    return method / oracle if oracle != 0 else math.nan


def task_gap(scores: PairedScores, seed: int = 0, draws: int = DRAWS) -> Estimate:
    """Return the gap recovered on one task with its paired-bootstrap interval over the rows.

    NaN where the task is not usable. In a draw in which the oracle is not above the base the
    ratio has no meaning; such a draw counts as infinite, with the sign of what the method gained,
    as in Fieller's intervals. So an interval without an end says that the rows do not suffice.

    Source: percentile bootstrap, Efron and Tibshirani, An Introduction to the Bootstrap, 1993.
    """
    if not scores.usable:
        return _UNDEFINED
    table = scores.table
    means = _resampled_means(table, draws, torch.Generator().manual_seed(seed))
    gain, gap = means[:, 1] - means[:, 0], means[:, 2] - means[:, 0]
    unbounded = torch.where(gain == 0, 0.0, torch.sign(gain) * math.inf)
    value = gap_recovered(*table.mean(dim=0).tolist())
    return _estimate(value, torch.where(gap > 0, gain / gap, unbounded))


def mean_gap(tasks: Sequence[PairedScores], seed: int = 0, draws: int = DRAWS) -> Estimate:
    """Return the mean gap recovered over the usable tasks, with its interval over tasks and rows.

    Each draw resamples the tasks, then the rows of each task drawn, and applies the whole
    estimator: tasks without headroom in that draw are left out of its mean. With fewer than about
    eight tasks such intervals are rather too narrow, as all bootstraps over few units are. One
    task alone has the interval of :func:`task_gap`; without a usable task the value is NaN.
    """
    usable = [scores for scores in tasks if scores.usable]
    if len(usable) == 1:
        return task_gap(usable[0], seed, draws)
    return _two_stage([scores.table for scores in usable], _mean_gap_of, seed, draws)


def mean_difference(
    method: Sequence[Float[Tensor, " _rows"] | Bool[Tensor, " _rows"]],
    control: Sequence[Float[Tensor, " _rows"] | Bool[Tensor, " _rows"]],
    seed: int = 0,
    draws: int = DRAWS,
) -> Estimate:
    """Return the mean over tasks of ``method - control``, with its interval over tasks and rows.

    Each element holds one task's row scores, in the same order in both. With one task alone the
    interval is over its rows.
    """
    tables = [_stacked(ours, theirs) for ours, theirs in zip(method, control, strict=True)]
    return _two_stage(
        tables, lambda means: (means[..., 0] - means[..., 1]).mean(dim=-1), seed, draws
    )


def _mean_gap_of(means: Float[Tensor, "draws tasks 3"]) -> Float[Tensor, " draws"]:
    gain, gap = means[..., 1] - means[..., 0], means[..., 2] - means[..., 0]
    usable = gap >= HEADROOM - 1e-9
    # Not nanmean: a method that scores NaN must make the mean NaN, not vanish from it.
    return torch.where(usable, gain / gap, 0.0).sum(dim=-1) / usable.sum(dim=-1)


def _two_stage(
    tables: Sequence[Float[Tensor, "_rows scores"]],
    statistic: Callable[[Float[Tensor, "draws tasks scores"]], Float[Tensor, " draws"]],
    seed: int,
    draws: int,
) -> Estimate:
    """Resample tasks, then rows, and take the percentiles of a statistic of the tasks' means."""
    if not tables or any(len(table) == 0 for table in tables):
        return _UNDEFINED
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(tables), (draws, len(tables)), generator=generator)
    means = torch.empty(*chosen.shape, tables[0].shape[1], dtype=torch.float64)
    for place, table in enumerate(tables):
        here = chosen == place
        means[here] = _resampled_means(table, int(here.sum()), generator)
    observed = torch.stack([table.mean(dim=0) for table in tables])
    value = float(statistic(observed[None])[0])
    return _estimate(value, statistic(means))


def _resampled_means(
    table: Float[Tensor, "rows scores"], draws: int, generator: torch.Generator
) -> Float[Tensor, "draws scores"]:
    """Return the means of all columns over the same resampled rows, for each draw."""
    rows = len(table)
    places = torch.randint(rows, (draws, rows), generator=generator)
    return torch.stack([column[places].mean(dim=1) for column in table.unbind(dim=1)], dim=1)


def _estimate(value: float, drawn: Float[Tensor, " draws"]) -> Estimate:
    """Return a value with the central interval of the draws that have one."""
    known = drawn[~drawn.isnan()]
    if math.isnan(value) or len(known) == 0:
        return _UNDEFINED
    tail = (1 - _LEVEL) / 2
    # Not interpolated: between a finite and an infinite value there is nothing to interpolate.
    low = torch.quantile(known, tail, interpolation="lower")
    high = torch.quantile(known, 1 - tail, interpolation="higher")
    return Estimate(value, Interval(float(low), float(high)))


def _stacked(
    *columns: Float[Tensor, " _rows"] | Bool[Tensor, " _rows"],
) -> Float[Tensor, "rows scores"]:
    counts = [len(column) for column in columns]
    if len(set(counts)) != 1:
        raise ValueError(f"paired scores take the same rows, but these have {counts} of them")
    return torch.stack([column.double() for column in columns], dim=1)
