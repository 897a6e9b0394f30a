"""An adapter that does nothing: the target as it is."""

from typing import ClassVar

import torch

from ..adapters import LowRank, Site
from .weight_mapper import WeightMapper


class NoopMapper(WeightMapper):
    """Gives every paired site an update of zero: ``B = 0``, the control for the whole pipeline."""

    acts: ClassVar[bool] = False

    def map_site(self, source: Site, target: Site, update: LowRank) -> LowRank:
        """Return zero, at the source's rank."""
        out, inputs = self.pair.target.sites.shapes[target]
        a = torch.ones(update.rank, inputs, device=update.A.device)
        return LowRank(a, torch.zeros(out, update.rank, device=a.device), update.scale)
