import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from loraport.adapters import LoraAdapter, LowRank, Role, Site, cosine
from loraport.adapters.sparsify import (
    RESCALES,
    Dare,
    DropComponents,
    Magnitude,
    dropped_at_random,
    largest,
)
from loraport.exceptions import ConfigurationError

Q, V, DOWN = Site(0, Role.Q), Site(1, Role.V), Site(1, Role.DOWN)
SHAPES = {Q: (30, 24), V: (12, 24), DOWN: (24, 40)}
SPARSIFIERS: list[Callable[[float], Dare | Magnitude | DropComponents]] = [
    lambda p: Dare(p, seed=3),
    Magnitude,
    DropComponents,
]


def drawn(
    seed: int = 0, rank: int = 4, sites: tuple[Site, ...] = (Q, V, DOWN), scale: float = 0.5
) -> LoraAdapter:
    updates = {}
    for site in sites:
        generator = torch.Generator().manual_seed(100 * seed + list(SHAPES).index(site))
        out, in_ = SHAPES[site]
        a = torch.randn(rank, in_, generator=generator)
        updates[site] = LowRank(a, torch.randn(out, rank, generator=generator), scale)
    return LoraAdapter(updates, "some/base")


def entrywise_gaussian(side: int = 400) -> LoraAdapter:
    """An update of full rank with Gaussian entries: nothing is lost when it is cut back."""
    entries = torch.randn(side, side, generator=torch.Generator().manual_seed(1))
    return LoraAdapter({Q: LowRank(torch.eye(side), entries)}, "some/base")


@pytest.mark.parametrize("make", SPARSIFIERS)
@pytest.mark.parametrize("p", [0, 0.0])
def test_nothing_is_dropped_at_zero(make, p: float) -> None:
    adapter = drawn()
    result = make(0.0)(adapter)
    assert result.adapter is adapter
    assert result.lost_energy == dict.fromkeys(adapter, 0.0)


@pytest.mark.parametrize("make", SPARSIFIERS)
@pytest.mark.parametrize("p", [1.0, 1.5, -0.1, float("nan"), "most"])
def test_a_share_out_of_range_is_refused_by_name(make, p: object) -> None:
    # Made past the type checks of tests, as from a command line.
    sparsifier = make(0.5)
    object.__setattr__(sparsifier, "p", p)
    with pytest.raises(ConfigurationError, match=rf"sparsify\.p is .*{p}.* 0 up to") as caught:
        sparsifier.__post_init__()
    assert caught.value.exit_code == 2


def test_an_unknown_rescale_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"sparsify\.rescale is 'l1'.* none, inverse_keep"):
        Magnitude(0.5, "l1")


@pytest.mark.parametrize("make", SPARSIFIERS)
def test_ranks_are_those_of_the_sites_or_as_told(make) -> None:
    adapter = drawn()
    own = {site: update.rank for site, update in make(0.5)(adapter).adapter.items()}
    assert own == dict.fromkeys(adapter, 2 if make is DropComponents else 4)
    told = make(0.5)(adapter, rank=1)
    assert {update.rank for update in told.adapter.values()} == {1}
    assert all(0 < lost < 1 for lost in told.lost_energy.values())


