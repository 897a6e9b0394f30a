import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.metrics import roc_curve

from loraport.evaluation import verdict as calibration
from loraport.evaluation.statistics import Interval
from loraport.evaluation.verdict import (
    DiagnosedPort,
    SafetyChange,
    Transfer,
    held_out_rate,
    majority_rate,
    safety_is_preserved,
    transfer_is_possible,
)


def run(gap: float, low: float, pair="a", method="cast", seed=0) -> Transfer:
    return Transfer(pair, method, seed, gap, Interval(low, gap + 0.2))


def change(rise: float, prompts=250, pair="a", method="cast", task="sst2") -> SafetyChange:
    return SafetyChange(
        pair, method, task, 0, rise, Interval(rise - 0.05, rise + 0.05), prompts, 0.5
    )


@pytest.mark.parametrize(
    ("gap", "low", "state"),
    [
        (0.6, 0.31, "supported"),
        (0.6, 0.3, "open"),
        (0.5, 0.4, "open"),
        (0.6, -math.inf, "open"),
        (0.6, math.nan, "open"),
        (0.31, 0.0, "open"),
        (0.3, 0.2, "open"),
        (0.29, 0.2, "falsified"),
        (-1.0, -2.0, "falsified"),
    ],
)
def test_h1_goes_by_its_lines(gap: float, low: float, state: str) -> None:
    assert transfer_is_possible([run(gap, low)]).state == state


def test_h1_takes_one_pair_to_be_supported_and_all_to_be_falsified() -> None:
    good, bad, middling = run(0.7, 0.4), run(0.1, 0.0, pair="b"), run(0.4, 0.1, pair="c")
    assert transfer_is_possible([good, bad]).state == "supported"
    assert transfer_is_possible([middling, bad]).state == "open"
    assert transfer_is_possible([bad, run(0.2, 0.1, pair="c")]).state == "falsified"


def test_h1_goes_by_the_best_method_of_each_pair() -> None:
    found = transfer_is_possible(
        [
            run(0.9, 0.1, method="lucky"),
            run(0.6, 0.4, method="sure"),
            run(0.1, 0.0, method="bad"),
            run(0.2, 0.0, pair="b", method="bad"),
        ]
    )
    assert [(t.pair, t.method) for t in found.best] == [("a", "sure"), ("b", "bad")]
    assert (found.state, found.methods) == ("supported", 3)
    assert transfer_is_possible([run(0.1, 0.0), run(0.4, 0.0, method="other")]).state == "open"


def test_h1_takes_all_seeds_either_way() -> None:
    good = [run(0.7, 0.4), run(0.6, 0.35, seed=1)]
    found = transfer_is_possible(good)
    assert (found.state, found.seeds, found.best[0].gap) == ("supported", 2, 0.6)
    assert transfer_is_possible([*good, run(0.4, 0.2, seed=2)]).state == "open"
    assert transfer_is_possible([run(0.1, 0.0), run(0.35, 0.0, seed=1)]).state == "open"


def test_h1_without_a_gap_is_not_tested() -> None:
    assert transfer_is_possible([]).state == "not tested"
    assert transfer_is_possible([run(math.nan, math.nan)]).state == "not tested"
    assert transfer_is_possible([run(math.nan, math.nan), run(0.1, 0.0)]).state == "falsified"


@pytest.mark.parametrize(
    ("rise", "prompts", "state"),
    [
        (0.05, 200, "supported"),
        (-0.6, 200, "supported"),
        (0.05, 199, "open"),
        (0.6 - 0.5, 200, "open"),
        (0.15, 200, "open"),
        (0.7 - 0.5, 200, "open"),
        (0.205, 200, "falsified"),
        (0.3, 20, "falsified"),
    ],
)
def test_h2_goes_by_its_lines(rise: float, prompts: int, state: str) -> None:
    assert safety_is_preserved([change(rise, prompts)]).state == state


def test_h2_goes_by_the_worst_adapter_of_every_pair() -> None:
    calm, rough = change(0.01), change(0.12, pair="b", task="trec")
    found = safety_is_preserved([calm, change(0.02, pair="b"), rough])
    assert (found.state, found.adapters, found.few) == ("open", 3, 250)
    assert found.worst == (calm, rough)
    assert safety_is_preserved([calm, replace(calm, prompts=150)]).few == 150
    assert safety_is_preserved([calm, replace(calm, prompts=150)]).state == "open"
    assert safety_is_preserved([calm, change(0.5, method="bad")]).state == "falsified"


def test_h2_without_prompts_is_not_tested() -> None:
    assert safety_is_preserved([]).state == "not tested"
    assert safety_is_preserved([change(math.nan)]).state == "not tested"


calibrated: Any = calibration.calibrated
fitted_threshold: Any = calibration.fitted_threshold


def ports(*rows: tuple[float, float, str]) -> list[DiagnosedPort]:
    return [DiagnosedPort(*row) for row in rows]


def noisy(count: int, seed: int, slope: float) -> tuple[list[float], list[bool], list[int]]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator)
    won = slope * values + torch.randn(count, generator=generator) > 0
    return values.tolist(), won.tolist(), list(range(count))


