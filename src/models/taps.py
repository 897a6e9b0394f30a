"""Where in a network activations are read."""

from collections.abc import Iterable
from typing import NamedTuple

from ..adapters.sites import Role, Site
from .sites import SiteTable

SIDES = ("source", "target")

# Roles that read the same input as another one.
INPUT_ROLE = {role: role for role in Role} | {
    Role.K: Role.Q,
    Role.V: Role.Q,
    Role.UP: Role.GATE,
}


class Tap(NamedTuple):
    """A place in a network, one row of activations a token.

    Attributes:
        layer: The decoder layer.
        place: ``input`` or ``output`` of a role's module; ``gradient`` of the text's end with
            respect to that output; or ``residual``: the stream behind the layer, which is what
            the next layer reads.
        role: Whose module; None for the residual stream.
    """

    layer: int
    place: str
    role: Role | None = None

    @classmethod
    def input(cls, site: Site) -> "Tap":
        """Return what a site's module reads; q, k and v share it, and gate and up."""
        return cls(site.layer, "input", INPUT_ROLE[site.role])

    @classmethod
    def output(cls, site: Site) -> "Tap":
        """Return what a site's module writes, with its bias and with what is attached to it."""
        return cls(site.layer, "output", site.role)

    @classmethod
    def gradient(cls, site: Site) -> "Tap":
        """Return by how much the log-likelihood of a text's end rises with what a site writes."""
        return cls(site.layer, "gradient", site.role)

    @classmethod
    def residual(cls, layer: int) -> "Tap":
        """Return the residual stream behind a layer."""
        return cls(layer, "residual")

    @property
    def label(self) -> str:
        """A name for files and reports, such as ``3.q.input`` or ``3.residual``."""
        if self.role is None:
            return f"{self.layer}.{self.place}"
        return f"{self.layer}.{self.role.value}.{self.place}"

    def label_on(self, side: str) -> str:
        """Return a name that also says which model is read, such as ``source.3.q.input``.

        Args:
            side: One of :data:`SIDES`.
        """
        return f"{side}.{self.label}"


def tap_widths(table: SiteTable, taps: Iterable[Tap]) -> dict[Tap, int]:
    """Return how wide the activations are that a model's taps give.

    >>> from transformers import LlamaConfig
    >>> table = SiteTable.of(LlamaConfig(hidden_size=32, intermediate_size=40))
    >>> tap_widths(table, [Tap.residual(0), Tap.input(Site(0, Role.DOWN))]).values()
    dict_values([32, 40])
    """
    return {tap: _width(table, tap) for tap in taps}


def _width(table: SiteTable, tap: Tap) -> int:
    # The residual stream is as wide as what q reads.
    out, in_ = table.shapes[Site(tap.layer, tap.role or Role.Q)]
    return out if tap.place in ("output", "gradient") else in_
