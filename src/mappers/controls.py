"""The controls: what a port is worth without alignment, by size alone, not at all, or on average.

A method that does not beat them has not transferred anything.
"""

import hashlib
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from ..adapters import LowRank, Site
from .base import WeightMapper
from .from_anchors import ClosedFormMapper, Coefficients, Grams, Inners


class CopyMapper(WeightMapper):
    """Copies A and B; where a width differs they are cut off or filled up with zeros.

    Nothing aligns the two models' coordinates: between models that were pre-trained apart the
    copy is a control. Within a lineage (a base and its instruct version) it is the method.
    """

    name: ClassVar[str] = "copy"

    def map_site(self, source: Site, target: Site, update: LowRank) -> LowRank:
        """Return the first rows and columns of the source's update."""
        shape = self.pair.target.sites.shapes[target]
        cropped = any(old > new for old, new in zip(update.shape, shape, strict=True))
        padded = any(old < new for old, new in zip(update.shape, shape, strict=True))
        self.note(target, cropped=int(cropped), padded=int(padded))
        a, b = _resized(update.A.mT, shape[1]).mT, _resized(update.B, shape[0])
        return LowRank(a, b, update.scale)


def _resized(factor: Float[Tensor, "rows rank"], rows: int) -> Float[Tensor, "resized rank"]:
    missing = max(0, rows - factor.shape[0])
    return torch.nn.functional.pad(factor[:rows], (0, 0, 0, missing))


class RandomMapper(WeightMapper):
    """Draws Gaussian factors whose update has, at every site, the norm of the source's.

    Args:
        seed: Of the draw; each site draws for itself, whatever other sites there are.
    """

    name: ClassVar[str] = "random"
    is_linear: ClassVar[bool] = False  # only the norm follows the update, its sign does not
    needs_correspondence: ClassVar[bool] = False

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


class NoopMapper(WeightMapper):
    """Gives every paired site an update of zero, ``B = 0``: the control for the whole pipeline."""

    name: ClassVar[str] = "noop"
    acts: ClassVar[bool] = False
    needs_correspondence: ClassVar[bool] = False

    def map_site(self, source: Site, target: Site, update: LowRank) -> LowRank:
        """Return zero, at the source's rank."""
        out, inputs = self.pair.target.sites.shapes[target]
        a = torch.ones(update.rank, inputs, device=update.A.device)
        return LowRank(a, torch.zeros(out, update.rank, device=a.device), update.scale)


class MeanMapper(ClosedFormMapper):
    """Predicts ``1/n sum_i target_i`` for every task: the control of all that learn from anchors.

    Args:
        space: ``delta`` averages the updates, ``factors`` A and B apart.
    """

    name: ClassVar[str] = "mean"
    needs_correspondence: ClassVar[bool] = False

    def solve(self, source: Grams, target: Grams) -> None:
        """Remember the target's sites; there is nothing to choose."""
        self._sites = list(target)

    def coefficients(self, inner: Inners) -> Coefficients:
        """Return ``1/n`` for every anchor at every site."""
        uniform = next(torch.full_like(rows, 1 / rows.shape[1]) for rows in inner.values())
        return {site: uniform for site in self._sites}


class NearestMapper(ClosedFormMapper):
    """Predicts the target adapter of the anchor whose source adapter is most like the given one.

    Likeness is the cosine over all sites. It is a control and no choice of ``mapper=``: a mapper
    that does not beat it has learned to look up.
    """

    name: ClassVar[str] = "nearest"
    needs_correspondence: ClassVar[bool] = False

    def solve(self, source: Grams, target: Grams) -> None:
        """Remember the norms of the anchors' source adapters."""
        self._norms = torch.stack([gram.diagonal() for gram in source.values()]).sum(dim=0).sqrt()
        self._sites = list(target)

    def coefficients(self, inner: Inners) -> Coefficients:
        """Return 1 for the anchor of the largest cosine, 0 for all others."""
        likeness = torch.stack(list(inner.values())).sum(dim=0) / self._norms
        chosen = one_hot(likeness.argmax(dim=1), likeness.shape[1]).double()
        return dict.fromkeys(self._sites, chosen)
