"""The source's factors as they are: the control for which the models must be alike."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..adapters import LowRank, Site
from .weight_mapper import WeightMapper


class CopyMapper(WeightMapper):
    """Copies A and B; where a width differs they are cut off or filled up with zeros.

    Nothing aligns the two models' coordinates: between models that were pre-trained apart the
    copy is a control. Within a lineage (a base and its instruct version) it is the method.
    """

    def map_site(self, source: Site, target: Site, update: LowRank) -> LowRank:
        """Return the first rows and columns of the source's update."""
        shape = self.pair.target.sites.shapes[target]
        cropped = any(old > new for old, new in zip(update.shape, shape, strict=True))
        padded = any(old < new for old, new in zip(update.shape, shape, strict=True))
        self.note(target, cropped=int(cropped), padded=int(padded))
        return LowRank(_fitted(update.A.mT, shape[1]).mT, _fitted(update.B, shape[0]), update.scale)


def _fitted(factor: Float[Tensor, "rows rank"], rows: int) -> Float[Tensor, "fitted rank"]:
    missing = max(0, rows - factor.shape[0])
    return torch.nn.functional.pad(factor[:rows], (0, 0, 0, missing))
