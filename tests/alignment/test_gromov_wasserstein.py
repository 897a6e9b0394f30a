import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from loraport.alignment.gromov_wasserstein import _distance, gromov_wasserstein


def gaussian(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_same_space_is_matched_row_by_row():
    x = gaussian(30, 5, 0)
    found = gromov_wasserstein(x, 3 * x)
    assert found.rows == 30
    assert found.accuracy == 1
    assert found.diagonal_mass > 0.9
    assert found.ratio < 0.1


def test_independent_spaces_are_matched_at_random():
    found = gromov_wasserstein(gaussian(40, 20, 1), gaussian(40, 30, 2))
    assert found.accuracy < 0.2
    assert found.diagonal_mass < 0.2
    assert found.ratio == pytest.approx(1, abs=0.1)


def test_related_spaces_are_told_by_the_ratio():
    x = gaussian(40, 20, 1)
    found = gromov_wasserstein(x, x @ gaussian(20, 30, 3), epsilons=(0.1,))
    assert 0.1 < found.ratio < 0.8


def test_distance_is_that_of_pot():
    generator = np.random.default_rng(0)
    one, other = (ot.dist(generator.normal(size=(12, 3))) for _ in range(2))
    masses = np.full(12, 1 / 12)
    plan, log = ot.gromov.gromov_wasserstein(one, other, masses, masses, log=True)
    assert _distance(one, other, plan) == pytest.approx(log["gw_dist"])


def test_rows_are_limited_and_the_seed_decides():
    x, y = gaussian(90, 15, 1), gaussian(90, 16, 2)
    found = gromov_wasserstein(x, y, rows=15, epsilons=(0.1,))
    assert found.rows == 15
    assert found == gromov_wasserstein(x, y, rows=15, epsilons=(0.1,))
    assert found != gromov_wasserstein(x, y, rows=15, epsilons=(0.1,), seed=1)


def test_single_row_is_refused():
    with pytest.raises(ValueError, match="1 rows"):
        gromov_wasserstein(torch.ones(1, 3), torch.ones(1, 3))
