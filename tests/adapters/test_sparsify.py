import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from loraport.adapters import LoraAdapter, LowRank, Role, Site, cosine, sparsify
from loraport.adapters.sparsify import (
    Dare,
    DropComponents,
    Magnitude,
    Sparsifier,
    cut,
    dropped_at_random,
    largest,
    low_rank,
)
from loraport.exceptions import ConfigurationError

Q, V, DOWN = Site(0, Role.Q), Site(1, Role.V), Site(1, Role.DOWN)
SHAPES = {Q: (30, 24), V: (12, 24), DOWN: (24, 40)}
SPARSIFIERS: list[Callable[[float], Sparsifier]] = [
    lambda p: Dare(p, seed=3),
    Magnitude,
    DropComponents,
]
each = pytest.mark.parametrize("make", SPARSIFIERS, ids=["dare", "magnitude", "components"])


def drawn(
    ranks: dict[Site, int] | int = 4,
    sites: tuple[Site, ...] = (Q, V, DOWN),
    dtype: torch.dtype = torch.float32,
) -> LoraAdapter:
    updates = {}
    for site in sites:
        generator = torch.Generator().manual_seed(list(SHAPES).index(site))
        rank = ranks if isinstance(ranks, int) else ranks[site]
        out, in_ = SHAPES[site]
        a = torch.randn(rank, in_, generator=generator).to(dtype)
        updates[site] = LowRank(a, torch.randn(out, rank, generator=generator).to(dtype), 0.5)
    return LoraAdapter(updates, "some/base", {"r": 4})


def best_of_rank(matrix: Tensor, rank: int) -> tuple[NDArray[np.float64], float]:
    """The nearest matrix of a rank, and the share of the squared norm that it loses."""
    u, sigma, vt = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    lost = float((sigma[rank:] ** 2).sum() / (sigma**2).sum())
    return (u[:, :rank] * sigma[:rank]) @ vt[:rank], lost


def test_cut_returns_what_is_not_above_the_rank_itself() -> None:
    adapter = drawn()
    for rank in (None, 4):
        result = cut(adapter, rank)
        assert result.adapter is adapter
        assert result.lost_energy == dict.fromkeys(adapter, 0.0)


@pytest.mark.parametrize(
    ("dtype", "wide"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)]
)
def test_cut_cuts_only_what_is_above_the_rank_in_float32_at_least(
    dtype: torch.dtype, wide: torch.dtype
) -> None:
    adapter = drawn({Q: 4, V: 2}, (V, Q), dtype)
    result = cut(adapter, 2)
    assert list(result.adapter) == list(result.lost_energy) == [Q, V]
    assert result.adapter[V] is adapter[V]
    best, lost = best_of_rank(adapter[Q].to(torch.float64).dense(), 2)
    assert result.adapter[Q].A.dtype == wide
    np.testing.assert_allclose(result.adapter[Q].dense(), best, atol=1e-4)
    assert result.lost_energy == {Q: pytest.approx(lost, rel=1e-5), V: 0.0}
    assert lost > 0.01


# (out, in, rank); the last two have more columns than singular values.
SMALL = [((7, 5), 1), ((4, 9), 3), ((6, 6), 5), ((3, 5), 7), ((1, 1), 3)]
# Cut by a randomised SVD where the limit is as below.
LARGE = [(106, 176), (176, 106)]


@pytest.fixture
def few_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparsify, "EXACT_UP_TO", 100)


def drawn_dense(
    shape: tuple[int, int], dtype: torch.dtype = torch.float64, seed: int = 0
) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def thinned(shape: tuple[int, int], rank: int = 8) -> Tensor:
    """An update of low rank with a tenth of its entries left: a slow tail behind the first."""
    product = drawn_dense((shape[0], rank), seed=1) @ drawn_dense((rank, shape[1]), seed=2)
    kept = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.1
    return (product * kept / 0.1).float()


@pytest.mark.parametrize(("shape", "rank"), SMALL)
def test_low_rank_is_the_nearest_and_says_what_it_loses(shape: tuple[int, int], rank: int) -> None:
    matrix = drawn_dense(shape)
    near, lost = low_rank(matrix, rank)
    best, best_lost = best_of_rank(matrix, rank)
    np.testing.assert_allclose(near.dense(), best, atol=1e-9)
    assert lost == pytest.approx(best_lost, abs=1e-12)
    assert (near.rank, near.scale) == (rank, 1.0)
    torch.testing.assert_close(near.B.mT @ near.B, near.A @ near.A.mT, rtol=1e-6, atol=1e-6)


