"""What a mapper between two models must know of them to carry an adapter across."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..adapters import LoraAdapter, Role, Site
from ..alignment.layer_pairing import LayerPairing
from ..exceptions import AdapterError
from ..models.base import BaseModel
from ..models.sites import SiteTable

Feed = tuple[Site, float]
"""A source site and the weight of what becomes of its update."""


@dataclass(frozen=True, eq=False)
class PairFrame:
    """Names and modules of two models, which layers are paired, and which roles are carried.

    Attributes:
        source_name: The hub id of the source.
        target_name: The hub id of the target.
        source: The source's modules.
        target: The target's modules.
        pairing: Which source layers feed each target layer.
        roles: The roles that are carried, in the order of a layer.
    """

    source_name: str
    target_name: str
    source: SiteTable
    target: SiteTable
    pairing: LayerPairing
    roles: tuple[Role, ...]

    @classmethod
    def of(
        cls,
        source: BaseModel,
        target: BaseModel,
        pairing: LayerPairing,
        roles: tuple[Role, ...],
    ) -> "PairFrame":
        """Describe two base models.

        Raises:
            ValueError: the pairing is one of other numbers of layers.
        """
        layers, paired = (source.sites.layers, target.sites.layers), _layers(pairing)
        if layers != paired:
            raise ValueError(f"the pairing is of {paired} layers, the models have {layers}")
        return cls(source.name, target.name, source.sites, target.sites, pairing, roles)

    def feeds(self) -> dict[Site, tuple[Feed, ...]]:
        """Return the source sites that feed each target site, in the target's order."""
        return {
            site: tuple(
                (Site(layer, site.role), weight) for layer, weight in self.pairing.feeds[site.layer]
            )
            for site in self.target.of_roles(self.roles)
        }

    def feeds_of(self, adapter: LoraAdapter) -> dict[Site, tuple[Feed, ...]]:
        """Return what feeds each target site, of an adapter's sites alone.

        Raises:
            AdapterError: the adapter is not one of the source, has a role that is not carried,
                or no layer that feeds one of the target's.
        """
        self.check(adapter)
        feeds = {
            target: tuple((site, weight) for site, weight in found if site in adapter)
            for target, found in self.feeds().items()
        }
        fed = {target: found for target, found in feeds.items() if found}
        if not fed:
            used = sorted(set(range(self.source.layers)) - set(self.pairing.dropped))
            raise AdapterError(
                f"the adapter of {adapter.base_model} adapts only layers "
                f"{sorted({site.layer for site in adapter})}, none of which feeds a layer of "
                f"{self.target_name}: layers {used} of {self.source_name} do; train the adapter "
                "on more layers, or choose another pairing"
            )
        return fed

    def check(self, adapter: LoraAdapter) -> None:
        """Raise AdapterError unless an adapter is one of the source, of the carried roles."""
        missing = [role for role in adapter.roles if role not in self.roles]
        if missing:
            has, knows = (
                ",".join(role.value for role in roles) for roles in (adapter.roles, self.roles)
            )
            raise AdapterError(
                f"the adapter of {adapter.base_model} adapts {missing[0].module}, but this mapper "
                f"was fitted for the roles [{knows}]; train the mapper with mapper.roles=[{has}]"
            )
        misfit = self.source.misfit(adapter)
        if misfit is not None:
            site, found = misfit
            raise AdapterError(
                f"the adapter, trained on {adapter.base_model or 'an unnamed model'!r}, has shape "
                f"{adapter[site].shape} at {site.module_name}, but this mapper's source "
                f"{self.source_name} has {found}; give an adapter of that base model"
            )

    def dropped(self, adapter: LoraAdapter) -> dict[str, Any]:
        """Return which sites of an adapter feed nothing, and their share of its squared norm."""
        lost = [site for site in adapter if site.layer in self.pairing.dropped]
        total = adapter.norm() ** 2
        energy = sum(adapter[site].norm() ** 2 for site in lost)
        return {
            "dropped_sites": [site.label for site in lost],
            "dropped_energy": energy / total if total > 0 else 0.0,
        }

    def state(self) -> dict[str, Any]:
        """Return the frame as plain data."""
        return {
            "names": [self.source_name, self.target_name],
            "tables": [_plain(table) for table in (self.source, self.target)],
            "feeds": [[list(feed) for feed in feeds] for feeds in self.pairing.feeds],
            "roles": [role.value for role in self.roles],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "PairFrame":
        """Return the frame that :meth:`state` describes."""
        source, target = (_table(table) for table in state["tables"])
        feeds = tuple(
            tuple((int(layer), float(weight)) for layer, weight in feeds)
            for feeds in state["feeds"]
        )
        pairing = LayerPairing(source.layers, feeds)
        roles = tuple(Role(role) for role in state["roles"])
        source_name, target_name = state["names"]
        return cls(source_name, target_name, source, target, pairing, roles)


def _layers(pairing: LayerPairing) -> tuple[int, int]:
    return pairing.source_layers, len(pairing.feeds)


def _plain(table: SiteTable) -> dict[str, Any]:
    shapes = {site.label: list(shape) for site, shape in table.shapes.items()}
    return {"architecture": table.architecture, "layers": table.layers, "shapes": shapes}


def _table(plain: Mapping[str, Any]) -> SiteTable:
    shapes = {
        Site.from_label(label): (int(out), int(in_))
        for label, (out, in_) in plain["shapes"].items()
    }
    return SiteTable(plain["architecture"], plain["layers"], shapes)
