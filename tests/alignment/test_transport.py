import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor

from loraport.alignment.transport import (
    HeldOutRidge,
    RidgeDesign,
    transported_reader,
    transported_writer,
)

N, RANK = 40, 3
# Fewer dimensions than samples, as many, and more: primal, primal and dual.
DIMS = [7, 40, 90]
STRENGTHS = [1e-3, 0.1, 30.0]


def drawn(rows: int, columns: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=dtype)


def penalty(x: Tensor, strength: float) -> float:
    return strength * float(x.square().sum()) / x.shape[1]


def ridge(x: Tensor, y: Tensor, strength: float) -> Tensor:
    """The map from x to y by scikit-learn, ``(out, in)``."""
    model = Ridge(alpha=penalty(x, strength), fit_intercept=False, solver="svd")
    return torch.from_numpy(np.atleast_2d(model.fit(x.numpy(), y.numpy()).coef_))


@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize("strength", STRENGTHS)
class TestRidgeDesign:
    def test_weights_are_those_of_scikit_learn(self, dim: int, strength: float) -> None:
        x, y = drawn(N, dim, 0), drawn(N, 5, 1)
        weights = RidgeDesign.of(x).weights(y, strength)
        np.testing.assert_allclose(weights.mT, ridge(x, y, strength), rtol=1e-8, atol=1e-12)

    def test_responses_are_the_fitted_map_at_the_directions(
        self, dim: int, strength: float
    ) -> None:
        x, y, directions = drawn(N, dim, 0), drawn(N, 5, 1), drawn(dim, RANK, 2)
        mapped = y.mT @ RidgeDesign.of(x).responses(directions, strength)
        expected = ridge(x, y, strength) @ directions
        np.testing.assert_allclose(mapped, expected, rtol=1e-8, atol=1e-12)

    def test_the_strength_means_the_same_at_any_scale(self, dim: int, strength: float) -> None:
        x, y = drawn(N, dim, 0), drawn(N, 5, 1)
        once = RidgeDesign.of(x).weights(y, strength)
        scaled = RidgeDesign.of(100 * x).weights(y, strength)
        torch.testing.assert_close(100 * scaled, once)


def test_the_smaller_gram_matrix_is_kept() -> None:
    assert RidgeDesign.of(drawn(10, 90, 0)).gram.shape == (10, 10)
    assert RidgeDesign.of(drawn(90, 10, 0)).gram.shape == (10, 10)


@pytest.mark.parametrize("dim", [3, 30])
def test_samples_that_are_all_zero_give_the_zero_map(dim: int) -> None:
    design = RidgeDesign.of(torch.zeros(10, dim))
    assert not design.weights(drawn(10, 2, 0), 0.1).any()
    assert not design.responses(drawn(dim, 2, 0), 0.1).any()


class TestHeldOutRidge:
    held_out = torch.arange(N) % 5 == 4

    @pytest.mark.parametrize("dim", DIMS)
    def test_takes_the_strength_that_refitting_finds_best(self, dim: int) -> None:
        x = drawn(N, dim, 0)
        y = x @ drawn(dim, 4, 1) + 2 * drawn(N, 4, 2)
        held, rest = self.held_out, ~self.held_out
        total = (y[held] - y[rest].mean(dim=0)).square().sum()
        r2 = {}
        for strength in STRENGTHS:
            predicted = x[held] @ ridge(x[rest], y[rest], strength).mT
            r2[strength] = 1 - float((y[held] - predicted).square().sum() / total)
        best = max(r2, key=lambda s: r2[s])
        choice = HeldOutRidge.of(x, held, STRENGTHS).choose(y)
        assert choice.strength == best
        assert choice.r2 == pytest.approx(r2[best], rel=1e-6)

    def test_without_noise_the_weakest_is_best_and_without_relation_the_strongest(self) -> None:
        x = drawn(N, 7, 0)
        ridge = HeldOutRidge.of(x, self.held_out, STRENGTHS)
        exact = ridge.choose(x @ drawn(7, 4, 1))
        assert exact.strength == min(STRENGTHS)
        assert exact.r2 > 0.99999
        unrelated = ridge.choose(drawn(N, 4, 3))
        assert unrelated.strength == max(STRENGTHS)
        assert unrelated.r2 < 0.1

    def test_the_mean_is_no_skill(self) -> None:
        # A constant direction in unrelated samples predicts most of what they are, not how they
        # differ.
        x, y = 5 + drawn(N, 7, 0), 5 + drawn(N, 4, 3)
        choice = HeldOutRidge.of(x, self.held_out, STRENGTHS).choose(y)
        assert choice.r2 < 0.1

    def test_outputs_that_are_zero_have_nothing_to_predict(self) -> None:
        choice = HeldOutRidge.of(drawn(N, 7, 0), self.held_out, STRENGTHS).choose(torch.zeros(N, 2))
        assert choice == (max(STRENGTHS), 0.0)

    def test_the_final_fit_uses_all_samples(self) -> None:
        x = drawn(N, 7, 0)
        design = HeldOutRidge.of(x, self.held_out, STRENGTHS).design
        torch.testing.assert_close(design.samples, x)
        torch.testing.assert_close(design.gram, x.mT @ x)