@pytest.mark.usefixtures("few_are_exact")
@pytest.mark.parametrize("shape", LARGE)
def test_a_large_one_is_as_near_as_makes_no_difference(shape: tuple[int, int]) -> None:
    matrix = thinned(shape)
    before = torch.get_rng_state()
    near, lost = low_rank(matrix, 8)
    again = low_rank(matrix, 8).matrix
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(near.A, again.A)
    assert torch.equal(near.B, again.B)
    best = best_of_rank(matrix, 8)[1]
    assert best <= lost + 1e-7 <= best + 1e-4
    assert best > 0.4
    error = (matrix - near.dense()).double().norm() / matrix.double().norm()
    assert float(error**2) == pytest.approx(lost, abs=1e-5)


@pytest.mark.usefixtures("few_are_exact")
def test_a_large_one_of_low_rank_comes_back_and_zero_loses_nothing() -> None:
    near, lost = low_rank(torch.zeros(4, 6), 2)
    assert (lost, int(near.dense().count_nonzero())) == (0.0, 0)
    update = LowRank(drawn_dense((4, 140)).float(), drawn_dense((110, 4), seed=1).float(), 0.5)
    near, lost = low_rank(update.dense(), 4)
    assert lost < 1e-6
    torch.testing.assert_close(near.dense(), update.dense(), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("few_are_exact")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(6, 8), LARGE[0]])
def test_factors_have_the_dtype_of_the_matrix(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    near = low_rank(drawn_dense(shape, dtype), 2).matrix
    assert (near.A.dtype, near.B.dtype) == (dtype, dtype)


def entrywise_gaussian(side: int = 200) -> LoraAdapter:
    """An update of full rank with Gaussian entries: nothing is lost when it is cut back."""
    entries = torch.randn(side, side, generator=torch.Generator().manual_seed(1))
    return LoraAdapter({Q: LowRank(torch.eye(side), entries)}, "some/base")


@each
def test_nothing_is_dropped_at_zero(make) -> None:
    adapter = drawn()
    assert make(0.0)(adapter).adapter is adapter


@each
@pytest.mark.parametrize("p", [1.0, -0.1, float("nan")])
def test_a_share_out_of_range_is_refused_by_name(make, p: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"sparsify\.p is .*{p}.* 0 up to") as caught:
        make(p)
    assert caught.value.exit_code == 2


def test_an_unknown_rescale_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"sparsify\.rescale is 'l1'.* none, inverse_keep"):
        Magnitude(0.5, "l1")


@each
def test_ranks_are_those_of_the_sites_or_as_requested(make) -> None:
    adapter = drawn()
    own = {site: update.rank for site, update in make(0.5)(adapter).adapter.items()}
    assert own == dict.fromkeys(adapter, 2 if make is DropComponents else 4)
    told = make(0.5)(adapter, rank=1)
    assert {update.rank for update in told.adapter.values()} == {1}
    assert all(0 < lost < 1 for lost in told.lost_energy.values())


@each
def test_a_site_of_zeros_stays_one(make) -> None:
    zero = LowRank(torch.ones(4, 24), torch.zeros(12, 4))
    result = make(0.9)(LoraAdapter({**drawn().sites, V: zero}, "some/base"))
    assert result.adapter[V].dense().count_nonzero() == 0
    assert result.lost_energy[V] == 0.0
    assert result.adapter[Q].dense().count_nonzero() > 0


class TestMasks:
    def test_random_entries_are_kept_at_their_share_and_as_they_are(self) -> None:
        delta = drawn(sites=(Q,))[Q].dense().repeat(20, 20)
        kept = dropped_at_random(delta, 0.9, 0, Q)
        assert float((kept != 0).float().mean()) == pytest.approx(0.1, abs=0.002)
        assert torch.equal(kept[kept != 0], delta[kept != 0])

    def test_draws_differ_by_seed_place_and_site_alone(self) -> None:
        ones = torch.ones(30, 30)
        arguments = [(0, Q, 0), (1, Q, 0), (0, V, 0), (0, Q, 1)]
        draws = [dropped_at_random(ones, 0.5, *given) for given in arguments]
        for one, other in itertools.combinations(draws, 2):
            assert float((one == other).float().mean()) == pytest.approx(0.5, abs=0.1)
        assert torch.equal(dropped_at_random(ones, 0.5, 0, Q), draws[0])

    def test_the_largest_are_kept(self) -> None:
        delta = torch.tensor([[1.0, -5.0, 0.5, 2.0], [-3.0, 0.0, 4.0, -0.1]])
        kept = torch.tensor([[0.0, -5.0, 0.0, 2.0], [-3.0, 0.0, 4.0, 0.0]])
        assert torch.equal(largest(delta, 0.5), kept)
        assert torch.equal(largest(delta, 1.0), delta)
        # Never nothing at all, and no choice among equals.
        assert largest(delta, 0.01).count_nonzero() == 1
        assert torch.equal(largest(torch.ones(2, 2), 0.25), torch.ones(2, 2))


