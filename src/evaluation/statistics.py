"""How much of the oracle's gain a ported adapter recovers, and how sure that is.

First the gap recovered and its paired bootstrap over tasks and rows, then means and changes over a
suite's items, then rank correlation. More is better in every score: 1 or 0 for a right or wrong
answer, or minus the negative log-likelihood of the right one, in nats. An undefined value is NaN,
and so are the ends of an interval that the rows do not give; nothing raises because of what was
measured.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import binomtest
from torch import Tensor

# A task is usable where the oracle is at least so much above the base (accuracy, or nats).
HEADROOM = 0.03

DRAWS = 5000  # bootstrap draws of an interval over tasks

# Over items, and of rank correlations: there are many suites, metrics and adapters.
ITEM_DRAWS = 2000

LEAST_POINTS = 4  # fewer points have no rank correlation worth telling
LEAST_GROUPS = 3  # of fewer groups hardly any two draws differ

# Of fewer rows no sign test tells the oracle from the base: 2 / 2**5 is more than 0.05.
LEAST_ROWS = 6
UNTOLD = "the test rows do not tell the oracle from the base"  # where a gap has no interval

# In which share of simulations the interval of a mean over so many tasks holds the true mean, the
# least of those where true gaps spread by 0.3 and 0.5; benchmarks/coverage.py.
_COVERAGE = {2: 0.68, 3: 0.79, 5: 0.85, 8: 0.90, 10: 0.91, 20: 0.93}

_LEVEL = 0.95
_BLOCK = 2**22  # rows drawn at a time, of all draws together: 32 MiB of indices


class Interval(NamedTuple):
    """A 95 % interval; NaN at both ends where there is none."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    interval: Interval


_UNDEFINED = Estimate(math.nan, Interval(math.nan, math.nan))


@dataclass(frozen=True, eq=False)
class PairedScores:
    """The scores of one task's rows under three conditions of the target model.

    Without an adapter, with the one that is judged, and with the one trained on the target itself.
    """

    base: Float[Tensor, " rows"] | Bool[Tensor, " rows"]
    method: Float[Tensor, " rows"] | Bool[Tensor, " rows"]
    oracle: Float[Tensor, " rows"] | Bool[Tensor, " rows"]

    @property
    def table(self) -> Float[Tensor, "rows 3"]:
        """Base, method and oracle as the columns of one table."""
        return _stacked(self.base, self.method, self.oracle)

    @property
    def usable(self) -> bool:
        """Whether there is a gap to recover; see :data:`HEADROOM`."""
        base, _, oracle = self.table.mean(dim=0).tolist()
        return is_usable(base, oracle)


def is_usable(base: float, oracle: float) -> bool:
    """Return whether the oracle is at least :data:`HEADROOM` above the base.

    >>> is_usable(0.50, 0.53), is_usable(0.50, 0.52)
    (True, False)
    """
    # Accuracies are multiples of 1/rows: without the tolerance 0.53 - 0.50 would be below 0.03.
    return oracle - base >= HEADROOM - 1e-9


def gap_recovered(base: float, method: float, oracle: float) -> float:
    """Return ``(method - base) / (oracle - base)``, NaN where the oracle equals the base.

    >>> gap_recovered(base=0.25, method=0.5, oracle=0.75)
    0.5
    """
    return ratio(method - base, oracle - base)


def ratio(one: float, other: float) -> float:
    """Return ``one / other``, NaN where the other is 0."""
    return one / other if other != 0 else math.nan


