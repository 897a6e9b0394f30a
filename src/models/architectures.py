"""Everything that is known of an architecture.

To add one, add it to :data:`ARCHITECTURES` and to ``tests/conftest.py``.

A supported architecture is a decoder whose linear modules are named as
:attr:`~loraport.adapters.lora.Site.module_name` says. What distinguishes it stands in
:data:`ARCHITECTURES`; all else is read from the model's config by the functions below.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig

from ..adapters import LoraAdapter, Role, Site
from ..exceptions import AdapterError, ModelError


@dataclass(frozen=True)
class Architecture:
    """What distinguishes an architecture: the names of norms within a layer, and their gain."""

    attention_norm: str = "input_layernorm"  # the RMSNorm whose output q, k and v read
    mlp_norm: str = "post_attention_layernorm"  # the same for gate and up
    gain_offset: float = 0.0  # what RMSNorm adds to its weight before it multiplies by it


_GEMMA = Architecture(mlp_norm="pre_feedforward_layernorm", gain_offset=1.0)

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "gemma2": _GEMMA,
        "gemma3_text": _GEMMA,
        "llama": Architecture(),
        "mistral": Architecture(),
        "qwen2": Architecture(),
        "qwen3": Architecture(),
    }
)
"""The supported architectures by the config's ``model_type``."""

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"

INPUT_ROLE = {role: role for role in Role} | {
    Role.K: Role.Q,
    Role.V: Role.Q,
    Role.UP: Role.GATE,
}
"""For each role the one that stands for its input: q, k and v read the same, and gate and up."""


def architecture_of(config: PretrainedConfig) -> Architecture:
    """Return what distinguishes an architecture; ModelError outside of :data:`ARCHITECTURES`."""
    if config.model_type not in ARCHITECTURES:
        raise ModelError(
            f"the base model's architecture is {config.model_type!r}, whose modules loraport "
            f"does not know; it knows {', '.join(ARCHITECTURES)}; choose a pair of these, or add "
            "the architecture to ARCHITECTURES in models/architectures.py if it names its modules "
            f"as they do ({Site(0, Role.Q).module_name})"
        )
    return ARCHITECTURES[config.model_type]


def layer_name(layer: int) -> str:
    """Return the name of the module that is a decoder layer, counted from 0."""
    return f"model.layers.{layer}"


def input_norm(config: PretrainedConfig, site: Site) -> tuple[str, float] | None:
    """Return the weight of the RMSNorm whose output a site reads, and its gain's offset.

    None for o and down, which read no normalised residual.
    """
    known = architecture_of(config)
    norms = {Role.Q: known.attention_norm, Role.GATE: known.mlp_norm}
    norm = norms.get(INPUT_ROLE[site.role])
    if norm is None:
        return None
    return f"{layer_name(site.layer)}.{norm}.weight", known.gain_offset


def head_name(config: PretrainedConfig) -> str:
    """Return the name of the tensor that hidden states are multiplied by to get logits."""
    return EMBEDDING if getattr(config, "tie_word_embeddings", False) else HEAD


def capped(config: PretrainedConfig, logits: Float[Tensor, "*rows tokens"]) -> Tensor:
    """Return the head's product as the logits that the architecture makes of it."""
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def attention_windows(config: PretrainedConfig) -> dict[str, int | None]:
    """Return for each kind of layer how many positions a token sees, itself among them.

    None stands for all that precede it. Where all layers are alike the only kind is ``""``; else
    the kinds are those of the config's ``layer_types``.
    """
    window: int | None = getattr(config, "sliding_window", None)
    if getattr(config, "layer_types", None) is None:
        return {"": window}
    return {"full_attention": None, "sliding_attention": window}


def rope_theta(config: PretrainedConfig, layer: int) -> float:
    """Return the base of a layer's rotary frequencies.

    It may differ between layers with local and with global attention, as in gemma3.
    """
    parameters = config.rope_parameters
    if "rope_theta" not in parameters:
        parameters = parameters[config.layer_types[layer]]
    return float(parameters["rope_theta"])


class HeadShape(NamedTuple):
    """How many heads an attention block has, and how wide they are; the same in all layers."""

    groups: int  # heads of keys and values
    heads: int  # query heads that share one of them
    dims: int  # width of a head

    @classmethod
    def of(cls, config: PretrainedConfig) -> "HeadShape":
        """Return the shape that a config describes.

        The width is the config's own where it has one: it need not be hidden / heads, as gemma
        and qwen3 show.
        """
        heads, groups = int(config.num_attention_heads), int(config.num_key_value_heads)
        if heads % groups:
            raise ModelError(
                f"the base model's config has {heads} attention heads for {groups} heads of keys "
                "and values; the first must be a multiple of the second: fetch config.json again"
            )
        dims = getattr(config, "head_dim", None) or int(config.hidden_size) // heads
        return cls(groups, heads // groups, int(dims))

    def rows(self, role: Role, group: int) -> slice:
        """Return where a group's rows of q, k or v, or columns of o, lie."""
        width = self.dims if role in (Role.K, Role.V) else self.heads * self.dims
        return slice(group * width, (group + 1) * width)


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
        """Return the table of the model that a config describes, if of :data:`ARCHITECTURES`."""
        architecture_of(config)
        hidden, inner = int(config.hidden_size), int(config.intermediate_size)
        groups, heads, dims = HeadShape.of(config)
        queries, keys = groups * heads * dims, groups * dims
        roles = {
            Role.Q: (queries, hidden),
            Role.K: (keys, hidden),
            Role.V: (keys, hidden),
            Role.O: (hidden, queries),
            Role.GATE: (inner, hidden),
            Role.UP: (inner, hidden),
            Role.DOWN: (hidden, inner),
        }
        layers = int(config.num_hidden_layers)
        shapes = {Site(layer, role): roles[role] for layer in range(layers) for role in roles}
        return cls(config.model_type, layers, MappingProxyType(shapes))

    def check(self, adapter: LoraAdapter, what: str, model: str, way_out: str) -> None:
        """Raise AdapterError unless an adapter's sites and shapes are modules of the model.

        The message says what does not fit which model, and the way out.
        """
        for site, update in adapter.items():
            shape = self.shapes.get(site)
            if shape != update.shape:
                raise AdapterError(
                    f"{what}, for {adapter.base_model or 'an unnamed model'!r}, has shape "
                    f"{update.shape} at {site.module_name}, but {model} has "
                    f"{'no such module' if shape is None else f'{shape} there'}; {way_out}"
                )

    def of_roles(self, roles: tuple[Role, ...]) -> tuple[Site, ...]:
        """Return the sites of the given roles in every layer, in order."""
        return tuple(site for site in self.shapes if site.role in roles)
