import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from loraport.adapters import LoraAdapter, LowRank, Role, Site, cosine, relative_error, stacked
from loraport.adapters.lora import concentration, effective_rank, mean_cosine, span_share
from loraport.exceptions import AdapterError

EVERY = [Site(layer, role) for layer in (0, 1, 12) for role in Role]


@pytest.mark.parametrize("site", EVERY, ids=lambda site: site.label)
def test_names_lead_back_to_the_site(site: Site) -> None:
    assert Site.parse(site.module_name) == site
    assert Site.parse(f"base_model.model.{site.module_name}") == site
    assert Site.from_label(site.label) == site
    block = "self_attn" if site.role.value in "qkvo" else "mlp"
    assert site.module_name == f"model.layers.{site.layer}.{block}.{site.role.value}_proj"


@pytest.mark.parametrize(
    "name",
    [
        "lm_head",
        "model.embed_tokens",
        "model.layers.3.mlp.q_proj",
        "model.layers.3.self_attn.up_proj",
        "model.layers.3.self_attn.qkv_proj",
        "model.layers.x.self_attn.q_proj",
        "model.layers.3.self_attn.q_proj.lora_A",
        "model.blocks.3.self_attn.q_proj",
        "",
    ],
)
def test_other_modules_are_no_sites(name: str) -> None:
    assert Site.parse(name) is None


def test_order_is_by_layer_as_a_number_then_as_in_a_layer() -> None:
    assert sorted(reversed(EVERY), key=lambda site: site.sort_key) == EVERY


# (out, in, rank): also a rank above the smaller side, and the smallest there is.
SHAPES = [(7, 5, 3), (4, 9, 6), (6, 3, 5), (1, 1, 1)]


def drawn(
    out: int,
    in_: int,
    rank: int,
    seed: int = 0,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> LowRank:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, in_, generator=generator, dtype=torch.float64)
    b = torch.randn(out, rank, generator=generator, dtype=torch.float64)
    return LowRank(a.to(dtype), b.to(dtype), scale)


