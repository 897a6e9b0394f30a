import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from loraport.alignment.transport_plan import ExactPlan, SinkhornPlan
from loraport.alignment.unit_similarity import UnitSimilarity
from loraport.exceptions import ConfigurationError

SHAPES = [(4, 4), (3, 5), (6, 4)]


def drawn(source: int, target: int, seed: int = 0) -> UnitSimilarity:
    generator = torch.Generator().manual_seed(seed)
    one = torch.randn(source, 6, generator=generator, dtype=torch.float64)
    return UnitSimilarity.of(one, torch.randn(target, 6, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("plan", [ExactPlan(), SinkhornPlan(0.05), SinkhornPlan(1.0)])
def test_every_unit_of_a_side_has_the_same_mass(shape, plan):
    joint = plan(drawn(*shape)).joint
    source, target = shape
    torch.testing.assert_close(
        joint.sum(dim=1), torch.full_like(joint[:, 0], 1 / source), atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(
        joint.sum(dim=0), torch.full_like(joint[0], 1 / target), atol=1e-6, rtol=1e-6
    )
    assert float(joint.min()) >= 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_exact_plan_costs_as_little_as_a_linear_program(shape, seed):
    source, target = shape
    similarity = drawn(source, target, seed)
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
    similarity, strength = drawn(*shape), 0.2
    cost = 1 - similarity.cosine.numpy()
    joint = SinkhornPlan(strength)(similarity).joint.numpy()
    potentials = np.log(joint) + cost / (strength * cost.mean())
    additive = potentials - potentials.mean(axis=1, keepdims=True)
    additive -= additive.mean(axis=0, keepdims=True)
    np.testing.assert_allclose(additive, 0, atol=1e-6)


def test_regularisation_moves_the_plan_from_the_exact_to_the_uniform_one():
    similarity = drawn(6, 4)
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
    weights = torch.randn(300, 40, generator=torch.Generator().manual_seed(5))
    similarity = UnitSimilarity.of(weights[:200], weights[50:])
    joint = SinkhornPlan(1e-4)(similarity).joint
    assert torch.isfinite(joint).all()
    assert float(joint.sum(dim=1).min()) > 0.9 / 200
    assert float(joint.sum(dim=0).min()) > 0.9 / 250


@pytest.mark.parametrize("plan", [ExactPlan(), SinkhornPlan(0.01)])
@pytest.mark.parametrize("units", [1, 3])
def test_units_that_are_all_alike_are_matched_at_no_cost(plan, units):
    alike = torch.full((units, 4), 0.7)
    joint = plan(UnitSimilarity.of(alike, alike)).joint
    torch.testing.assert_close(joint.sum(dim=0), torch.full((units,), 1 / units))


@pytest.mark.parametrize("strength", [0.0, -1.0, math.inf, math.nan])
def test_regularisation_that_is_none_is_refused(strength):
    with pytest.raises(ConfigurationError, match=r"regularisation is .* positive number"):
        SinkhornPlan(strength)
