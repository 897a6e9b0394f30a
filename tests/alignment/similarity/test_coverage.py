import pytest
import torch
from torch import Tensor

from loraport.alignment.similarity import (
    LayerMap,
    LinearCka,
    MutualKnn,
    coverage,
    layer_map,
)
from loraport.alignment.similarity.coverage import depth_band


def layers(rows: int, width: int, count: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, rows, width, generator=generator).cumsum(dim=0))


def written(scores: list[list[float]]) -> LayerMap:
    raw = torch.tensor(scores, dtype=torch.float64)
    null = torch.rand(100, *raw.shape, generator=torch.Generator().manual_seed(0)).double() / 100
    return LayerMap(raw, null)


@pytest.mark.parametrize("rows", [50, 300, 1000])
@pytest.mark.parametrize("measure", [MutualKnn(), LinearCka()], ids=lambda m: m.name)
def test_independent_gaussians_cover_nothing(rows, measure):
    permutations = 20 if rows == 1000 else 100
    target, source = layers(rows, 89, 3, 1), layers(rows, 205, 4, 2)
    assert coverage(layer_map(measure, target, source, permutations=permutations)).share == 0


@pytest.mark.parametrize("measure", [MutualKnn(), LinearCka()], ids=lambda m: m.name)
def test_turned_layers_cover_everything(measure):
    source = layers(100, 30, 8, 1)
    basis = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(3))).Q
    target = [layer @ basis[:30] for layer in source[::2]]
    found = coverage(layer_map(measure, target, source, permutations=40))
    assert found.share == 1
    assert found.best == (0, 2, 4, 6)
    assert (found.scores > 0.3).all()


def test_layers_at_another_depth_do_not_count():
    scores = torch.full((4, 8), 0.2)
    scores[0, 0] = scores[1, 2] = scores[2, 1] = scores[3, 0] = 0.9
    found = coverage(written(scores.tolist()))
    assert found.in_band.tolist() == found.covered.tolist() == [True, True, False, False]
    assert found.share == 0.5
    assert coverage(written(scores.tolist()), band=1.0).share == 1


def test_layers_without_a_score_do_not_count():
    scores = torch.eye(4) * torch.tensor([0.9, 0.009, 0.9, 0.001])
    found = coverage(written(scores.tolist()))
    assert found.in_band.all()
    assert found.covered.tolist() == [True, False, True, False]


def test_band_is_a_quarter_of_the_depth_and_at_least_a_layer():
    assert depth_band(18, 30)[9].nonzero()[:, 0].tolist() == list(range(8, 23))
    assert depth_band(3, 3).tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    assert depth_band(3, 2).all()
    assert depth_band(1, 1).all()
    assert depth_band(1, 9)[0].nonzero()[:, 0].tolist() == [6, 7, 8]
