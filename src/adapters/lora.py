"""LoRA adapters as immutable values, and figures that describe one alone and beside others."""

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..alignment.svd import largest_entry_signs
from ..exceptions import AdapterError


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
        """Its own name there, such as ``q_proj``."""
        return f"{self.value}_proj"


_ORDER = {role: index for index, role in enumerate(Role)}
_MODULE_NAME = re.compile(
    r"(?:.*\.)?layers\.(?P<layer>\d{1,6})\.(?P<block>self_attn|mlp)\.(?P<role>\w+)_proj"
)


class Site(NamedTuple):
    """One adapted linear module: its layer, counted from 0, and its role in that layer.

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
        """Orders sites by layer, then in the order of :class:`Role`."""
        return self.layer, _ORDER[self.role]

    @classmethod
    def parse(cls, module_name: str) -> "Site | None":
        """Return the site of a module with this full name; None if it is no site."""
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


class Truncation(NamedTuple):
    """A low-rank matrix cut to a rank, and the share of its squared norm that this lost."""

    matrix: "LowRank"
    lost_energy: float


@dataclass(frozen=True, eq=False)
class LowRank:
    """The update ``scale * B @ A`` of one linear module, never materialised.

    ``scale`` is PEFT's ``lora_alpha / r`` (``/ sqrt(r)`` with rsLoRA), already resolved.
    """

    A: Float[Tensor, "rank in"]
    B: Float[Tensor, "out rank"]
    scale: float = 1.0

    @property
    def rank(self) -> int:
        """Number of columns of B; the matrix's own rank may be lower."""
        return self.A.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)``, as of the weight it updates."""
        return self.B.shape[0], self.A.shape[1]

    def to(self, dtype: torch.dtype) -> "LowRank":
        """Return the same factors in ``dtype``."""
        return LowRank(self.A.to(dtype), self.B.to(dtype), self.scale)

    def dense(self) -> Float[Tensor, "out in"]:
        """Return the update itself; for tests and small matrices only."""
        return self.scale * (self.B @ self.A)

    def inner(self, other: "LowRank") -> float:
        """Return the Frobenius inner product with another update of the same shape.

        ``<D1, D2> = s1 s2 sum((B1^T B2) * (A1 A2^T))``, in float64 and O((in + out) r^2).
        """
        left = self.B.double().mT @ other.B.double()
        right = self.A.double() @ other.A.double().mT
        return self.scale * other.scale * float((left * right).sum())

    def norm(self) -> float:
        """Return the Frobenius norm of the update."""
        return max(self.inner(self), 0.0) ** 0.5

    def scaled(self, factor: float) -> "LowRank":
        """Return ``factor`` times the update, as a change of :attr:`scale`."""
        return LowRank(self.A, self.B, self.scale * factor)

    def factors_svd(
        self,
    ) -> tuple[Float[Tensor, "out k"], Float[Tensor, " k"], Float[Tensor, "k in"]]:
        """Return the thin SVD of the update in float64, ``k = min(rank, out, in)``.

        By QR of both factors and the SVD of the small core, O((in + out) r^2). The largest entry of
        each left singular vector is positive.
        """
        q_b, r_b = torch.linalg.qr(self.B.double())
        q_a, r_a = torch.linalg.qr(self.A.double().mT)
        u, sigma, vt = torch.linalg.svd(self.scale * (r_b @ r_a.mT), full_matrices=False)
        u, vt = q_b @ u, vt @ q_a.mT
        signs = largest_entry_signs(u)
        return u * signs, sigma, signs[:, None] * vt

    def truncated(self, rank: int) -> Truncation:
        """Return the nearest update of at most ``rank`` (Eckart and Young, 1936), as canonical.

        The factors have ``rank`` columns even where there are fewer singular values; the rest are
        zero.
        """
        u, sigma, vt = self.factors_svd()
        total = float(sigma.square().sum())
        kept = min(rank, sigma.numel())
        lost = float(sigma[kept:].square().sum())
        roots = sigma[:kept].sqrt()
        b = self.B.new_zeros(self.shape[0], rank)
        a = self.A.new_zeros(rank, self.shape[1])
        b[:, :kept] = (u[:, :kept] * roots).to(b.dtype)
        a[:kept] = (roots[:, None] * vt[:kept]).to(a.dtype)
        return Truncation(LowRank(a, b), lost / total if total > 0 else 0.0)

    def canonical(self) -> "LowRank":
        """Return the same update with balanced factors: ``B = U sqrt(S)``, ``A = sqrt(S) V^T``.

        They do not depend on the gauge ``(B G^-1, G A)`` of the given ones, up to rounding and to
        rotations among equal singular values.
        """
        return self.truncated(self.rank).matrix


def stacked(terms: list[LowRank], coefficients: list[float]) -> LowRank:
    """Return the exact weighted sum of updates of one shape; its rank is the sum of theirs."""
    weighted = [c * t.scale * t.B for c, t in zip(coefficients, terms, strict=True)]
    return LowRank(torch.cat([t.A for t in terms]), torch.cat(weighted, dim=1))


@dataclass(frozen=True, eq=False)
class LoraAdapter(Mapping[Site, LowRank]):
    """A LoRA update of one base model: a mapping from sites to low-rank updates.

    Attributes:
        sites: Ordered by layer and role.
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
                f"the adapter of {self.base_model!r} has no site; it takes at least one module "
                "with both lora_A and lora_B"
            )
        ordered = sorted(self.sites.items(), key=lambda item: item[0].sort_key)
        for site, update in ordered:
            if not math.isfinite(update.scale):
                raise AdapterError(
                    f"the adapter of {self.base_model!r} has the scale {update.scale} at "
                    f"{site.module_name}; an adapter takes a finite one: correct lora_alpha"
                )
            for name, factor in (("lora_A", update.A), ("lora_B", update.B)):
                if not torch.isfinite(factor).all():
                    bad = int((~torch.isfinite(factor)).sum())
                    raise AdapterError(
                        f"the adapter of {self.base_model!r} has {bad} NaN or infinite entries in "
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
        """Return the SHA-256 of sites, scales, factors and their dtypes."""
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


def _energy_shares(adapter: LoraAdapter) -> Float[Tensor, " sites"]:
    energies = torch.tensor([u.inner(u) for u in adapter.values()], dtype=torch.float64)
    total = float(energies.sum())
    return energies / total if total > 0 else energies


def effective_rank(adapter: LoraAdapter) -> float:
    """Return ``exp(H)`` of the updates' singular values, the mean over sites.

    H is the entropy of a site's singular values divided by their sum; sites are weighted by their
    squared norm. 0 for an adapter of zeros. Source: Roy and Vetterli, The effective rank, 2007.
    """
    ranks = torch.zeros(len(adapter), dtype=torch.float64)
    for index, update in enumerate(adapter.values()):
        sigma = update.factors_svd()[1]
        if sigma.sum() > 0:
            ranks[index] = torch.special.entr(sigma / sigma.sum()).sum().exp()
    return float((_energy_shares(adapter) * ranks).sum())


def concentration(adapter: LoraAdapter) -> float:
    """Return the sum of squares of the sites' shares of the squared norm (Herfindahl's index).

    From ``1 / sites``, where all have the same share, to 1. 0 for an adapter of zeros.
    """
    return float(_energy_shares(adapter).square().sum())


def mean_cosine(adapter: LoraAdapter, others: Sequence[LoraAdapter]) -> float:
    """Return the mean cosine of an adapter's update with those of others; NaN without others."""
    cosines = [cosine(adapter, other) for other in others]
    return sum(cosines) / len(cosines) if cosines else math.nan


def span_share(adapter: LoraAdapter, others: Sequence[LoraAdapter]) -> float:
    """Return the share of an adapter's squared norm in the span of others.

    With one weight for each of the others, the same at all sites: ``g^T G^+ g / |D|^2``, G being
    their Gram matrix and g their inner products with the adapter D. 0 without others, or for zeros.
    """
    norm = adapter.inner(adapter)
    if not others or norm <= 0:
        return 0.0
    gram = torch.zeros(len(others), len(others), dtype=torch.float64)
    for row, one in enumerate(others):
        for column, other in enumerate(others[: row + 1]):
            gram[row, column] = gram[column, row] = one.inner(other)
    inner = torch.tensor([adapter.inner(other) for other in others], dtype=torch.float64)
    # Smaller eigenvalues are rounding.
    inverse = torch.linalg.pinv(gram, rtol=1e-10, hermitian=True)
    return min(1.0, float(inner @ inverse @ inner) / norm)
