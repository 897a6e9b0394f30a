import math

import pytest
import torch

from loraport.alignment.axis_plan import AxisPlan
from loraport.alignment.unit_similarity import UnitSimilarity

HARD = torch.tensor([[0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
SOFT = torch.tensor([[0.25, 0.25, 0.0, 0.0], [0.0, 0.0, 0.25, 0.25]])


def test_columns_average_what_is_written_and_rows_what_is_read():
    rows, columns = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 3.0]])
    assert AxisPlan(SOFT).output(rows).tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
    assert AxisPlan(SOFT).input(columns).tolist() == [[0.5, 0.5, 1.5, 1.5]]


def test_constant_stays_itself_between_any_widths():
    joint = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    plan = AxisPlan(joint)
    torch.testing.assert_close(plan.output(torch.ones(3, 1)), torch.ones(5, 1))
    # What reads a constant x_T reads as much as it read of a constant x_S.
    torch.testing.assert_close(plan.input(torch.ones(1, 3)).sum(), torch.tensor(3.0))


def test_hard_matching_moves_and_leaves_the_rest_zero():
    rows = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    moved = [[3, 4], [0, 0], [1, 2], [0, 0]]
    for factor in (1, 7):
        assert AxisPlan(factor * HARD).output(rows).tolist() == moved
        assert AxisPlan(factor * HARD).input(rows.mT).mT.tolist() == moved


def test_signs_are_kept():
    signed = AxisPlan(torch.tensor([[0.0, -2.0], [2.0, 0.0]]))
    assert signed.output(torch.tensor([[1.0], [3.0]])).tolist() == [[3], [-1]]
    assert signed.input(torch.tensor([[1.0, 3.0]])).tolist() == [[3, -1]]
    assert signed.weights.tolist() == [[0, -1], [1, 0]]


def test_weights_sum_to_the_smaller_number_of_units():
    assert float(AxisPlan(SOFT).weights.sum()) == 2
    assert torch.equal(AxisPlan(HARD).weights, HARD)


def test_leading_units_are_matched_in_order():
    plan = AxisPlan.leading(2, 3, torch.device("cpu"))
    assert plan.joint.tolist() == [[1, 0, 0], [0, 1, 0]]


@pytest.fixture
def similarity():
    inner = torch.tensor([[0.5, 0.1, 0.2, 0.0], [0.3, 0.1, 0.4, 0.0]])
    return UnitSimilarity(inner, torch.ones(2), torch.ones(4))


def test_statistics_of_a_hard_matching(similarity):
    joint = torch.cat([HARD, torch.zeros(1, 4)])
    wider = UnitSimilarity(
        torch.cat([similarity.inner, torch.zeros(1, 4)]), torch.ones(3), torch.ones(4)
    )
    found = AxisPlan(joint).statistics(wider)
    expected = {"matched": 2 / 3, "fixed": 0, "partners": 1, "similarity": 0.25}
    assert found == pytest.approx(expected | {"random_similarity": 1.6 / 12})


def test_statistics_of_a_soft_plan(similarity):
    found = AxisPlan(SOFT).statistics(similarity)
    expected = {"matched": 1, "fixed": 0.25, "partners": 2, "similarity": 0.25}
    assert found == pytest.approx(expected | {"random_similarity": 0.2})
    uneven = AxisPlan(torch.tensor([[0.75, 0.25, 0, 0], [1.0, 0, 0, 0]])).statistics(similarity)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / 2
    assert uneven["partners"] == pytest.approx(math.exp(entropy))
