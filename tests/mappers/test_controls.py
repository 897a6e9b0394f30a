"""What the controls make: a copy, random factors, the mean of the anchors, the nearest one."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from loraport.adapters import AdapterStack, LoraAdapter, LowRank, Role, Site
from loraport.data import AnchorSet, ZooPairs
from loraport.mappers import BasePair, WeightMapper
from loraport.mappers.controls import CopyMapper, MeanMapper, NearestMapper, RandomMapper


def mapped(mapper: WeightMapper, pair: BasePair, adapter: LoraAdapter) -> LoraAdapter:
    mapper.use(pair)
    return mapper.map(adapter)


def test_a_copy_is_padded_with_zeros_or_cut_off(
    pico_pair: BasePair, pico_adapter: LoraAdapter
) -> None:
    mapper = CopyMapper()
    result = mapped(mapper, pico_pair, pico_adapter)
    query, value = Site(0, Role.Q), Site(0, Role.V)
    expected = torch.zeros(48, 48)
    expected[:32, :32] = pico_adapter[query].dense()
    assert torch.equal(result[query].dense(), expected)
    # 16 outputs in the source, 12 in the target.
    assert torch.equal(result[value].dense()[:, :32], pico_adapter[value].dense()[:12])
    facts = mapper.report()["sites"]
    assert (facts["0.q"]["cropped"], facts["0.q"]["padded"]) == (0, 1)
    assert (facts["0.v"]["cropped"], facts["0.v"]["padded"]) == (1, 1)
    same = mapped(CopyMapper(), BasePair(pico_pair.source, pico_pair.source), pico_adapter)
    assert same.content_hash() == pico_adapter.content_hash()


# Random factors of the source's norm.


def test_every_site_has_the_sources_norm(pico_pair: BasePair, pico_adapter: LoraAdapter) -> None:
    result = mapped(RandomMapper(), pico_pair, pico_adapter)
    partner = {0: 0, 1: 1, 2: 1}
    for site, update in result.items():
        norm = pico_adapter[Site(partner[site.layer], site.role)].norm()
        assert update.norm() == pytest.approx(norm, rel=1e-5)


def test_sites_and_seeds_differ_and_other_sites_do_not_matter(
    pico_pair: BasePair, pico_adapter: LoraAdapter
) -> None:
    whole = mapped(RandomMapper(), pico_pair, pico_adapter)
    assert abs(whole[Site(1, Role.Q)].inner(whole[Site(2, Role.Q)])) < 0.2 * (
        whole[Site(1, Role.Q)].norm() * whole[Site(2, Role.Q)].norm()
    )
    assert (
        abs(whole.inner(mapped(RandomMapper(1), pico_pair, pico_adapter))) < 0.1 * whole.norm() ** 2
    )
    alone = LoraAdapter({Site(1, Role.Q): pico_adapter[Site(1, Role.Q)]}, pico_adapter.base_model)
    again = mapped(RandomMapper(), pico_pair, alone)
    assert torch.equal(again[Site(2, Role.Q)].A, whole[Site(2, Role.Q)].A)


def test_the_mean_is_the_same_for_every_task_and_of_what_its_space_names(
    noisy_zoo: ZooPairs,
    anchors: AnchorSet,
    dense: Callable[[AdapterStack, Site], Tensor],
    assert_best: Callable[[LowRank, Any], None],
) -> None:
    mapper, of_factors = MeanMapper(), MeanMapper("factors")
    for one in (mapper, of_factors):
        one.fit(anchors)
    first, second = (mapper.map(noisy_zoo.source[name]) for name in ("t00", "t01"))
    assert first.content_hash() == second.content_hash()
    assert mapper.report() == {"anchors": list(noisy_zoo.source)[1:]}
    for site, update in first.items():
        assert_best(update, dense(anchors.target, site).mean(dim=0).numpy())
    for site, update in of_factors.map(noisy_zoo.source["t00"]).items():
        torch.testing.assert_close(update.A, anchors.target[site].A.mean(dim=0))
        torch.testing.assert_close(update.B, anchors.target[site].B.mean(dim=0))


def test_the_nearest_anchor_is_that_of_the_largest_cosine_whatever_the_norms(
    noisy_zoo: ZooPairs, anchors: AnchorSet
) -> None:
    def flat(adapter: LoraAdapter) -> Tensor:
        return torch.cat([update.dense().double().flatten() for update in adapter.values()])

    query, names = noisy_zoo.source["t00"], anchors.names
    inner = torch.stack([flat(noisy_zoo.source[name]) @ flat(query) for name in names])
    norms = torch.stack([flat(noisy_zoo.source[name]).norm() for name in names])
    best = int((inner / norms).argmax())
    other = int(((inner > 0) & (torch.arange(len(names)) != best)).nonzero()[0])
    large = {s: update.scaled(100.0) for s, update in noisy_zoo.source[names[other]].items()}
    source = {**noisy_zoo.source, names[other]: LoraAdapter(large, anchors.source_base)}
    mapper = NearestMapper()
    mapper.fit(AnchorSet.of(ZooPairs(source, noisy_zoo.target), names))
    found, expected = mapper.map(query), noisy_zoo.target[names[best]]
    torch.testing.assert_close(flat(found), flat(expected), atol=1e-5, rtol=1e-4)
