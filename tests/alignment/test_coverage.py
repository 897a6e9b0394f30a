import numpy as np
import pytest
import torch
from torch import Tensor

from loraport.alignment.coverage import (
    LayerMap,
    coverage,
    depth_band,
    layer_identification,
    layer_map,
    rescaled,
    row_orders,
)
from loraport.alignment.similarity import Jaccard, LinearCka, MutualKnn, RbfCka, Rsa, Svcca

MEASURES = [MutualKnn(5), Jaccard(5), LinearCka(), RbfCka(), Rsa(), Svcca(3)]


def gaussian(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def layers(rows: int, width: int, count: int, seed: int) -> list[Tensor]:
    """A residual stream: each layer adds to the last one."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, rows, width, generator=generator).cumsum(dim=0))


def turned(source: list[Tensor], width: int) -> list[Tensor]:
    basis = torch.linalg.qr(gaussian(width, width, 3)).Q
    return [layer @ basis[: layer.shape[1]] for layer in source]


def test_orders_are_permutations_that_the_seed_decides() -> None:
    orders = row_orders(30, 8, 0)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(30).expand(8, 30))
    assert torch.equal(orders, row_orders(30, 8, 0))
    assert not torch.equal(orders, row_orders(30, 8, 1))


def test_ends_of_the_scale() -> None:
    scores = torch.tensor([0.1, 0.2, 0.6, 1.0, 1.0])
    thresholds = torch.tensor([0.2, 0.2, 0.2, 0.2, 1.0])
    expected = torch.tensor([0.0, 0.0, 0.5, 1.0, 0.0])
    torch.testing.assert_close(rescaled(scores, thresholds), expected)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.name)
class TestEveryMeasure:
    def test_noise_has_no_score(self, measure) -> None:
        target, source = layers(60, 12, 3, 0), layers(60, 20, 4, 50)
        found = layer_map(measure, target, source, permutations=60, seed=1)
        assert float(found.certain.max()) == 0
        assert float(found.calibrated.mean()) < 0.05
        assert found.null.shape == (60, 3, 4)

    def test_related_layers_have(self, measure) -> None:
        source = layers(60, 12, 4, 0)
        target = [
            layer + 0.1 * gaussian(60, 15, 40 + i) for i, layer in enumerate(turned(source, 15))
        ]
        found = layer_map(measure, target, source, permutations=40)
        assert torch.equal(found.raw.argmax(dim=1), torch.arange(4))
        assert float(found.certain.diagonal().min()) > 0.3
        assert (found.calibrated <= found.raw).all()


def test_a_pair_is_calibrated_by_the_95th_percentile_of_permuted_rows() -> None:
    x = gaussian(40, 6, 0)
    y = x @ gaussian(6, 5, 1) + gaussian(40, 5, 2)
    found = layer_map(LinearCka(), [y], [x], permutations=50, seed=3)
    compared = LinearCka().compare([y], [x])
    raw = float(compared(torch.arange(40)))
    tau = np.quantile([float(compared(order)) for order in row_orders(40, 50, 3)], 0.95)
    assert float(found.raw) == pytest.approx(raw, abs=1e-5)
    assert float(found.calibrated) == pytest.approx((raw - tau) / (1 - tau), abs=1e-5)
    assert 0.1 < float(found.calibrated) < raw


def test_an_outlying_row_is_in_the_null_or_one_of_many() -> None:
    x, y = gaussian(100, 30, 1), gaussian(100, 40, 2)
    x[0], y[0] = 1000, 1000
    for measure in (MutualKnn(), LinearCka()):
        assert float(layer_map(measure, [x], [y], permutations=40).certain) < 0.3
    assert float(layer_map(MutualKnn(), [x], [y], permutations=40).calibrated) < 0.02


def test_certain_scores_exceed_every_permutation() -> None:
    null = torch.rand(50, 3, 4, generator=torch.Generator().manual_seed(0)).double() / 2
    # As high as a pair's own null ever was is no score.
    assert float(LayerMap(null.amax(dim=0), null).certain.max()) == 0
    assert float(LayerMap(torch.ones(3, 4).double(), null).certain.min()) == 1


def test_no_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="same rows"):
        layer_map(LinearCka(), [], [gaussian(10, 3, 0)])


both = pytest.mark.parametrize("measure", [MutualKnn(), LinearCka()], ids=lambda m: m.name)


class TestCoverage:
    @staticmethod
    def written(scores: Tensor) -> LayerMap:
        null = torch.rand(100, *scores.shape, generator=torch.Generator().manual_seed(0))
        return LayerMap(scores.double(), null.double() / 100)

    @both
    def test_independent_gaussians_cover_nothing(self, measure) -> None:
        for rows in (50, 300):
            target, source = layers(rows, 89, 3, 1), layers(rows, 205, 4, 2)
            assert coverage(layer_map(measure, target, source, permutations=100)).share == 0

    @both
    def test_turned_layers_cover_everything(self, measure) -> None:
        source = layers(100, 30, 8, 1)
        found = coverage(layer_map(measure, turned(source[::2], 40), source, permutations=40))
        assert found.share == 1
        assert found.best == (0, 2, 4, 6)

    def test_layers_at_another_depth_do_not_count(self) -> None:
        scores = torch.full((4, 8), 0.2)
        scores[0, 0] = scores[1, 2] = scores[2, 1] = scores[3, 0] = 0.9
        found = coverage(self.written(scores))
        assert found.covered.tolist() == [True, True, False, False]
        assert found.share == 0.5

    def test_layers_without_a_score_do_not_count(self) -> None:
        scores = torch.eye(4) * torch.tensor([0.9, 0.009, 0.9, 0.001])
        assert coverage(self.written(scores)).covered.tolist() == [True, False, True, False]

    def test_band_is_a_quarter_of_the_depth_and_at_least_a_layer(self) -> None:
        assert depth_band(18, 30)[9].nonzero()[:, 0].tolist() == list(range(8, 23))
        assert depth_band(3, 3).tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
        assert depth_band(3, 2).all()
        assert depth_band(1, 1).all()
        assert depth_band(1, 9)[0].nonzero()[:, 0].tolist() == [6, 7, 8]


@both
def test_planted_counterparts_are_found_again_but_not_noise_or_a_favourite_layer(measure) -> None:
    source = layers(120, 30, 6, 1)
    assert layer_identification(measure, turned(source[1::2], 40), source) == 1
    noise = layers(120, 30, 8, 1), layers(120, 30, 8, 2)
    assert layer_identification(measure, *noise) <= 0.5
    favourite = [source[2] + 0.01 * layer for layer in layers(120, 30, 5, 9)]
    assert layer_identification(measure, favourite, source) <= 0.4


def test_halves_are_drawn_by_the_seed() -> None:
    target, source = layers(60, 10, 12, 1), layers(60, 10, 12, 2)
    seeds = (0, 1, 2, 3, 4, 5, 3)
    found = [layer_identification(LinearCka(), target, source, seed) for seed in seeds]
    assert len(set(found)) > 1
    assert found[3] == found[6]