def task_gap(scores: PairedScores, seed: int = 0, draws: int = DRAWS) -> Estimate:
    """Return the gap recovered on one task, with its paired-bootstrap interval over the rows.

    NaN where the task is not usable. In a draw in which the oracle is not above the base the
    ratio has no meaning; such a draw counts as infinite, with the sign of what the method gained,
    as in Fieller's intervals. Where so many draws are infinite that an end would be, the rows do
    not tell the oracle from the base, and there is no interval; nor with fewer than
    :data:`LEAST_ROWS` rows.

    Source: percentile bootstrap, Efron and Tibshirani, An Introduction to the Bootstrap, 1993.
    """
    if not scores.usable:
        return _UNDEFINED
    table = scores.table
    value = gap_recovered(*table.mean(dim=0).tolist())
    if len(table) < LEAST_ROWS:
        return Estimate(value, _UNDEFINED.interval)
    means = _resampled_means(table, draws, torch.Generator().manual_seed(seed))
    gain, gap = means[:, 1] - means[:, 0], means[:, 2] - means[:, 0]
    unbounded = torch.where(gain == 0, 0.0, torch.sign(gain) * math.inf)
    found = _estimate(value, torch.where(gap > 0, gain / gap, unbounded))
    if any(map(math.isinf, found.interval)):
        return Estimate(value, _UNDEFINED.interval)
    return _widened(found, [table], _mean_gap_slack)


def why_no_interval(scores: PairedScores, found: Estimate) -> str:
    """Return why a usable task's gap has no interval; nothing where it has one."""
    if math.isnan(found.value) or not math.isnan(found.interval.low):
        return ""
    rows = len(scores.base)
    if rows < LEAST_ROWS:
        return f"the test rows are too few: {rows}, where at least {LEAST_ROWS} are needed"
    return UNTOLD


def mean_gap(tasks: Sequence[PairedScores], seed: int = 0, draws: int = DRAWS) -> Estimate:
    """Return the mean gap recovered over the usable tasks, with its interval over tasks and rows.

    Each draw resamples the tasks, then the rows of each task drawn, and applies the whole
    estimator: tasks without headroom in that draw are left out of its mean. Over few tasks such
    intervals are too narrow, as all bootstraps over few units are; see :func:`coverage_over`. One
    task alone has the interval of :func:`task_gap`; without a usable task the value is NaN.
    """
    usable = [scores for scores in tasks if scores.usable]
    if len(usable) == 1:
        return task_gap(usable[0], seed, draws)
    tables = [scores.table for scores in usable]
    return _widened(_two_stage(tables, _mean_gap_of, seed, draws), tables, _mean_gap_slack)


def coverage_over(tasks: int) -> float:
    """Return how often the 95 % interval of a mean over so many tasks holds the true mean.

    >>> coverage_over(5), coverage_over(7), coverage_over(100)
    (0.85, 0.85, 0.93)
    """
    return _COVERAGE[max(known for known in _COVERAGE if known <= max(tasks, 2))]


def mean_difference(
    method: Sequence[Float[Tensor, " _rows"] | Bool[Tensor, " _rows"]],
    control: Sequence[Float[Tensor, " _rows"] | Bool[Tensor, " _rows"]],
    seed: int = 0,
    draws: int = DRAWS,
) -> Estimate:
    """Return the mean over tasks of ``method - control``, with its interval over tasks and rows.

    Each element holds one task's row scores, in the same order in both.
    """
    tables = [_stacked(ours, theirs) for ours, theirs in zip(method, control, strict=True)]
    found = _two_stage(
        tables, lambda means: (means[..., 0] - means[..., 1]).mean(dim=-1), seed, draws
    )
    return _widened(found, tables, lambda value, _: 1 + abs(value), bound=1.0)


def _mean_gap_of(means: Float[Tensor, "draws tasks 3"]) -> Float[Tensor, " draws"]:
    gain, gap = means[..., 1] - means[..., 0], means[..., 2] - means[..., 0]
    usable = gap >= HEADROOM - 1e-9
    # Not nanmean: a method that scores NaN must make the mean NaN, not vanish from it.
    return torch.where(usable, gain / gap, 0.0).sum(dim=-1) / usable.sum(dim=-1)


def _mean_gap_slack(_: float, tables: Sequence[Float[Tensor, "_rows 3"]]) -> float:
    """Return by how much the mean gap changes with the share of rows that differ."""
    gaps = [float(table[:, 2].mean() - table[:, 0].mean()) for table in tables]
    return sum(1 / gap for gap in gaps) / len(gaps)


