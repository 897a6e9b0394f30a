"""The source's factors as they are: the control for which the models must be alike."""

import hashlib
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..adapters import LowRank, Site
from .base import WeightMapper
from .from_anchors import ClosedFormMapper, Coefficients, Grams, Inners


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


# A random adapter, as large as the source's: the control against which size alone is judged.


class RandomMapper(WeightMapper):
    """Draws Gaussian factors whose update has, at every site, the norm of the source's.

    Args:
        seed: Of the draw; each site draws for itself, whatever other sites there are.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    def map_site(self, source: Site, target: Site, update: LowRank) -> LowRank:
        """Return random factors, balanced, with the norm of the update."""
        out, inputs = self.pair.target.sites.shapes[target]
        name = f"{self.seed} {target.label}".encode()
        seed = int.from_bytes(hashlib.sha256(name).digest()[:8], "big") >> 1
        generator = torch.Generator().manual_seed(seed)
        drawn = LowRank(
            torch.randn(update.rank, inputs, generator=generator),
            torch.randn(out, update.rank, generator=generator),
        )
        factor = (update.norm() / drawn.norm()) ** 0.5
        return LowRank(factor * drawn.A, factor * drawn.B).to(torch.float32)


# An adapter that does nothing: the target as it is.


class NoopMapper(WeightMapper):
    """Gives every paired site an update of zero: ``B = 0``, the control for the whole pipeline."""

    acts: ClassVar[bool] = False

    def map_site(self, source: Site, target: Site, update: LowRank) -> LowRank:
        """Return zero, at the source's rank."""
        out, inputs = self.pair.target.sites.shapes[target]
        a = torch.ones(update.rank, inputs, device=update.A.device)
        return LowRank(a, torch.zeros(out, update.rank, device=a.device), update.scale)


# The mean of the anchors' target adapters: the control that every mapper must beat.


class MeanMapper(ClosedFormMapper):
    """Predicts the same adapter for every task: ``1/n sum_i target_i``. The source is ignored.

    Args:
        space: ``delta`` averages the updates, ``factors`` A and B apart.
    """

    def solve(self, source: Grams, target: Grams) -> None:
        """Remember the target's sites; there is nothing to choose."""
        self._sites = list(target)

    def coefficients(self, inner: Inners) -> Coefficients:
        """Return ``1/n`` for every anchor at every site."""
        uniform = next(torch.full_like(rows, 1 / rows.shape[1]) for rows in inner.values())
        return {site: uniform for site in self._sites}
