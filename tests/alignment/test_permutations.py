from itertools import permutations

import pytest
import torch

from loraport.alignment.permutations import LinearAssignment, best_assignment
from loraport.alignment.unit_similarity import UnitSimilarity


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
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_total_gain_is_that_of_brute_force(shape, seed):
    gain = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    matching = best_assignment(gain)
    assert set(matching.flatten().tolist()) <= {0, 1}
    assert int(matching.sum()) == min(shape)
    assert float(matching.sum(dim=0).max()) == float(matching.sum(dim=1).max()) == 1
    assert float((matching * gain).sum()) == pytest.approx(brute_force(gain), rel=1e-5)


def test_planted_permutation_is_recovered_from_noisy_weights():
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(30, 50, generator=generator)
    order = torch.randperm(30, generator=generator)
    noisy = weights[order] + 0.3 * torch.randn(30, 50, generator=generator)
    plan = LinearAssignment()(UnitSimilarity.of(weights, noisy))
    assert torch.equal(plan.joint.argmax(dim=0), order)


def test_smaller_network_inside_a_wider_one_is_found():
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(20, 50, generator=generator)
    order = torch.randperm(20, generator=generator)[:12]
    plan = LinearAssignment()(UnitSimilarity.of(weights, weights[order]))
    assert torch.equal(plan.joint.argmax(dim=0), order)
    back = LinearAssignment()(UnitSimilarity.of(weights[order], weights))
    assert torch.equal(back.joint, plan.joint.mT)
