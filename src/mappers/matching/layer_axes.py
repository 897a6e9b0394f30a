"""The axes inside one layer of the source and one of the target, matched when they are needed."""

from functools import cached_property, reduce
from operator import add

import torch

from ...adapters import Role, Site
from ...alignment.axis_plan import Aligner, AxisPlan
from ...alignment.unit_similarity import UnitSimilarity
from ..weight_mapper import BasePair
from .axis import Axis
from .group_pair import CoordinateDescent
from .head_axes import HeadShape, head_axes
from .rope import log_frequencies, rope_plan
from .site_similarity import site_similarity

_MLP = (Role.GATE, Role.UP, Role.DOWN)
_ATTENTION = (Role.Q, Role.K, Role.V, Role.O)


class LayerAxes:
    """The units of the MLP, and the heads of attention, of two paired layers.

    Only the blocks that are asked for are matched. One weight of each model is in memory at a
    time, and the similarities of the block at hand.

    Args:
        pair: The base models.
        source: The source's layer.
        target: The target's layer.
        residual: Which dimensions of the residual streams correspond.
        align: Makes a plan of a similarity.
        seed: Of the order of coordinate descent.
        sweeps: Of coordinate descent at most.
    """

    def __init__(
        self,
        pair: BasePair,
        source: int,
        target: int,
        residual: AxisPlan,
        align: Aligner,
        seed: int,
        sweeps: int,
    ) -> None:
        self._pair, self._layers, self._residual = pair, (source, target), residual
        self._align, self._seed, self._sweeps = align, seed, sweeps

    @property
    def layers(self) -> tuple[int, int]:
        """The source's layer and the target's."""
        return self._layers

    def inside(self, role: Role) -> Axis:
        """Return the axis that a module writes if it reads the residual stream, else reads."""
        return self._units if role in _MLP else self._heads[role]

    @cached_property
    def _units(self) -> Axis:
        """The MLP's units: one permutation, without signs, as the gate is no odd function."""
        similarity = reduce(add, (self._similarity(role) for role in _MLP))
        plan = self._align(similarity)
        objective = float((plan.weights * similarity.inner).sum())
        return Axis(plan, plan.statistics(similarity) | {"objective": objective})

    @cached_property
    def _heads(self) -> dict[Role, Axis]:
        source, target = HeadShape.of(self._pair.source), HeadShape.of(self._pair.target)
        rope = rope_plan(
            log_frequencies(self._pair.source.config, self._layers[0], source.dims),
            log_frequencies(self._pair.target.config, self._layers[1], target.dims),
        )
        generator = torch.Generator().manual_seed(self._seed)
        return head_axes(
            {role: self._similarity(role) for role in _ATTENTION},
            source,
            target,
            AxisPlan(rope.joint.to(self._pair.device)),
            CoordinateDescent(self._align, self._sweeps, generator),
        )

    def _similarity(self, role: Role) -> UnitSimilarity:
        source, target = (Site(layer, role) for layer in self._layers)
        return site_similarity(self._pair, source, target, self._residual)
