"""Which site of a source adapter feeds each site of the target."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..adapters import LoraAdapter, Site
from ..alignment import relative_depth
from ..exceptions import AdapterError
from ..models.sites import SiteTable


@dataclass(frozen=True)
class SitePairs:
    """The pairing of an adapter's sites with those of another model.

    Attributes:
        pairs: Target site to source site, in the target's order.
        dropped: Source sites that feed no target site, since the target has fewer layers.
    """

    pairs: dict[Site, Site]
    dropped: tuple[Site, ...]

    @classmethod
    def of(cls, adapter: LoraAdapter, source: SiteTable, target: SiteTable) -> "SitePairs":
        """Pair each target layer with the source layer at the same relative depth, role by role.

        A target site whose partner is not adapted stays without an update.

        Raises:
            AdapterError: no target site has an adapted partner.
        """
        depth = relative_depth(source.layers, target.layers)
        pairs = {}
        for site in target.shapes:
            partner = Site(depth[site.layer], site.role)
            if partner in adapter:
                pairs[site] = partner
        if not pairs:
            layers = sorted({site.layer for site in adapter})
            raise AdapterError(
                f"the adapter of {adapter.base_model} adapts only layers {layers}, none of which "
                f"is paired with a layer of the target: of {source.layers} source layers "
                f"{sorted(set(depth))} feed the target's {target.layers}; train it on more layers"
            )
        used = set(pairs.values())
        return cls(pairs, tuple(site for site in adapter if site not in used))

    def __iter__(self) -> Iterator[tuple[Site, Site]]:
        """Give target site and source site."""
        return iter(self.pairs.items())

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def repeated(self) -> int:
        """How many target sites get an update that another target site gets as well."""
        return len(self.pairs) - len(set(self.pairs.values()))

    def dropped_energy(self, adapter: LoraAdapter) -> float:
        """Return the share of the adapter's squared norm that the dropped sites hold."""
        lost = sum(adapter[site].norm() ** 2 for site in self.dropped)
        total = adapter.norm() ** 2
        return lost / total if total > 0 else 0.0
