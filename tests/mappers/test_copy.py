"""The source's factors as they are, cut off or padded."""

import torch

from loraport.adapters import LoraAdapter, Role, Site
from loraport.mappers import BasePair
from loraport.mappers.copy import CopyMapper


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
