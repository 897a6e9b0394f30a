"""A LoRA adapter as an immutable value: a mapping from sites to low-rank updates."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from ..exceptions import AdapterError
from .low_rank import LowRank
from .sites import Role, Site


@dataclass(frozen=True, eq=False)
class LoraAdapter(Mapping[Site, LowRank]):
    """A LoRA update of one base model.

    Attributes:
        sites: The update of each adapted module, ordered by layer and role.
        base_model: What PEFT calls ``base_model_name_or_path``.
        config: The ``adapter_config.json`` that the adapter was read from, unchanged, so that
            writing it again keeps every option; ``None`` for an adapter that was computed.

    Raises:
        AdapterError: there is no site, or a factor or a scale is not finite.
    """

    sites: Mapping[Site, LowRank]
    base_model: str
    config: Mapping[str, object] | None = None

    def __post_init__(self) -> None:
        if not self.sites:
            raise AdapterError(
                f"the adapter of {self.base_model} has no site; it takes at least one module "
                "with both lora_A and lora_B"
            )
        ordered = sorted(self.sites.items(), key=lambda item: item[0].sort_key)
        for site, update in ordered:
            if not math.isfinite(update.scale):
                raise AdapterError(
                    f"the adapter of {self.base_model} has the scale {update.scale} at "
                    f"{site.module_name}; an adapter takes a finite one: correct lora_alpha"
                )
            for name, factor in (("lora_A", update.A), ("lora_B", update.B)):
                if not torch.isfinite(factor).all():
                    bad = int((~torch.isfinite(factor)).sum())
                    raise AdapterError(
                        f"the adapter of {self.base_model} has {bad} NaN or infinite entries in "
                        f"{name} of {site.module_name}; an adapter takes finite weights: train "
                        "or export it again"
                    )
        object.__setattr__(self, "sites", MappingProxyType(dict(ordered)))

    def __getitem__(self, site: Site) -> LowRank:
        return self.sites[site]

    def __iter__(self) -> Iterator[Site]:
        return iter(self.sites)

    def __len__(self) -> int:
        return len(self.sites)

    def __hash__(self) -> int:
        return id(self)

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles that occur, in the order of a layer."""
        present = {site.role for site in self}
        return tuple(role for role in Role if role in present)

    def map(self, function: Callable[[LowRank], LowRank]) -> "LoraAdapter":
        """Return the adapter with ``function`` applied to the update of each site."""
        return LoraAdapter({site: function(self[site]) for site in self}, self.base_model)

    def inner(self, other: "LoraAdapter") -> float:
        """Return the Frobenius inner product over all sites; a site that one lacks is zero."""
        return sum((self[site].inner(other[site]) for site in self if site in other), 0.0)

    def norm(self) -> float:
        """Return the Frobenius norm over all sites."""
        return max(self.inner(self), 0.0) ** 0.5

    def content_hash(self) -> str:
        """Return the SHA-256 of what the adapter computes: sites, scales, factors, dtypes."""
        digest = hashlib.sha256()
        for site, update in self.items():
            digest.update(f"{site.label} {update.scale!r}".encode())
            for factor in (update.A, update.B):
                digest.update(f"{factor.dtype} {tuple(factor.shape)}".encode())
                raw = factor.detach().cpu().contiguous().view(torch.uint8)
                digest.update(raw.numpy().tobytes())
        return digest.hexdigest()


def cosine(left: LoraAdapter, right: LoraAdapter) -> float:
    """Return the cosine of two adapters' updates over all sites; 0 where one is zero."""
    norms = left.norm() * right.norm()
    return left.inner(right) / norms if norms > 0 else 0.0


def relative_error(predicted: LoraAdapter, true: LoraAdapter) -> float:
    """Return ``|predicted - true| / |true|`` over all sites, in Frobenius norm."""
    squared = predicted.inner(predicted) - 2 * predicted.inner(true) + true.inner(true)
    norm = true.norm()
    return max(squared, 0.0) ** 0.5 / norm if norm > 0 else float("inf")
