"""Several adapters of the same sites and ranks, stacked for batched algebra."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..exceptions import AdapterError
from .lora import LoraAdapter, LowRank, Site


@dataclass(frozen=True, eq=False)
class StackedSite:
    """The factors of one site in several adapters, in float32, scales folded into B."""

    A: Float[Tensor, "adapters rank in"]
    B: Float[Tensor, "adapters out rank"]

    def __len__(self) -> int:
        return self.A.shape[0]

    def low_rank(self, index: int) -> LowRank:
        """Return the update of one adapter."""
        return LowRank(self.A[index], self.B[index])

    def delta_gram(self, other: "StackedSite") -> Float[Tensor, "adapters others"]:
        """Return all inner products of the updates, ``<B_i A_i, B_j A_j>``, in float64.

        Exact by r x r Grams, ``sum((B_i^T B_j) * (A_i A_j^T))``; the gauge of the factors cancels.
        """
        left = torch.einsum("ior,jos->ijrs", self.B.double(), other.B.double())
        right = torch.einsum("irx,jsx->ijrs", self.A.double(), other.A.double())
        return (left * right).sum(dim=(-2, -1))

    def factor_gram(self, other: "StackedSite") -> Float[Tensor, "adapters others"]:
        """Return all inner products of the flattened factors, ``<A_i, A_j> + <B_i, B_j>``."""
        a = self.A.double().flatten(1) @ other.A.double().flatten(1).mT
        return a + self.B.double().flatten(1) @ other.B.double().flatten(1).mT

    @cached_property
    def _bases(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """QR of all columns of B, and of all rows of A: the same for every sum over the stack."""
        b = self.B.double().transpose(0, 1).flatten(1)
        a = self.A.double().flatten(0, 1)
        return *torch.linalg.qr(b), *torch.linalg.qr(a.mT)

    def delta_sum(self, coefficients: Float[Tensor, " adapters"], rank: int) -> LowRank:
        """Return ``sum_i c_i B_i A_i``, cut to the nearest update of ``rank``."""
        q_b, r_b, q_a, r_a = self._bases
        weights = coefficients.double().repeat_interleave(self.A.shape[1])
        core = LowRank(r_a.mT, r_b * weights).truncated(rank).matrix
        return LowRank(core.A @ q_a.mT, q_b @ core.B).to(self.A.dtype)

    def factor_sum(self, coefficients: Float[Tensor, " adapters"]) -> LowRank:
        """Return the update whose factors are ``sum_i c_i A_i`` and ``sum_i c_i B_i``."""
        weights = coefficients.to(self.A.dtype)
        return LowRank(
            torch.einsum("i,irx->rx", weights, self.A), torch.einsum("i,ior->or", weights, self.B)
        )


class AdapterStack(Mapping[Site, StackedSite]):
    """Several adapters of one base model with the same sites and ranks.

    Raises:
        AdapterError: two of the adapters differ in their sites, or in the shape of one.
    """

    def __init__(self, sites: Mapping[Site, StackedSite]) -> None:
        self._sites = dict(sorted(sites.items(), key=lambda item: item[0].sort_key))

    @classmethod
    def of(cls, adapters: Mapping[str, LoraAdapter]) -> "AdapterStack":
        """Stack adapters; error messages call them by their names."""
        (first_name, first), *others = adapters.items()
        for name, adapter in others:
            _check_same_shapes(first_name, first, name, adapter)
        sites = {}
        for site in first:
            updates = [adapter[site] for adapter in adapters.values()]
            a = torch.stack([update.A.float() for update in updates])
            sites[site] = StackedSite(
                a, torch.stack([update.scale * update.B.float() for update in updates])
            )
        return cls(sites)

    def __getitem__(self, site: Site) -> StackedSite:
        return self._sites[site]

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    @property
    def adapters(self) -> int:
        """The number of stacked adapters."""
        return len(next(iter(self._sites.values())))

    def select(self, indices: Int[Tensor, " chosen"] | Sequence[int]) -> "AdapterStack":
        """Return the stack of some of the adapters, in the given order."""
        chosen = torch.as_tensor(indices, dtype=torch.long)
        return AdapterStack(
            {site: StackedSite(s.A[chosen], s.B[chosen]) for site, s in self._sites.items()}
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return every factor under a name such as ``3.q.A``, for a checkpoint."""
        return {
            f"{site.label}.{name}": factor
            for site, s in self._sites.items()
            for name, factor in (("A", s.A), ("B", s.B))
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "AdapterStack":
        """Return the stack that :meth:`tensors` came from."""
        labels = dict.fromkeys(name.rpartition(".")[0] for name in tensors)
        return cls(
            {
                Site.from_label(label): StackedSite(tensors[f"{label}.A"], tensors[f"{label}.B"])
                for label in labels
            }
        )


def _check_same_shapes(name: str, one: LoraAdapter, other_name: str, other: LoraAdapter) -> None:
    for site in sorted({*one, *other}, key=lambda site: site.sort_key):
        found, expected = (
            f"rank {adapter[site].rank} and shape {adapter[site].shape}"
            if site in adapter
            else "nothing"
            for adapter in (other, one)
        )
        if found != expected:
            raise AdapterError(
                f"adapter {other_name} has {found} at {site.module_name}, but adapter {name} has "
                f"{expected}; the adapters of one model in a zoo take the same sites and ranks: "
                "train them with one recipe or leave one out by tasks.names"
            )
