"""What cartridges and their export take beside projection heads."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..adapters import Site
from ..models.base import BaseModel
from ..models.taps import Tap
from .activation_rows import ActivationRows
from .fitted_maps import SitePair

SourceModule = tuple[Float[Tensor, "out in"], Float[Tensor, " out"]]
"""The weight and the bias of one of the source's modules."""


@dataclass(frozen=True, eq=False)
class CartridgeParts:
    """The source's modules, and what the target's read on text.

    Attributes:
        modules: Weight and bias of each source module, by its site's label, float32.
        train: Rows that the target's modules read, by ``Tap.input(site).label_on("target")``.
        held_out: The same on other text.
    """

    modules: Mapping[str, SourceModule]
    train: Mapping[str, Float[Tensor, "rows _"]]
    held_out: Mapping[str, Float[Tensor, "more _"]]

    @classmethod
    def of(
        cls, source: BaseModel, pairs: Iterable[SitePair], rows: ActivationRows, most: int
    ) -> "CartridgeParts":
        """Copy them from where they are.

        Args:
            source: The source model.
            pairs: Its sites and those of the target.
            rows: Activations on text.
            most: Rows of training text; of held-out text, a quarter.
        """
        pairs = list(pairs)
        labels = sorted({Tap.input(target).label_on("target") for _, target in pairs})
        return cls(
            {site.label: _module(source, site) for site in dict.fromkeys(s for s, _ in pairs)},
            {label: rows.all_rows(label, "train", most) for label in labels},
            {label: rows.all_rows(label, "held_out", most // 4) for label in labels},
        )

    def state(self) -> dict[str, Any]:
        """Return everything as plain data; rows in bfloat16, as they were cached."""
        return {
            "modules": {label: list(kept) for label, kept in self.modules.items()},
            "train": {label: rows.bfloat16() for label, rows in self.train.items()},
            "held_out": {label: rows.bfloat16() for label, rows in self.held_out.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "CartridgeParts":
        """Return what :meth:`state` describes."""
        return cls(
            {label: (kept[0], kept[1]) for label, kept in state["modules"].items()},
            {label: rows.float() for label, rows in state["train"].items()},
            {label: rows.float() for label, rows in state["held_out"].items()},
        )


def _module(model: BaseModel, site: Site) -> SourceModule:
    module = model.network.get_submodule(site.module_name)
    weight: Any = module.weight
    bias: Any = getattr(module, "bias", None)
    kept = weight.detach().float().cpu().clone()
    if bias is None:
        return kept, torch.zeros(len(kept))
    return kept, bias.detach().float().cpu().clone()
