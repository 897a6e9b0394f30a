"""Which groups, heads and head dimensions of two attention blocks correspond."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ...adapters import Role, Site
from ...alignment.axis_plan import AxisPlan
from ...alignment.unit_similarity import UnitSimilarity
from ...models.weights import StreamedWeights
from .axis import Axis
from .group_pair import CoordinateDescent, GroupPair


class HeadShape(NamedTuple):
    """How many heads an attention block has, and how wide they are.

    Attributes:
        groups: Heads of keys and values.
        heads: Query heads that share one of them.
        dims: Width of a head.
    """

    groups: int
    heads: int
    dims: int

    @classmethod
    def of(cls, model: StreamedWeights) -> "HeadShape":
        """Return the shape in a model, which is that of all its layers."""
        heads, groups = int(model.config.num_attention_heads), int(model.config.num_key_value_heads)
        return cls(groups, heads // groups, model.sites.shapes[Site(0, Role.Q)][0] // heads)

    def rows(self, role: Role, group: int) -> slice:
        """Return where a group's rows of q, k or v, or columns of o, lie."""
        width = self.dims if role in (Role.K, Role.V) else self.heads * self.dims
        return slice(group * width, (group + 1) * width)


def head_axes(
    similarity: Mapping[Role, UnitSimilarity],
    source: HeadShape,
    target: HeadShape,
    rope: AxisPlan,
    descent: CoordinateDescent,
) -> dict[Role, Axis]:
    """Match the groups of two attention blocks, then heads and dimensions within the groups.

    The exact symmetries of attention with rotary embeddings are permutations of the groups, of
    the query heads within a group, and any change of basis of a group's values; the dimensions
    of queries and keys stay with their frequency. Within every pair of groups, heads and value
    dimensions are matched in turn; what that reaches is the similarity of the two groups.

    Args:
        similarity: Of the rows of q, k and v and of the columns of o.
        source: The source's heads.
        target: The target's heads.
        rope: Which dimensions of queries and keys correspond.
        descent: Matches heads and value dimensions within a pair of groups.

    Returns:
        The axis that q, k and v write inside the block, and that o reads.
    """
    pairs = [
        [_group_pair(similarity, source, i, target, j, rope) for j in range(target.groups)]
        for i in range(source.groups)
    ]
    fits = [[descent.fit(pair) for pair in row] for row in pairs]
    groups = UnitSimilarity(
        torch.tensor([[fit.value for fit in row] for row in fits]),
        torch.tensor([row[0].squared()[0] for row in pairs]),
        torch.tensor([pair.squared()[1] for pair in pairs[0]]),
    )
    weights = descent.align(groups).weights
    keys = [[rope.weights for _ in row] for row in fits]
    values = [[fit.dims.weights for fit in row] for row in fits]
    queries = [[torch.kron(fit.heads.weights, rope.weights) for fit in row] for row in fits]
    attended = [[torch.kron(fit.heads.weights, fit.dims.weights) for fit in row] for row in fits]
    facts = {
        "objective": float((weights * groups.inner).sum()),
        "sweeps": max(fit.sweeps for row in fits for fit in row),
    }
    axes = {}
    blocks = {Role.Q: queries, Role.K: keys, Role.V: values, Role.O: attended}
    for role, block in blocks.items():
        plan = _joined(weights, block)
        axes[role] = Axis(plan, plan.statistics(similarity[role]) | facts)
    return axes


def _group_pair(
    similarity: Mapping[Role, UnitSimilarity],
    source: HeadShape,
    group: int,
    target: HeadShape,
    other: int,
    rope: AxisPlan,
) -> GroupPair:
    def part(role: Role) -> UnitSimilarity:
        rows, columns = source.rows(role, group), target.rows(role, other)
        return similarity[role].block(rows, columns)

    return GroupPair(part(Role.Q), part(Role.K), part(Role.V), part(Role.O), rope)


def _joined(groups: Float[Tensor, "ours theirs"], blocks: list[list[Tensor]]) -> AxisPlan:
    """Return the plan of all rows: each pair of groups' own, by the weight of the pair."""
    rows = [
        torch.cat([weight * block for weight, block in zip(weights, row, strict=True)], dim=1)
        for weights, row in zip(groups.tolist(), blocks, strict=True)
    ]
    return AxisPlan(torch.cat(rows))
