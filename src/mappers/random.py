"""A random adapter, as large as the source's: the control against which size alone is judged."""

import hashlib

import torch

from ..adapters import LowRank, Site
from .weight_mapper import WeightMapper


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
