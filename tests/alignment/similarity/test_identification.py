import pytest
import torch
from torch import Tensor

from loraport.alignment.similarity import LinearCka, MutualKnn, layer_identification


def layers(rows: int, width: int, count: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, rows, width, generator=generator).cumsum(dim=0))


@pytest.mark.parametrize("measure", [MutualKnn(), LinearCka()], ids=lambda m: m.name)
class TestIdentification:
    def test_planted_counterparts_are_found_again(self, measure):
        source = layers(120, 30, 6, 1)
        basis = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(3))).Q
        target = [layer @ basis[:30] for layer in source[1::2]]
        found = layer_identification(measure, target, source)
        assert (found.accuracy, found.within_one, found.chance) == (1, 1, 1 / 3)

    def test_noise_is_not(self, measure):
        found = layer_identification(measure, layers(120, 30, 8, 1), layers(120, 30, 8, 2))
        assert found.accuracy <= 0.5

    def test_one_favourite_layer_identifies_nothing(self, measure):
        source = layers(120, 30, 6, 1)
        target = [source[2] + 0.01 * layer for layer in layers(120, 30, 5, 9)]
        assert layer_identification(measure, target, source).accuracy <= 0.4


def test_halves_are_drawn_by_the_seed():
    target, source = layers(60, 10, 12, 1), layers(60, 10, 12, 2)
    found = {layer_identification(LinearCka(), target, source, seed).accuracy for seed in range(6)}
    assert len(found) > 1
    again = [layer_identification(LinearCka(), target, source, 3) for _ in range(2)]
    assert again[0] == again[1]