def _widened(
    found: Estimate,
    tables: Sequence[Float[Tensor, "_rows scores"]],
    slack: Callable[[float, Sequence[Float[Tensor, "_rows scores"]]], float],
    bound: float = math.inf,
) -> Estimate:
    """Give an interval of no width the one that so many rows leave.

    A bootstrap of rows that all say the same has no spread, however few they are. Where scores
    are 0 or 1, a further row may still say something else, with the probability at which Wilson's
    interval of none in so many rows ends; ``slack`` is what that changes of the value, which is
    not beyond ``bound``. Other scores that are all the same keep the interval, but for a single
    row.
    """
    if found.interval.low != found.interval.high:  # also where there is none
        return found
    rows = sum(map(len, tables))
    if not all(map(_is_binary, tables)):
        return found if rows > 1 else Estimate(found.value, _UNDEFINED.interval)
    reach = slack(found.value, tables) * wilson(0, rows).high
    low, high = max(found.value - reach, -bound), min(found.value + reach, bound)
    return Estimate(found.value, Interval(low, high))


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
    for index, table in enumerate(tables):
        here = chosen == index
        means[here] = _resampled_means(table, int(here.sum()), generator)
    observed = torch.stack([table.mean(dim=0) for table in tables])
    value = float(statistic(observed[None])[0])
    return _estimate(value, statistic(means))


