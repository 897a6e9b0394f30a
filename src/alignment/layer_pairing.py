"""Which source layers feed each target layer, and with what weights."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


def relative_depth(source_layers: int, target_layers: int) -> tuple[int, ...]:
    """Return the source layer at the same relative depth, for each target layer.

    The first layers are paired, and so are the last: ``round(t (S - 1) / (T - 1))``, halves up.

    >>> relative_depth(5, 3)
    (0, 2, 4)
    >>> relative_depth(3, 5)
    (0, 1, 1, 2, 2)
    """
    if target_layers == 1:
        return (source_layers - 1,)
    steps, last = target_layers - 1, source_layers - 1
    return tuple((2 * layer * last + steps) // (2 * steps) for layer in range(target_layers))


@dataclass(frozen=True)
class LayerPairing:
    """The source layers that feed each target layer.

    Attributes:
        source_layers: How many layers the source has.
        feeds: For each target layer, source layers with their weights; an update of the target
            layer is the weighted sum of what those layers' updates become.
    """

    source_layers: int
    feeds: tuple[tuple[tuple[int, float], ...], ...]

    @classmethod
    def one_to_one(cls, source_layers: int, layers: tuple[int, ...]) -> "LayerPairing":
        """Return the pairing in which each target layer is fed by one source layer alone."""
        return cls(source_layers, tuple(((layer, 1.0),) for layer in layers))

    @property
    def dropped(self) -> tuple[int, ...]:
        """The source layers that feed no target layer."""
        used = {layer for feeds in self.feeds for layer, _ in feeds}
        return tuple(layer for layer in range(self.source_layers) if layer not in used)

    def matrix(self) -> Float[Tensor, "target source"]:
        """Return the weights as a matrix, zero where a layer does not feed another."""
        weights = torch.zeros(len(self.feeds), self.source_layers)
        for target, feeds in enumerate(self.feeds):
            for source, weight in feeds:
                weights[target, source] = weight
        return weights
