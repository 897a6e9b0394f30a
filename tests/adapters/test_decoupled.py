from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, minimize
from torch import Tensor

from loraport.adapters import LoraAdapter, LowRank, Role, Site, cosine, relative_error
from loraport.adapters.combine import WeightAverage
from loraport.adapters.decoupled import Decoupled
from loraport.exceptions import ConfigurationError

Q = Site(0, Role.Q)


def drawn(seed: int, rank: int = 3, scale: float = 1.0) -> LoraAdapter:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(rank, 14, generator=generator, dtype=torch.float64)
    b = torch.randn(11, rank, generator=generator, dtype=torch.float64)
    return adapter_of(LowRank(a, b, scale))


def adapter_of(update: LowRank) -> LoraAdapter:
    return LoraAdapter({Q: update}, "some/base")


def dense(adapter: LoraAdapter) -> Tensor:
    return adapter[Q].dense()


def normalised(seeds: tuple[int, ...], rank: int = 3, width: int = 8) -> list[Tensor]:
    factors = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        factor = torch.randn(rank, width, generator=generator, dtype=torch.float64)
        factors.append(factor / torch.linalg.matrix_norm(factor, ord=2))
    return factors


def loss(now: list[Tensor], start: list[Tensor], gamma: float) -> Tensor:
    """As the docstring prints it, with both orders of each pair."""
    overlaps = [(a @ b.mT).square().sum() for a in now for b in now if a is not b]
    moves = [(a - b).square().sum() for a, b in zip(now, start, strict=True)]
    return torch.stack(overlaps).sum() + gamma * torch.stack(moves).sum()


class TestOrthogonalisation:
    @pytest.mark.parametrize("gamma", [0.3, 1.0, 5.0])
    def test_it_descends_to_a_minimum_of_the_loss(self, gamma: float) -> None:
        start = normalised((0, 1, 2))
        shape = torch.stack(start).shape

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            now = torch.from_numpy(flat).reshape(shape).requires_grad_()
            value = loss(list(now), start, gamma)
            (gradient,) = torch.autograd.grad(value, now)
            return float(value.detach()), gradient.numpy().ravel()

        found = minimize(objective, torch.stack(start).numpy().ravel(), jac=True, tol=1e-12)
        ours = Decoupled(gamma, steps=3000).orthogonalised(start)
        assert float(loss(ours.factors, start, gamma)) == pytest.approx(found.fun, rel=1e-6)
        np.testing.assert_allclose(
            torch.stack(ours.factors).numpy().ravel(), found.x, rtol=1e-3, atol=1e-3
        )
        moved = torch.stack(ours.factors) - torch.stack(start)
        share = float(moved.norm() / torch.stack(start).norm())
        assert ours.perturbation == pytest.approx(share, rel=1e-9)
        overlap = float(loss(ours.factors, ours.factors, 0.0))
        assert ours.after == pytest.approx(overlap, rel=1e-9)
        assert ours.before == pytest.approx(float(loss(start, start, 0.0)), rel=1e-9)

    @pytest.mark.parametrize("lr", [0.2, 1.0, 1.9])
    def test_every_step_descends(self, lr: float) -> None:
        start = normalised((3, 4, 5, 6), rank=5)
        values = [
            float(loss(Decoupled(steps=steps, lr=lr).orthogonalised(start).factors, start, 1.0))
            for steps in range(12)
        ]
        assert all(after < before for before, after in pairwise(values))

    def test_the_defaults_come_close_to_the_minimum(self) -> None:
        start = normalised((0, 1))
        near = Decoupled().orthogonalised(start)
        at = Decoupled(steps=5000).orthogonalised(start)
        assert near.after == pytest.approx(at.after, rel=1e-3)
        assert near.after < 0.5 * near.before

    def test_a_direction_that_two_share_in_full_shrinks_to_what_the_docstring_says(self) -> None:
        shared = torch.zeros(1, 6, dtype=torch.float64)
        shared[0, 2] = 7.0
        root = brentq(lambda a: 2 * a**3 + a - 1, 0, 1)
        assert root == pytest.approx(0.59, abs=0.005)
        for factor in Decoupled(steps=500).orthogonalised([shared, shared.clone()]).factors:
            torch.testing.assert_close(factor, root * shared)

    def test_what_is_orthogonal_already_stays(self) -> None:
        eye = torch.eye(6, dtype=torch.float64)
        found = Decoupled().orthogonalised([2 * eye[:2], 3 * eye[3:5]])
        torch.testing.assert_close(found.factors, [2 * eye[:2], 3 * eye[3:5]])
        assert (found.before, found.after, found.perturbation) == (0.0, 0.0, 0.0)

    def test_a_large_gamma_holds_everything_in_place(self) -> None:
        start = normalised((0, 1))
        found = Decoupled(gamma=1e6).orthogonalised(start)
        assert 0 < found.perturbation < 1e-5
        torch.testing.assert_close(found.factors, start, rtol=1e-4, atol=1e-5)


