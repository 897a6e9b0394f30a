import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from loraport.alignment import PrincipalScores

N, K = 10, 4


def points(rows: int, dim: int, seed: int) -> Tensor:
    """Far from the origin, with a clearly different variance along each axis."""
    generator = torch.Generator().manual_seed(seed)
    spread = 1.5 ** -torch.arange(dim, dtype=torch.float64)
    return 3 + spread * torch.randn(rows, dim, generator=generator, dtype=torch.float64)


def signs(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.sign((found * expected).sum(axis=0))


@pytest.mark.parametrize("dim", [25, 6], ids=["wide", "narrow"])
class TestAgainstScikitLearn:
    def test_scores_and_variances(self, dim: int) -> None:
        x = points(N, dim, 0)
        ours = PrincipalScores.fit(x @ x.mT, K)
        pca = PCA(K, whiten=True, svd_solver="full").fit(x.numpy())
        # scikit-learn divides by n - 1.
        expected = pca.transform(x.numpy()) * (N / (N - 1)) ** 0.5
        found = ours.scores.numpy()
        np.testing.assert_allclose(found * signs(found, expected), expected, atol=1e-8)
        variances = pca.explained_variance_ * (N - 1) / N
        np.testing.assert_allclose(ours.variances.numpy(), variances, rtol=1e-10)

    def test_projection_of_new_points(self, dim: int) -> None:
        x, new = points(N, dim, 0), points(5, dim, 1)
        ours = PrincipalScores.fit(x @ x.mT, K)
        pca = PCA(K, whiten=True, svd_solver="full").fit(x.numpy())
        expected = pca.transform(new.numpy()) * (N / (N - 1)) ** 0.5
        known = pca.transform(x.numpy())
        flip = signs(ours.scores.numpy(), known)
        found = ours.project(new @ x.mT).numpy()
        np.testing.assert_allclose(found * flip, expected, atol=1e-8)
        torch.testing.assert_close(ours.project(x @ x.mT), ours.scores)

    def test_coefficients_give_the_point_back_within_the_span(self, dim: int) -> None:
        x, new = points(N, dim, 0), points(5, dim, 1)
        every = min(N - 1, dim)
        ours = PrincipalScores.fit(x @ x.mT, every)
        mixed = torch.softmax(points(5, N, 2), dim=1) @ x
        again = ours.coefficients(ours.project(mixed @ x.mT)) @ x
        torch.testing.assert_close(again, mixed)
        # And its nearest point in the kept components otherwise.
        few = PrincipalScores.fit(x @ x.mT, K)
        pca = PCA(K, svd_solver="full").fit(x.numpy())
        nearest = pca.inverse_transform(pca.transform(new.numpy()))
        found = few.coefficients(few.project(new @ x.mT)) @ x
        np.testing.assert_allclose(found.numpy(), nearest, atol=1e-8)


def test_coefficients_sum_to_one() -> None:
    x = points(N, 25, 0)
    scores = points(3, K, 1)
    sums = PrincipalScores.fit(x @ x.mT, K).coefficients(scores).sum(dim=1)
    torch.testing.assert_close(sums, torch.ones(3, dtype=torch.float64))


def test_signs_are_fixed_by_the_largest_entry() -> None:
    x = points(N, 25, 0)
    directions = PrincipalScores.fit(x @ x.mT, K).directions
    largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
    assert (largest > 0).all()


class TestFewerDirectionsThanComponents:
    x = points(N, 2, 0)

    def test_components_without_variance_are_empty(self) -> None:
        ours = PrincipalScores.fit(self.x @ self.x.mT, K)
        assert (ours.variances[:2] > 0).all()
        assert ours.variances[2:].count_nonzero() == 0
        assert ours.scores[:, 2:].count_nonzero() == 0
        torch.testing.assert_close(ours.scores.mean(dim=0), torch.zeros(K, dtype=torch.float64))

    def test_points_come_back_whatever_the_empty_scores_say(self) -> None:
        ours = PrincipalScores.fit(self.x @ self.x.mT, K)
        new = points(5, 2, 1)
        scores = ours.project(new @ self.x.mT)
        assert scores[:, 2:].count_nonzero() == 0
        torch.testing.assert_close(ours.coefficients(scores) @ self.x, new)
        scores[:, 2:] = 100.0
        torch.testing.assert_close(ours.coefficients(scores) @ self.x, new)

    def test_equal_points_have_no_scores(self) -> None:
        ours = PrincipalScores.fit(torch.full((5, 5), 2.0, dtype=torch.float64), 3)
        assert ours.scores.count_nonzero() == 0
        inner = torch.ones(1, 5, dtype=torch.float64)
        mean = ours.coefficients(ours.project(inner))
        assert torch.equal(mean, torch.full((1, 5), 0.2, dtype=torch.float64))


def test_more_components_than_points_have_is_refused() -> None:
    x = points(N, 25, 0)
    with pytest.raises(ValueError, match="10 points have at most 9 components, not 10"):
        PrincipalScores.fit(x @ x.mT, N)
