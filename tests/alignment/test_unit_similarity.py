import numpy as np
import pytest
import torch

from loraport.alignment.unit_similarity import UnitSimilarity


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, generator=generator) for shape in ((5, 7), (4, 7), (5, 3), (4, 3))]


def test_inner_products_are_those_of_the_matrices_at_norm_one(drawn):
    one, other = drawn[0].numpy(), drawn[1].numpy()
    found = UnitSimilarity.of(100 * drawn[0], 0.01 * drawn[1])
    expected = one @ other.T / np.linalg.norm(one) / np.linalg.norm(other)
    np.testing.assert_allclose(found.inner, expected, rtol=1e-4, atol=1e-6)
    assert float(found.source_squared.sum()) == pytest.approx(1)
    assert float(found.target_squared.sum()) == pytest.approx(1)


def test_sum_is_the_similarity_of_concatenated_weights(drawn):
    a, b, c, d = drawn
    summed = UnitSimilarity.of(a, b) + UnitSimilarity.of(c, d)
    one = np.hstack([a / a.norm(), c / c.norm()])
    other = np.hstack([b / b.norm(), d / d.norm()])
    lengths = np.linalg.norm(one, axis=1)[:, None] * np.linalg.norm(other, axis=1)
    np.testing.assert_allclose(summed.cosine, one @ other.T / lengths, rtol=1e-4, atol=1e-6)


def test_cosine_with_a_unit_without_weights_is_zero(drawn):
    drawn[0][2] = 0
    cosine = UnitSimilarity.of(drawn[0], drawn[1]).cosine
    assert (cosine[2] == 0).all()
    assert (cosine[[0, 1, 3, 4]] != 0).all()
    assert (UnitSimilarity.of(0 * drawn[0], drawn[1]).cosine == 0).all()


def test_block_is_the_similarity_of_its_rows_and_columns(drawn):
    whole = UnitSimilarity.of(drawn[0], drawn[1])
    part = whole.block(slice(1, 3), slice(2, 4))
    assert torch.equal(part.cosine, whole.cosine[1:3, 2:4])
