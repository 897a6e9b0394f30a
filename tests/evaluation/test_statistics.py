import math

import numpy as np
import pytest
import torch
from benchmarks.coverage import coverage
from scipy import stats
from scipy.stats import spearmanr
from statsmodels.stats.contingency_tables import mcnemar as reference
from statsmodels.stats.proportion import proportion_confint

from loraport.evaluation.statistics import (
    Estimate,
    PairedScores,
    _group_weights,
    coverage_over,
    gap_recovered,
    is_usable,
    item_change,
    item_mean,
    mean_difference,
    mean_gap,
    ratio,
    task_gap,
    why_no_interval,
    wilson,
)
from loraport.evaluation.statistics import spearman as rank_correlation


def scored(rows, base, method, oracle, seed=0):
    """Answers that are right with the given probabilities, correlated as rows are easy or hard."""
    generator = torch.Generator().manual_seed(seed)
    ease = torch.rand(rows, generator=generator)

    def answers(probability):
        luck = torch.rand(rows, generator=generator)
        own = torch.rand(rows, generator=generator)
        return torch.where(luck < 0.5, ease, own) < probability

    return PairedScores(answers(base), answers(method), answers(oracle))


def exact(right, rows=100):
    """Answers of which the first ``right`` are right."""
    return torch.arange(rows) < right


def planted(base, method, oracle, rows=100):
    return PairedScores(exact(base, rows), exact(method, rows), exact(oracle, rows))


@pytest.mark.parametrize(
    ("base", "method", "oracle", "expected"),
    [
        (0.5, 0.5, 0.9, 0.0),
        (0.5, 0.9, 0.9, 1.0),
        (0.4, 0.5, 0.8, 0.25),
        (0.4, 0.3, 0.8, -0.25),
        (-2.0, -1.5, -1.0, 0.5),
    ],
)
def test_gap_recovered(base, method, oracle, expected):
    assert gap_recovered(base, method, oracle) == pytest.approx(expected)


def test_ratios_without_a_denominator_are_nan():
    assert math.isnan(gap_recovered(0.5, 0.7, 0.5))
    assert math.isnan(ratio(0.5, 0.0))
    assert ratio(0.6, 0.8) == pytest.approx(0.75)


def holds(estimate, value):
    """Whether a value lies in an interval, the ends with it; never where there is none."""
    return estimate.interval.low <= value <= estimate.interval.high


def test_usable_begins_at_three_points():
    assert is_usable(0.5, 0.53)
    assert is_usable(206 / 300, 215 / 300)
    assert not is_usable(206 / 300, 214 / 300)
    assert not is_usable(0.9, 0.5)
    assert not is_usable(math.nan, 0.5)


def test_a_method_equal_to_the_oracle_or_the_base_has_the_spread_that_the_rows_leave():
    """None of 100 rows differs: by Wilson up to ``z² / (100 + z²)`` of all may, of a gap of 0.4."""
    reach = 1.959964**2 / (100 + 1.959964**2) / 0.4
    assert task_gap(planted(40, 80, 80)).interval == pytest.approx((1 - reach, 1 + reach))
    assert task_gap(planted(40, 40, 80)).interval == pytest.approx((-reach, reach))
    # Over tasks it goes by all their rows.
    tasks = [planted(40, 80, 80), planted(20, 100, 100)]
    reach = 1.959964**2 / (200 + 1.959964**2) * (1 / 0.4 + 1 / 0.8) / 2
    assert mean_gap(tasks).interval == pytest.approx((1 - reach, 1 + reach))


@pytest.mark.parametrize(("before", "after"), [(0, 0), (1, 1), (0, 1), (1, 0)])
def test_items_that_all_change_alike_have_the_spread_that_so_many_leave(before, after):
    items = torch.ones(200)
    low, high = item_change(before * items, after * items).difference.interval
    share = float(proportion_confint(0, 200, method="wilson")[1])
    if before == after:
        assert (low, high) == pytest.approx((-share, share))
    else:
        # At least 1 - share of all items change so, and at most share of them the other way.
        ends = sorted([after - before, (after - before) * (1 - 2 * share)])
        assert (low, high) == pytest.approx(ends)