class TestDecoupling:
    def test_magnitudes_and_directions_are_averaged_apart(self) -> None:
        adapters, weights = [drawn(0, 2), drawn(1, 3, scale=20.0)], [1.0, 3.0]
        result = Decoupled(steps=0)(adapters, weights)
        given = [dense(adapter).numpy() for adapter in adapters]
        norms = [np.linalg.norm(delta, axis=0) for delta in given]
        magnitude = 0.25 * norms[0] + 0.75 * norms[1]
        direction = 0.25 * given[0] / norms[0] + 0.75 * given[1] / norms[1]
        np.testing.assert_allclose(dense(result.adapter), direction * magnitude, rtol=1e-9)
        assert result.adapter[Q].rank == 5
        assert result.lost_energy == {Q: 0.0}

    def test_the_directions_are_those_of_the_turned_factors(self) -> None:
        adapters = [drawn(0), drawn(1)]
        canonical = [adapter[Q].canonical() for adapter in adapters]
        method = Decoupled(gamma=0.5)
        read = method.orthogonalised([update.A for update in canonical])
        written = method.orthogonalised([update.B.mT for update in canonical])
        turned = [b.mT @ a for a, b in zip(read.factors, written.factors, strict=True)]
        directions = [matrix / matrix.norm(dim=0) for matrix in turned]
        magnitudes = [dense(adapter).norm(dim=0) for adapter in adapters]
        expected = (directions[0] + directions[1]) / 2 * (magnitudes[0] + magnitudes[1]) / 2
        result = method(adapters)
        torch.testing.assert_close(dense(result.adapter), expected)
        notes = result.notes[Q]
        assert notes["overlap_read_after"] == read.after < notes["overlap_read_before"]
        assert notes["overlap_written_after"] == written.after < notes["overlap_written_before"]
        assert notes["perturbation_read"] == read.perturbation > 0
        assert notes["perturbation_written"] == written.perturbation > 0

    def test_an_adapter_of_large_norm_has_no_larger_say_in_the_direction(self) -> None:
        small, large = drawn(0), drawn(1, scale=50.0)
        apart = Decoupled()([small, large]).adapter
        together = WeightAverage()([small, large]).adapter
        assert cosine(together, small) < 0.1
        assert cosine(apart, small) > 0.5
        assert cosine(apart, large) > 0.5

    def test_it_is_free_of_the_gauge_and_of_the_rank_of_zeros(self) -> None:
        adapters = [drawn(0), drawn(1)]
        expected = Decoupled()(adapters).adapter
        generator = torch.Generator().manual_seed(9)
        gauge = torch.randn(3, 3, generator=generator, dtype=torch.float64)
        update = adapters[0][Q]
        moved = LowRank(gauge @ update.A, update.B @ torch.linalg.inv(gauge), update.scale)
        padded = adapters[1][Q].truncated(5).matrix
        again = Decoupled()([adapter_of(moved), adapter_of(padded)]).adapter
        assert relative_error(again, expected) < 1e-7

    def test_an_adapter_with_itself_is_itself_without_perturbation(self) -> None:
        adapter = drawn(0)
        result = Decoupled(gamma=1e9)([adapter, adapter], [2.0, 5.0]).adapter
        assert relative_error(result, adapter) < 1e-6

    def test_columns_of_zeros_have_no_direction(self) -> None:
        one, other = drawn(0), drawn(1)
        a = one[Q].A.clone()
        a[:, 4] = 0
        result = Decoupled(steps=0)([adapter_of(LowRank(a, one[Q].B)), other]).adapter
        torch.testing.assert_close(dense(result)[:, 4], 0.25 * dense(other)[:, 4])

    def test_a_rank_cuts_and_says_what_is_lost(self) -> None:
        whole = Decoupled()([drawn(0), drawn(1)]).adapter
        result = Decoupled()([drawn(0), drawn(1)], rank=2)
        sigma = torch.linalg.svdvals(dense(whole)).square()
        lost = float(sigma[2:].sum() / sigma.sum())
        assert result.lost_energy[Q] == pytest.approx(lost, rel=1e-9)
        assert result.adapter[Q].rank == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.0}, r"method\.gamma is 0\.0, it takes a number above 0; the default is 1\.0"),
        ({"gamma": float("inf")}, r"method\.gamma is inf"),
        ({"steps": -1}, r"method\.steps is -1, it takes 0 or .* the default is 100"),
        ({"lr": 2.0}, r"method\.lr is 2\.0, it takes a number between 0 and 2"),
        ({"lr": float("nan")}, r"method\.lr is nan"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Decoupled(**options)  # type: ignore[arg-type]
