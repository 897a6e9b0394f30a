"""Sparsifiers: they drop a part of an adapter's update and rescale what is left.

Entries are dropped from the dense update of one site at a time, which is then cut back to a
rank; the loss of that cut is reported. Nothing interferes with an adapter that is used alone, so
that dropping entries can only take from it: these are for adapters that are merged afterwards,
and for comparison with work that reports them.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..exceptions import ConfigurationError
from .adapter import LoraAdapter
from .combined import Combined, CombinedSite, cut, widened
from .dense import low_rank
from .low_rank import LowRank
from .sites import Site


def check_dropped(option: str, p: object) -> None:
    """Refuse a share to drop that is outside of [0, 1).

    Raises:
        ConfigurationError: it is; the message names ``option``.
    """
    if not (isinstance(p, int | float) and 0 <= p < 1):
        raise ConfigurationError(
            f"{option} is {p!r}, but it is the share that is dropped and takes a number from 0 "
            "up to, but not including, 1; try 0.9"
        )


def dropped_at_random(
    delta: Float[Tensor, "out in"], p: float, seed: int, site: Site, place: int = 0
) -> Float[Tensor, "out in"]:
    """Return a dense update with each entry set to 0 with probability ``p``.

    The draw depends on ``seed``, the site and the adapter's ``place`` among those that are
    combined alone: not on which other sites there are, nor on their order.
    """
    digest = hashlib.sha256(f"{seed} {place} {site.label}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
    kept = torch.rand(delta.shape, generator=generator) >= p
    return delta * kept.to(delta.device)


def largest(delta: Float[Tensor, "out in"], share: float) -> Float[Tensor, "out in"]:
    """Return a dense update with all but the ``share`` of entries largest in size set to 0.

    At least one entry stays; those as large as the smallest that stays do so too.
    """
    sizes = delta.abs().flatten()
    count = max(1, round(share * sizes.numel()))
    threshold = sizes.kthvalue(sizes.numel() - count + 1).values
    return torch.where(delta.abs() >= threshold, delta, 0.0)


class Kept(NamedTuple):
    """How much of an update is kept: the share of entries asked for, and of the squared norm."""

    share: float
    energy: float


RESCALES: dict[str, Callable[[Kept], float]] = {
    "none": lambda kept: 1.0,
    "inverse_keep": lambda kept: 1 / kept.share,
    "norm": lambda kept: kept.energy**-0.5,
    "projection": lambda kept: 1 / kept.energy,
}
"""What the entries that :class:`Magnitude` keeps are multiplied by."""


@runtime_checkable
class Sparsifier(Protocol):
    """Drops a part of an adapter."""

    def __call__(
        self, adapter: LoraAdapter, rank: int | None = None, *, place: int = 0
    ) -> Combined:
        """Sparsify every site.

        Args:
            adapter: Whose updates are sparsified.
            rank: To which each is cut back; None: to the rank that it had.
            place: Of the adapter among those that are sparsified and then merged: two of them
                must not lose the same entries by the same draw.
        """
        ...


@dataclass(frozen=True)
class Dare:
    """Drops entries of the update at random and divides the rest by ``1 - p``: unbiased.

    Entries of the update itself, not of its factors: dropping entries of A and B independently
    leaves a share (1 - p)^2 of their products. For a rank-8 update of 768 x 768 at p = 0.9, the
    cosine to the update is 0.86 for entries of the update, cut back to rank 8, and 0.095 at 9.7
    times the norm for entries of the factors.

    Source: Yu et al., 2024 (DARE, arXiv 2311.03099). It fails where updates are large and p is
    high (Deng et al., 2024, arXiv 2410.09344).

    Attributes:
        p: Probability that an entry is dropped, in [0, 1); at 0 the adapter comes back as it is.
        seed: Of the draws, one for each site.

    Raises:
        ConfigurationError: p is out of its range.
    """

    p: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        check_dropped("sparsify.p", self.p)

    def __call__(
        self, adapter: LoraAdapter, rank: int | None = None, *, place: int = 0
    ) -> Combined:
        """Sparsify every site, cut back to ``rank``; None: to the rank that it had."""
        if self.p == 0:
            return cut(adapter, rank)

        def sparse(site: Site, delta: Tensor) -> tuple[Tensor, float]:
            return dropped_at_random(delta, self.p, self.seed, site, place), 1 / (1 - self.p)

        return _each_site(adapter, rank, sparse)


@dataclass(frozen=True)
class Magnitude:
    """Keeps the entries of the update that are largest in size, site by site, and rescales them.

    The largest entries hold most of the energy: of Gaussian entries, the tenth that p = 0.9
    keeps holds 0.44. Dividing them by ``1 - p``, which is right for a random choice, therefore
    makes the update along its own direction 4.4 times as large; a sweep over p then sweeps the
    scale (3.3 times at 0.8, 8.4 times at 0.99).

    Attributes:
        p: Share of entries that is dropped, in [0, 1); at 0 the adapter comes back as it is.
        rescale: One of :data:`RESCALES`. ``none``; ``inverse_keep``, 1 / (1 - p);
            ``norm``, |D| / |kept|, which keeps the norm; ``projection``, |D|^2 / |kept|^2, which
            keeps the inner product with D, and so the effect along the update itself.

    Raises:
        ConfigurationError: p is out of its range, or there is no such rescale.
    """

    p: float = 0.9
    rescale: str = "projection"

    def __post_init__(self) -> None:
        check_dropped("sparsify.p", self.p)
        if self.rescale not in RESCALES:
            raise ConfigurationError(
                f"sparsify.rescale is {self.rescale!r}, it takes one of {', '.join(RESCALES)}"
            )

    def __call__(
        self, adapter: LoraAdapter, rank: int | None = None, *, place: int = 0
    ) -> Combined:
        """Sparsify every site, cut back to ``rank``; None: to the rank that it had."""
        if self.p == 0:
            return cut(adapter, rank)

        def sparse(_site: Site, delta: Tensor) -> tuple[Tensor, float]:
            kept = largest(delta, 1 - self.p)
            return kept, RESCALES[self.rescale](Kept(1 - self.p, _energy(kept) / _energy(delta)))

        return _each_site(adapter, rank, sparse)


@dataclass(frozen=True)
class DropComponents:
    """Drops the rank-one components of the update with the smallest singular values.

    Exact and without a dense matrix: the nearest update of the rank that is left.

    Attributes:
        p: Share of components that is dropped, in [0, 1): of r, ``ceil((1 - p) r)`` are kept; at
            0 the adapter comes back as it is.

    Raises:
        ConfigurationError: p is out of its range.
    """

    p: float = 0.9

    def __post_init__(self) -> None:
        check_dropped("sparsify.p", self.p)

    def __call__(
        self, adapter: LoraAdapter, rank: int | None = None, *, place: int = 0
    ) -> Combined:
        """Keep the leading components of every site, at most ``rank`` of them.

        The lost energy is that of the components that are dropped.
        """
        if self.p == 0:
            return cut(adapter, rank)
        sites = {}
        for site, update in adapter.items():
            # Rounded first: (1 - 0.7) * 10 is a little more than 3.
            kept = math.ceil(round((1 - self.p) * min(update.rank, *update.shape), 9))
            kept = kept if rank is None else min(kept, rank)
            near, lost = widened(update).truncated(kept)
            sites[site] = CombinedSite(near, lost, {"components": kept, "kept_energy": 1 - lost})
        return Combined.of(sites, adapter.base_model)


def _energy(matrix: Float[Tensor, "out in"]) -> float:
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2


def _each_site(
    adapter: LoraAdapter,
    rank: int | None,
    sparse: Callable[[Site, Tensor], tuple[Tensor, float]],
) -> Combined:
    """Apply ``sparse``, which gives what is kept and its factor; one site is dense at a time."""
    sites = {site: _sparse_site(site, update, rank, sparse) for site, update in adapter.items()}
    return Combined.of(sites, adapter.base_model)


def _sparse_site(
    site: Site,
    update: LowRank,
    rank: int | None,
    sparse: Callable[[Site, Tensor], tuple[Tensor, float]],
) -> CombinedSite:
    wide = widened(update)
    delta = wide.dense()
    total = _energy(delta)
    if total == 0:
        return CombinedSite(update)
    kept, factor = sparse(site, delta)
    near, lost = low_rank(kept * factor, update.rank if rank is None else rank)
    norms = near.norm() * wide.norm()
    notes = {
        "kept_share": int(kept.count_nonzero()) / kept.numel(),
        "kept_energy": _energy(kept) / total,
        "rescale": factor,
        "cosine": near.inner(wide) / norms if norms > 0 else 0.0,
    }
    return CombinedSite(near, lost, notes)