@pytest.mark.parametrize("rows", range(1, 8))
def test_few_rows_that_all_say_the_same_are_not_sure(rows):
    scores = PairedScores(torch.zeros(rows), torch.ones(rows), torch.ones(rows))
    found = task_gap(scores)
    assert found.value == 1
    reason = why_no_interval(scores, found)
    if rows < 6:
        assert all(map(math.isnan, found.interval))
        assert reason == f"the test rows are too few: {rows}, where at least 6 are needed"
    else:
        assert found.interval.high - found.interval.low > 0.7
        assert reason == ""


def test_a_single_item_has_no_interval_and_a_single_answer_a_wide_one():
    assert all(map(math.isnan, item_mean(torch.tensor([0.3])).interval))
    assert item_mean(torch.tensor([1.0])).interval == pytest.approx((0.2065, 1), abs=1e-4)
    change = item_change(torch.tensor([0.0]), torch.tensor([1.0])).difference.interval
    assert change == pytest.approx((2 * 0.2065 - 1, 1), abs=1e-3)


@pytest.mark.parametrize("rows", [40, 333])
def test_draws_in_blocks_are_the_draws_of_one_block(rows, monkeypatch):
    scores = scored(rows, 0.5, 0.7, 0.9)
    tasks = [scores, scored(rows, 0.4, 0.5, 0.8, 1)]
    x, y, groups = drawn(12, 5), drawn(12, 6), "abcdefabcdef"
    whole = task_gap(scores), mean_gap(tasks), spearman(x, y, groups)
    monkeypatch.setattr("loraport.evaluation.statistics._BLOCK", 1000)
    assert (task_gap(scores), mean_gap(tasks), spearman(x, y, groups)) == whole


def test_memory_does_not_grow_with_draws_times_rows(monkeypatch):
    """No tensor of a bootstrap over 20,000 rows is as large as draws times rows."""
    largest = 0
    plain = torch.randint

    def counted(*given, **more):
        nonlocal largest
        found = plain(*given, **more)
        largest = max(largest, found.numel())
        return found

    monkeypatch.setattr(torch, "randint", counted)
    task_gap(scored(20_000, 0.5, 0.7, 0.9), draws=500)
    assert 20_000 <= largest <= 2**22