@pytest.mark.parametrize("make", SPARSIFIERS)
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
        draws = [
            dropped_at_random(ones, 0.5, seed, site, place)
            for seed, site, place in [(0, Q, 0), (1, Q, 0), (0, V, 0), (0, Q, 1)]
        ]
        for i, one in enumerate(draws):
            for other in draws[:i]:
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
            sparse = dropped_at_random(update.dense(), 0.9, 5, site).double() * 10
            u, sigma, vt = np.linalg.svd(sparse.numpy(), full_matrices=False)
            near = result.adapter[site].dense()
            np.testing.assert_allclose(near, (u[:, :4] * sigma[:4]) @ vt[:4], atol=1e-4)
            lost = (sigma[4:] ** 2).sum() / (sigma**2).sum()
            assert result.lost_energy[site] == pytest.approx(lost, abs=1e-6)
            assert result.notes[site]["rescale"] == pytest.approx(10)
            assert result.notes[site]["kept_share"] == pytest.approx(0.1, abs=0.05)
            cosine_to = (near.double() * update.dense()).sum() / near.norm() / update.norm()
            assert result.notes[site]["cosine"] == pytest.approx(float(cosine_to), rel=1e-4)

    def test_it_is_unbiased(self) -> None:
        adapter = drawn(sites=(Q,))
        full = adapter[Q].dense()
        # Rank 24 holds all of it, so that the cut adds no bias.
        runs = [Dare(0.8, seed)(adapter, rank=24).adapter[Q].dense() for seed in range(400)]
        mean = torch.stack(runs).mean(dim=0)
        # The variance of one is p / (1 - p) D^2 = 4 D^2, of the mean of 400 a hundredth of D^2.
        assert float((mean - full).norm() / full.norm()) == pytest.approx(0.1, abs=0.02)
        assert float((mean * full).sum() / full.square().sum()) == pytest.approx(1, abs=0.01)

    def test_a_site_does_not_depend_on_the_others(self) -> None:
        whole = Dare(0.9)(drawn(sites=(DOWN, V, Q))).adapter
        alone = Dare(0.9)(drawn(sites=(V,))).adapter
        assert torch.equal(whole[V].A, alone[V].A)
        assert torch.equal(whole[V].B, alone[V].B)
        assert not torch.equal(Dare(0.9, 1)(drawn(sites=(V,))).adapter[V].A, alone[V].A)

    def test_entries_of_the_update_do_what_entries_of_the_factors_do_not(self) -> None:
        # The toy of the docstring: rank 8, 768 x 768, p = 0.9.
        generator = torch.Generator().manual_seed(0)
        a = torch.randn(8, 768, generator=generator)
        adapter = LoraAdapter({Q: LowRank(a, torch.randn(768, 8, generator=generator))}, "b")
        ours = Dare(0.9)(adapter)
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

        assert gains("inverse_keep") == pytest.approx((along, norm), rel=0.03)
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

    def test_the_rescales_are_those_of_the_configuration(self) -> None:
        assert set(RESCALES) == {"none", "inverse_keep", "norm", "projection"}


class TestDropComponents:
    @pytest.mark.parametrize(
        ("rank", "p", "kept"), [(10, 0.9, 1), (10, 0.7, 3), (10, 0.75, 3), (8, 0.2, 7), (1, 0.9, 1)]
    )
    def test_the_leading_components_are_kept(self, rank: int, p: float, kept: int) -> None:
        adapter = drawn(rank=rank)
        result = DropComponents(p)(adapter)
        for site, update in adapter.items():
            u, sigma, vt = np.linalg.svd(update.dense().double().numpy(), full_matrices=False)
            best = (u[:, :kept] * sigma[:kept]) @ vt[:kept]
            np.testing.assert_allclose(result.adapter[site].dense(), best, atol=1e-4)
            assert result.adapter[site].rank == kept
            lost = (sigma[kept:] ** 2).sum() / (sigma**2).sum()
            assert result.lost_energy[site] == pytest.approx(lost, abs=1e-6)
            assert result.notes[site]["kept_energy"] == pytest.approx(1 - lost, abs=1e-6)

    def test_components_are_counted_up_to_the_smaller_side(self) -> None:
        result = DropComponents(0.5)(drawn(rank=20, sites=(V,)))
        assert result.adapter[V].rank == math.ceil(12 / 2)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dare", Dare(0.95, seed=7)),
        ("magnitude", Magnitude(0.95, "projection")),
        ("rank", DropComponents(0.95)),
    ],
)
def test_every_choice_composes(name: str, expected: object) -> None:
    with initialize_config_module("loraport.conf", version_base="1.3"):
        overrides = [f"+sparsify={name}", "sparsify.p=0.95", "seed=7"]
        config = compose("train", overrides=overrides)
    assert instantiate(config.sparsify) == expected


def test_none_is_empty() -> None:
    with initialize_config_module("loraport.conf", version_base="1.3"):
        assert not compose("train", overrides=["+sparsify=none"]).sparsify
