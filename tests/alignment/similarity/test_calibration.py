import numpy as np
import pytest
import torch
from torch import Tensor

from loraport.alignment.similarity import (
    calibrated,
    linear_cka,
    mutual_knn,
    rsa,
    svcca,
)
from loraport.alignment.similarity.calibration import rescaled, row_orders


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
