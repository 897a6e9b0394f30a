import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from loraport.alignment.similarity import LayerFingerprint


def gaussian(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)).double()


def test_numbers_by_hand():
    x = 2 + gaussian(40, 6, 0)
    found = LayerFingerprint.of(x)
    values = np.linalg.eigvalsh(np.cov(x.mT.numpy()))
    assert found.dimensions == pytest.approx(values.sum() ** 2 / (values**2).sum())
    distances = cdist(x.numpy(), x.numpy(), "cosine")
    assert found.anisotropy == pytest.approx(1 - distances.sum() / (40 * 39))
    assert found.norm == pytest.approx(float(x.norm(dim=1).mean()))
    lengths = cdist(x.numpy(), x.numpy()).sum(axis=1)
    np.testing.assert_allclose(found.distances.numpy(), lengths / lengths.mean(), rtol=1e-6)


def test_rotation_leaves_it_alone():
    x = gaussian(30, 6, 0)
    basis = torch.linalg.qr(gaussian(6, 6, 1)).Q
    one, other = LayerFingerprint.of(x), LayerFingerprint.of(x @ basis)
    assert one.dimensions == pytest.approx(other.dimensions)
    assert one.anisotropy == pytest.approx(other.anisotropy)
    torch.testing.assert_close(one.distances, other.distances)


def test_equal_rows_have_no_dimensions_and_one_row_is_refused():
    found = LayerFingerprint.of(torch.ones(5, 3))
    assert found.dimensions == 0
    assert found.anisotropy == pytest.approx(1)
    assert found.distances.tolist() == [0] * 5
    with pytest.raises(ValueError, match="1 rows"):
        LayerFingerprint.of(torch.ones(1, 3))