class Planted:
    """Two modules between which linear maps hold exactly: ``x_S = M x_T``, ``y_T = N y_S``."""

    samples = 60

    def __init__(self, source: tuple[int, int], target: tuple[int, int]) -> None:
        (out_s, in_s), (out_t, in_t) = source, target
        self.m, self.n = drawn(in_s, in_t, 0), drawn(out_t, out_s, 1)
        self.x_t = drawn(self.samples, in_t, 2)
        self.x_s = self.x_t @ self.m.mT
        self.y_s = drawn(self.samples, out_s, 3)
        self.y_t = self.y_s @ self.n.mT
        self.a, self.b = drawn(RANK, in_s, 4), drawn(out_s, RANK, 5)
        self.delta = self.n @ self.b @ self.a @ self.m

    def transported(self, a: Tensor, b: Tensor, strength: float = 1e-9) -> tuple[Tensor, Tensor]:
        return (
            transported_reader(a, self.x_s, RidgeDesign.of(self.x_t), strength),
            transported_writer(b, RidgeDesign.of(self.y_s), self.y_t, strength),
        )


# Wider, narrower, and both at once.
SHAPES = [((12, 10), (20, 18)), ((20, 18), (12, 10)), ((9, 30), (40, 6))]


@pytest.mark.parametrize(("source", "target"), SHAPES)
class TestMasterIdentity:
    def test_a_planted_map_gives_the_update_at_its_scale(
        self, source: tuple[int, int], target: tuple[int, int]
    ) -> None:
        planted = Planted(source, target)
        a, b = planted.transported(planted.a, planted.b)
        assert a.shape == (RANK, target[1])
        assert b.shape == (target[0], RANK)
        error = (b @ a - planted.delta).norm() / planted.delta.norm()
        assert float(error) < 1e-4

    def test_float32_factors_and_samples_are_enough(
        self, source: tuple[int, int], target: tuple[int, int]
    ) -> None:
        planted = Planted(source, target)
        for name in ("x_s", "x_t", "y_s", "y_t"):
            setattr(planted, name, getattr(planted, name).float())
        a, b = planted.transported(planted.a.float(), planted.b.float(), 1e-7)
        assert a.dtype == b.dtype == torch.float32
        error = (b.double() @ a.double() - planted.delta).norm() / planted.delta.norm()
        assert float(error) < 1e-4

    def test_the_gauge_of_the_factors_does_not_matter(
        self, source: tuple[int, int], target: tuple[int, int]
    ) -> None:
        planted, turn = Planted(source, target), drawn(RANK, RANK, 9)
        a, b = planted.transported(planted.a, planted.b, 0.1)
        turned_a, turned_b = planted.transported(
            turn @ planted.a, planted.b @ torch.linalg.inv(turn), 0.1
        )
        torch.testing.assert_close(turned_a, turn @ a)
        torch.testing.assert_close(turned_b @ turned_a, b @ a)


def test_an_orthogonal_change_of_basis_turns_the_update_back_and_forth() -> None:
    # x_T = R_in^T x_S and y_T = R_out^T y_S: the update is R_out^T D R_in.
    r_in, _ = torch.linalg.qr(drawn(10, 10, 0))
    r_out, _ = torch.linalg.qr(drawn(8, 8, 1))
    x_s, y_s = drawn(50, 10, 2), drawn(50, 8, 3)
    a, b = drawn(RANK, 10, 4), drawn(8, RANK, 5)
    a_t = transported_reader(a, x_s, RidgeDesign.of(x_s @ r_in), 1e-9)
    b_t = transported_writer(b, RidgeDesign.of(y_s), y_s @ r_out, 1e-9)
    torch.testing.assert_close(b_t @ a_t, r_out.mT @ (b @ a) @ r_in, rtol=1e-6, atol=1e-6)


def test_the_reader_minimises_the_penalised_error_of_the_update() -> None:
    # For a given N the whole update solves a ridge regression: no other A does better.
    planted = Planted((12, 10), (20, 18))
    noisy = planted.x_s + drawn(planted.samples, 10, 6)
    strength = 0.3
    a = transported_reader(planted.a, noisy, RidgeDesign.of(planted.x_t), strength)
    b = torch.linalg.qr(planted.n @ planted.b)[0]
    code = noisy @ planted.a.mT

    def loss(reader: Tensor) -> float:
        error = (planted.x_t @ reader.mT - code) @ b.mT
        squared = penalty(planted.x_t, strength) * (b @ reader).square().sum()
        return float(error.square().sum() + squared)

    best = loss(a)
    assert math.isfinite(best)
    assert all(loss(a + 0.01 * drawn(RANK, 18, seed)) > best for seed in range(10, 20))