def test_task_gap_agrees_with_scipy():
    scores = scored(300, 0.5, 0.7, 0.9)
    columns = scores.table.numpy().T

    def ratio(base, method, oracle, axis=-1):
        base, method, oracle = base.mean(axis), method.mean(axis), oracle.mean(axis)
        return (method - base) / (oracle - base)

    reference = stats.bootstrap(
        tuple(columns),
        ratio,
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    estimate = task_gap(scores, draws=20_000)
    assert estimate.value == pytest.approx(ratio(*columns))
    assert estimate.interval == pytest.approx(tuple(reference), abs=0.01)


def test_mean_difference_of_one_task_agrees_with_scipy():
    scores = scored(200, 0.5, 0.6, 0.9)
    difference = (scores.table[:, 1] - scores.table[:, 0]).numpy()
    reference = stats.bootstrap(
        (difference,), np.mean, method="percentile", n_resamples=20_000, rng=2
    ).confidence_interval
    estimate = mean_difference([scores.method], [scores.base], draws=20_000)
    assert estimate.value == pytest.approx(difference.mean())
    assert estimate.interval == pytest.approx(tuple(reference), abs=0.01)


def test_pairing_matters():
    # The method is right wherever the base is, and on 5 rows more: surely better.
    sure = mean_difference([exact(55)], [exact(50)]).interval
    # The same accuracies on unrelated rows say little.
    unsure = mean_difference([exact(55)], [exact(50).flip(0)]).interval
    assert sure.low > 0
    assert unsure.low < 0 < unsure.high


@pytest.mark.slow
@pytest.mark.parametrize(("base", "method"), [(0.5, 0.6), (0.5, 0.5), (0.8, 0.7)])
def test_intervals_of_a_difference_hold_it_as_often_as_they_say(base, method):
    hits = 0
    for seed in range(1000):
        rows = scored(200, base, method, 0.9, seed)
        found = mean_difference([rows.method], [rows.base], seed, draws=500)
        # Right answers are whole numbers of rows: at the end itself the interval still holds.
        hits += found.interval.low - 1e-9 <= method - base <= found.interval.high + 1e-9
    assert 930 <= hits <= 970


@pytest.mark.slow
@pytest.mark.parametrize(("method", "oracle"), [(0.7, 0.9), (0.55, 0.8), (0.85, 0.85)])
def test_intervals_of_a_tasks_gap_hold_it_as_often_as_they_say(method, oracle):
    true = (method - 0.5) / (oracle - 0.5)
    hits = sum(
        holds(task_gap(scored(300, 0.5, method, oracle, seed), seed, draws=500), true)
        for seed in range(1000)
    )
    assert 930 <= hits <= 970


def test_coverage_over_tasks():
    generator = torch.Generator().manual_seed(3)
    hits = []
    for seed in range(60):
        gaps = 0.5 + 0.2 * torch.randn(8, generator=generator)
        tasks = [
            scored(200, 0.5, 0.5 + 0.4 * float(gap), 0.9, 8 * seed + place)
            for place, gap in enumerate(gaps)
        ]
        hits.append(holds(mean_gap(tasks, seed, draws=300), 0.5))
    assert sum(hits) / len(hits) >= 0.85


@pytest.mark.slow
def test_reports_say_how_often_intervals_over_five_tasks_hold():
    """And Student's t over the tasks' gaps, which docs/evaluation.md names, does hold."""
    found, student = coverage(5, 0.4, (0.4, 0.4), simulations=400, draws=300)
    assert found == pytest.approx(coverage_over(5), abs=0.05)
    assert student > 0.92


def test_mean_gap_is_the_mean_over_usable_tasks():
    tasks = [planted(40, 60, 80), planted(20, 80, 80), planted(50, 90, 52)]
    estimate = mean_gap(tasks)
    assert estimate.value == pytest.approx(0.75)
    # A draw may hold one of the two tasks twice.
    assert estimate.interval.low < 0.55
    assert estimate.interval.high == pytest.approx(1.0)


def test_a_draw_counts_only_tasks_with_headroom():
    """Of a task whose oracle is hardly above its base no draw gives a huge gap recovered.

    The method gains 0.06 nats on every row, and the oracle 0.06 on average, less in many draws:
    with a gap of at least 0.03 the ratio is 2 at most, whatever is drawn.
    """
    spread = torch.tensor([-0.134, 0.134]).repeat(10)
    narrow = PairedScores(torch.zeros(20), torch.full((20,), 0.06), 0.06 + spread)
    estimate = mean_gap([narrow, planted(40, 40, 80)])
    assert estimate.value == pytest.approx(0.5)
    assert estimate.interval.high <= 2 + 1e-6


def test_mean_gap_is_one_of_tasks_and_of_one_that_of_the_task():
    # Tasks of different sizes count alike.
    sizes = [planted(4, 6, 8, rows=10), planted(400, 400, 800, rows=1000)]
    assert mean_gap(sizes).value == pytest.approx(0.25)
    task = planted(40, 60, 80)
    assert mean_gap([task, planted(50, 90, 52)], seed=4) == task_gap(task, seed=4)


def test_an_oracle_that_is_not_told_from_the_base_leaves_no_interval():
    # The oracle is better on 3 rows of 30 and worse on 2: in some draws it is not above the base.
    base, oracle = torch.zeros(30), torch.zeros(30)
    base[:2], oracle[2:5] = 1, 1
    method = torch.zeros(30)
    method[10:14] = 1
    for own, gap in ((oracle, 1), (method, 2)):
        scores = PairedScores(base, own, oracle)
        estimate = task_gap(scores)
        assert estimate.value == pytest.approx(gap)
        assert all(map(math.isnan, estimate.interval))
        reason = "the test rows do not tell the oracle from the base"
        assert why_no_interval(scores, estimate) == reason
    assert why_no_interval(scored(300, 0.5, 0.7, 0.9), task_gap(scored(300, 0.5, 0.7, 0.9))) == ""


def test_likelihoods_are_scores_too():
    generator = torch.Generator().manual_seed(0)
    nll = 2 + 0.3 * torch.randn(400, generator=generator)
    scores = PairedScores(-nll, -(nll - 0.6), -(nll - 1.0))
    assert task_gap(scores).value == pytest.approx(0.6, abs=1e-6)
    assert task_gap(scores).interval == pytest.approx((0.6, 0.6), abs=1e-5)


def test_the_seed_decides_the_interval():
    tasks = [scored(100, 0.5, 0.7, 0.9, place) for place in range(3)]
    assert mean_gap(tasks, 1) == mean_gap(tasks, 1) != mean_gap(tasks, 2)
    assert task_gap(tasks[0], 1) == task_gap(tasks[0], 1)
    x, y = drawn(12, 5), drawn(12, 6)
    assert spearman(x, y, range(12), seed=1) == spearman(x, y, range(12), seed=1)
    assert spearman(x, y, range(12), seed=1) != spearman(x, y, range(12), seed=2)


def test_what_is_undefined_is_nan():
    nothing = torch.zeros(0)
    unusable = planted(50, 60, 51)
    lost = PairedScores(torch.zeros(9), torch.full((9,), math.nan), torch.ones(9))
    for estimate in (
        task_gap(unusable),
        task_gap(PairedScores(nothing, nothing, nothing)),
        task_gap(lost),
        mean_gap([]),
        mean_gap([unusable]),
        mean_gap([lost, planted(40, 60, 80)]),
        mean_difference([], []),
        mean_difference([nothing], [nothing]),
    ):
        assert math.isnan(estimate.value)
        assert all(math.isnan(end) for end in estimate.interval)


def test_rows_must_be_the_same():
    with pytest.raises(ValueError, match=r"take the same rows, but these have \[2, 3\]"):
        mean_difference([torch.zeros(2)], [torch.zeros(3)])
    with pytest.raises(ValueError, match="3 before, but 2 after"):
        item_change(torch.zeros(3), torch.zeros(2))


NAN = math.nan


def normal(items: int, seed: int) -> torch.Tensor:
    return torch.randn(items, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (150, 200), (1, 1)])
