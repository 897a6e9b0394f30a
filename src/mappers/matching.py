"""Mappers that match the units of two base models, and let an adapter's factors follow."""

from ..adapters import LoraAdapter, LowRank, Site
from ..alignment.permutations import Aligner, AxisPlan, ExactPlan, LinearAssignment
from ..exceptions import ConfigurationError
from .base import SitePairs, WeightMapper
from .unit_matching import MINIMUM, WRITERS, LayerAxes, residual_axis


class AlignmentMapper(WeightMapper):
    """Maps ``B_T = T_col^T B_S`` and ``A_T = A_S T_row`` by a plan for each axis that they touch.

    The residual stream is matched once, by the embeddings of shared tokens; then each layer's
    MLP units, groups of heads, query heads and value dimensions by their weights. A layer's
    plans are forgotten with the layer.

    Args:
        align: Makes a plan of the similarity of units.
        seed: Of the order of coordinate descent.
        sweeps: Of coordinate descent, at most.
        tokens: Shared tokens, at most.

    Raises:
        ConfigurationError: there are no sweeps, or too few tokens.
    """

    def __init__(self, align: Aligner, seed: int, sweeps: int, tokens: int) -> None:
        super().__init__()
        if sweeps < 1:
            raise ConfigurationError(f"mapper.sweeps is {sweeps}; it takes 1 or more, such as 100")
        if tokens < MINIMUM:
            raise ConfigurationError(
                f"mapper.tokens is {tokens}; it takes {MINIMUM} or more, such as 8192"
            )
        self.align, self.seed, self.sweeps, self.tokens = align, seed, sweeps, tokens
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
        inside = self._axes(source.layer, target.layer).inside(source.role)
        self.note(target, **inside.facts)
        read, written = self._residual, inside.plan
        if source.role in WRITERS:
            read, written = written, read
        return LowRank(read.input(update.A), written.output(update.B), update.scale)

    def _axes(self, source: int, target: int) -> LayerAxes:
        """Return the axes of two layers, which are kept until the next ones are asked for."""
        if self._layer is None or self._layer.layers != (source, target):
            self._layer = LayerAxes(
                self.pair, source, target, self._residual, self.align, self.seed, self.sweeps
            )
        return self._layer


# Git Re-Basin: the source's units are permuted into the target's places.


class RebasinMapper(AlignmentMapper):
    """Matches units one to one, by weights alone, within the exact symmetries of the models.

    Between models of the same shapes that differ by such a symmetry it is exact. Where one has
    more units on an axis, the least similar ones are left out, and of a target's additional
    units nothing is changed.

    Source: weight matching, Ainsworth, Hayase and Srinivasa, 2023 (Git Re-Basin).

    Args:
        seed: Of the order of coordinate descent.
        sweeps: Of coordinate descent, at most.
        tokens: Shared tokens by whose embeddings the residual streams are matched, at most.
    """

    def __init__(self, seed: int = 0, sweeps: int = 100, tokens: int = 8192) -> None:
        super().__init__(LinearAssignment(), seed, sweeps, tokens)


# Optimal transport: each unit of the target gets an average of the source's.

_EXACT = ExactPlan()


class OptimalTransportMapper(AlignmentMapper):
    """Matches units softly, so that every unit of both models has partners at any widths.

    What an adapter writes is averaged by the plan with columns that sum to 1, what it reads by
    the plan with rows that sum to 1. Dimensions of queries and keys keep to their rotary
    frequencies and are matched one to one.

    Source: Singh and Jaggi, 2020 (OTFusion); for transformers: Imfeld et al., 2023.

    Args:
        plan: :class:`~loraport.alignment.permutations.ExactPlan`, or
            :class:`~loraport.alignment.permutations.SinkhornPlan`.
        seed: Of the order of coordinate descent.
        sweeps: Of coordinate descent, at most.
        tokens: Shared tokens by whose embeddings the residual streams are matched, at most.
    """

    def __init__(
        self, plan: Aligner = _EXACT, seed: int = 0, sweeps: int = 100, tokens: int = 8192
    ) -> None:
        super().__init__(plan, seed, sweeps, tokens)
