"""Which layers of two models resemble one another more than chance.

Any measure of two high-dimensional representations is above zero by chance, and by how much
depends on rows, widths and spectra. So the rows of one side are permuted, and a score counts only
as far as it exceeds the 95th percentile of the scores of permuted rows:
``s_cal = max(0, (s - tau) / (1 - tau))``. Source: arXiv 2602.14486.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .layer_matching import relative_depth
from .similarity import LayerMeasure, Layers, rows_of

_LEVEL = 0.95
# Of plausible depths, to each side of the same relative depth, as a share of the source's depth.
_BAND = 0.25
# Scores that are the same in all permutations differ by rounding alone.
_LEAST_DEVIATION = 1e-9


def row_orders(rows: int, permutations: int, seed: int) -> Int[Tensor, "permutations rows"]:
    """Return random orders of rows; the same seed gives the same ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(rows, generator=generator) for _ in range(permutations)])


def rescaled(
    score: Float[Tensor, "*shape"], threshold: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Return ``max(0, (s - tau) / (1 - tau))``; 0 where the threshold is 1."""
    room = 1 - threshold
    return torch.where(room > 0, (score - threshold) / room, 0.0).clamp_min(0)


@dataclass(frozen=True, eq=False)
class LayerMap:
    """A measure of all pairs of layers of two models, with paired and with permuted rows.

    Attributes:
        raw: The measure, float64.
        null: The measure with the target's rows permuted, by the same order for all layers.
    """

    raw: Float[Tensor, "target source"]
    null: Float[Tensor, "permutations target source"]

    @property
    def calibrated(self) -> Float[Tensor, "target source"]:
        """Each pair of layers calibrated by itself: what pairings and heat maps show."""
        return rescaled(self.raw, self.null.quantile(_LEVEL, dim=0))

    @property
    def certain(self) -> Float[Tensor, "target source"]:
        """Scores calibrated for all pairs at once (maxT; Westfall and Young, 1993).

        The threshold of a pair is the mean of its null plus as many standard deviations as any
        pair deviates by in any permutation: with 200 of these, 1 of 201 maps of noise has a score
        above 0. Layers of one model resemble one another, so that chance hits many at once.
        """
        mean, deviation = self.null.mean(dim=0), self.null.std(dim=0).clamp_min(_LEAST_DEVIATION)
        most = ((self.null - mean) / deviation).max()
        exceeds = (self.raw - mean) / deviation > most
        return rescaled(self.raw, mean + most * deviation) * exceeds


def layer_map(
    measure: LayerMeasure, target: Layers, source: Layers, *, permutations: int = 200, seed: int = 0
) -> LayerMap:
    """Compare every target layer with every source layer at the same tokens, row by row.

    Raises:
        ValueError: the layers have different numbers of rows, or too few.
    """
    compared = measure.compare(target, source)
    rows = len(target[0])
    null = [compared(order) for order in row_orders(rows, permutations, seed)]
    return LayerMap(compared(torch.arange(rows)), torch.stack(null))


@dataclass(frozen=True, eq=False)
class Coverage:
    """Which target layers have a counterpart in the source.

    Attributes:
        best: The source layer that each target layer resembles most.
        scores: Its score as of :attr:`LayerMap.certain`.
        covered: Whether that is above 0 and the layer in the band of plausible depths.
    """

    best: tuple[int, ...]
    scores: Float[Tensor, " target"]
    covered: Bool[Tensor, " target"]

    @property
    def share(self) -> float:
        """The share of target layers that are covered."""
        return float(self.covered.double().mean())


def depth_band(target_layers: int, source_layers: int) -> Bool[Tensor, "target source"]:
    """Return which source layers lie about as deep as each target layer.

    They are at most a quarter of the source's depth, or one layer, away from the layer at the
    same relative depth.
    """
    partners = torch.tensor(relative_depth(source_layers, target_layers))
    reach = max(1.0, _BAND * (source_layers - 1))
    return (torch.arange(source_layers) - partners[:, None]).abs() <= reach


def coverage(similarity: LayerMap) -> Coverage:
    """Find the target layers that resemble a source layer of about their own depth.

    A target layer is covered if its most similar source layer (by raw score; of equal ones the
    first) has a score above chance (:attr:`LayerMap.certain`) and lies in the :func:`depth_band`.
    A high score alone means little: similar rows are near one another in almost every layer.
    """
    best = similarity.raw.argmax(dim=1, keepdim=True)
    scores = similarity.certain.gather(1, best)[:, 0]
    in_band = depth_band(*similarity.raw.shape).gather(1, best)[:, 0]
    return Coverage(tuple(best[:, 0].tolist()), scores, (scores > 0) & in_band)


def layer_identification(
    measure: LayerMeasure, target: Layers, source: Layers, seed: int = 0
) -> float:
    """Return the share of target layers that one comes back to by way of the source.

    One goes from each target layer to the source layer most like it, and back from there; the way
    there is computed on one half of the rows, the way back on the other. A measure that scores
    nearly all pairs the same, or has one favourite layer, does not come back: a guess does for one
    of all layers. Where no correspondence is known this stands for the test of Kornblith et al.,
    2019, section 6.1.

    Raises:
        ValueError: the layers have different numbers of rows, or too few in a half.
    """
    rows = rows_of(target, source, 2)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    there, back = (
        measure.compare([x[half] for x in target], [y[half] for y in source])(
            torch.arange(len(half))
        )
        for half in (order[: rows // 2], order[rows // 2 :])
    )
    reached = back.argmax(dim=0)[there.argmax(dim=1)]
    return float((reached == torch.arange(len(target))).double().mean())
