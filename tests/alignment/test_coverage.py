import numpy as np
import pytest
import torch
from torch import Tensor

from loraport.alignment.coverage import (
    LayerMap,
    calibrated,
    coverage,
    depth_band,
    layer_identification,
    layer_map,
    rescaled,
    row_orders,
)
from loraport.alignment.similarity import (
    Jaccard,
    LinearCka,
    MutualKnn,
    RbfCka,
    Rsa,
    Svcca,
    linear_cka,
    mutual_knn,
    rsa,
    svcca,
)


def gaussian(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_formula():
    x = gaussian(40, 6, 0)
    y = x @ gaussian(6, 5, 1) + gaussian(40, 5, 2)
    orders = row_orders(40, 50, 3)
    null = [linear_cka(x, y[order]) for order in orders]
    tau = np.quantile(null, 0.95)
    found = calibrated(linear_cka, x, y, permutations=50, seed=3)
    assert found.raw == linear_cka(x, y)
    assert found.threshold == pytest.approx(tau)
    assert found.calibrated == pytest.approx((found.raw - tau) / (1 - tau))
    assert 0.1 < found.calibrated < found.raw


def test_orders_are_permutations_that_the_seed_decides():
    orders = row_orders(30, 8, 0)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(30).expand(8, 30))
    assert torch.equal(orders, row_orders(30, 8, 0))
    assert not torch.equal(orders, row_orders(30, 8, 1))


def test_ends_of_the_scale():
    scores = torch.tensor([0.1, 0.2, 0.6, 1.0, 1.0])
    thresholds = torch.tensor([0.2, 0.2, 0.2, 0.2, 1.0])
    torch.testing.assert_close(
        rescaled(scores, thresholds), torch.tensor([0.0, 0.0, 0.5, 1.0, 0.0])
    )


# Where biased CKA says .96, .81 and .56, nothing is left of any measure.
@pytest.mark.parametrize("rows", [50, 300, 1000])
def test_nothing_is_left_of_independent_spaces(rows):
    x, y = gaussian(rows, 896, 1), gaussian(rows, 2048, 2)
    # Narrower ones and few permutations spare the time.
    slow = () if rows == 1000 else (rsa, svcca)
    for measure in (linear_cka, mutual_knn, *slow):
        found = calibrated(measure, x[:, :100], y[:, :200], permutations=10)
        assert found.calibrated < 0.02, measure


def test_one_outlying_row_is_in_the_null_or_not_paired():
    x, y = gaussian(100, 30, 1), gaussian(100, 40, 2)
    x[0], y[0] = 1000, 1000
    # Clamped and of unit norm, the row is one of 100.
    assert calibrated(mutual_knn, x, y, permutations=40).calibrated < 0.02


MEASURES = [MutualKnn(5), Jaccard(5), LinearCka(), RbfCka(), Rsa(), Svcca(3)]


def layers(rows: int, width: int, count: int, seed: int) -> list[Tensor]:
    """A residual stream: each layer adds to the last one."""
    written = torch.stack([gaussian(rows, width, seed + i) for i in range(count)])
    return list(written.cumsum(dim=0))


@pytest.mark.parametrize("measure", MEASURES, ids=lambda m: m.name)
class TestEveryMeasure:
    def test_noise_has_no_score(self, measure):
        found = layer_map(
            measure, layers(60, 12, 3, 0), layers(60, 20, 4, 50), permutations=60, seed=1
        )
        assert float(found.certain.max()) == 0
        assert float(found.calibrated.max()) < 0.05
        assert found.null.shape == (60, 3, 4)

    def test_related_layers_have(self, measure):
        source = layers(60, 12, 4, 0)
        target = [
            layer @ torch.linalg.qr(gaussian(15, 15, 30)).Q[:12] + 0.1 * gaussian(60, 15, 40 + i)
            for i, layer in enumerate(source)
        ]
        found = layer_map(measure, target, source, permutations=40)
        assert torch.equal(found.raw.argmax(dim=1), torch.arange(4))
        assert float(found.certain.diagonal().min()) > 0.3
        assert (found.calibrated <= found.raw).all()

    def test_same_seed_same_bits(self, measure):
        target, source = layers(40, 12, 2, 0), layers(40, 12, 2, 50)
        one = layer_map(measure, target, source, permutations=5, seed=3)
        other = layer_map(measure, target, source, permutations=5, seed=3)
        assert torch.equal(one.null, other.null)
        assert torch.equal(one.raw, other.raw)
        assert not torch.equal(
            one.null, layer_map(measure, target, source, permutations=5, seed=4).null
        )


