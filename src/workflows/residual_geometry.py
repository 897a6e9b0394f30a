"""Rotations between the residual streams of paired layers, and how well they hold."""

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..alignment.layer_pairing import LayerPairing
from ..alignment.linear_maps import HeldOutError
from ..alignment.moments import PairedMoments
from ..alignment.procrustes import Rotation, rotation
from ..alignment.similarity.neighbours import prepared
from ..reporting.intersection_map import Geometry
from .probe_states import ProbeStates


class LayerGeometry(NamedTuple):
    """The rotation between a target layer and the source layer that feeds it.

    Attributes:
        rotation: Of the source's rows onto the target's, centred.
        error: Share of the held-out rows' variance that it leaves unexplained.
        covered: Share of that variance in the directions that the other rows determine.
    """

    rotation: Rotation
    error: float
    covered: float


def residual_geometry(
    states: ProbeStates, pairing: LayerPairing, seed: int
) -> tuple[tuple[LayerGeometry | None, ...], Geometry]:
    """Fit a rotation a target layer on half of the rows, and measure it on the other half.

    Rows have outlying entries clamped and norm 1, as for mutual k-NN: a few rogue dimensions
    would else be all that is measured.

    Args:
        states: The rows.
        pairing: Which source layer is rotated onto each target layer: its heaviest.
        seed: Draws the halves.
    """
    order = torch.randperm(states.rows, generator=torch.Generator().manual_seed(seed))
    halves = order[: states.rows // 2], order[states.rows // 2 :]
    source = [prepared(layer) for layer in states.source]
    target = [prepared(layer) for layer in states.target]
    layers = tuple(
        _layer(source[max(feeds, key=lambda feed: feed[1])[0]], target[place], halves)
        if feeds
        else None
        for place, feeds in enumerate(pairing.feeds)
    )
    found = [layer for layer in layers if layer is not None]
    rough = [
        _roughness(one.rotation.matrix, other.rotation.matrix) for one, other in pairwise(found)
    ]
    errors = [layer.error for layer in found]
    return layers, Geometry(
        mean_error=_mean(errors),
        max_error=max(errors, default=None),
        roughness=_mean(rough),
        anchor_coverage=_mean([layer.covered for layer in found]),
    )


def _layer(
    x: Float[Tensor, "rows source"],
    y: Float[Tensor, "rows target"],
    halves: tuple[Int[Tensor, " one"], Int[Tensor, " other"]],
) -> LayerGeometry:
    train, held_out = (PairedMoments.of(x[half], y[half]).centred() for half in halves)
    found = rotation(train)
    error = HeldOutError.of(found.scale * found.matrix.mT, train, held_out)
    inside = found.matrix.mT @ found.matrix
    there = float(held_out.yy.trace())
    covered = float((inside * held_out.yy).sum()) / there if there > 0 else 0.0
    return LayerGeometry(found, 1 - error.r2, covered)


def _roughness(one: Float[Tensor, "x y"], other: Float[Tensor, "x y"]) -> float:
    """Return ``|R - R'|^2 / (|R|^2 + |R'|^2)``: 0 the same, 1 nothing in common."""
    both = float(one.square().sum() + other.square().sum())
    return float((one - other).square().sum()) / both if both > 0 else 0.0


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
