"""What sparsifying or combining adapters gives: an adapter, and what was lost on the way."""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from .adapter import LoraAdapter
from .low_rank import LowRank
from .sites import Site


class CombinedSite(NamedTuple):
    """One site of a processed adapter.

    Attributes:
        matrix: The processed update.
        lost_energy: Share of its squared norm that the cut back to a rank lost.
        notes: What was found on the way, such as the share of entries kept.
    """

    matrix: LowRank
    lost_energy: float = 0.0
    notes: Mapping[str, float] = {}


class Combined(NamedTuple):
    """A processed adapter with what was lost and found at each site.

    Attributes:
        adapter: The result. Factors that had to be computed are in float32 at least, whatever
            the inputs were in, so that nothing is rounded before it is written.
        lost_energy: Share of the squared norm of each site's processed update that the cut back
            to a rank lost; 0 where the result is exact.
        notes: What was found at each site, by name; a site where nothing was done has none.
    """

    adapter: LoraAdapter
    lost_energy: dict[Site, float]
    notes: dict[Site, dict[str, float]]

    @classmethod
    def of(cls, sites: Mapping[Site, CombinedSite], base_model: str) -> "Combined":
        """Gather the processed sites of an adapter of ``base_model``."""
        adapter = LoraAdapter({site: done.matrix for site, done in sites.items()}, base_model)
        return cls.around(adapter, sites)

    @property
    def total_lost_energy(self) -> float:
        """Share of the squared norm over all sites that the cuts back to a rank lost."""
        lost = before = 0.0
        for site, share in self.lost_energy.items():
            after = self.adapter[site].norm() ** 2
            # A site that lost everything has nothing left to tell how much that was.
            whole = after / (1 - share) if share < 1 else 0.0
            lost, before = lost + share * whole, before + whole
        return lost / before if before > 0 else 0.0

    @classmethod
    def around(cls, adapter: LoraAdapter, sites: Mapping[Site, CombinedSite]) -> "Combined":
        """Put what was lost and found beside an adapter that is there already."""
        return cls(
            adapter,
            {site: sites[site].lost_energy for site in adapter},
            {site: dict(sites[site].notes) for site in adapter},
        )


def widened(update: LowRank) -> LowRank:
    """Return the update with its factors in float32, or in float64 where one is in it."""
    common = torch.promote_types(update.A.dtype, update.B.dtype)
    return update.to(torch.promote_types(common, torch.float32))


def cut_site(update: LowRank, rank: int | None) -> CombinedSite:
    """Return an update cut to at most ``rank``; itself, untouched, where it is not above it."""
    if rank is None or update.rank <= rank:
        return CombinedSite(update)
    return CombinedSite(*widened(update).truncated(rank))


def cut(adapter: LoraAdapter, rank: int | None) -> Combined:
    """Return an adapter cut to at most ``rank``; itself, untouched, where no site is above it."""
    sites = {site: cut_site(update, rank) for site, update in adapter.items()}
    if all(sites[site].matrix is adapter[site] for site in adapter):
        return Combined.around(adapter, sites)
    return Combined.of(sites, adapter.base_model)
