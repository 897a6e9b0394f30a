import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA
from torch import Tensor

from loraport.alignment.similarity import Svcca, svcca


def gaussian(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).double()


def related() -> tuple[Tensor, Tensor]:
    """Three directions in common, with more variance than the rest."""
    shared = gaussian(120, 3, 0)
    scales = torch.tensor([9.0, 7.0, 5.0])
    x = torch.cat([shared * scales, gaussian(120, 7, 1)], dim=1)
    noisy = shared + torch.tensor([0.1, 0.7, 3.0]) * gaussian(120, 3, 3)
    y = torch.cat([noisy * scales, gaussian(120, 9, 2)], dim=1)
    return x, y + 4


def naive(x: Tensor, y: Tensor, components: int) -> float:
    scores = [PCA(components, svd_solver="full").fit_transform(s.numpy()) for s in (x, y)]
    half, found = len(x) // 2, []
    for train, test in ((slice(half), slice(half, None)), (slice(half, None), slice(half))):
        cca = CCA(components, max_iter=5000, tol=1e-12).fit(scores[0][train], scores[1][train])
        a, b = cca.transform(scores[0][test], scores[1][test])
        found += [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(components)]
    return float(np.mean(found))


def test_against_scikit_learn():
    x, y = related()
    assert svcca(x, y, 3) == pytest.approx(naive(x, y, 3), abs=1e-4)
    assert 0.4 < svcca(x, y, 3) < 0.9


def test_any_invertible_map_of_the_components_changes_nothing():
    x = gaussian(100, 6, 0)
    assert svcca(x, x @ gaussian(6, 6, 1) + 3, 6) == pytest.approx(1)


@pytest.mark.parametrize("rows", [50, 300, 1000])
def test_independent_spaces_are_near_zero(rows):
    x, y = gaussian(rows, 90, 1), gaussian(rows, 200, 2)
    assert abs(svcca(x, y)) < 3 / rows**0.5


def test_direction_without_variance_counts_as_uncorrelated():
    x = gaussian(100, 6, 0)
    flat = torch.cat([x[:, :3], torch.zeros(100, 3)], dim=1)
    assert svcca(flat, flat, 6) == pytest.approx(0.5)


def test_too_little_is_refused():
    with pytest.raises(ValueError, match="30 rows are too few"):
        svcca(gaussian(30, 20, 0), gaussian(30, 20, 0), 10)
    with pytest.raises(ValueError, match=r"\(50, 4\) has no 10 components"):
        svcca(gaussian(50, 4, 0), gaussian(50, 20, 0), 10)


def test_all_layers_at_once_with_rows_in_any_order():
    target, source = [*related(), gaussian(120, 5, 3)], [related()[1], gaussian(120, 7, 4)]
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    found = Svcca(3).compare(target, source).matrix(order)
    expected = [[svcca(x[order], y, 3) for y in source] for x in target]
    torch.testing.assert_close(found, torch.tensor(expected).double())
