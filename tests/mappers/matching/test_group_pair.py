import pytest
import torch

from loraport.alignment.axis_plan import AxisPlan
from loraport.alignment.permutations import LinearAssignment
from loraport.alignment.transport_plan import ExactPlan
from loraport.alignment.unit_similarity import UnitSimilarity
from loraport.mappers.matching.group_pair import CoordinateDescent, GroupPair

DIMS, WIDTH = 5, 24


def weights(heads: int, seed: int) -> dict[str, torch.Tensor]:
    """Rows of q, k and v and columns of o of one group."""
    generator = torch.Generator().manual_seed(seed)
    rows = {"q": heads * DIMS, "k": DIMS, "v": DIMS, "o": heads * DIMS}
    return {name: torch.randn(n, WIDTH, generator=generator) for name, n in rows.items()}


def moved(group: dict[str, torch.Tensor], heads: torch.Tensor, dims: torch.Tensor):
    rows = (heads[:, None] * DIMS + torch.arange(DIMS)).flatten()
    columns = (heads[:, None] * DIMS + dims).flatten()
    return {
        "q": group["q"][rows],
        "k": group["k"],
        "v": group["v"][dims],
        "o": group["o"][columns],
    }


def pair_of(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> GroupPair:
    parts = {name: UnitSimilarity.of(one[name], other[name]) for name in one}
    return GroupPair(**parts, rope=AxisPlan(torch.eye(DIMS)))


@pytest.fixture(params=[LinearAssignment(), ExactPlan()], ids=["hard", "soft"])
def align(request):
    return request.param


def fit(pair: GroupPair, align, seed: int = 0, sweeps: int = 100):
    return CoordinateDescent(align, sweeps, torch.Generator().manual_seed(seed)).fit(pair)


@pytest.mark.parametrize("seed", range(6))
def test_heads_and_dimensions_moved_together_are_recovered(align, seed):
    generator = torch.Generator().manual_seed(seed)
    heads, dims = torch.randperm(4, generator=generator), torch.randperm(DIMS, generator=generator)
    group = weights(4, seed)
    found = fit(pair_of(group, moved(group, heads, dims)), align, seed)
    assert torch.equal(found.heads.joint.argmax(dim=0), heads)
    assert torch.equal(found.dims.joint.argmax(dim=0), dims)
    assert found.value == pytest.approx(4, rel=1e-5)  # 1 for each of q, k, v and o.


def test_value_never_falls_from_sweep_to_sweep():
    pair = pair_of(weights(4, 1), weights(6, 2))
    values = [fit(pair, LinearAssignment(), 0, sweeps).value for sweeps in range(1, 6)]
    assert values == sorted(values)
    assert fit(pair, LinearAssignment()).value == values[-1]


def test_one_sweep_more_wins_nothing():
    pair = pair_of(weights(4, 1), weights(6, 2))
    found = fit(pair, LinearAssignment())
    for better in (
        (LinearAssignment()(pair.of_heads(found.dims)), found.dims),
        (found.heads, LinearAssignment()(pair.of_dims(found.heads))),
    ):
        assert pair.value(*better) == pytest.approx(found.value, rel=1e-6)


def test_value_is_the_inner_product_of_the_matched_weights():
    one, other = weights(2, 3), weights(2, 4)
    heads, dims = torch.tensor([1, 0]), torch.tensor([2, 0, 1, 4, 3])
    pair = pair_of(one, other)
    hard = [torch.eye(len(order))[order].mT for order in (heads, dims)]
    brought = moved(one, heads, dims)
    expected = sum(
        float((brought[n] * other[n]).sum() / one[n].norm() / other[n].norm()) for n in one
    )
    assert pair.value(*(AxisPlan(joint) for joint in hard)) == pytest.approx(expected, rel=1e-4)


def test_similarity_of_heads_and_of_dimensions_with_itself_has_cosine_one():
    group = weights(3, 5)
    pair = pair_of(group, group)
    same = fit(pair, LinearAssignment())
    for similarity in (pair.of_heads(same.dims), pair.of_dims(same.heads)):
        torch.testing.assert_close(
            similarity.cosine.diagonal(), torch.ones(len(similarity.inner)), atol=1e-5, rtol=0
        )
    assert pair.squared() == pytest.approx((4, 4))
