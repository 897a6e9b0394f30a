import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from loraport.adapters import LoraAdapter
from loraport.data.corpora import VALIDATION
from loraport.exceptions import AdapterError, ConfigurationError, DataError
from loraport.models import BaseModel
from loraport.models.kl import KlToBase, KlToBaseGauge
from loraport.refinement.base import DistillationInputs, Teacher
from loraport.refinement.kl_budget import KlBudget, check_kl, largest_within

SENTENCES = (
    "the film was truly good",
    "a plot",
    "never a very dull scene is the actor and was the plot of a neutral film",
    "is the scene bad ?",
    "actor",
    "Which feeling was the very dull actor",
)

Adapters = Callable[..., LoraAdapter]


class Planted:
    """Texts of the validation split; whoever reads the other one reads a task's answers."""

    def __init__(self, *texts: str) -> None:
        self._texts = texts

    def texts(self, split: str) -> Iterator[str]:
        assert split == VALIDATION
        return iter(self._texts)


@pytest.fixture
def start(pico_target: BaseModel, random_adapter: Adapters) -> LoraAdapter:
    return random_adapter(pico_target, seed=3)


@pytest.fixture
def data(
    pico_source: BaseModel, pico_target: BaseModel, random_adapter: Adapters
) -> DistillationInputs:
    teacher = Teacher(pico_source, random_adapter(pico_source, seed=4))
    return DistillationInputs(teacher, pico_target, texts=Planted(*SENTENCES))


def measured(data: DistillationInputs, adapter: LoraAdapter) -> KlToBase:
    return KlToBaseGauge(data.target, SENTENCES).of(adapter)


def same_bits(left: LoraAdapter, right: LoraAdapter) -> bool:
    return left.content_hash() == right.content_hash()


@pytest.mark.parametrize("budget", [1e-3, 0.1])
def test_drift_ends_within_five_percent_of_the_budget(start, data, budget):
    adapter, report = KlBudget(budget, p95_budget=100.0).refine(start, data)
    after = measured(data, adapter)
    assert 0.95 * budget <= after.mean <= budget
    assert report["drift"] == asdict(after)
    assert report["drift_before"]["mean"] == measured(data, start).mean > budget
    assert 0 < report["scale"] < 1
    assert report["binds"] == "budget"
    assert same_bits(adapter, start.map(lambda update: update.scaled(report["scale"])))
    assert report["evaluations"] <= 10


def test_a_tight_tail_binds(start, data):
    adapter, report = KlBudget(0.1, p95_budget=0.02).refine(start, data)
    after = measured(data, adapter)
    assert 0.95 * 0.02 <= after.p95 <= 0.02
    assert after.mean < 0.095
    assert report["binds"] == "p95_budget"
    assert KlBudget(0.2).budgets == {"budget": 0.2, "p95_budget": 1.0}


@pytest.mark.parametrize("zero", ["budget", "p95_budget"])
def test_zero_budget_leaves_nothing(start, data, zero):
    options: dict[str, Any] = {zero: 0.0}
    adapter, report = KlBudget(**options).refine(start, data)
    assert all(not update.B.any() for update in adapter.values())
    assert all(torch.equal(adapter[site].A, start[site].A) for site in start)
    assert report["scale"] == report["drift"]["mean"] == report["drift"]["p95"] == 0
    assert report["binds"] == zero


def test_an_adapter_within_the_budget_is_given_back_as_it_is(start, data):
    before = measured(data, start)
    budget = KlBudget(before.mean, p95_budget=before.p95)
    adapter, report = budget.refine(start, data)
    assert adapter is start
    assert (report["scale"], report["binds"], report["evaluations"]) == (1, None, 1)
    adapter, report = KlBudget(1e3, largest=0.5).refine(start, data)
    assert report["scale"] == 0.5
    assert same_bits(adapter, start.map(lambda update: update.scaled(0.5)))


def test_a_check_measures_what_a_budget_would_beside_the_source_s_own_adapter(start, data):
    own = KlToBaseGauge(data.teacher.base, SENTENCES).of(data.teacher.adapter)
    checked = check_kl(start, data)
    assert own.mean > 0
    assert checked["source_drift"] == asdict(own)
    report = KlBudget(1e3).refine(start, data).report
    assert checked == {name: report[name] for name in checked}
    assert checked["drift_texts"] == len(SENTENCES)
    assert "64 were asked for" in checked["notes"][0]
    assert check_kl(start, data, texts=3)["notes"] == []


def test_same_seed_gives_the_same_bits(start, data):
    budget = KlBudget(0.1, positions=2)
    (one, first), (two, second) = (budget.refine(start, data) for _ in range(2))
    assert same_bits(one, two)
    assert first == second
    assert not same_bits(one, budget.refine(start, replace(data, seed=1)).adapter)


@pytest.mark.parametrize("texts", [None, Planted(" ", "\n")])
def test_without_texts_there_is_an_error(start, data, texts):
    empty = replace(data, texts=texts)
    missing = "no corpus" if texts is None else "validation split has none"
    for measure in (KlBudget().refine, check_kl):
        with pytest.raises(DataError, match=missing):
            measure(start, empty)


def test_adapter_of_another_model_is_refused(data):
    with pytest.raises(AdapterError, match="attach it to the base model"):
        KlBudget().refine(data.teacher.adapter, data)


@pytest.mark.parametrize(
    ("name", "value"),
    [("budget", math.nan), ("p95_budget", -1.0), ("largest", 0.0)],
)
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(ConfigurationError, match=f"{name}={value}"):
        KlBudget(**{name: value})


@pytest.mark.parametrize("power", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("height", [1.001, 1e3, 1e8])
def test_any_power_law_is_met_within_the_tolerance(power, height):
    found = largest_within(lambda scale: height * scale**power)
    assert 0.95 <= height * found.scale**power <= 1
    assert found.monotone
    assert len(found.loads) <= 16


def test_a_quadratic_load_is_met_by_the_first_guess():
    found = largest_within(lambda scale: 50 * scale**2)
    assert list(found.loads)[:2] == [1.0, found.scale]
    assert len(found.loads) == 3


def test_a_load_that_falls_again_or_jumps_ends_at_the_largest_scale_within():
    again = largest_within(lambda scale: 0.5 if 0.2 < scale < 0.6 else 100 * scale**2)
    assert 0.2 < again.scale < 0.6
    assert not again.monotone
    jump = largest_within(lambda scale: 0.1 * scale if scale < 0.3 else 5 * scale)
    assert 0.29 < jump.scale < 0.3
    assert jump.monotone
    never = largest_within(lambda scale: 2 + scale, most=9)
    assert never.scale == 0
    assert len(never.loads) <= 9
