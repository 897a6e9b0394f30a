"""What a combiner is: anything that merges several adapters of one base model into one."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from ..exceptions import AdapterError, ConfigurationError
from .adapter import LoraAdapter
from .combined import Combined, CombinedSite, cut, cut_site, widened
from .low_rank import LowRank
from .sites import Site


class Term(NamedTuple):
    """One adapter's part in a site: its place among the adapters, its weight, its update."""

    place: int
    weight: float
    update: LowRank


class Combiner(ABC):
    """Merges adapters of one base model into one.

    A single adapter is returned as it is, times its weight, by every combiner: nothing
    interferes with it, so that there is nothing to trim, drop or turn. The same holds at a site
    that only one of several adapters has; the others are zero there.

    Attributes:
        averages: Whether the weights are divided by their sum, so that a single adapter's is 1.
    """

    averages: ClassVar[bool] = False

    def __call__(
        self,
        adapters: Sequence[LoraAdapter],
        weights: Sequence[float] | None = None,
        rank: int | None = None,
    ) -> Combined:
        """Merge adapters.

        Args:
            adapters: At least one; they may adapt different sites, at different ranks.
            weights: One for each adapter; None: 1 each.
            rank: The most that a site of the result may have. None: the sum of the ranks that
                the site has in the adapters, at which the exact combiners lose nothing and those
                that make a dense update lose little.

        Raises:
            AdapterError: two adapters have different shapes at a site.
            ConfigurationError: there is no adapter, or the weights do not fit.
        """
        given = self._weights(len(adapters), weights)
        if len(adapters) == 1:
            (adapter,), (weight,) = adapters, given
            return cut(_scaled(adapter, weight), rank)
        sites = {
            site: self._site(site, _terms(site, adapters, given), rank)
            for site in dict.fromkeys(site for adapter in adapters for site in adapter)
        }
        return Combined.of(sites, adapters[0].base_model)

    @abstractmethod
    def merge(self, site: Site, terms: Sequence[Term], rank: int | None) -> CombinedSite:
        """Merge what two or more adapters do at one site, in float32 at least."""

    def _site(self, site: Site, terms: Sequence[Term], rank: int | None) -> CombinedSite:
        if len(terms) == 1:
            return cut_site(terms[0].update.scaled(terms[0].weight), rank)
        wide = [term._replace(update=widened(term.update)) for term in terms]
        return self.merge(site, wide, rank)

    def _weights(self, count: int, weights: Sequence[float] | None) -> list[float]:
        if count == 0:
            raise ConfigurationError("merge got no adapter, it takes at least one")
        given = [1.0] * count if weights is None else [float(weight) for weight in weights]
        if len(given) != count or not all(math.isfinite(weight) for weight in given):
            raise ConfigurationError(
                f"merge.weights is {given}, but {count} adapters are merged (the ported ones and "
                "those of merge.with): it takes one finite number for each of them, or null for "
                "1 each"
            )
        if not self.averages:
            return given
        total = math.fsum(given)
        if min(given) < 0 or total == 0:
            raise ConfigurationError(
                f"merge.weights is {given}, but an average takes weights that are not negative "
                "and not all 0; take merge=linear to subtract an adapter"
            )
        return [weight / total for weight in given]


def _scaled(adapter: LoraAdapter, weight: float) -> LoraAdapter:
    return adapter if weight == 1 else adapter.map(lambda update: update.scaled(weight))


def _terms(site: Site, adapters: Sequence[LoraAdapter], weights: Sequence[float]) -> Sequence[Term]:
    terms = [
        Term(place, weight, adapter[site])
        for place, (adapter, weight) in enumerate(zip(adapters, weights, strict=True))
        if site in adapter
    ]
    first = terms[0]
    for term in terms[1:]:
        if term.update.shape != first.update.shape:
            raise AdapterError(
                f"adapter {term.place + 1} of those to merge has shape {term.update.shape} at "
                f"{site.module_name}, but adapter {first.place + 1} has shape "
                f"{first.update.shape}; adapters that are merged take the same base model: leave "
                "one out of merge.with"
            )
    return terms
