"""Which modules of an architecture LoRA adapts, and their shapes, read from its config alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from transformers import PretrainedConfig

from ..adapters import LoraAdapter, Role, Site
from ..exceptions import ModelError

# Decoders whose linear modules are named as Site.module_name says and shaped as _role_shapes says.
ARCHITECTURES = ("gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3")


def _role_shapes(config: PretrainedConfig) -> dict[Role, tuple[int, int]]:
    """Return ``(out, in)`` of each role's weight.

    The head's width is the config's own where it has one (it need not be hidden / heads, as
    gemma and qwen3 show), and grouped queries share keys and values.
    """
    hidden, inner = int(config.hidden_size), int(config.intermediate_size)
    heads = int(config.num_attention_heads)
    head = int(getattr(config, "head_dim", None) or hidden // heads)
    queries, keys = heads * head, int(config.num_key_value_heads) * head
    return {
        Role.Q: (queries, hidden),
        Role.K: (keys, hidden),
        Role.V: (keys, hidden),
        Role.O: (hidden, queries),
        Role.GATE: (inner, hidden),
        Role.UP: (inner, hidden),
        Role.DOWN: (hidden, inner),
    }


@dataclass(frozen=True)
class SiteTable:
    """The sites of one base model.

    Attributes:
        architecture: The config's ``model_type``.
        layers: Number of decoder layers.
        shapes: ``(out, in)`` of each site's weight, ordered by :attr:`Site.sort_key`.
    """

    architecture: str
    layers: int
    shapes: Mapping[Site, tuple[int, int]]

    @classmethod
    def of(cls, config: PretrainedConfig) -> "SiteTable":
        """Return the table of the model that ``config`` describes; no weight is needed.

        Raises:
            ModelError: the architecture is not among :data:`ARCHITECTURES`.
        """
        if config.model_type not in ARCHITECTURES:
            raise ModelError(
                f"the base model's architecture is {config.model_type!r}, whose modules loraport "
                f"does not know; it knows {', '.join(ARCHITECTURES)}; choose a pair of these, or "
                "add the architecture to ARCHITECTURES in models/sites.py if it names its modules "
                f"as they do ({Site(0, Role.Q).module_name})"
            )
        roles = _role_shapes(config)
        layers = int(config.num_hidden_layers)
        shapes = {Site(layer, role): roles[role] for layer in range(layers) for role in roles}
        return cls(config.model_type, layers, MappingProxyType(shapes))

    def misfit(self, adapter: LoraAdapter) -> tuple[Site, str] | None:
        """Return the first site of an adapter that the model lacks or shapes otherwise.

        Returns:
            The site, and what the model has in its place; None where every site fits.
        """
        for site, update in adapter.items():
            expected = self.shapes.get(site)
            if expected != update.shape:
                return site, "no such module" if expected is None else f"{expected} there"
        return None

    def of_roles(self, roles: tuple[Role, ...]) -> tuple[Site, ...]:
        """Return the sites of the given roles in every layer, in order."""
        return tuple(site for site in self.shapes if site.role in roles)
