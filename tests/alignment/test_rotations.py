import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import PCA
from torch import Tensor

from loraport.alignment.rotations import (
    PrincipalRotation,
    anchor_coverage,
    rotation_errors,
    rotation_roughness,
    usable_components,
)


def gaussian(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).double()


def turned(x: Tensor, width: int, seed: int = 9) -> Tensor:
    """The same cloud, twice as large, turned into a wider space and moved."""
    return 2 * x @ torch.linalg.qr(gaussian(width, width, seed)).Q[: x.shape[1]] + 5


@pytest.mark.parametrize("k", [3, 8])
def test_rotation_is_that_of_scipy_on_components_of_scikit_learn(k):
    x = gaussian(50, 8, 0) * 1.5 ** -torch.arange(8)
    y = turned(x, 12) + 0.1 * gaussian(50, 12, 1)
    fit = PrincipalRotation.fit(x, y, k)
    one, other = (PCA(k, svd_solver="full").fit(s.numpy()) for s in (x, y))
    a, b = one.transform(x.numpy()), other.transform(y.numpy())
    rotation, trace = orthogonal_procrustes(a, b)
    np.testing.assert_allclose(
        fit.rotation.numpy(), one.components_.T @ rotation @ other.components_, atol=1e-8
    )
    assert fit.scale == pytest.approx(trace / (a**2).sum())
    # A partial isometry of rank k.
    values = torch.linalg.svdvals(fit.rotation)
    torch.testing.assert_close(values, (torch.arange(8) < k).double())


def test_rotated_rows_are_where_the_other_half_says():
    x = gaussian(80, 6, 0) * 1.5 ** -torch.arange(6)
    found = rotation_errors(x, turned(x, 9), 6)
    assert found.greatest < 1e-8
    assert len(found.errors) == 80


def test_noise_is_no_better_than_the_mean():
    found = rotation_errors(gaussian(200, 20, 0), gaussian(200, 30, 1))
    assert found.mean > 0.9
    assert found.greatest > found.mean


def test_error_of_a_known_fit():
    x, y = gaussian(40, 5, 0), gaussian(40, 7, 1)
    found = rotation_errors(x, y, 2)
    fit = PrincipalRotation.fit(x[20:], y[20:], 2)
    size = (y - y.mean(dim=0)).norm() / 40**0.5
    torch.testing.assert_close(found.errors[:20], (y[:20] - fit(x[:20])).norm(dim=1) / size)


def test_components_are_limited_by_rows_and_widths():
    assert usable_components(gaussian(80, 6, 0), gaussian(80, 9, 0)) == 6
    assert usable_components(gaussian(80, 60, 0), gaussian(80, 90, 0)) == 10
    with pytest.raises(ValueError, match="no 7 components"):
        PrincipalRotation.fit(gaussian(80, 6, 0), gaussian(80, 9, 0), 7)


def test_roughness_of_equal_opposite_and_unrelated_rotations():
    x = gaussian(200, 30, 0)
    here = PrincipalRotation.fit(x, turned(x, 30), 30)
    opposite = PrincipalRotation.fit(x, -turned(x, 30), 30)
    other = PrincipalRotation.fit(x, turned(x, 30, seed=4), 30)
    found = rotation_roughness([here, here, other, other, opposite])
    assert found[:1].tolist() == pytest.approx([0])
    assert found[1].item() == pytest.approx(1, abs=0.15)
    assert found[2].item() == pytest.approx(0)
    assert rotation_roughness([here, opposite]).tolist() == pytest.approx([2])
    assert len(rotation_roughness([here])) == 0


def test_anchors_cover_their_span():
    anchors = torch.zeros(4, 6).double()
    anchors[1, 0] = anchors[2, 1] = anchors[3, 0] = 1
    rows = anchors.mean(dim=0) + torch.tensor([[3.0, 0, 4, 0, 0, 0], [0, 5, 0, 0, 0, 0]]).double()
    found = anchor_coverage(anchors, rows)
    assert found.variance == pytest.approx((9 + 25) / 50)
    assert found.dimensions == pytest.approx(2 / 6)
    every = gaussian(20, 6, 0)
    assert anchor_coverage(every, gaussian(9, 6, 1)).variance == pytest.approx(1)
    assert anchor_coverage(every, gaussian(9, 6, 1)).dimensions == 1
