import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from loraport.alignment.similarity import Rsa, rsa


def gaussian(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def naive(x: Tensor, y: Tensor) -> float:
    i, j = np.triu_indices(len(x), 1)
    rdms = [1 - np.corrcoef(space.double().numpy())[i, j] for space in (x, y)]
    return float(spearmanr(*rdms).statistic)


def related() -> tuple[Tensor, Tensor]:
    x = gaussian(40, 8, 0)
    return x, x @ gaussian(8, 11, 1)


def test_against_numpy_and_scipy():
    x, y = related()
    assert rsa(x, y) == pytest.approx(naive(x, y), abs=1e-6)
    assert 0.2 < rsa(x, y) < 0.95


def test_equal_dissimilarities_share_their_rank():
    x, y = related()
    # Rows that occur twice, exactly; small integers, so that rounding breaks no tie.
    x = torch.cat([x[:20], x[:20]]).mul(4).round()
    assert rsa(x, y) == pytest.approx(naive(x, y), abs=1e-4)


def test_what_does_not_change_correlations_changes_nothing():
    x, _ = related()
    assert rsa(x, 3 * x + 2) == pytest.approx(1)
    assert rsa(x, torch.ones(40, 3)) == 0


@pytest.mark.parametrize("rows", [50, 300])
def test_independent_spaces_are_near_zero(rows):
    assert abs(rsa(gaussian(rows, 90, 1), gaussian(rows, 200, 2))) < 0.1


def test_all_layers_at_once_with_rows_in_any_order():
    target, source = [*related(), gaussian(40, 5, 3)], [related()[1], gaussian(40, 7, 4)]
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    found = Rsa().compare(target, source).matrix(order)
    expected = [[naive(x[order], y) for y in source] for x in target]
    torch.testing.assert_close(found, torch.tensor(expected).double(), atol=1e-6, rtol=0)
