import math
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from loraport.alignment.permutations import (
    AxisPlan,
    ExactPlan,
    LinearAssignment,
    SinkhornPlan,
    UnitSimilarity,
    best_assignment,
)
from loraport.exceptions import ConfigurationError


def brute_force(gain: torch.Tensor) -> float:
    """The greatest total gain of any injective matching."""
    if gain.shape[0] > gain.shape[1]:
        return brute_force(gain.mT)
    rows = range(gain.shape[0])
    return max(
        sum(float(gain[i, j]) for i, j in zip(rows, chosen, strict=True))
        for chosen in permutations(range(gain.shape[1]), gain.shape[0])
    )


@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (3, 6), (6, 3)])
def test_total_gain_is_that_of_brute_force(shape):
    gain = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    matching = best_assignment(gain)
    assert set(matching.flatten().tolist()) <= {0, 1}
    assert int(matching.sum()) == min(shape)
    assert float(matching.sum(dim=0).max()) == float(matching.sum(dim=1).max()) == 1
    assert float((matching * gain).sum()) == pytest.approx(brute_force(gain), rel=1e-5)


def test_smaller_network_inside_a_wider_one_is_found():
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(20, 50, generator=generator)
    order = torch.randperm(20, generator=generator)[:12]
    plan = LinearAssignment()(UnitSimilarity.of(weights, weights[order]))
    assert torch.equal(plan.joint.argmax(dim=0), order)
    back = LinearAssignment()(UnitSimilarity.of(weights[order], weights))
    assert torch.equal(back.joint, plan.joint.mT)


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
    assert float(AxisPlan(SOFT).weights.sum()) == 2


def test_statistics_of_a_plan():
    inner = torch.tensor([[0.5, 0.1, 0.2, 0.0], [0.3, 0.1, 0.4, 0.0]])
    wider = UnitSimilarity(torch.cat([inner, torch.zeros(1, 4)]), torch.ones(3), torch.ones(4))
    hard = AxisPlan(torch.cat([HARD, torch.zeros(1, 4)])).statistics(wider)
    expected = {"matched": 2 / 3, "fixed": 0, "partners": 1, "similarity": 0.25}
    assert hard == pytest.approx(expected | {"random_similarity": 1.6 / 12})
    similarity = UnitSimilarity(inner, torch.ones(2), torch.ones(4))
    found = AxisPlan(SOFT).statistics(similarity)
    expected = {"matched": 1, "fixed": 0.25, "partners": 2, "similarity": 0.25}
    assert found == pytest.approx(expected | {"random_similarity": 0.2})
    uneven = AxisPlan(torch.tensor([[0.75, 0.25, 0, 0], [1.0, 0, 0, 0]])).statistics(similarity)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / 2
    assert uneven["partners"] == pytest.approx(math.exp(entropy))


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) for shape in ((5, 7), (4, 7), (5, 3), (4, 3))]


def test_inner_products_are_those_of_the_matrices_at_norm_one(drawn):
    one, other = drawn[0].numpy(), drawn[1].numpy()
    found = UnitSimilarity.of(100 * drawn[0], 0.01 * drawn[1])
    expected = one @ other.T / np.linalg.norm(one) / np.linalg.norm(other)
    np.testing.assert_allclose(found.inner, expected, rtol=1e-4, atol=1e-6)
    assert float(found.source_squared.sum()) == pytest.approx(1)
    assert float(found.target_squared.sum()) == pytest.approx(1)


def test_sum_is_the_similarity_of_concatenated_weights(drawn):
    a, b, c, d = drawn
    summed = UnitSimilarity.of(a, b) + UnitSimilarity.of(c, d)
    one = np.hstack([a / a.norm(), c / c.norm()])
    other = np.hstack([b / b.norm(), d / d.norm()])
    lengths = np.linalg.norm(one, axis=1)[:, None] * np.linalg.norm(other, axis=1)
    np.testing.assert_allclose(summed.cosine, one @ other.T / lengths, rtol=1e-4, atol=1e-6)


def test_cosine_with_a_unit_without_weights_is_zero(drawn):
    drawn[0][2] = 0
    cosine = UnitSimilarity.of(drawn[0], drawn[1]).cosine
    assert (cosine[2] == 0).all()
    assert (cosine[[0, 1, 3, 4]] != 0).all()
    assert (UnitSimilarity.of(0 * drawn[0], drawn[1]).cosine == 0).all()


