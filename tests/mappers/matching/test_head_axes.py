import pytest
import torch

from loraport.adapters import Role
from loraport.alignment.axis_plan import AxisPlan
from loraport.alignment.permutations import LinearAssignment
from loraport.alignment.transport_plan import ExactPlan
from loraport.alignment.unit_similarity import UnitSimilarity
from loraport.mappers.matching.group_pair import CoordinateDescent
from loraport.mappers.matching.head_axes import HeadShape, head_axes
from loraport.models.weights import StreamedWeights

WIDTH = 40


def weights(shape: HeadShape, seed: int) -> dict[Role, torch.Tensor]:
    """Rows of q, k and v, and columns of o."""
    generator = torch.Generator().manual_seed(seed)
    keys = shape.groups * shape.dims
    rows = {Role.Q: keys * shape.heads, Role.K: keys, Role.V: keys, Role.O: keys * shape.heads}
    return {role: torch.randn(n, WIDTH, generator=generator) for role, n in rows.items()}


def axes(one, source: HeadShape, other, target: HeadShape, align, rope: AxisPlan):
    similarity = {role: UnitSimilarity.of(one[role], other[role]) for role in one}
    descent = CoordinateDescent(align, 100, torch.Generator().manual_seed(0))
    return head_axes(similarity, source, target, rope, descent)


@pytest.mark.parametrize("kept", [[2, 0, 1], [2, 0]])
def test_groups_are_found_among_more_groups(kept):
    source, target = HeadShape(3, 2, 4), HeadShape(len(kept), 2, 4)
    one = weights(source, 0)
    rows = {role: torch.cat([torch.arange(99)[source.rows(role, g)] for g in kept]) for role in one}
    other = {role: one[role][rows[role]] for role in one}
    found = axes(one, source, other, target, LinearAssignment(), AxisPlan(torch.eye(4)))
    for role, axis in found.items():
        assert torch.equal(axis.plan.joint.argmax(dim=0), rows[role])
        assert int(axis.plan.joint.sum()) == len(rows[role])
        assert axis.facts["matched"] == pytest.approx(len(kept) / 3)
        assert axis.facts["similarity"] == pytest.approx(1)


def test_query_heads_follow_their_group():
    """A query head is matched only where its keys and values are matched as well."""
    source, target = HeadShape(3, 2, 4), HeadShape(2, 4, 6)
    rope = AxisPlan(torch.eye(4, 6))
    found = axes(weights(source, 1), source, weights(target, 2), target, LinearAssignment(), rope)
    query = found[Role.Q].plan.joint.view(3, 2, 4, 2, 4, 6)
    attended = found[Role.O].plan.joint.view(3, 2, 4, 2, 4, 6)
    groups = found[Role.K].plan.joint.view(3, 4, 2, 6).sum(dim=(1, 3)) > 0
    assert int(groups.sum()) == 2
    for whole in (query, attended, found[Role.V].plan.joint.view(3, 1, 4, 2, 1, 6)):
        assert torch.equal(whole.sum(dim=(1, 2, 4, 5)) > 0, groups)
    # The same heads for what is asked and what is read, at other dimensions.
    assert torch.equal(query.sum(dim=(2, 5)), attended.sum(dim=(2, 5)))
    assert torch.equal(query.sum(dim=(0, 1, 3, 4)) > 0, rope.joint > 0)


def test_soft_plan_gives_every_unit_of_a_matched_dimension_the_same_mass():
    source, target = HeadShape(3, 2, 4), HeadShape(2, 4, 6)
    rope = AxisPlan(torch.eye(4, 6))
    found = axes(weights(source, 1), source, weights(target, 2), target, ExactPlan(), rope)
    for role in (Role.V, Role.O):
        joint = found[role].plan.joint
        for dim in (0, 1):
            masses = joint.sum(dim=dim)
            torch.testing.assert_close(masses, masses.mean().expand_as(masses))
    masses = found[Role.Q].plan.joint.sum(dim=0).view(2, 4, 6)
    torch.testing.assert_close(masses[..., :4], masses[0, 0, 0].expand(2, 4, 4))
    assert (masses[..., 4:] == 0).all()


@pytest.mark.parametrize(
    ("architecture", "shape"), [("llama", (2, 2, 8)), ("qwen3", (2, 2, 12)), ("gemma2", (2, 2, 12))]
)
def test_shape_is_read_from_the_config(architecture, shape, pico, tmp_path):
    pico(architecture).network.save_pretrained(tmp_path)
    found = HeadShape.of(StreamedWeights.open(tmp_path, "model"))
    assert found == shape
    assert found.rows(Role.K, 1) == slice(shape[2], 2 * shape[2])
    assert found.rows(Role.O, 1) == slice(2 * shape[2], 4 * shape[2])
