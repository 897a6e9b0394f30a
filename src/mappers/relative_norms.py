"""How large an update is beside the weight that it changes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from ..adapters import LoraAdapter, LowRank, Site
from ..models.base import BaseModel


@dataclass(frozen=True)
class RelativeNorms:
    """Frobenius norms of the weights of two models.

    Attributes:
        source: Of the source's modules.
        target: Of the target's.
    """

    source: Mapping[Site, float]
    target: Mapping[Site, float]

    @classmethod
    def of(
        cls,
        source: BaseModel,
        target: BaseModel,
        sites: Mapping[Site, Iterable[tuple[Site, float]]],
    ) -> "RelativeNorms":
        """Measure the target's sites and those of the source that feed them."""
        feeding = {site for feeds in sites.values() for site, _ in feeds}
        return cls(_norms(source, feeding), _norms(target, sites))

    def matched(
        self,
        update: LowRank,
        site: Site,
        adapter: LoraAdapter,
        feeds: Iterable[tuple[Site, float]],
    ) -> LowRank:
        """Return an update rescaled to be as large, relative to its weight, as its sources.

        ``|dW_T| / |W_T| = sum_l |w_l| |dW_l| / |W_l|`` over the layers that feed it; an update of
        zeros stays as it is.
        """
        wanted = sum(abs(w) * adapter[s].norm() / self.source[s] for s, w in feeds)
        norm = update.norm()
        return update.scaled(wanted * self.target[site] / norm) if norm > 0 else update


def _norms(model: BaseModel, sites: Iterable[Site]) -> dict[Site, float]:
    def norm(site: Site) -> float:
        weight = model.network.get_parameter(f"{site.module_name}.weight")
        return float(torch.linalg.vector_norm(weight, dtype=torch.float64))

    return {site: norm(site) for site in sorted(sites, key=lambda site: site.sort_key)}
