"""Random factors of the source's norm."""

import pytest
import torch

from loraport.adapters import LoraAdapter, Role, Site
from loraport.mappers import BasePair
from loraport.mappers.random import RandomMapper


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
