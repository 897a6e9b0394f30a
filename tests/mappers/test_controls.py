"""The source's factors as they are, cut off or padded."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from loraport.adapters import AdapterStack, LoraAdapter, Role, Site
from loraport.data import AnchorSet, ZooPairs
from loraport.mappers import BasePair
from loraport.mappers.controls import CopyMapper, MeanMapper, NoopMapper, RandomMapper


def test_wider_modules_are_padded_with_zeros(
    pico_pair: BasePair, pico_adapter: LoraAdapter
) -> None:
    mapper = CopyMapper()
    mapper.use(pico_pair)
    result = mapper.map(pico_adapter)
    site = Site(0, Role.Q)
    expected = torch.zeros(48, 48)
    expected[:32, :32] = pico_adapter[site].dense()
    assert torch.equal(result[site].dense(), expected)
    facts = mapper.report()["sites"]["0.q"]
    assert (facts["cropped"], facts["padded"]) == (0, 1)


def test_narrower_modules_are_cut_off(pico_pair: BasePair, pico_adapter: LoraAdapter) -> None:
    mapper = CopyMapper()
    mapper.use(pico_pair)
    result = mapper.map(pico_adapter)
    site = Site(0, Role.V)  # 16 outputs in the source, 12 in the target
    assert torch.equal(result[site].dense()[:, :32], pico_adapter[site].dense()[:12])
    facts = mapper.report()["sites"]["0.v"]
    assert (facts["cropped"], facts["padded"]) == (1, 1)


def test_same_model_gets_the_same_bits(pico_pair: BasePair, pico_adapter: LoraAdapter) -> None:
    mapper = CopyMapper()
    mapper.use(BasePair(pico_pair.source, pico_pair.source))
    assert mapper.map(pico_adapter).content_hash() == pico_adapter.content_hash()


# Random factors of the source's norm.


def test_every_site_has_the_sources_norm(pico_pair: BasePair, pico_adapter: LoraAdapter) -> None:
    mapper = RandomMapper()
    mapper.use(pico_pair)
    result = mapper.map(pico_adapter)
    partner = {0: 0, 1: 1, 2: 1}
    for site, update in result.items():
        norm = pico_adapter[Site(partner[site.layer], site.role)].norm()
        assert update.norm() == pytest.approx(norm, rel=1e-5)


def test_sites_and_seeds_differ_and_other_sites_do_not_matter(
    pico_pair: BasePair, pico_adapter: LoraAdapter
) -> None:
    def drawn(seed: int, given: LoraAdapter) -> LoraAdapter:
        mapper = RandomMapper(seed)
        mapper.use(pico_pair)
        return mapper.map(given)

    whole = drawn(0, pico_adapter)
    assert abs(whole[Site(1, Role.Q)].inner(whole[Site(2, Role.Q)])) < 0.2 * (
        whole[Site(1, Role.Q)].norm() * whole[Site(2, Role.Q)].norm()
    )
    assert abs(whole.inner(drawn(1, pico_adapter))) < 0.1 * whole.norm() ** 2
    alone = LoraAdapter({Site(1, Role.Q): pico_adapter[Site(1, Role.Q)]}, pico_adapter.base_model)
    assert torch.equal(drawn(0, alone)[Site(2, Role.Q)].A, whole[Site(2, Role.Q)].A)


# An update of zero.


def test_every_update_is_zero_and_the_rank_kept(
    pico_pair: BasePair, pico_adapter: LoraAdapter
) -> None:
    mapper = NoopMapper()
    mapper.use(pico_pair)
    result = mapper.map(pico_adapter)
    assert len(result) == len(pico_pair.target.sites.shapes)
    assert result.norm() == 0
    assert {update.rank for update in result.values()} == {3}


def test_it_is_the_dense_mean_cut_to_the_rank(
    noisy_zoo: ZooPairs, dense: Callable[[AdapterStack, Site], Tensor]
) -> None:
    anchors = AnchorSet.of(noisy_zoo, list(noisy_zoo.source)[1:])
    mapper = MeanMapper()
    mapper.fit(anchors)
    predicted = mapper.map(noisy_zoo.source["t00"])
    for site, stack in anchors.target.items():
        rank, shape = stack.A.shape[1], predicted[site].shape
        mean = dense(anchors.target, site).mean(dim=0).reshape(shape).numpy()
        u, sigma, vt = np.linalg.svd(mean, full_matrices=False)
        best = (u[:, :rank] * sigma[:rank]) @ vt[:rank]
        assert sigma[rank - 1] > 1e-3
        np.testing.assert_allclose(predicted[site].dense().numpy(), best, atol=1e-5)


def test_in_factor_space_it_is_the_mean_of_the_factors(noisy_zoo: ZooPairs) -> None:
    anchors = AnchorSet.of(noisy_zoo, list(noisy_zoo.source)[1:])
    mapper = MeanMapper("factors")
    mapper.fit(anchors)
    for site, update in mapper.map(noisy_zoo.source["t00"]).items():
        torch.testing.assert_close(update.A, anchors.target[site].A.mean(dim=0))
        torch.testing.assert_close(update.B, anchors.target[site].B.mean(dim=0))


def test_every_task_has_the_same_prediction(noisy_zoo: ZooPairs) -> None:
    mapper = MeanMapper()
    mapper.fit(AnchorSet.of(noisy_zoo, list(noisy_zoo.source)[2:]))
    one, other = (mapper.map(noisy_zoo.source[name]) for name in ("t00", "t01"))
    assert one.content_hash() == other.content_hash()
    assert mapper.report() == {"anchors": list(noisy_zoo.source)[2:]}
