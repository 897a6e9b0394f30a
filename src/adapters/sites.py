"""Sites: which linear module of a decoder a low-rank update belongs to."""

import re
from enum import StrEnum
from typing import NamedTuple


class Role(StrEnum):
    """The seven linear modules of a decoder layer that LoRA adapts."""

    Q = "q"
    K = "k"
    V = "v"
    O = "o"  # noqa: E741 - the field's name for the attention output
    GATE = "gate"
    UP = "up"
    DOWN = "down"

    @property
    def block(self) -> str:
        """The submodule that holds it in every supported architecture."""
        return "self_attn" if self in (Role.Q, Role.K, Role.V, Role.O) else "mlp"

    @property
    def module(self) -> str:
        """The module's own name, such as ``q_proj``."""
        return f"{self.value}_proj"


_ORDER = {role: place for place, role in enumerate(Role)}
_MODULE_NAME = re.compile(
    r"(?:.*\.)?layers\.(?P<layer>\d+)\.(?P<block>self_attn|mlp)\.(?P<role>\w+)_proj"
)


class Site(NamedTuple):
    """One adapted linear module: its layer, counted from 0, and its role in it.

    llama, mistral, qwen2, qwen3, gemma2 and gemma3_text all call their modules
    ``model.layers.{layer}.{self_attn|mlp}.{role}_proj``, so that one rule names them.

    >>> Site(3, Role.Q).module_name
    'model.layers.3.self_attn.q_proj'
    >>> Site.parse("model.layers.3.mlp.up_proj")
    Site(layer=3, role=<Role.UP: 'up'>)
    """

    layer: int
    role: Role

    @property
    def module_name(self) -> str:
        """The module's full name inside the base model."""
        return f"model.layers.{self.layer}.{self.role.block}.{self.role.module}"

    @property
    def label(self) -> str:
        """A short name for tables and tensors, such as ``3.q``."""
        return f"{self.layer}.{self.role.value}"

    @property
    def sort_key(self) -> tuple[int, int]:
        """Orders sites by layer, then as the roles follow one another in a layer."""
        return self.layer, _ORDER[self.role]

    @classmethod
    def parse(cls, module_name: str) -> "Site | None":
        """Return the site that a module's full name stands for, or None if it is not one."""
        match = _MODULE_NAME.fullmatch(module_name)
        if match is None or match["role"] not in {role.value for role in Role}:
            return None
        site = cls(int(match["layer"]), Role(match["role"]))
        return site if site.role.block == match["block"] else None

    @classmethod
    def from_label(cls, label: str) -> "Site":
        """Return the site that :attr:`label` names."""
        layer, role = label.split(".")
        return cls(int(layer), Role(role))
