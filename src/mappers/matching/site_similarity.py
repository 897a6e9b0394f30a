"""How alike the units of two modules are that a base pair's residual streams surround."""

import torch
from jaxtyping import Float
from torch import Tensor

from ...adapters import Role, Site
from ...alignment.axis_plan import AxisPlan
from ...alignment.unit_similarity import UnitSimilarity
from ...models.weights import StreamedWeights
from ..weight_mapper import BasePair

WRITERS = (Role.O, Role.DOWN)
"""The roles that write the residual stream; the others read it behind an RMSNorm."""


def site_similarity(
    pair: BasePair, source: Site, target: Site, residual: AxisPlan
) -> UnitSimilarity:
    """Compare the units inside two blocks by one module's weights.

    The units are the rows of a weight that reads the residual stream, with the gain of the
    RMSNorm in front folded in, or the columns of one that writes it. The source's weights are
    carried over to the target's residual stream first.

    Args:
        pair: The base models.
        source: A module of the source.
        target: The module of the same role in the target.
        residual: Which of the two residual streams' dimensions correspond.

    Raises:
        ModelError: a weight cannot be read.
    """
    theirs = _units(pair.target, target, pair.device)
    return UnitSimilarity.of(residual.input(_units(pair.source, source, pair.device)), theirs)


def _units(
    model: StreamedWeights, site: Site, device: torch.device
) -> Float[Tensor, "units width"]:
    weight = model.weight(site).to(device, torch.float32)
    gain = model.input_gain(site)
    return weight.mT if gain is None else weight * gain.to(device)