def test_single_pair_is_calibrated_as_two_matrices_are():
    x = gaussian(40, 6, 0)
    y = x @ gaussian(6, 5, 1) + gaussian(40, 5, 2)
    found = layer_map(LinearCka(), [y], [x], permutations=30, seed=2)
    expected = calibrated(linear_cka, x, y, permutations=30, seed=2)
    assert float(found.raw) == pytest.approx(expected.raw, abs=1e-5)
    assert float(found.calibrated) == pytest.approx(expected.calibrated, abs=1e-5)
    assert float(found.best) == pytest.approx(expected.calibrated, abs=1e-5)


def test_maxima_are_taken_inside_each_permutation():
    null = torch.zeros(100, 1, 2)
    # Each column alone exceeds 0.5 in 4 permutations, which is not one in twenty; together 8 do.
    null[:4, 0, 0] = null[4:8, 0, 1] = 0.5
    found = LayerMap(torch.tensor([[0.75, 0.4]]).double(), null.double())
    torch.testing.assert_close(found.calibrated, torch.tensor([[0.75, 0.4]]).double())
    torch.testing.assert_close(found.best, torch.tensor([0.5]).double())


def test_certain_scores_exceed_every_permutation():
    null = torch.rand(50, 3, 4, generator=torch.Generator().manual_seed(0)).double() / 2
    # As high as a pair's own null ever was is no score.
    assert float(LayerMap(null.amax(dim=0), null).certain.max()) == 0
    assert float(LayerMap(torch.ones(3, 4).double(), null).certain.min()) == 1


def test_no_layers_are_refused():
    with pytest.raises(ValueError, match="same rows"):
        layer_map(LinearCka(), [], [gaussian(10, 3, 0)])


def layers_coverage(rows: int, width: int, count: int, seed: int) -> list[Tensor]:
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
    target, source = layers_coverage(rows, 89, 3, 1), layers_coverage(rows, 205, 4, 2)
    assert coverage(layer_map(measure, target, source, permutations=permutations)).share == 0


@pytest.mark.parametrize("measure", [MutualKnn(), LinearCka()], ids=lambda m: m.name)
def test_turned_layers_cover_everything(measure):
    source = layers_coverage(100, 30, 8, 1)
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


def layers_identification(rows: int, width: int, count: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, rows, width, generator=generator).cumsum(dim=0))


@pytest.mark.parametrize("measure", [MutualKnn(), LinearCka()], ids=lambda m: m.name)
class TestIdentification:
    def test_planted_counterparts_are_found_again(self, measure):
        source = layers_identification(120, 30, 6, 1)
        basis = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(3))).Q
        target = [layer @ basis[:30] for layer in source[1::2]]
        found = layer_identification(measure, target, source)
        assert (found.accuracy, found.within_one, found.chance) == (1, 1, 1 / 3)

    def test_noise_is_not(self, measure):
        found = layer_identification(
            measure, layers_identification(120, 30, 8, 1), layers_identification(120, 30, 8, 2)
        )
        assert found.accuracy <= 0.5

    def test_one_favourite_layer_identifies_nothing(self, measure):
        source = layers_identification(120, 30, 6, 1)
        target = [source[2] + 0.01 * layer for layer in layers_identification(120, 30, 5, 9)]
        assert layer_identification(measure, target, source).accuracy <= 0.4


def test_halves_are_drawn_by_the_seed():
    target, source = layers_identification(60, 10, 12, 1), layers_identification(60, 10, 12, 2)
    found = {layer_identification(LinearCka(), target, source, seed).accuracy for seed in range(6)}
    assert len(found) > 1
    again = [layer_identification(LinearCka(), target, source, 3) for _ in range(2)]
    assert again[0] == again[1]
