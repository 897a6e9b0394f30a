"""Dropping a part of an adapter's updates, and cutting updates back to a low rank.

Entries are dropped from the dense update of one site at a time, which is then cut back to a rank;
the energy lost by that cut is reported. An adapter that is used alone only loses by dropping
entries: sparsifiers are for adapters that are merged afterwards, and for comparison with work that
reports them.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..alignment.svd import randomised_svd
from ..exceptions import ConfigurationError
from .lora import LoraAdapter, LowRank, Site, Truncation

# Up to this many rows or columns, whichever are fewer, the cut of a dense update is exact.
EXACT_UP_TO = 1024
# The singular values of a sparsified update fall off slowly.
_OVERSAMPLING = 32
_POWER_ITERATIONS = 4


class CombinedSite(NamedTuple):
    """One site of a processed adapter."""

    matrix: LowRank
    lost_energy: float = 0.0  # share of the squared norm that the cut back to a rank lost
    notes: Mapping[str, float] = {}  # for the report, such as the share of entries kept


class Combined(NamedTuple):
    """A processed adapter with the losses and figures of each site, as :class:`CombinedSite`.

    Factors that had to be computed are in float32 at least, whatever the inputs were in, so that
    nothing is rounded before it is written.
    """

    adapter: LoraAdapter
    lost_energy: dict[Site, float]
    notes: dict[Site, dict[str, float]]

    @classmethod
    def of(cls, sites: Mapping[Site, CombinedSite], base_model: str) -> "Combined":
        """Gather the processed sites of an adapter."""
        adapter = LoraAdapter({site: done.matrix for site, done in sites.items()}, base_model)
        return cls(
            adapter,
            {site: sites[site].lost_energy for site in adapter},
            {site: dict(sites[site].notes) for site in adapter},
        )

    @property
    def total_lost_energy(self) -> float:
        """Share of the squared norm over all sites that the cuts back to a rank lost."""
        lost = before = 0.0
        for site, share in self.lost_energy.items():
            after = self.adapter[site].norm() ** 2
            # Of a site that lost everything it is not known how much that was.
            whole = after / (1 - share) if share < 1 else 0.0
            lost, before = lost + share * whole, before + whole
        return lost / before if before > 0 else 0.0


def widened(update: LowRank) -> LowRank:
    """Return the update with its factors in float32, or in float64 where one is in it."""
    common = torch.promote_types(update.A.dtype, update.B.dtype)
    return update.to(torch.promote_types(common, torch.float32))


def cut_site(update: LowRank, rank: int | None) -> CombinedSite:
    """Return an update cut to at most ``rank``; itself where its rank is not above that."""
    if rank is None or update.rank <= rank:
        return CombinedSite(update)
    return CombinedSite(*widened(update).truncated(rank))


def cut(adapter: LoraAdapter, rank: int | None) -> Combined:
    """Return an adapter cut to at most ``rank``; itself where no site's rank is above that."""
    sites = {site: cut_site(update, rank) for site, update in adapter.items()}
    combined = Combined.of(sites, adapter.base_model)
    same = all(sites[site].matrix is adapter[site] for site in adapter)
    return combined._replace(adapter=adapter) if same else combined


