import numpy as np
import ot
import pytest
import torch
from torch import Tensor

from loraport.alignment.gromov_wasserstein import gromov_wasserstein, plan_distance


def gaussian(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def test_the_same_related_and_independent_spaces() -> None:
    x, y = gaussian(40, 20, 1), gaussian(40, 30, 2)
    same = gromov_wasserstein(x, 3 * x)
    assert (same.rows, same.accuracy) == (40, 1)
    assert same.diagonal_mass > 0.9
    assert same.ratio < 0.1
    assert 0.1 < gromov_wasserstein(x, x @ gaussian(20, 30, 3), epsilons=(0.1,)).ratio < 0.8
    independent = gromov_wasserstein(x, y)
    assert max(independent.accuracy, independent.diagonal_mass) < 0.2
    assert independent.ratio == pytest.approx(1, abs=0.1)


def test_distance_is_that_of_pot() -> None:
    generator = np.random.default_rng(0)
    one, other = (ot.dist(generator.normal(size=(12, 3))) for _ in range(2))
    masses = np.full(12, 1 / 12)
    plan, log = ot.gromov.gromov_wasserstein(one, other, masses, masses, log=True)
    assert plan_distance(one, other, plan) == pytest.approx(log["gw_dist"])


def test_rows_are_limited_and_the_seed_decides() -> None:
    x, y = gaussian(90, 15, 1), gaussian(90, 16, 2)
    found = gromov_wasserstein(x, y, rows=15, epsilons=(0.1,))
    assert found.rows == 15
    assert found == gromov_wasserstein(x, y, rows=15, epsilons=(0.1,))
    assert found != gromov_wasserstein(x, y, rows=15, epsilons=(0.1,), seed=1)
