"""LoRA-X, which is Cross-LoRA as printed, for two models of the same shapes."""

from collections.abc import Callable

import pytest
import torch

from loraport.adapters import LoraAdapter, relative_error
from loraport.exceptions import ConfigurationError
from loraport.mappers import BasePair
from loraport.mappers.cross_lora import CrossLoraMapper
from loraport.models import BaseModel, StreamedWeights

Opened = Callable[[BaseModel], StreamedWeights]


@pytest.fixture(scope="module")
def pair(pico: Callable[[str], BaseModel], opened: Opened) -> BasePair:
    """llama and qwen2 have the same shapes here, and other weights."""
    source, target = opened(pico("llama")), opened(pico("qwen2"))
    assert source.sites.shapes == target.sites.shapes
    # The pico models of one seed share their draws: these weights shall be unrelated.
    weights = {site: target.weight(site).flip(0) for site in target.sites.shapes}
    object.__setattr__(target, "weight", weights.__getitem__)
    return BasePair(source, target)


@pytest.fixture(scope="module")
def adapter(pair: BasePair, adapter_of: Callable[..., LoraAdapter]) -> LoraAdapter:
    return adapter_of(pair.source)


def test_it_is_the_update_within_the_targets_subspaces(
    pair: BasePair, adapter: LoraAdapter
) -> None:
    mapper = CrossLoraMapper("lora_x", rank=6)
    mapper.use(pair)
    result = mapper.map(adapter)
    for site, update in adapter.items():
        u, _, vt = torch.linalg.svd(pair.target.weight(site).double(), full_matrices=False)
        u, v = u[:, :6], vt[:6].mT
        expected = u @ u.mT @ update.dense().double() @ v @ v.mT
        torch.testing.assert_close(result[site].dense().double(), expected, rtol=1e-3, atol=1e-3)
        own, _, _ = torch.linalg.svd(pair.source.weight(site).double(), full_matrices=False)
        alike = float((own[:, :6].mT @ u).square().sum()) / 6
        told = mapper.report()["sites"][site.label]["output_subspace_similarity"]
        assert told == pytest.approx(alike, abs=1e-3)


def test_cross_lora_as_printed_is_the_same(pair: BasePair, adapter: LoraAdapter) -> None:
    results = []
    for mapper in (CrossLoraMapper("lora_x", rank=6), CrossLoraMapper("paper", rank=6)):
        mapper.use(pair)
        results.append(mapper.map(adapter))
    assert relative_error(*results) == 0


def test_other_shapes_are_refused(
    pair: BasePair, adapter: LoraAdapter, pico_target: BaseModel, opened: Opened
) -> None:
    mapper = CrossLoraMapper("lora_x")
    mapper.use(BasePair(pair.source, opened(pico_target)))
    with pytest.raises(ConfigurationError, match="defined for equal shapes only"):
        mapper.map(adapter)
