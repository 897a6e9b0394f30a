"""What sparsifying or combining adapters gives: an adapter, and what was lost on the way."""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..alignment.svd import randomised_svd
from ..exceptions import ConfigurationError
from .lora import LoraAdapter, LowRank, Site, Truncation


class CombinedSite(NamedTuple):
    """One site of a processed adapter.

    Attributes:
        matrix: The processed update.
        lost_energy: Share of its squared norm that the cut back to a rank lost.
        notes: What was found on the way, such as the share of entries kept.
    """

    matrix: LowRank
    lost_energy: float = 0.0
    notes: Mapping[str, float] = {}


class Combined(NamedTuple):
    """A processed adapter with what was lost and found at each site.

    Attributes:
        adapter: The result. Factors that had to be computed are in float32 at least, whatever
            the inputs were in, so that nothing is rounded before it is written.
        lost_energy: Share of the squared norm of each site's processed update that the cut back
            to a rank lost; 0 where the result is exact.
        notes: What was found at each site, by name; a site where nothing was done has none.
    """

    adapter: LoraAdapter
    lost_energy: dict[Site, float]
    notes: dict[Site, dict[str, float]]

    @classmethod
    def of(cls, sites: Mapping[Site, CombinedSite], base_model: str) -> "Combined":
        """Gather the processed sites of an adapter of ``base_model``."""
        adapter = LoraAdapter({site: done.matrix for site, done in sites.items()}, base_model)
        return cls.around(adapter, sites)

    @property
    def total_lost_energy(self) -> float:
        """Share of the squared norm over all sites that the cuts back to a rank lost."""
        lost = before = 0.0
        for site, share in self.lost_energy.items():
            after = self.adapter[site].norm() ** 2
            # A site that lost everything has nothing left to tell how much that was.
            whole = after / (1 - share) if share < 1 else 0.0
            lost, before = lost + share * whole, before + whole
        return lost / before if before > 0 else 0.0

    @classmethod
    def around(cls, adapter: LoraAdapter, sites: Mapping[Site, CombinedSite]) -> "Combined":
        """Put what was lost and found beside an adapter that is there already."""
        return cls(
            adapter,
            {site: sites[site].lost_energy for site in adapter},
            {site: dict(sites[site].notes) for site in adapter},
        )


def widened(update: LowRank) -> LowRank:
    """Return the update with its factors in float32, or in float64 where one is in it."""
    common = torch.promote_types(update.A.dtype, update.B.dtype)
    return update.to(torch.promote_types(common, torch.float32))


def cut_site(update: LowRank, rank: int | None) -> CombinedSite:
    """Return an update cut to at most ``rank``; itself, untouched, where it is not above it."""
    if rank is None or update.rank <= rank:
        return CombinedSite(update)
    return CombinedSite(*widened(update).truncated(rank))


def cut(adapter: LoraAdapter, rank: int | None) -> Combined:
    """Return an adapter cut to at most ``rank``; itself, untouched, where no site is above it."""
    sites = {site: cut_site(update, rank) for site, update in adapter.items()}
    if all(sites[site].matrix is adapter[site] for site in adapter):
        return Combined.around(adapter, sites)
    return Combined.of(sites, adapter.base_model)


# From a dense update back to a low-rank one: the nearest of a rank, and what it loses.

# Up to this many rows or columns, whichever are fewer, the cut is exact.
EXACT_UP_TO = 1024
# A thinned update falls off slowly behind its leading singular values.
_OVERSAMPLING = 32
_POWER_ITERATIONS = 4


def low_rank(matrix: Float[Tensor, "out in"], rank: int) -> Truncation:
    """Return the nearest update of at most ``rank`` to a dense one, with the energy it loses.

    A matrix whose smaller side is at most :data:`EXACT_UP_TO` is cut exactly, through the
    eigenvectors of its smaller Gram matrix in float64; a larger one by a randomised SVD from a
    fixed seed. The lost energy, ``1 - sum sigma^2 / |M|^2``, is that of the result as it is: it
    counts what the randomisation missed.

    Args:
        matrix: The update of one site.
        rank: Columns of the result; zeros where the matrix has fewer singular values.

    Returns:
        Balanced canonical factors as of :meth:`LowRank.truncated`, in the matrix's dtype, and
        the share of the squared norm that is lost.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    basis = _leading(wide, rank)
    image = (basis.mT @ wide.to(basis.dtype)).double()
    if wide is matrix:
        near = LowRank(image, basis.double())
    else:
        near = LowRank(basis.mT.double(), image.mT)
    cut = near.truncated(rank).matrix
    total = float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
    lost = max(0.0, 1 - cut.norm() ** 2 / total) if total > 0 else 0.0
    return Truncation(cut.to(matrix.dtype), lost)


def _leading(wide: Float[Tensor, "out in"], count: int) -> Float[Tensor, "out k"]:
    """Return the leading left singular vectors, all there are where ``count`` is more."""
    if wide.shape[0] <= EXACT_UP_TO:
        exact = wide.double()
        return torch.linalg.eigh(exact @ exact.mT).eigenvectors.flip(1)[:, :count]
    return randomised_svd(
        wide, count, oversampling=_OVERSAMPLING, power_iterations=_POWER_ITERATIONS
    ).U


# Sparsifiers: they drop a part of an adapter's update and rescale what is left.
#
# Entries are dropped from the dense update of one site at a time, which is then cut back to a
# rank; the loss of that cut is reported. Nothing interferes with an adapter that is used alone, so
# that dropping entries can only take from it: these are for adapters that are merged afterwards,
# and for comparison with work that reports them.


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