class TestDare:
    def test_it_divides_what_is_kept_and_cuts_back(self) -> None:
        adapter = drawn()
        result = Dare(0.9, seed=5)(adapter)
        for site, update in adapter.items():
            best, lost = best_of_rank(dropped_at_random(update.dense(), 0.9, 5, site) * 10, 4)
            near = result.adapter[site].dense()
            np.testing.assert_allclose(near, best, atol=1e-4)
            assert result.lost_energy[site] == pytest.approx(lost, abs=1e-6)
            assert result.notes[site]["rescale"] == pytest.approx(10)
            assert result.notes[site]["kept_share"] == pytest.approx(0.1, abs=0.05)
            cosine_to = (near.double() * update.dense()).sum() / near.norm() / update.norm()
            assert result.notes[site]["cosine"] == pytest.approx(float(cosine_to), rel=1e-4)

    def test_entries_of_the_update_do_what_entries_of_the_factors_do_not(self) -> None:
        # The toy of the docstring: rank 8, 768 x 768, p = 0.9.
        generator = torch.Generator().manual_seed(0)
        a = torch.randn(8, 768, generator=generator)
        adapter = LoraAdapter({Q: LowRank(a, torch.randn(768, 8, generator=generator))}, "b")
        ours = Dare(0.9)(adapter)
        # Unbiased: along the update itself, what is left of a sum over its entries.
        dense = adapter[Q].dense()
        along = float((dropped_at_random(dense, 0.9, 0, Q) * 10 * dense).sum())
        assert along / adapter[Q].norm() ** 2 == pytest.approx(1, abs=0.02)
        assert cosine(ours.adapter, adapter) == pytest.approx(0.86, abs=0.01)
        assert cosine(Magnitude(0.9)(adapter).adapter, adapter) == pytest.approx(0.89, abs=0.01)
        factors = [
            f * (torch.rand(f.shape, generator=generator) < 0.1) / 0.1
            for f in (adapter[Q].A, adapter[Q].B)
        ]
        factorwise = LoraAdapter({Q: LowRank(factors[0], factors[1])}, "b")
        assert cosine(factorwise, adapter) == pytest.approx(0.1, abs=0.02)
        assert factorwise.norm() / adapter.norm() == pytest.approx(10, abs=0.7)


class TestMagnitude:
    @pytest.mark.parametrize(
        ("p", "energy", "along", "norm"),
        [(0.8, 0.65, 3.3, 4.0), (0.9, 0.44, 4.4, 6.6), (0.99, 0.08, 8.4, 29.0)],
    )
    def test_gains_on_gaussian_entries(
        self, p: float, energy: float, along: float, norm: float
    ) -> None:
        adapter = entrywise_gaussian()
        squared = adapter.inner(adapter)

        def gains(rescale: str) -> tuple[float, float]:
            result = Magnitude(p, rescale)(adapter)
            assert result.lost_energy[Q] == pytest.approx(0, abs=1e-6)
            assert result.notes[Q]["kept_share"] == pytest.approx(1 - p, abs=1e-5)
            assert result.notes[Q]["kept_energy"] == pytest.approx(energy, abs=0.01)
            sparse = result.adapter
            return sparse.inner(adapter) / squared, sparse.norm() / adapter.norm()

        assert gains("inverse_keep") == pytest.approx((along, norm), rel=0.05)
        assert gains("none") == pytest.approx((energy, energy**0.5), rel=0.07)
        assert gains("norm")[1] == pytest.approx(1, abs=1e-5)
        assert gains("projection")[0] == pytest.approx(1, abs=1e-5)

    def test_it_keeps_the_largest_of_each_site(self) -> None:
        adapter = drawn()
        result = Magnitude(0.75, "none")(adapter, rank=30)
        for site, update in adapter.items():
            delta = update.dense().numpy()
            threshold = np.sort(np.abs(delta), axis=None)[-delta.size // 4]
            expected = np.where(np.abs(delta) >= threshold, delta, 0)
            np.testing.assert_allclose(result.adapter[site].dense(), expected, atol=1e-4)


class TestDropComponents:
    @pytest.mark.parametrize(
        ("rank", "p", "kept"), [(10, 0.9, 1), (10, 0.7, 3), (10, 0.75, 3), (8, 0.2, 7), (1, 0.9, 1)]
    )
    def test_the_leading_components_are_kept(self, rank: int, p: float, kept: int) -> None:
        adapter = drawn(rank)
        result = DropComponents(p)(adapter)
        for site, update in adapter.items():
            best, lost = best_of_rank(update.dense(), kept)
            np.testing.assert_allclose(result.adapter[site].dense(), best, atol=1e-4)
            assert result.adapter[site].rank == kept
            assert result.lost_energy[site] == pytest.approx(lost, abs=1e-6)
            assert result.notes[site]["kept_energy"] == pytest.approx(1 - lost, abs=1e-6)

        assert DropComponents(0.5)(drawn(20, (V,))).adapter[V].rank == 6, "of the smaller side, 12"
