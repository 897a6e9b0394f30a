"""Does a measure lead from a layer to its counterpart and, on other text, back again."""

from dataclasses import dataclass

import torch

from .comparison import LayerMeasure, Layers, rows_of


@dataclass(frozen=True)
class LayerIdentification:
    """How well layers of two models identify one another.

    Attributes:
        accuracy: Share of target layers that are found again.
        within_one: Share of which a layer at most one away is found.
        chance: The accuracy of a measure that leads to the same layer, or any, from each.
    """

    accuracy: float
    within_one: float
    chance: float


def layer_identification(
    measure: LayerMeasure, target: Layers, source: Layers, seed: int = 0
) -> LayerIdentification:
    """Go from each target layer to the source layer most like it, and from there back.

    The way there is found on one half of the rows, the way back on the other. A measure that
    scores nearly all pairs alike, or has one favourite layer, does not come back. Where no
    correspondence is known this stands for the test of Kornblith et al., 2019, section 6.1.

    Args:
        measure: Such as :class:`MutualKnn`.
        target: Activations of each target layer.
        source: Activations of each source layer at the same tokens.
        seed: Draws the halves.

    Raises:
        ValueError: the layers have different numbers of rows, or too few in a half.
    """
    rows = rows_of(target, source, 2)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    there, back = (
        measure.compare([x[half] for x in target], [y[half] for y in source]).matrix(
            torch.arange(len(half))
        )
        for half in (order[: rows // 2], order[rows // 2 :])
    )
    found = back.argmax(dim=0)[there.argmax(dim=1)]
    away = (found - torch.arange(len(target))).abs()
    return LayerIdentification(
        accuracy=float((away == 0).double().mean()),
        within_one=float((away <= 1).double().mean()),
        chance=1 / len(target),
    )