def test_block_is_the_similarity_of_its_rows_and_columns(drawn):
    whole = UnitSimilarity.of(drawn[0], drawn[1])
    part = whole.block(slice(1, 3), slice(2, 4))
    assert torch.equal(part.cosine, whole.cosine[1:3, 2:4])


SHAPES = [(4, 4), (3, 5), (6, 4)]


def random_similarity(source: int, target: int) -> UnitSimilarity:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(source, 6, generator=generator, dtype=torch.float64)
    return UnitSimilarity.of(one, torch.randn(target, 6, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("plan", [ExactPlan(), SinkhornPlan(0.05), SinkhornPlan(1.0)])
def test_every_unit_of_a_side_has_the_same_mass(shape, plan):
    joint = plan(random_similarity(*shape)).joint
    source, target = shape
    torch.testing.assert_close(
        joint.sum(dim=1), torch.full_like(joint[:, 0], 1 / source), atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(
        joint.sum(dim=0), torch.full_like(joint[0], 1 / target), atol=1e-6, rtol=1e-6
    )
    assert float(joint.min()) >= 0


@pytest.mark.parametrize("shape", SHAPES)
def test_exact_plan_costs_as_little_as_a_linear_program(shape):
    source, target = shape
    similarity = random_similarity(source, target)
    cost = 1 - similarity.cosine.numpy()
    rows = np.kron(np.eye(source), np.ones(target))
    columns = np.kron(np.ones(source), np.eye(target))
    masses = np.concatenate([np.full(source, 1 / source), np.full(target, 1 / target)])
    best = linprog(cost.ravel(), A_eq=np.vstack([rows, columns]), b_eq=masses)
    found = float((ExactPlan()(similarity).joint.numpy() * cost).sum())
    assert found == pytest.approx(best.fun, abs=1e-9)


def test_exact_plan_between_equally_many_units_is_a_permutation():
    weights = torch.randn(20, 30, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    joint = ExactPlan()(UnitSimilarity.of(weights, 5 * weights[order])).joint
    assert torch.equal(joint.argmax(dim=0), order)
    assert int((joint > 0).sum()) == 20


@pytest.mark.parametrize("shape", SHAPES)
def test_sinkhorn_plan_meets_the_conditions_of_its_optimum(shape):
    """The optimum is the plan with both margins and ``T_ij = u_i exp(-C_ij / e) v_j``."""
    similarity, strength = random_similarity(*shape), 0.2
    cost = 1 - similarity.cosine.numpy()
    joint = SinkhornPlan(strength)(similarity).joint.numpy()
    potentials = np.log(joint) + cost / (strength * cost.mean())
    additive = potentials - potentials.mean(axis=1, keepdims=True)
    additive -= additive.mean(axis=0, keepdims=True)
    np.testing.assert_allclose(additive, 0, atol=1e-6)


def test_regularisation_moves_the_plan_from_the_exact_to_the_uniform_one():
    similarity = random_similarity(6, 4)
    exact = ExactPlan()(similarity).joint
    torch.testing.assert_close(SinkhornPlan(1e-3)(similarity).joint, exact, atol=1e-3, rtol=0)
    uniform = SinkhornPlan(1e3)(similarity).joint
    torch.testing.assert_close(uniform, torch.full_like(exact, 1 / 24), atol=1e-4, rtol=0)
    partners = [
        SinkhornPlan(strength)(similarity).statistics(similarity)["partners"]
        for strength in (0.01, 0.1, 1.0)
    ]
    assert partners == sorted(partners)


def test_weak_regularisation_of_many_units_does_not_fail():
    weights = torch.randn(150, 40, generator=torch.Generator().manual_seed(5))
    similarity = UnitSimilarity.of(weights[:100], weights[25:])
    joint = SinkhornPlan(1e-4)(similarity).joint
    assert torch.isfinite(joint).all()
    assert float(joint.sum(dim=1).min()) > 0.9 / 100
    assert float(joint.sum(dim=0).min()) > 0.9 / 125


@pytest.mark.parametrize("plan", [ExactPlan(), SinkhornPlan(0.01)])
@pytest.mark.parametrize("units", [1, 3])
def test_units_that_are_all_alike_are_matched_at_no_cost(plan, units):
    alike = torch.full((units, 4), 0.7)
    joint = plan(UnitSimilarity.of(alike, alike)).joint
    torch.testing.assert_close(joint.sum(dim=0), torch.full((units,), 1 / units))


@pytest.mark.parametrize("strength", [0.0, math.inf])
def test_regularisation_that_is_none_is_refused(strength):
    with pytest.raises(ConfigurationError, match=r"regularisation is .* positive number"):
        SinkhornPlan(strength)