def _resampled_means(
    table: Float[Tensor, "rows scores"], draws: int, generator: torch.Generator
) -> Float[Tensor, "draws scores"]:
    """Return the means of all columns over the same resampled rows, for each draw.

    In blocks of bounded memory; the draws are those of one block.
    """
    rows = len(table)
    means = torch.empty(draws, table.shape[1], dtype=table.dtype)
    for block in torch.split(means, max(1, _BLOCK // max(rows, 1))):
        places = torch.randint(rows, (len(block), rows), generator=generator)
        for index, column in enumerate(table.unbind(dim=1)):
            block[:, index] = column[places].mean(dim=1)
    return means


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


@dataclass(frozen=True)
class ItemChange:
    """How an adapter changes one metric over the same items."""

    # Mean with the adapter minus mean without it, over items that count in both.
    difference: Estimate
    items: int  # how many those are
    gained: int | None = None  # items that went from 0 to 1; None for a metric that is not 0 or 1
    lost: int | None = None  # items that went from 1 to 0; None likewise
    p: float | None = None  # of McNemar's exact test, two-sided; None likewise


def item_mean(rows: Float[Tensor, " items"], seed: int = 0, draws: int = ITEM_DRAWS) -> Estimate:
    """Return the mean over the items that count (not NaN), with its interval.

    Wilson's for a metric that is 0 or 1, a percentile bootstrap for others; NaN without items.
    """
    counted = rows[~rows.isnan()].double()
    if len(counted) == 0:
        return _UNDEFINED
    if _is_binary(counted):
        return Estimate(float(counted.mean()), wilson(int(counted.sum()), len(counted)))
    return mean_difference([counted], [torch.zeros_like(counted)], seed, draws)


def item_change(
    before: Float[Tensor, " _items"],
    after: Float[Tensor, " _items"],
    seed: int = 0,
    draws: int = ITEM_DRAWS,
) -> ItemChange:
    """Return how a metric changes from one model to another on the same items.

    Items that do not count (NaN) under either condition are left out of both; the interval is a
    paired bootstrap over the others. Of a metric that is 0 or 1, McNemar's test says how likely
    so uneven a split of the changed items into gained and lost is by chance: each goes up or
    down with probability 1/2.

    Source: McNemar, Note on the sampling error of the difference between correlated proportions,
    1947; the exact form is the sign test of Dixon and Mood, 1946.

    Raises:
        ValueError: the two have different numbers of items.
    """
    if len(before) != len(after):
        raise ValueError(f"paired items: {len(before)} before, but {len(after)} after")
    counts = ~(before.isnan() | after.isnan())
    before, after = before[counts].double(), after[counts].double()
    difference = mean_difference([after], [before], seed, draws)
    if not (len(before) and _is_binary(before) and _is_binary(after)):
        return ItemChange(difference, len(before))
    gained = int(((before == 0) & (after == 1)).sum())
    lost = int(((before == 1) & (after == 0)).sum())
    changed = gained + lost
    p = float(binomtest(gained, changed).pvalue) if changed else 1.0
    return ItemChange(difference, len(before), gained, lost, p)


def _is_binary(rows: Float[Tensor, " *items"]) -> bool:
    return bool(((rows == 0) | (rows == 1)).all())


def wilson(successes: int, trials: int) -> Interval:
    """Return Wilson's 95 % score interval of a proportion.

    Unlike a bootstrap it has a width where all trials end alike. Source: Wilson, Probable
    inference, the law of succession, and statistical inference, 1927.
    """
    ends = binomtest(successes, trials).proportion_ci(_LEVEL, method="wilson")
    return Interval(float(ends.low), float(ends.high))


def spearman(
    x: Sequence[float],
    y: Sequence[float],
    groups: Sequence[Hashable],
    seed: int = 0,
    draws: int = ITEM_DRAWS,
) -> Estimate | None:
    """Return Spearman's rank correlation, ties at their mean rank, with its interval.

    Each draw takes as many groups as there are, with replacement, and all points of those: ports
    of one task are not independent of each other, and an interval over single points would be
    too narrow. Draws in which one of the quantities does not vary are left out.

    Source: Spearman, The proof and measurement of association between two things, 1904; the
    cluster bootstrap is that of Field and Welsh, Bootstrapping clustered data, 2007.

    None with fewer than :data:`LEAST_POINTS` points, or where a quantity does not vary; no interval
    with fewer than :data:`LEAST_GROUPS` groups, or where all draws give the same.
    """
    one, other = (torch.tensor(list(values), dtype=torch.float64) for values in (x, y))
    whole = float(_weighted(one, other, torch.ones(1, len(x), dtype=torch.float64))[0])
    if len(x) < LEAST_POINTS or math.isnan(whole):
        return None
    weights = _group_weights(groups, seed, draws)
    if weights is None:
        return Estimate(whole, _UNDEFINED.interval)
    blocks = torch.split(weights, max(1, _BLOCK // len(x)))
    found = torch.cat([_weighted(one, other, block) for block in blocks])
    known = found[~found.isnan()]
    low, high = (float(torch.quantile(known, q)) for q in (0.025, 0.975))
    return Estimate(whole, Interval(low, high) if low < high else _UNDEFINED.interval)


def _group_weights(
    groups: Sequence[Hashable], seed: int, draws: int
) -> Float[Tensor, "draws points"] | None:
    """Return how often each point is in each draw of groups."""
    indices = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    count = len(indices)
    if count < LEAST_GROUPS:
        return None
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(count, (draws, count), generator=generator)
    times = torch.zeros(draws, count, dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    member: Int[Tensor, " points"] = torch.tensor([indices[group] for group in groups])
    return times[:, member]


def _weighted(
    x: Float[Tensor, " points"],
    y: Float[Tensor, " points"],
    weights: Float[Tensor, "draws points"],
) -> Float[Tensor, " draws"]:
    """Return scipy's ``spearmanr`` of every point written down as often as it counts.

    All draws at once, which scipy does not do for draws of different sizes; NaN where one of the
    two does not vary.
    """
    ranks = [_mean_ranks(values, weights) for values in (x, y)]
    total = weights.sum(dim=1, keepdim=True)
    a, b = (r - (weights * r).sum(dim=1, keepdim=True) / total for r in ranks)
    cross = (weights * a * b).sum(dim=1)
    norms = (weights * a * a).sum(dim=1) * (weights * b * b).sum(dim=1)
    # Ranks are multiples of a half, so that what does not vary is as good as exactly zero.
    return torch.where(norms > 1e-9, cross / norms.sqrt(), math.nan).clamp(-1, 1)


def _mean_ranks(
    values: Float[Tensor, " points"], weights: Float[Tensor, "draws points"]
) -> Float[Tensor, "draws points"]:
    index = torch.searchsorted(values.sort().values, values)  # of the first of equal values
    alike = torch.zeros_like(weights).index_add_(1, index, weights)
    # Weights are whole numbers, so that the sums are exact in any order.
    return (alike.cumsum(dim=1) - alike / 2)[:, index]
