import pytest
import torch

from loraport.adapters import AdapterStack, LoraAdapter, LowRank, Role, Site, relative_error
from loraport.data import AnchorSet, ZooPairs
from loraport.exceptions import AdapterError
from loraport.mappers.anchor_mapper import paired_sites
from loraport.mappers.global_ridge import GlobalRidgeMapper


def stack(layers: tuple[int, ...], roles: tuple[Role, ...] = (Role.Q, Role.V)) -> AdapterStack:
    update = LowRank(torch.ones(1, 3), torch.ones(2, 1))
    sites = {Site(layer, role): update for layer in layers for role in roles}
    return AdapterStack.of({"one": LoraAdapter(sites, "some/base")})


def test_sites_are_paired_by_role_and_relative_depth() -> None:
    pairs = paired_sites(stack((0, 1, 2)), stack((0, 1)))
    assert pairs == {
        Site(0, Role.Q): Site(0, Role.Q),
        Site(0, Role.V): Site(0, Role.V),
        Site(1, Role.Q): Site(2, Role.Q),
        Site(1, Role.V): Site(2, Role.V),
    }


def test_depth_is_among_the_layers_that_are_adapted() -> None:
    pairs = paired_sites(stack((4, 5, 6)), stack((10, 20), (Role.V,)))
    assert pairs == {Site(10, Role.V): Site(4, Role.V), Site(20, Role.V): Site(6, Role.V)}


def test_role_that_the_source_lacks_in_a_layer_is_named() -> None:
    with pytest.raises(AdapterError, match=r"1\.self_attn\.v_proj.*2\.self_attn\.v_proj, .*q_proj"):
        paired_sites(stack((0, 1, 2), (Role.Q,)), stack((1,)))


def test_scale_of_the_query_counts(noisy_zoo: ZooPairs) -> None:
    mapper = GlobalRidgeMapper(strengths=[0.01])
    mapper.fit(AnchorSet.of(noisy_zoo, list(noisy_zoo.source)[1:]))
    query = noisy_zoo.source["t00"]
    folded = query.map(lambda update: LowRank(update.A, update.scale * update.B))
    larger = query.map(lambda update: update.scaled(1.5))
    expected = mapper.map(query)
    assert relative_error(mapper.map(folded), expected) < 1e-5
    assert relative_error(mapper.map(larger), expected) > 0.05
