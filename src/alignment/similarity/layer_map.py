"""A measure between every target layer and every source layer, calibrated."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .calibration import LEVEL, PERMUTATIONS, rescaled, row_orders
from .comparison import LayerMeasure, Layers

# Scores that no permutation changes have no spread but rounding.
_LEAST_SPREAD = 1e-9


@dataclass(frozen=True, eq=False)
class LayerMap:
    """How alike the layers of two models are, and how alike they are with permuted rows.

    Attributes:
        raw: The measure, float64.
        null: The measure with the target's rows permuted, in each permutation the same way for
            all layers.
    """

    raw: Float[Tensor, "target source"]
    null: Float[Tensor, "permutations target source"]

    @property
    def calibrated(self) -> Float[Tensor, "target source"]:
        """Each pair of layers calibrated by itself: what pairings and heat maps show."""
        return rescaled(self.raw, self.null.quantile(LEVEL, dim=0))

    @property
    def best(self) -> Float[Tensor, " target"]:
        """The greatest score of each target layer, calibrated as the maximum that it is.

        The threshold is taken from the maximum over source layers in each permutation.
        """
        null = self.null.amax(dim=2).quantile(LEVEL, dim=0)
        return rescaled(self.raw.amax(dim=1), null)

    @property
    def certain(self) -> Float[Tensor, "target source"]:
        """Scores calibrated so strictly that hardly a map of noise shows any.

        The threshold of a pair is the mean of its null plus as many standard deviations as any
        pair deviates by in any permutation: with 200 of these, noise has a score above 0
        anywhere in 1 of 201 maps (maxT; Westfall and Young, 1993). Layers of one model resemble
        one another, so that chance hits many at once.
        """
        mean, spread = self.null.mean(dim=0), self.null.std(dim=0).clamp_min(_LEAST_SPREAD)
        most = ((self.null - mean) / spread).max()
        exceeds = (self.raw - mean) / spread > most
        return rescaled(self.raw, mean + most * spread) * exceeds


def layer_map(
    measure: LayerMeasure,
    target: Layers,
    source: Layers,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> LayerMap:
    """Compare every target layer with every source layer.

    Args:
        measure: Such as :class:`MutualKnn`.
        target: Activations of each target layer.
        source: Activations of each source layer at the same tokens, row by row.
        permutations: How many times the rows are permuted.
        seed: Draws the permutations.

    Raises:
        ValueError: the layers have different numbers of rows, or too few.
    """
    comparison = measure.compare(target, source)
    raw = comparison.matrix(torch.arange(comparison.rows))
    orders = row_orders(comparison.rows, permutations, seed)
    return LayerMap(raw, torch.stack([comparison.matrix(order) for order in orders]))
