import math

import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_curve

from loraport.evaluation.calibration import (
    calibrate,
    fitted_threshold,
    held_out_rate,
)
from loraport.evaluation.records import CalibrationPoint, Condition


def noisy(count: int, seed: int, slope: float) -> tuple[list[float], list[bool], list[int]]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator)
    won = slope * values + torch.randn(count, generator=generator) > 0
    return values.tolist(), won.tolist(), list(range(count))


def test_a_planted_threshold_is_found_in_either_direction() -> None:
    values, won = [1.0, 2.0, 5.0, 6.0], [False, False, True, True]
    for above, wanted in ((True, won), (False, [not one for one in won])):
        found = fitted_threshold(values, wanted)
        assert found is not None
        assert (found.value, found.above, found.right) == (3.5, above, 1.0)
        assert [found.expects(value) for value in values] == wanted


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("slope", [1.0, -1.0, 0.0])
def test_no_other_threshold_is_right_more_often(seed: int, slope: float) -> None:
    values, won, _ = noisy(25, seed, slope)
    found = fitted_threshold(values, won)
    assert found is not None
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
    assert found is not None
    assert (found.right, found.value) == (0.8, 2.5)


@pytest.mark.parametrize(
    ("values", "won"),
    [
        ([1.0, 2.0, 3.0], [True, True, True]),
        ([1.0, 2.0], [False, False]),
        ([2.0, 2.0, 2.0], [True, False, True]),
        ([], []),
    ],
)
def test_nothing_is_fitted_where_all_ended_alike_or_nothing_varies(values, won) -> None:
    assert fitted_threshold(values, won) is None


def test_hit_rates_are_of_tasks_that_were_not_fitted_on() -> None:
    # Each task has a level of its own: within a task all is told, across tasks nothing.
    values, won = [1.0, 1.1, 5.0, 5.1], [True, True, False, False]
    assert held_out_rate(values, won, ["a", "a", "b", "b"]) == 0.0
    assert held_out_rate([*values, 0.9, 5.2], [*won, True, False], list("aabbcd")) == 1.0
    # Without b's ports the threshold lies halfway between 1 and 5.
    spread, ended = [1.0, 2.0, 4.0, 5.0], [False, False, True, True]
    assert held_out_rate(spread, ended, list("abcd")) == 1.0
    assert held_out_rate(spread, ended, list("abbd")) == 1.0
    assert math.isnan(held_out_rate(spread, ended, list("aaaa")))


def test_a_diagnostic_that_says_nothing_is_near_chance() -> None:
    rates = [held_out_rate(*noisy(24, seed, 0.0)) for seed in range(20)]
    assert 0.35 < sum(rates) / len(rates) < 0.6
    good = [held_out_rate(*noisy(24, seed, 5.0)) for seed in range(10)]
    assert sum(good) / len(good) > 0.8


def point(
    task: str, method: str, gap: float | None, **diagnostics: float | None
) -> CalibrationPoint:
    condition = Condition(pair="tiny", method=method, task=task, seed=0)
    return CalibrationPoint(condition=condition, gap_recovered=gap, diagnostics=diagnostics)


@pytest.fixture
def points() -> list[CalibrationPoint]:
    """``norm`` tells what cast recovers and the opposite of what ridge does."""
    found = []
    for index, task in enumerate(("sst2", "trec", "subj", "cr", "imdb", "ade")):
        known: dict[str, float | None] = {"norm": 0.1 * index, "coverage": 0.9}
        found.append(point(task, "cast", 0.2 * index, **known))
        found.append(point(task, "ridge", 1.0 - 0.2 * index, **known))
    return found


def diagnostic(result, name, method=None):
    (found,) = (d for d in result.diagnostics if (d.name, d.method) == (name, method))
    return found


def test_every_diagnostic_is_calibrated_overall_and_by_method(points) -> None:
    result = calibrate(points)
    assert (result.success, result.points) == (0.5, tuple(points))
    names = [(d.method, d.name) for d in result.diagnostics]
    assert names == [(m, n) for m in (None, "cast", "ridge") for n in ("norm", "coverage")]
    cast, ridge = diagnostic(result, "norm", "cast"), diagnostic(result, "norm", "ridge")
    assert cast.points == 6
    assert (cast.spearman, ridge.spearman) == (pytest.approx(1.0), pytest.approx(-1.0))
    assert (cast.above, ridge.above) == (True, False)
    assert cast.threshold == pytest.approx(0.25)
    # Of the two tasks beside the threshold one may fall on the one that is fitted without it.
    assert cast.hit_rate >= 0.8
    assert cast.majority_rate == pytest.approx(0.5)
    constant = diagnostic(result, "coverage")
    assert (constant.spearman, constant.ci95, constant.threshold, constant.hit_rate) == (None,) * 4
    whole = diagnostic(result, "norm")
    wanted = spearmanr(
        [p.diagnostics["norm"] for p in points], [p.gap_recovered for p in points]
    ).statistic
    assert whole.spearman == pytest.approx(wanted, abs=1e-9)
    assert whole.ci95[0] <= whole.spearman <= whole.ci95[1]
    assert calibrate(points, seed=1) == calibrate(points, seed=1)


def test_points_without_a_gap_or_a_diagnostic_count_for_nothing(points) -> None:
    nan = point("z", "cast", 0.3, norm=math.nan)
    result = calibrate([*points, point("x", "cast", None, norm=0.3), point("y", "cast", 0.9), nan])
    assert len(result.points) == 15
    known = diagnostic(calibrate(points), "norm", "cast")
    assert diagnostic(result, "norm", "cast") == known


def test_few_points_and_none_have_no_number(points) -> None:
    found = diagnostic(calibrate(points[:3]), "norm")
    assert (found.points, found.spearman, found.threshold) == (3, None, None)
    assert calibrate([]).diagnostics == ()
    assert "NaN" not in calibrate(points[:1]).model_dump_json()
