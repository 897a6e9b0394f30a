import math
from typing import Any

import pytest
import torch

from loraport.evaluation.assembly import suite_result, summarise, task_result
from loraport.evaluation.records import Condition
from loraport.evaluation.suite import SuiteScore

from .conftest import CONTROLS, conditions, score


def test_a_task_has_the_planted_numbers():
    result = task_result(conditions(30, 50, 60, mean=45), CONTROLS, 0.5, 0.9)
    assert result.usable
    assert result.n == 100
    assert result.scores == {
        **{"base": 0.3, "source_base": 0.4, "source": 0.85, "oracle": 0.6},
        **{"mean": 0.45, "random": 0.29, "swapped": 0.32, "predicted": 0.5},
    }
    assert result.nll["base"] == pytest.approx(0.3 * 0.2 + 0.7 * 2.0)
    assert result.gap_recovered == pytest.approx(2 / 3)
    assert result.gap_recovered_nll == pytest.approx(2 / 3)
    low, high = result.ci95 or (None, None)
    assert low is not None
    assert high is not None
    assert low < 2 / 3 < high
    assert result.retention == pytest.approx(0.5 / 0.85)
    assert result.relative_to_oracle == pytest.approx(5 / 6)
    assert result.margin == pytest.approx(0.05)
    assert (result.weight_cosine, result.relative_error) == (0.5, 0.9)


def test_missing_conditions_and_likelihoods_are_null():
    scores = {name: score(n, likelihoods=False) for name, n in [("base", 30), ("oracle", 60)]}
    scores["predicted"] = score(45, likelihoods=False)
    result = task_result(scores, CONTROLS)
    assert result.scores["source"] is None
    assert result.retention is None
    assert result.nll["base"] is None
    assert result.gap_recovered == pytest.approx(0.5)
    assert result.gap_recovered_nll is None
    assert result.ci95_nll is None


def test_the_summary_takes_usable_tasks_only():
    tasks = {
        "a": conditions(30, 50, 70, mean=40),
        "b": conditions(20, 60, 60, mean=30),
        "c": conditions(50, 90, 51, mean=60),
    }
    summary = summarise(tasks, CONTROLS)
    assert (summary.tasks, summary.usable) == (3, 2)
    assert summary.gap_recovered == pytest.approx(0.75)
    assert summary.control_gaps["mean"] == pytest.approx(0.25)
    assert summary.control_gaps["random"] == pytest.approx((-1 / 40 - 1 / 40) / 2)
    assert summary.margin.control == "mean"
    assert summary.margin.value == pytest.approx((10 + 30 + 30) / 300)
    assert summary.margin_over_mean == summary.margin


def test_the_best_control_is_named_and_the_base_is_one():
    worse = task_result(conditions(60, 40, 90, mean=20, random=20, swapped=20), CONTROLS)
    assert worse.margin == pytest.approx(-0.2)
    tasks = {"a": conditions(30, 50, 70, swapped=60, mean=20)}
    summary = summarise(tasks, CONTROLS)
    assert summary.margin.control == "swapped"
    assert summary.margin.value == pytest.approx(-0.1)
    assert summary.margin_over_mean.value == pytest.approx(0.3)


def test_a_control_that_a_task_lacks_is_left_out():
    lacking = conditions(30, 50, 70)
    del lacking["swapped"]
    summary = summarise({"a": conditions(30, 50, 70, swapped=99), "b": lacking}, CONTROLS)
    assert "swapped" not in summary.control_gaps
    assert summary.margin.control == "mean"


def test_a_cartridge_has_a_gap_of_its_own_and_is_no_control():
    tasks = {
        "one": conditions(30, 50, 60, cartridge=54),
        "two": conditions(40, 50, 80, cartridge=70),
    }
    summary = summarise(tasks, CONTROLS)
    assert summary.cartridge_gap == pytest.approx((0.8 + 0.75) / 2)
    assert summary.cartridge_gap_nll == pytest.approx((0.8 + 0.75) / 2)
    assert "cartridge" not in summary.control_gaps
    assert summary.gap_recovered == pytest.approx((20 / 30 + 10 / 40) / 2)
    assert task_result(tasks["one"], CONTROLS).scores["cartridge"] == 0.54


def test_without_a_cartridge_on_every_task_there_is_no_gap_of_it():
    tasks = {"one": conditions(30, 50, 60, cartridge=54), "two": conditions(40, 50, 80)}
    for given in (tasks, {"two": tasks["two"]}):
        summary = summarise(given, CONTROLS)
        assert (summary.cartridge_gap, summary.cartridge_gap_nll) == (None, None)


made: Any = suite_result  # its intervals may be None, which these tests do not expect

NAN = math.nan
BASE = Condition(pair="tiny", method="base")
PORTED = Condition(pair="tiny", method="cast", task="sst2", seed=0)
METRICS = ("right", "length", "self_bleu")


def suite_score(right, length, bleu: float, **whole: float) -> SuiteScore:
    rows = {"right": torch.tensor(right).float(), "length": torch.tensor(length).float()}
    return SuiteScore(("x",) * len(right), rows, {"self_bleu": bleu, **whole})


@pytest.fixture
def scores() -> dict[Condition, SuiteScore]:
    return {
        BASE: suite_score([0, 1, 1, 0, 0, NAN], [4, 5, 6, 7, 8, 9], 0.5, chat_template=1.0),
        PORTED: suite_score([1, 1, 0, 1, NAN, 1], [5, 7, 6, 7, 9, 8], 0.25),
    }


def test_means_are_over_the_items_that_count(scores) -> None:
    found = made("facts", METRICS, scores, {PORTED: BASE})
    assert (found.name, found.items, found.metrics) == ("facts", 6, METRICS)
    own, ported = found.scores
    assert (own.condition, ported.condition) == (BASE, PORTED)
    assert list(own.means) == [*METRICS, "chat_template"]
    assert own.means["right"] == pytest.approx(0.4)
    assert own.means["length"] == pytest.approx(6.5)
    assert own.means["self_bleu"] == 0.5
    assert set(own.ci95) == {"right", "length"}
    low, high = own.ci95["right"]
    assert 0.05 < low < 0.4 < high < 0.85


def test_changes_are_paired_and_tested_where_they_can_be(scores) -> None:
    found = made("facts", METRICS, scores, {PORTED: BASE})
    right, length, bleu = found.changes
    assert [change.metric for change in found.changes] == list(METRICS)
    assert all(change.condition == PORTED for change in found.changes)
    assert right.value == pytest.approx(0.25)
    assert (right.n, right.gained, right.lost, right.p) == (4, 2, 1, 1.0)
    assert length.value == pytest.approx(0.5)
    assert (length.n, length.gained, length.lost, length.p) == (6, None, None, None)
    assert length.ci95[0] < 0.5 < length.ci95[1]
    assert (bleu.value, bleu.ci95, bleu.n) == (-0.25, None, 6)


def test_what_cannot_be_told_is_none_and_the_file_has_no_nan(scores) -> None:
    nothing = {BASE: scores[BASE], PORTED: suite_score([NAN] * 6, [NAN] * 6, NAN)}
    found = made("facts", (*METRICS, "other"), nothing, {PORTED: BASE})
    assert "NaN" not in found.model_dump_json()
    assert found.scores[1].means == {"right": None, "length": None, "self_bleu": None}
    right = found.changes[0]
    assert (right.value, right.ci95, right.n, right.p) == (None, None, 0, None)
