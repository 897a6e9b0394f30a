"""Mappers that match the units of two base models and move an adapter's factors along.

Both map ``B_T = T_col^T B_S`` and ``A_T = A_S T_row`` by a plan for each axis that the factors
touch; :mod:`~loraport.mappers.unit_matching` tells how the plans are found.
"""

from typing import ClassVar

from ..adapters import LoraAdapter, LowRank, Site
from ..alignment.permutations import Aligner, AxisPlan, ExactPlan, LinearAssignment
from ..exceptions import ConfigurationError
from .base import SitePairs, WeightMapper
from .unit_matching import MINIMUM, OUTPUT_PROJECTIONS, LayerAxes, residual_axis

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

    Raises:
        ConfigurationError: there are no sweeps, or too few tokens.

    Source: Singh and Jaggi, 2020 (OTFusion); for transformers: Imfeld et al., 2023.
    """

    name: ClassVar[str] = "optimal_transport"

    def __init__(
        self, plan: Aligner = _EXACT, seed: int = 0, sweeps: int = 100, tokens: int = 8192
    ) -> None:
        super().__init__()
        for option, value, least in (("sweeps", sweeps, 1), ("tokens", tokens, MINIMUM)):
            if value < least:
                raise ConfigurationError(f"mapper.{option} is {value}; it takes {least} or more")
        self.align, self.seed, self.sweeps, self.tokens = plan, seed, sweeps, tokens
        self._layer: LayerAxes | None = None

    def prepare(self, adapter: LoraAdapter, pairs: SitePairs) -> None:
        """Match the dimensions of the residual streams.

        Raises:
            ModelError: the tokenizers share too few strings.
        """
        axis = residual_axis(self.pair, self.tokens, self.align)
        self._residual: AxisPlan = axis.plan
        self._layer = None
        self.note_whole(residual=dict(axis.facts))

    def map_site(self, source: Site, target: Site, update: LowRank) -> LowRank:
        """Return the update whose factors follow the plans of the axes that the site joins."""
        layer = self._layer
        if layer is None or (layer.source, layer.target) != (source.layer, target.layer):
            layer = self._layer = LayerAxes(
                *(self.pair, source.layer, target.layer, self._residual),
                *(self.align, self.seed, self.sweeps),
            )
        inside = layer.inside(source.role)
        self.note(target, **inside.facts)
        read, written = self._residual, inside.plan
        if source.role in OUTPUT_PROJECTIONS:
            read, written = written, read
        return LowRank(read.input(update.A), written.output(update.B), update.scale)


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
