"""Of how many target layers it is certain which part of the source they resemble."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..layer_pairing import relative_depth
from .layer_map import LayerMap

BAND = 0.25


@dataclass(frozen=True, eq=False)
class Coverage:
    """Which target layers have a counterpart in the source.

    Attributes:
        best: The source layer that each target layer resembles most.
        scores: The calibrated score of that layer.
        in_band: Whether it lies at a plausible depth.
        covered: Score above 0 and plausible depth.
    """

    best: tuple[int, ...]
    scores: Float[Tensor, " target"]
    in_band: Bool[Tensor, " target"]
    covered: Bool[Tensor, " target"]

    @property
    def share(self) -> float:
        """The share of target layers that are covered."""
        return float(self.covered.double().mean())


def depth_band(
    target_layers: int, source_layers: int, width: float = BAND
) -> Bool[Tensor, "target source"]:
    """Return which source layers lie about as deep in the source as a target layer does.

    Those at most ``width`` of the source's depth, and at least one layer, away from the one of
    the same relative depth.
    """
    partners = torch.tensor(relative_depth(source_layers, target_layers))
    reach = max(1.0, width * (source_layers - 1))
    return (torch.arange(source_layers) - partners[:, None]).abs() <= reach


def coverage(similarity: LayerMap, band: float = BAND) -> Coverage:
    """Find the target layers that resemble a source layer of about their own depth.

    A target layer is covered if its most similar source layer (by raw score; equal ones: the
    first) scores above chance, chance being what the most deviating of all pairs of layers
    reaches in permutations (:attr:`LayerMap.certain`), and if it lies within the band around
    the same relative depth, so that it beats all layers outside. A high score with any layer
    alone says little: tokens that are alike are near one another in almost every layer.

    Args:
        similarity: Of all layers, calibrated.
        band: Width of the band to each side, as a share of the source's depth.
    """
    best = similarity.raw.argmax(dim=1, keepdim=True)
    scores = similarity.certain.gather(1, best)[:, 0]
    target, source = similarity.raw.shape
    in_band = depth_band(target, source, band).gather(1, best)[:, 0]
    return Coverage(tuple(best[:, 0].tolist()), scores, in_band, (scores > 0) & in_band)
