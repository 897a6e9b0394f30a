"""The LoRA that comes nearest to a cartridge on text."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..adapters import LoraAdapter, LowRank
from ..alignment.moments import PairedMoments
from ..alignment.reduced_rank import reduced_rank_regression
from ..models.taps import Tap
from .cartridge import Cartridge

_STRENGTHS = (1e-6, 1e-4, 1e-2, 1.0)


def exported(
    cartridge: Cartridge,
    train: Mapping[str, Float[Tensor, "rows _"]],
    held_out: Mapping[str, Float[Tensor, "more _"]],
    rank: int,
) -> tuple[LoraAdapter, dict[str, dict[str, Any]]]:
    """Return the adapter of a rank whose changes are nearest to a cartridge's.

    At each target site the cartridge's change of the module's output is regressed on the module's
    input, by reduced-rank ridge regression.

    Args:
        cartridge: What to make linear.
        train: What target modules read on text, by ``Tap.input(site).label_on("target")``.
        held_out: The same on other text, which chooses the ridge and measures the loss.
        rank: Of the LoRA at each site.

    Returns:
        The adapter in float32; and of each site the share ``r2`` of the cartridge's squared
        change on held-out text that the LoRA makes, ``lost``, and the chosen ``strength``.
    """
    updates, facts = {}, {}
    for target in cartridge.acts_at():
        label = Tap.input(target).label_on("target")
        moments = [_moments(cartridge, target, rows[label]) for rows in (train, held_out)]
        fit = reduced_rank_regression(moments[0], moments[1], rank, _STRENGTHS)
        update = LowRank(fit.A.float(), fit.B.float())
        updates[target] = update
        facts[target.label] = {
            "r2": fit.r2,
            "lost": 1 - fit.r2,
            "strength": fit.strength,
            "norm": update.norm(),
        }
    return LoraAdapter(updates, cartridge.base_model), facts


@torch.no_grad()
def _moments(cartridge: Cartridge, target: Any, rows: Tensor) -> PairedMoments:
    changes = torch.cat([cartridge.change(target, part) for part in torch.split(rows, 1024)])
    return PairedMoments.of(rows, changes)