def test_wilson_agrees_with_statsmodels(successes: int, trials: int) -> None:
    wanted = proportion_confint(successes, trials, method="wilson")
    assert wilson(successes, trials) == pytest.approx(wanted, abs=1e-12)


def test_the_mean_of_0_and_1_has_wilsons_interval_over_the_items_that_count() -> None:
    found = item_mean(torch.tensor([1.0, NAN, 0.0, 1.0, 1.0]))
    assert found.value == 0.75
    assert found.interval == wilson(3, 4)


def test_another_mean_has_a_bootstrap_interval() -> None:
    rows = normal(200, 0)
    found = item_mean(torch.cat([rows, torch.tensor([NAN])]), draws=20_000)
    assert found.value == pytest.approx(float(rows.mean()))
    reference = stats.bootstrap(
        (rows.numpy(),), np.mean, method="percentile", n_resamples=20_000, rng=1
    ).confidence_interval
    assert found.interval == pytest.approx(tuple(reference), abs=0.01)
    assert item_mean(rows, seed=3) == item_mean(rows, seed=3) != item_mean(rows, seed=4)


def test_a_change_leaves_out_items_pairwise() -> None:
    before = torch.tensor([0.0, 1.0, NAN, 0.0, 1.0, 0.0])
    after = torch.tensor([1.0, 1.0, 1.0, NAN, 0.0, 1.0])
    found = item_change(before, after)
    assert (found.items, found.gained, found.lost) == (4, 2, 1)
    assert found.difference.value == pytest.approx(0.25)
    low, high = found.difference.interval
    assert low < 0.25 < high


def test_a_change_is_paired() -> None:
    before = normal(100, 1)
    found = item_change(before, before + 0.1)
    assert found.difference.value == pytest.approx(0.1)
    assert found.difference.interval == pytest.approx((0.1, 0.1))
    assert (found.gained, found.lost, found.p) == (None, None, None)


