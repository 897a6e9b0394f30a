import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from loraport.alignment import choose_strength, leave_one_out_errors, ridge_coefficients

N = 9
STRENGTHS = [1e-3, 0.1, 1.0, 30.0]


def points(rows: int, dim: int, seed: int) -> Tensor:
    """Far from the origin, so that forgetting to centre shows."""
    generator = torch.Generator().manual_seed(seed)
    return 2 + torch.randn(rows, dim, generator=generator, dtype=torch.float64)


# More dimensions than points, as adapters have, and fewer.
DIMS = [20, 4]


def penalty(x: Tensor, strength: float) -> float:
    centred = x - x.mean(dim=0)
    return strength * float(centred.square().sum()) / len(x)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("dim", DIMS)
class TestAgainstScikitLearn:
    def test_coefficients_give_the_predictions_of_ridge(self, dim: int, strength: float) -> None:
        x, y, query = points(N, dim, 0), points(N, 3, 1), points(5, dim, 2)
        c = ridge_coefficients(x @ x.mT, query @ x.mT, strength)
        model = Ridge(alpha=penalty(x, strength), solver="svd").fit(x.numpy(), y.numpy())
        np.testing.assert_allclose((c @ y).numpy(), model.predict(query.numpy()), rtol=1e-8)

    def test_leave_one_out_is_that_of_refitting(self, dim: int, strength: float) -> None:
        x, y = points(N, dim, 0), points(N, 3, 1)
        expected = []
        for left_out in range(N):
            others = [place for place in range(N) if place != left_out]
            # The penalty stays that of all points; the means are taken again.
            model = Ridge(alpha=penalty(x, strength), solver="svd")
            model.fit(x[others].numpy(), y[others].numpy())
            error = y[left_out].numpy() - model.predict(x[left_out : left_out + 1].numpy())[0]
            expected.append((error**2).sum())
        errors = leave_one_out_errors(x @ x.mT, y @ y.mT, strength)
        # The residuals are divided by 1 - leverage. With more dimensions than points that is about
        # the strength, so the Gram matrix's rounding grows by the square of N / strength: to
        # 2e-16 * (9 / 1e-3)^2, about 2e-8. How much of it shows depends on the processor's BLAS.
        np.testing.assert_allclose(errors.numpy(), expected, rtol=1e-6)

    def test_scale_and_origin_of_the_inputs_do_not_matter(self, dim: int, strength: float) -> None:
        x, query = points(N, dim, 0), points(5, dim, 2)
        moved, asked = 100 * x - 7, 100 * query - 7
        torch.testing.assert_close(
            ridge_coefficients(moved @ moved.mT, asked @ moved.mT, strength),
            ridge_coefficients(x @ x.mT, query @ x.mT, strength),
            rtol=1e-6,
            atol=1e-8,
        )


@pytest.mark.parametrize("dim", DIMS)
def test_coefficients_sum_to_one(dim: int) -> None:
    x, query = points(N, dim, 0), points(5, dim, 2)
    for strength in (0.0, *STRENGTHS, math.inf):
        sums = ridge_coefficients(x @ x.mT, query @ x.mT, strength).sum(dim=1)
        torch.testing.assert_close(sums, torch.ones(5, dtype=torch.float64))


def test_infinite_strength_is_exactly_the_mean() -> None:
    x, y, query = points(N, 20, 0), points(N, 3, 1), points(5, 20, 2)
    c = ridge_coefficients(x @ x.mT, query @ x.mT, math.inf)
    assert (c == 1 / N).all()
    expected = [
        float((y[place] - (y.sum(dim=0) - y[place]) / (N - 1)).square().sum()) for place in range(N)
    ]
    errors = leave_one_out_errors(x @ x.mT, y @ y.mT, math.inf)
    np.testing.assert_allclose(errors.numpy(), expected, rtol=1e-10)


def test_without_a_penalty_the_fitted_points_are_met() -> None:
    x, y = points(N, 20, 0), points(N, 3, 1)
    c = ridge_coefficients(x @ x.mT, x @ x.mT, 0.0)
    torch.testing.assert_close(c @ y, y)


class TestChoice:
    def test_it_is_of_least_error_and_relative_to_the_mean(self) -> None:
        x = points(N, 4, 0)
        y = x @ points(4, 3, 5) + 0.3 * points(N, 3, 6)
        grams = x @ x.mT, y @ y.mT
        errors = {s: float(leave_one_out_errors(*grams, s).sum()) for s in (*STRENGTHS, math.inf)}
        best, relative = choose_strength(*grams, [*STRENGTHS, math.inf])
        assert errors[best] == min(errors.values())
        assert relative == pytest.approx(errors[best] / errors[math.inf])
        assert best < 30
        assert relative < 0.5

    def test_unrelated_outputs_choose_the_mean(self) -> None:
        x, y = points(N, 4, 0), points(N, 50, 1)
        best, relative = choose_strength(x @ x.mT, y @ y.mT, [1e-3, 0.1, math.inf])
        assert (best, relative) == (math.inf, 1.0)

    def test_between_equals_the_stronger_one_is_taken(self) -> None:
        # Of a single point's copies every strength makes the same prediction.
        y = points(4, 3, 1)
        best, _ = choose_strength(torch.ones(4, 4, dtype=torch.float64), y @ y.mT, [0.1, 1.0, 10.0])
        assert best == 10.0

    def test_equal_outputs_are_no_better_than_the_mean(self) -> None:
        x = points(4, 3, 1)
        _, relative = choose_strength(x @ x.mT, torch.zeros(4, 4, dtype=torch.float64), [0.1])
        assert relative == 1.0