def low_rank(matrix: Float[Tensor, "out in"], rank: int) -> Truncation:
    """Return the nearest update of at most ``rank`` to a dense one, with the energy it loses.

    A matrix whose smaller side is at most :data:`EXACT_UP_TO` is cut exactly, through the
    eigenvectors of its smaller Gram matrix in float64; a larger one by a randomised SVD from a
    fixed seed. The lost energy, ``1 - sum sigma^2 / |M|^2``, is that of the result as it is: it
    counts what the randomisation missed.

    Returns:
        Balanced canonical factors as of :meth:`LowRank.truncated`, in the matrix's dtype, and
        the share of the squared norm that is lost.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    if wide.shape[0] <= EXACT_UP_TO:
        exact = wide.double()
        basis = torch.linalg.eigh(exact @ exact.mT).eigenvectors.flip(1)[:, :rank]
    else:
        basis = randomised_svd(
            wide, rank, oversampling=_OVERSAMPLING, power_iterations=_POWER_ITERATIONS
        ).U
    image = (basis.mT @ wide.to(basis.dtype)).double()
    basis = basis.double()
    near = LowRank(image, basis) if wide is matrix else LowRank(basis.mT, image.mT)
    truncated = near.truncated(rank).matrix
    total = energy(matrix)
    lost = max(0.0, 1 - truncated.norm() ** 2 / total) if total > 0 else 0.0
    return Truncation(truncated.to(matrix.dtype), lost)


def energy(matrix: Float[Tensor, "out in"]) -> float:
    """Return the squared Frobenius norm, summed in float64."""
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2


def check_dropped(option: str, p: object) -> None:
    """Raise a ConfigurationError that names ``option`` where a share is outside of [0, 1)."""
    if not (isinstance(p, int | float) and 0 <= p < 1):
        raise ConfigurationError(
            f"{option} is {p!r}, but it is the share that is dropped and takes a number from 0 "
            "up to, but not including, 1; try 0.9"
        )


def dropped_at_random(
    delta: Float[Tensor, "out in"], p: float, seed: int, site: Site, index: int = 0
) -> Float[Tensor, "out in"]:
    """Return a dense update with each entry set to 0 with probability ``p``.

    The draw depends on ``seed``, the site and the adapter's ``index`` among those that are combined
    alone: not on which other sites there are, nor on their order.
    """
    digest = hashlib.sha256(f"{seed} {index} {site.label}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
    kept = torch.rand(delta.shape, generator=generator) >= p
    return delta * kept.to(delta.device)


def largest(delta: Float[Tensor, "out in"], share: float) -> Float[Tensor, "out in"]:
    """Return a dense update with the ``share`` of entries largest in size kept, the others 0.

    At least one entry is kept, and so are all that are as large as the smallest kept.
    """
    sizes = delta.abs().flatten()
    count = max(1, round(share * sizes.numel()))
    threshold = sizes.kthvalue(sizes.numel() - count + 1).values
    return torch.where(delta.abs() >= threshold, delta, 0.0)


@dataclass(frozen=True)
class Sparsifier(ABC):
    """Drops the share p of every update of an adapter; at 0 the adapter comes back as it is.

    Raises:
        ConfigurationError: p is not in [0, 1).
    """

    p: float = 0.9

    def __post_init__(self) -> None:
        check_dropped("sparsify.p", self.p)

    def __call__(
        self, adapter: LoraAdapter, rank: int | None = None, *, index: int = 0
    ) -> Combined:
        """Sparsify every site, and cut it back to ``rank`` or to the rank that it had.

        ``index`` is the adapter's among those that are sparsified and then merged: two of them must
        not lose the same entries by the same draw.
        """
        if self.p == 0:
            return cut(adapter, rank)
        sites = {site: self.sparsify(site, update, rank, index) for site, update in adapter.items()}
        return Combined.of(sites, adapter.base_model)

    @abstractmethod
    def sparsify(self, site: Site, update: LowRank, rank: int | None, index: int) -> CombinedSite:
        """Sparsify one site."""


class EntrySparsifier(Sparsifier):
    """Drops entries of the dense update and multiplies the others by a factor."""

    def sparsify(self, site: Site, update: LowRank, rank: int | None, index: int) -> CombinedSite:
        """Drop entries, cut back to ``rank``, and note what is left of the update."""
        wide = widened(update)
        delta = wide.dense()
        total = energy(delta)
        if total == 0:
            return CombinedSite(update)
        kept, factor = self.kept(site, delta, index)
        near, lost = low_rank(kept * factor, update.rank if rank is None else rank)
        norms = near.norm() * wide.norm()
        notes = {
            "kept_share": int(kept.count_nonzero()) / kept.numel(),
            "kept_energy": energy(kept) / total,
            "rescale": factor,
            "cosine": near.inner(wide) / norms if norms > 0 else 0.0,
        }
        return CombinedSite(near, lost, notes)

    @abstractmethod
    def kept(
        self, site: Site, delta: Float[Tensor, "out in"], index: int
    ) -> tuple[Float[Tensor, "out in"], float]:
        """Return the update with some entries set to 0, and the factor of the others."""


@dataclass(frozen=True)
class Dare(EntrySparsifier):
    """Drops entries of the update at random and divides the rest by ``1 - p``: unbiased.

    Entries of the update itself, not of its factors: dropping entries of A and B independently
    leaves a share (1 - p)^2 of their products. For a rank-8 update of 768 x 768 at p = 0.9, the
    cosine to the update is 0.86 for entries of the update, cut back to rank 8, and 0.095 at 9.7
    times the norm for entries of the factors.

    Source: Yu et al., 2024 (DARE, arXiv 2311.03099). It fails where updates are large and p is
    high (Deng et al., 2024, arXiv 2410.09344).
    """

    seed: int = 0

    def kept(
        self, site: Site, delta: Float[Tensor, "out in"], index: int
    ) -> tuple[Float[Tensor, "out in"], float]:
        """Keep a random choice of entries."""
        return dropped_at_random(delta, self.p, self.seed, site, index), 1 / (1 - self.p)


RESCALES = ("none", "inverse_keep", "norm", "projection")
"""How :class:`Magnitude` may rescale the entries that it keeps."""


@dataclass(frozen=True)
class Magnitude(EntrySparsifier):
    """Keeps the entries of the update that are largest in size, site by site, and rescales them.

    The largest entries hold most of the energy: of Gaussian entries, the tenth that p = 0.9
    keeps holds 0.44. Dividing them by ``1 - p``, which is right for a random choice, therefore
    makes the update along its own direction 4.4 times as large; a sweep over p then sweeps the
    scale (3.3 times at 0.8, 8.4 times at 0.99).

    Attributes:
        rescale: ``none``; ``inverse_keep``, 1 / (1 - p); ``norm``, |D| / |kept|, which keeps the
            norm; ``projection``, |D|^2 / |kept|^2, which keeps the inner product with D, and so
            the effect along the update itself.

    Raises:
        ConfigurationError: p is out of its range, or there is no such rescale.
    """

    rescale: str = "projection"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rescale not in RESCALES:
            raise ConfigurationError(
                f"sparsify.rescale is {self.rescale!r}, it takes one of {', '.join(RESCALES)}"
            )

    def kept(
        self, site: Site, delta: Float[Tensor, "out in"], index: int
    ) -> tuple[Float[Tensor, "out in"], float]:
        """Keep the largest entries."""
        kept = largest(delta, 1 - self.p)
        share = energy(kept) / energy(delta)
        factors = (1.0, 1 / (1 - self.p), share**-0.5, 1 / share)
        return kept, dict(zip(RESCALES, factors, strict=True))[self.rescale]


@dataclass(frozen=True)
class DropComponents(Sparsifier):
    """Drops the share p of rank-one components of the update with the smallest singular values.

    Of r components ``ceil((1 - p) r)`` are kept. Exact and without a dense matrix: the nearest
    update of the rank that is left. The lost energy is that of the dropped components.
    """

    def sparsify(self, site: Site, update: LowRank, rank: int | None, index: int) -> CombinedSite:
        """Keep the leading components, at most ``rank`` of them."""
        # Rounded first: (1 - 0.7) * 10 is a little more than 3.
        kept = math.ceil(round((1 - self.p) * min(update.rank, *update.shape), 9))
        kept = kept if rank is None else min(kept, rank)
        near, lost = widened(update).truncated(kept)
        return CombinedSite(near, lost, {"components": kept, "kept_energy": 1 - lost})