def in_another_gauge(update: LowRank, seed: int) -> LowRank:
    """The same update with factors ``G A`` and ``B G^-1``, singular values of G from 0.5 to 2."""
    generator = torch.Generator().manual_seed(seed)
    r = update.rank
    left = torch.linalg.qr(torch.randn(r, r, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(r, r, generator=generator, dtype=torch.float64)).Q
    gauge = left @ torch.linspace(0.5, 2, r, dtype=torch.float64).diag() @ right
    return LowRank(gauge @ update.A, update.B @ torch.linalg.inv(gauge), update.scale)


def reference(update: LowRank) -> Tensor:
    return torch.from_numpy(update.scale * (update.B.numpy() @ update.A.numpy()))


@pytest.mark.parametrize(("out", "in_", "rank"), SHAPES)
class TestAgainstDenseMatrices:
    def test_inner_and_norm(self, out: int, in_: int, rank: int) -> None:
        one, other = drawn(out, in_, rank, 1, 0.3), drawn(out, in_, rank + 2, 2, -1.7)
        assert (one.shape, one.rank) == ((out, in_), rank)
        torch.testing.assert_close(one.dense(), reference(one))
        expected = float((reference(one) * reference(other)).sum())
        assert one.inner(other) == pytest.approx(expected, rel=1e-12)
        assert one.norm() == pytest.approx(float(reference(one).norm()), rel=1e-12)

    def test_svd(self, out: int, in_: int, rank: int) -> None:
        update = drawn(out, in_, rank, scale=-2.0)
        u, sigma, vt = update.factors_svd()
        k = min(rank, out, in_)
        expected = np.linalg.svd(reference(update).numpy(), compute_uv=False)[:k]
        np.testing.assert_allclose(sigma.numpy(), expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(u @ sigma.diag() @ vt, reference(update))
        torch.testing.assert_close(u.mT @ u, torch.eye(k, dtype=torch.float64))
        torch.testing.assert_close(vt @ vt.mT, torch.eye(k, dtype=torch.float64))
        assert (u.gather(0, u.abs().argmax(dim=0, keepdim=True)) > 0).all()

    def test_truncation_is_that_of_eckart_and_young(self, out: int, in_: int, rank: int) -> None:
        update = drawn(out, in_, rank, scale=1.5)
        u, sigma, vt = np.linalg.svd(reference(update).numpy(), full_matrices=False)
        for kept in range(1, rank + 1):
            matrix, lost = update.truncated(kept)
            best = (u[:, :kept] * sigma[:kept]) @ vt[:kept]
            np.testing.assert_allclose(matrix.dense().numpy(), best, atol=1e-10)
            share = (sigma[kept:] ** 2).sum() / (sigma**2).sum()
            assert lost == pytest.approx(share, abs=1e-12)
            assert matrix.rank == kept

    def test_canonical_form_is_balanced_and_free_of_the_gauge(
        self, out: int, in_: int, rank: int
    ) -> None:
        update = drawn(out, in_, rank, scale=0.7)
        canonical = update.canonical()
        torch.testing.assert_close(canonical.dense(), reference(update))
        torch.testing.assert_close(canonical.B.mT @ canonical.B, canonical.A @ canonical.A.mT)
        moved = in_another_gauge(update, 0)
        assert not torch.allclose(moved.A, update.A)
        again = moved.canonical()
        # The square root of a vanishing singular value is only exact to 1e-8.
        torch.testing.assert_close(again.A, canonical.A, rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(again.B, canonical.B, rtol=1e-7, atol=1e-7)


def test_truncation_to_a_higher_rank_pads_with_zeros() -> None:
    update = drawn(5, 4, 2)
    matrix, lost = update.truncated(6)
    assert (matrix.A.shape, matrix.B.shape, lost) == ((6, 4), (5, 6), 0.0)
    torch.testing.assert_close(matrix.dense(), reference(update))
    zero, lost = LowRank(torch.ones(2, 4), torch.zeros(5, 2)).truncated(1)
    assert (int(zero.dense().count_nonzero()), lost) == (0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_factors_keep_their_dtype_and_inner_products_are_in_float64(dtype: torch.dtype) -> None:
    update = drawn(6, 8, 3, scale=0.25, dtype=dtype)
    assert (update.canonical().A.dtype, update.canonical().B.dtype) == (dtype, dtype)
    exact = 0.25 * update.B.double() @ update.A.double()
    assert update.inner(update) == pytest.approx(float(exact.square().sum()), rel=1e-12)
    assert update.to(torch.float64).A.dtype == torch.float64


def test_stacked_is_the_weighted_sum() -> None:
    terms = [drawn(6, 5, rank, seed, 0.5 + seed) for seed, rank in enumerate((1, 2, 4))]
    coefficients = [0.5, -2.0, 3.0]
    total = stacked(terms, coefficients)
    pairs = zip(coefficients, terms, strict=True)
    expected = torch.stack([c * reference(term) for c, term in pairs]).sum(dim=0)
    torch.testing.assert_close(total.dense(), expected)
    assert total.rank == 7


Q, V, DOWN = Site(0, Role.Q), Site(1, Role.V), Site(1, Role.DOWN)
SITE_SHAPES = {DOWN: (6, 9), V: (4, 6), Q: (5, 6)}


def drawn_adapter(
    seed: int, sites: tuple[Site, ...] = (DOWN, V, Q), scale: float = 0.5
) -> LoraAdapter:
    updates = {
        site: drawn(*SITE_SHAPES[site], 2, 10 * seed + index, scale, torch.float32)
        for index, site in enumerate(sites)
    }
    return LoraAdapter(updates, "some/base")


def flat(adapter: LoraAdapter) -> Tensor:
    """Every update of the three sites in one vector, zeros where there is none."""
    parts = [
        adapter[site].to(torch.float64).dense().flatten()
        if site in adapter
        else torch.zeros(math.prod(SITE_SHAPES[site]), dtype=torch.float64)
        for site in SITE_SHAPES
    ]
    return torch.cat(parts)


def test_it_is_a_mapping_in_the_order_of_the_layers_that_cannot_be_changed() -> None:
    updates = dict(drawn_adapter(0).sites)
    adapter = LoraAdapter(updates, "some/base")
    del updates[Q]
    assert list(adapter) == [Q, V, DOWN]
    assert adapter.roles == (Role.Q, Role.V, Role.DOWN)
    with pytest.raises(TypeError, match="item assignment"):
        adapter.sites[Q] = adapter[V]  # type: ignore[index]


def test_no_site_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"some/base' has no site.*lora_A and lora_B"):
        LoraAdapter({}, "some/base")


@pytest.mark.parametrize(("value", "factor"), [(float("nan"), "A"), (float("inf"), "B")])
def test_entries_that_are_not_finite_are_counted_and_named(value: float, factor: str) -> None:
    good = drawn_adapter(0)
    broken = {"A": good[V].A.clone(), "B": good[V].B.clone()}
    broken[factor].view(-1)[1:4] = value
    with pytest.raises(AdapterError, match=rf"3 NaN or inf.* lora_{factor} of .*1\.self_attn\.v_p"):
        replace(good, sites={**good.sites, V: LowRank(broken["A"], broken["B"])})
    with pytest.raises(AdapterError, match=rf"scale {value} at .*1\.self_attn\.v_proj"):
        replace(good, sites={**good.sites, V: good[V].scaled(value)})


def test_figures_of_two_adapters_equal_those_of_the_dense_updates() -> None:
    one, other, part = drawn_adapter(1), drawn_adapter(2, scale=-3.0), drawn_adapter(3, (V,))
    for left, right in ((one, other), (one, part), (part, one), (one, one)):
        x, y = flat(left), flat(right)
        assert left.inner(right) == pytest.approx(float(x @ y), rel=1e-9)
        assert cosine(left, right) == pytest.approx(float(x @ y / x.norm() / y.norm()))
        error = float((x - y).norm() / y.norm())
        assert relative_error(left, right) == pytest.approx(error, abs=1e-6)
    assert one.norm() == pytest.approx(float(flat(one).norm()))
    assert part.inner(drawn_adapter(3, (Q,))) == 0.0


def test_cosine_and_relative_error_with_a_zero_update() -> None:
    one, zero = drawn_adapter(1), drawn_adapter(1).map(lambda update: update.scaled(0.0))
    assert cosine(one, zero) == 0.0
    assert relative_error(one, zero) == float("inf")
    assert relative_error(zero, one) == pytest.approx(1.0)


def test_map_changes_every_site_and_forgets_the_config() -> None:
    adapter = replace(drawn_adapter(1), config={"r": 2})
    double = adapter.map(lambda update: update.scaled(2.0))
    torch.testing.assert_close(flat(double), 2 * flat(adapter))
    assert (double.base_model, double.config) == ("some/base", None)


def test_the_hash_is_of_all_that_the_adapter_computes_and_of_nothing_else() -> None:
    adapter = drawn_adapter(1)
    backwards = dict(reversed(list(adapter.sites.items())))
    strided = {site: LowRank(u.A.mT.clone().mT, u.B, u.scale) for site, u in adapter.items()}
    for same in (LoraAdapter(backwards, "other/base", {"r": 2}), LoraAdapter(strided, "b")):
        assert same.content_hash() == adapter.content_hash()
    a, b = adapter[Q].A.clone(), adapter[Q].B.clone()
    a[1, 2] += 1e-6
    b[0, 0] = -b[0, 0]
    rest = {site: update for site, update in adapter.items() if site != Q}
    variants = [
        adapter,
        replace(adapter, sites=rest),
        replace(adapter, sites={**rest, Site(1, Role.Q): adapter[Q]}),
        replace(adapter, sites={**rest, Q: LowRank(a, adapter[Q].B, 0.5)}),
        replace(adapter, sites={**rest, Q: LowRank(adapter[Q].A, b, 0.5)}),
        replace(adapter, sites={**rest, Q: adapter[Q].scaled(1 + 1e-12)}),
        replace(adapter, sites={**rest, Q: adapter[Q].to(torch.bfloat16)}),
    ]
    assert len({variant.content_hash() for variant in variants}) == len(variants)


def planted(*spectra: list[float]) -> LoraAdapter:
    """Updates of width 6 x 7 with the given singular values."""
    generator = torch.Generator().manual_seed(0)
    updates = {}
    for layer, values in enumerate(spectra):
        u = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q[:, : len(values)]
        v = torch.linalg.qr(torch.randn(7, 7, generator=generator)).Q[: len(values)]
        updates[Site(layer, Role.Q)] = LowRank(v, 0.5 * u * torch.tensor(values), 2.0)
    return LoraAdapter(updates, "base")


def test_the_effective_rank_is_the_exponential_of_the_entropy_weighted_by_the_sites() -> None:
    assert effective_rank(planted([2.0] * 4)) == pytest.approx(4.0, rel=1e-5)
    assert effective_rank(planted([3.0])) == pytest.approx(1.0, rel=1e-5)
    share = [0.75, 0.25]
    entropy = -sum(s * math.log(s) for s in share)
    assert effective_rank(planted([3.0, 1.0])) == pytest.approx(math.exp(entropy), rel=1e-4)
    # |D|^2 of 4 with rank 4, and of 12 with rank 3.
    found = effective_rank(planted([1.0] * 4, [2.0] * 3))
    assert found == pytest.approx((4 * 4 + 12 * 3) / 16, rel=1e-4)


def test_concentration_is_that_of_the_squared_norms() -> None:
    assert concentration(planted([1.0], [1.0], [1.0])) == pytest.approx(1 / 3)
    assert concentration(planted([1.0], [3.0])) == pytest.approx(0.01 + 0.81)


def test_the_mean_cosine() -> None:
    one, other = drawn_adapter(0), drawn_adapter(1)
    assert mean_cosine(one, [one, one.map(lambda u: u.scaled(-3.0))]) == pytest.approx(0, abs=1e-9)
    assert mean_cosine(one, [other]) == cosine(one, other)
    assert math.isnan(mean_cosine(one, []))


def test_the_span_share_is_that_of_least_squares_whatever_is_doubled() -> None:
    one, others = drawn_adapter(5), [drawn_adapter(other) for other in range(4)]
    basis = torch.stack([flat(other) for other in others], dim=1)
    best = torch.linalg.lstsq(basis, flat(one)[:, None]).solution
    wanted = float((basis @ best).square().sum() / flat(one).square().sum())
    assert 0.001 < wanted < 0.9
    assert span_share(one, others) == pytest.approx(wanted, rel=1e-4)
    assert span_share(one, [*others, others[0]]) == pytest.approx(wanted, rel=1e-4)
    total = {
        site: stacked([other[site] for other in others], [0.5, -2.0, 1.0, 0.0]) for site in one
    }
    assert span_share(LoraAdapter(total, "some/base"), others) == pytest.approx(1.0, rel=1e-5)
    assert span_share(one, []) == 0.0


def test_an_adapter_of_zeros_has_nothing() -> None:
    zeros = drawn_adapter(0).map(lambda u: LowRank(u.A, torch.zeros_like(u.B)))
    assert effective_rank(zeros) == concentration(zeros) == 0.0
    assert span_share(zeros, [drawn_adapter(1)]) == 0.0