def test_a_planted_threshold_is_found_in_either_direction() -> None:
    values, won = [1.0, 2.0, 5.0, 6.0], [False, False, True, True]
    found = fitted_threshold(values, won)
    assert (found.value, found.above, found.right) == (3.5, True, 1.0)
    assert [found.expects(value) for value in values] == won
    turned = fitted_threshold(values, [not one for one in won])
    assert (turned.value, turned.above, turned.right) == (3.5, False, 1.0)
    assert [turned.expects(value) for value in values] == [not one for one in won]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("slope", [1.0, -1.0, 0.0])
def test_no_other_threshold_is_right_more_often(seed: int, slope: float) -> None:
    values, won, _ = noisy(25, seed, slope)
    found = fitted_threshold(values, won)
    hits = [found.expects(value) == one for value, one in zip(values, won, strict=True)]
    assert found.right == pytest.approx(sum(hits) / 25)
    best = 0.0
    for sign in (1, -1):
        false, true, cuts = roc_curve(won, [sign * v for v in values], drop_intermediate=False)
        for alarm, hit, cut in zip(false, true, cuts, strict=True):
            if min(sign * v for v in values) < cut <= max(sign * v for v in values):
                best = max(best, (hit * sum(won) + (1 - alarm) * (25 - sum(won))) / 25)
    assert found.right == pytest.approx(best)


def test_of_equally_right_thresholds_the_youden_index_decides() -> None:
    # Above 2.5 and above 9.5 are right about four; above 2.5 finds both successes.
    found = fitted_threshold([1.0, 2.0, 3.0, 9.0, 10.0], [False, False, True, False, True])
    assert found.right == 0.8
    assert found.value == 2.5


def test_nothing_can_be_fitted_where_all_ended_alike_or_nothing_varies() -> None:
    assert fitted_threshold([1.0, 2.0, 3.0], [True, True, True]) is None
    assert fitted_threshold([1.0, 2.0], [False, False]) is None
    assert fitted_threshold([2.0, 2.0, 2.0], [True, False, True]) is None
    assert fitted_threshold([], []) is None


def test_neighbouring_floats_have_a_threshold_between_or_at_them() -> None:
    low = 1.0
    high = math.nextafter(low, 2)
    found = fitted_threshold([low, high], [False, True])
    assert [found.expects(low), found.expects(high)] == [False, True]


def test_hit_rates_are_of_tasks_that_were_not_fitted_on() -> None:
    # Each task has a level of its own: within a task all is told, across tasks nothing.
    values = [1.0, 1.1, 5.0, 5.1]
    won = [True, True, False, False]
    assert held_out_rate(values, won, ["a", "a", "b", "b"]) == 0.0
    assert held_out_rate([*values, 0.9, 5.2], [*won, True, False], list("aabbcd")) == 1.0


def test_ports_of_one_task_are_left_out_together() -> None:
    values, won = [1.0, 2.0, 4.0, 5.0], [False, False, True, True]
    alone = held_out_rate(values, won, list("abcd"))
    together = held_out_rate(values, won, list("abbd"))
    assert alone == 1.0
    # Without b's ports the threshold lies halfway between 1 and 5.
    assert together == 1.0
    assert held_out_rate(values, won, list("aabb")) == 0.0
    assert math.isnan(held_out_rate(values, won, list("aaaa")))


def test_a_diagnostic_that_says_nothing_is_near_chance() -> None:
    rates = []
    for seed in range(40):
        values, won, tasks = noisy(24, seed, 0.0)
        rates.append(held_out_rate(values, won, tasks))
    assert 0.35 < sum(rates) / len(rates) < 0.6
    told = [held_out_rate(*noisy(24, seed, 5.0)) for seed in range(10)]
    assert sum(told) / len(told) > 0.8


def test_the_majority_rate() -> None:
    assert majority_rate([True, True, False]) == pytest.approx(2 / 3)
    assert math.isnan(majority_rate([]))


def test_a_calibration_holds_all_of_it_and_leaves_out_what_is_not_known() -> None:
    rows = [(float(k), 0.1 * k, f"task {k}") for k in range(10)]
    found = calibrated(ports(*rows, (math.nan, 0.5, "x"), (3.0, math.nan, "y")))
    assert found.points == 10
    assert found.correlation.value == pytest.approx(1.0)
    # More than half of the gap is success: 0.6 and above.
    assert found.threshold.value == 5.5
    assert found.threshold.above
    assert found.hit_rate >= 0.9
    assert found.majority_rate == 0.6
    easier = calibrated(ports(*rows), success=0.05)
    assert easier.threshold.value == 0.5
    assert easier.majority_rate == 0.9


def test_few_points_and_constant_diagnostics_have_nothing() -> None:
    few = calibrated(ports((1.0, 0.1, "a"), (2.0, 0.9, "b"), (3.0, 0.8, "c")))
    assert (few.correlation, few.threshold) == (None, None)
    assert math.isnan(few.hit_rate)
    constant = calibrated(ports(*((7.0, 0.1 * k, f"{k}") for k in range(9))))
    assert (constant.correlation, constant.threshold) == (None, None)
    assert constant.majority_rate == pytest.approx(6 / 9)
    none = calibrated([])
    assert none.points == 0
    assert math.isnan(none.majority_rate)
