import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from loraport.adapters import LoraAdapter, LowRank, Role, Site, cosine, relative_error
from loraport.exceptions import AdapterError

Q, V, DOWN = Site(0, Role.Q), Site(1, Role.V), Site(1, Role.DOWN)
SHAPES = {DOWN: (6, 9), V: (4, 6), Q: (5, 6)}


def drawn(seed: int, sites: tuple[Site, ...] = (DOWN, V, Q), scale: float = 0.5) -> LoraAdapter:
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for site in sites:
        out, in_ = SHAPES[site]
        a = torch.randn(2, in_, generator=generator)
        updates[site] = LowRank(a, torch.randn(out, 2, generator=generator), scale)
    return LoraAdapter(updates, "some/base")


def flat(adapter: LoraAdapter) -> Tensor:
    """Every update of the three sites in one vector, zeros where there is none."""
    parts = [
        adapter[site].to(torch.float64).dense().flatten()
        if site in adapter
        else torch.zeros(math.prod(SHAPES[site]), dtype=torch.float64)
        for site in SHAPES
    ]
    return torch.cat(parts)


def test_it_is_a_mapping_in_the_order_of_the_layers() -> None:
    adapter = drawn(0)
    assert list(adapter) == [Q, V, DOWN]
    assert len(adapter) == 3
    assert adapter.roles == (Role.Q, Role.V, Role.DOWN)
    assert adapter[V].shape == (4, 6)
    assert Site(7, Role.Q) not in adapter


def test_it_cannot_be_changed() -> None:
    updates = dict(drawn(0).sites)
    adapter = LoraAdapter(updates, "some/base")
    del updates[Q]
    assert Q in adapter
    with pytest.raises(TypeError, match="item assignment"):
        adapter.sites[Q] = adapter[V]  # type: ignore[index]


def test_no_site_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"some/base has no site.*lora_A and lora_B"):
        LoraAdapter({}, "some/base")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("factor", ["A", "B"])
def test_entries_that_are_not_finite_are_counted_and_named(value: float, factor: str) -> None:
    good = drawn(0)
    broken = {"A": good[V].A.clone(), "B": good[V].B.clone()}
    broken[factor].view(-1)[1:4] = value
    with pytest.raises(AdapterError, match=rf"3 NaN or inf.* lora_{factor} of .*1\.self_attn\.v_p"):
        replace(good, sites={**good.sites, V: LowRank(broken["A"], broken["B"])})


def test_scale_that_is_not_finite_is_named() -> None:
    good = drawn(0)
    with pytest.raises(AdapterError, match=r"scale nan at model\.layers\.1\.self_attn\.v_proj"):
        replace(good, sites={**good.sites, V: good[V].scaled(float("nan"))})


def test_inner_products_equal_those_of_the_dense_updates() -> None:
    one, other, part = drawn(1), drawn(2, scale=-3.0), drawn(3, (V,))
    for left, right in ((one, other), (one, part), (part, one), (one, one)):
        expected = float(flat(left) @ flat(right))
        assert left.inner(right) == pytest.approx(expected, rel=1e-9)
    assert one.norm() == pytest.approx(float(flat(one).norm()))
    assert part.inner(drawn(3, (Q,))) == 0.0


def test_cosine_and_relative_error_equal_those_of_the_dense_updates() -> None:
    one, other = drawn(1), drawn(2, (Q, DOWN))
    x, y = flat(one), flat(other)
    assert cosine(one, other) == pytest.approx(float(x @ y / x.norm() / y.norm()))
    assert cosine(one, one) == pytest.approx(1.0)
    assert relative_error(one, other) == pytest.approx(float((x - y).norm() / y.norm()))
    assert relative_error(one, one) == pytest.approx(0.0, abs=1e-6)


def test_cosine_and_relative_error_with_a_zero_update() -> None:
    one, zero = drawn(1), drawn(1).map(lambda update: update.scaled(0.0))
    assert cosine(one, zero) == 0.0
    assert relative_error(one, zero) == float("inf")
    assert relative_error(zero, one) == pytest.approx(1.0)


def test_map_changes_every_site_and_forgets_the_config() -> None:
    adapter = replace(drawn(1), config={"r": 2})
    double = adapter.map(lambda update: update.scaled(2.0))
    torch.testing.assert_close(flat(double), 2 * flat(adapter))
    assert (double.base_model, double.config) == ("some/base", None)


class TestContentHash:
    def test_it_is_of_what_the_adapter_computes_alone(self) -> None:
        adapter = drawn(1)
        backwards = dict(reversed(list(adapter.sites.items())))
        assert LoraAdapter(backwards, "other/base", {"r": 2}).content_hash() == (
            adapter.content_hash()
        )
        strided = {site: LowRank(u.A.mT.clone().mT, u.B, u.scale) for site, u in adapter.items()}
        assert LoraAdapter(strided, "some/base").content_hash() == adapter.content_hash()

    def test_every_part_changes_it(self) -> None:
        adapter = drawn(1)
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
