"""Mappers that match the units of two base models and move an adapter's factors along.

Both map ``B_T = T_col^T B_S`` and ``A_T = A_S T_row`` by a plan for each axis that the factors
touch; :mod:`~loraport.mappers.unit_matching` tells how the plans are found.
"""

from typing import ClassVar

import torch

from ..adapters import LowRank, Role, Site
from ..alignment.permutations import Aligner, AxisPlan, ExactPlan, LinearAssignment
from ..models.architectures import HeadShape
from .base import WeightMapper, check_least
from .unit_matching import (
    ATTENTION,
    MINIMUM,
    MLP,
    OUTPUT_PROJECTIONS,
    Axis,
    CoordinateDescent,
    head_axes,
    log_frequencies,
    mlp_axis,
    residual_axis,
    rope_plan,
    site_similarity,
)

_EXACT = ExactPlan()


class OptimalTransportMapper(WeightMapper):
    """Matches units softly, so that every unit of both models has partners at any widths.

    What an adapter writes is averaged by the plan with columns that sum to 1, what it reads by
    the plan with rows that sum to 1. Dimensions of queries and keys keep to their rotary
    frequencies and are matched one to one.

    The residual streams are matched once, by the embeddings of shared tokens; then each layer's
    MLP units, groups of heads, query heads and value dimensions by their weights. A layer's
    plans are forgotten with the layer.

    Args:
        plan: Makes the plan of an axis from the similarity of its units:
            :class:`~loraport.alignment.permutations.ExactPlan`, or
            :class:`~loraport.alignment.permutations.SinkhornPlan`.
        seed: Of the order of coordinate descent.
        sweeps: Of coordinate descent, at most.
        tokens: Shared tokens by whose embeddings the residual streams are matched, at most.

    Source: Singh and Jaggi, 2020 (OTFusion); for transformers: Imfeld et al., 2023.
    """

    name: ClassVar[str] = "optimal_transport"

    def __init__(
        self, plan: Aligner = _EXACT, seed: int = 0, sweeps: int = 100, tokens: int = 8192
    ) -> None:
        super().__init__()
        check_least(1, sweeps=sweeps)
        check_least(MINIMUM, tokens=tokens)
        self.align, self.seed, self.sweeps, self.tokens = plan, seed, sweeps, tokens

    def prepare(self, pairs: dict[Site, Site]) -> None:
        """Match the dimensions of the residual streams."""
        axis = residual_axis(self.pair, self.tokens, self.align)
        self._residual = axis.plan
        self._layers: tuple[int, int] | None = None
        self.note_whole(residual=dict(axis.facts))

    def map_site(self, source: Site, target: Site, update: LowRank) -> LowRank:
        """Return the update whose factors follow the plans of the axes that the site joins."""
        if self._layers != (source.layer, target.layer):
            self._layers, self._axes = (source.layer, target.layer), dict[Role, Axis]()
        if source.role not in self._axes:
            self._axes |= self._inside(source, target)
        inside = self._axes[source.role]
        self.note(target, **inside.facts)
        read, written = self._residual, inside.plan
        if source.role in OUTPUT_PROJECTIONS:
            read, written = written, read
        return LowRank(read.input(update.A), written.output(update.B), update.scale)

    def _inside(self, source: Site, target: Site) -> dict[Role, Axis]:
        """Return the axes of the block that two sites are in.

        One weight of each model is in memory at a time, and the similarities of the block.
        """
        roles = MLP if source.role in MLP else ATTENTION
        similarity = {
            role: site_similarity(
                self.pair, Site(source.layer, role), Site(target.layer, role), self._residual
            )
            for role in roles
        }
        if roles == MLP:
            return dict.fromkeys(MLP, mlp_axis(similarity, self.align))
        ours, theirs = self.pair.source.config, self.pair.target.config
        heads = HeadShape.of(ours), HeadShape.of(theirs)
        rope = rope_plan(
            log_frequencies(ours, source.layer, heads[0].dims),
            log_frequencies(theirs, target.layer, heads[1].dims),
        )
        generator = torch.Generator().manual_seed(self.seed)
        descent = CoordinateDescent(self.align, self.sweeps, generator)
        return head_axes(similarity, *heads, AxisPlan(rope.joint.to(self.pair.device)), descent)


class RebasinMapper(OptimalTransportMapper):
    """Matches units one to one, by weights alone, within the exact symmetries of the models.

    Between models of the same shapes that differ by such a symmetry it is exact. Where one has
    more units on an axis, the least similar ones are left out, and of a target's additional
    units nothing is changed.

    Args:
        seed: Of the order of coordinate descent.
        sweeps: Of coordinate descent, at most.
        tokens: Shared tokens by whose embeddings the residual streams are matched, at most.

    Source: weight matching, Ainsworth, Hayase and Srinivasa, 2023 (Git Re-Basin).
    """

    name: ClassVar[str] = "rebasin"

    def __init__(self, seed: int = 0, sweeps: int = 100, tokens: int = 8192) -> None:
        super().__init__(LinearAssignment(), seed, sweeps, tokens)
