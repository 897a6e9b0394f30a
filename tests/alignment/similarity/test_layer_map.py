import pytest
import torch
from torch import Tensor

from loraport.alignment.similarity import (
    Jaccard,
    LayerMap,
    LinearCka,
    MutualKnn,
    RbfCka,
    Rsa,
    Svcca,
    calibrated,
    layer_map,
    linear_cka,
)

MEASURES = [MutualKnn(5), Jaccard(5), LinearCka(), RbfCka(), Rsa(), Svcca(3)]


def gaussian(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


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