def test_nothing_that_counts_is_nan() -> None:
    nothing = torch.full((3,), NAN)
    assert math.isnan(item_mean(nothing).value)
    found = item_change(nothing, torch.zeros(3))
    assert (found.items, found.p) == (0, None)
    assert math.isnan(found.difference.value)


def answers(*counts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Items that are right under both, gained, lost, and wrong under both."""
    both, gained, lost, neither = counts
    before = torch.tensor([1.0] * both + [0.0] * gained + [1.0] * lost + [0.0] * neither)
    after = torch.tensor([1.0] * both + [1.0] * gained + [0.0] * lost + [0.0] * neither)
    order = torch.randperm(len(before), generator=torch.Generator().manual_seed(0))
    return before[order], after[order]


@pytest.mark.parametrize("seed", range(12))
def test_changes_are_tested_as_by_statsmodels(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    top = 5 if seed < 4 else 120
    both, gained, lost, neither = torch.randint(0, top, (4,), generator=generator).tolist()
    found = item_change(*answers(both, gained, lost, neither + 1), draws=1)
    assert (found.gained, found.lost) == (gained, lost)
    table = [[both, lost], [gained, neither]]
    assert found.p == pytest.approx(reference(table, exact=True).pvalue, rel=1e-12)


def test_no_change_is_no_evidence_and_many_are_much() -> None:
    assert item_change(*answers(4, 0, 0, 3)).p == 1.0
    assert item_change(*answers(0, 0, 5000, 0), draws=1).p == pytest.approx(0.0, abs=1e-300)


def spearman(*given, **more) -> Estimate:
    found = rank_correlation(*given, **more)
    assert found is not None
    return found


def drawn(count: int, seed: int, values: int | None = None) -> list[float]:
    generator = torch.Generator().manual_seed(seed)
    if values is None:
        return torch.randn(count, generator=generator).tolist()
    return torch.randint(values, (count,), generator=generator).double().tolist()


@pytest.mark.parametrize("count", [4, 7, 30])
@pytest.mark.parametrize("values", [None, 3, 8])
@pytest.mark.parametrize("seed", range(2))
def test_it_agrees_with_scipy_with_and_without_ties(count, values, seed) -> None:
    x, y = drawn(count, 2 * seed, values), drawn(count, 2 * seed + 1, values)
    if len(set(x)) == 1 or len(set(y)) == 1:
        pytest.skip("nothing varies in this draw")
    found = spearman(x, y, range(count))
    assert found.value == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


def test_too_few_points_and_what_does_not_vary_have_none() -> None:
    assert rank_correlation([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], "abc") is None
    assert rank_correlation([1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0], "abcde") is None
    assert rank_correlation([1.0, 2.0, 3.0, 4.0], [7.0] * 4, "abcd") is None
    assert rank_correlation([], [], []) is None
    found = spearman([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0], "aabb")
    assert found.value == pytest.approx(0.8)
    assert all(math.isnan(end) for end in found.interval), "too few groups"


def test_the_interval_is_the_one_of_writing_drawn_groups_down() -> None:
    """Each draw compared with scipy on the resampled points themselves."""
    groups = [0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4]
    x, y = drawn(11, 1, 5), drawn(11, 2, 6)
    weights = _group_weights(groups, seed=5, draws=400)
    assert weights is not None
    wanted = []
    for row in weights.long().tolist():
        places = np.repeat(np.arange(11), row)
        a, b = np.array(x)[places], np.array(y)[places]
        if len(set(a)) > 1 and len(set(b)) > 1:
            wanted.append(spearmanr(a, b).statistic)
    found = spearman(x, y, groups, seed=5, draws=400)
    assert found.interval == pytest.approx(np.percentile(wanted, [2.5, 97.5]), abs=1e-9)


def test_points_that_repeat_within_a_group_make_an_interval_no_narrower() -> None:
    x, y = drawn(8, 3), drawn(8, 4)
    single = spearman(x, y, range(8), draws=4000)
    tenfold = spearman(x * 10, y * 10, list(range(8)) * 10, draws=4000)
    assert tenfold.interval == pytest.approx(single.interval, abs=0.02)
