import numpy as np
import pytest
import torch
from peft.utils import merge_utils
from scipy.optimize import brentq, minimize
from torch import Tensor

from loraport.adapters import LoraAdapter, LowRank, Role, Site, relative_error
from loraport.adapters.merge import (
    Combiner,
    Dare,
    DareTies,
    Decoupled,
    Linear,
    Ties,
    WeightAverage,
    disjoint_mean,
)
from loraport.adapters.sparsify import dropped_at_random
from loraport.exceptions import AdapterError, ConfigurationError

Q, V, UP = Site(0, Role.Q), Site(1, Role.V), Site(1, Role.UP)
# PEFT keeps int(density * entries) entries: numbers of which the densities below are whole shares.
SHAPES = {Q: (10, 20), V: (5, 20), UP: (15, 20)}
COMBINERS = [Linear(), WeightAverage(), Ties(), Dare(), DareTies(), Decoupled()]
ids = [type(combiner).__name__ for combiner in COMBINERS]
each = pytest.mark.parametrize("combiner", COMBINERS, ids=ids)


def drawn(
    seed: int,
    sites: tuple[Site, ...] = (Q, V, UP),
    rank: int = 3,
    dtype: torch.dtype = torch.float32,
) -> LoraAdapter:
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for site in sites:
        out, in_ = SHAPES[site]
        a = torch.randn(rank, in_, generator=generator).to(dtype)
        b = torch.randn(out, rank, generator=generator).to(dtype)
        updates[site] = LowRank(a, b, 0.5 + seed)
    return LoraAdapter(updates, "some/base", {"r": rank})


@each
def test_a_single_adapter_is_itself_times_its_weight_and_cut_on_request(combiner: Combiner) -> None:
    adapter = drawn(0, dtype=torch.bfloat16)
    result = combiner([adapter])
    assert result.adapter is adapter
    assert result.lost_energy == dict.fromkeys(adapter, 0.0)
    if combiner.averages:
        assert combiner([adapter], [0.3]).adapter is adapter
    else:
        scaled = combiner([adapter], [-0.5]).adapter
        assert all(scaled[site].A is update.A for site, update in adapter.items())
        assert {update.scale for update in scaled.values()} == {-0.25}
    result = combiner([adapter], rank=1)
    for site, update in adapter.items():
        near, lost = update.to(torch.float32).truncated(1)
        torch.testing.assert_close(result.adapter[site].dense(), near.dense())
        assert result.lost_energy[site] == pytest.approx(lost)


@each
def test_a_site_of_one_adapter_only_is_that_times_its_weight(combiner: Combiner) -> None:
    one, other = drawn(0, (Q, V)), drawn(1, (V, UP))
    result = combiner([one, other], [1.0, 3.0]).adapter
    assert list(result) == [Q, V, UP]
    weights = (0.25, 0.75) if combiner.averages else (1.0, 3.0)
    for site, adapter, weight in ((Q, one, weights[0]), (UP, other, weights[1])):
        assert torch.equal(result[site].dense(), adapter[site].scaled(weight).dense())


@each
def test_the_rank_is_the_sum_of_the_ranks_or_as_requested(combiner: Combiner) -> None:
    adapters = [drawn(0, rank=2), drawn(1, rank=3)]
    for rank, expected in ((None, 5), (4, 4), (1, 1)):
        result = combiner(adapters, rank=rank)
        assert {update.rank for update in result.adapter.values()} == {expected}
        assert result.adapter.base_model == "some/base"
        if rank == 1:
            assert all(0 < lost < 1 for lost in result.lost_energy.values())


@each
def test_a_site_is_the_same_bits_whatever_the_other_sites_and_the_global_generator(
    combiner: Combiner,
) -> None:
    before = torch.get_rng_state()
    first, second = drawn(0), drawn(1)
    whole = combiner([first, second]).adapter[V]
    part = [LoraAdapter({V: adapter[V]}, "some/base") for adapter in (first, second)]
    alone = combiner(part).adapter[V]
    assert torch.equal(whole.A, alone.A)
    assert torch.equal(whole.B, alone.B)
    assert torch.equal(torch.get_rng_state(), before)


@each
def test_results_are_in_float32_at_least(combiner: Combiner) -> None:
    adapters = [drawn(0, dtype=torch.bfloat16), drawn(1, dtype=torch.float16)]
    wide = [adapter.map(lambda update: update.to(torch.float32)) for adapter in adapters]
    assert combiner(adapters).adapter.content_hash() == combiner(wide).adapter.content_hash()
    double = [adapter.map(lambda update: update.to(torch.float64)) for adapter in adapters]
    assert combiner(double).adapter[Q].A.dtype == torch.float64


@each
def test_a_site_of_zeros_takes_part(combiner: Combiner) -> None:
    zero = LowRank(torch.ones(2, 20), torch.zeros(5, 2))
    nothing = LoraAdapter({V: zero}, "some/base")
    result = combiner([nothing, nothing])
    assert result.adapter[V].dense().count_nonzero() == 0
    assert combiner([drawn(0, (V,)), nothing]).adapter[V].norm() > 0


def test_shapes_that_differ_are_refused_by_site() -> None:
    odd = LoraAdapter({V: LowRank(torch.ones(2, 20), torch.ones(8, 2))}, "some/base")
    message = r"adapter 3 .*\(8, 20\) at model\.layers\.1\.self_attn\.v_proj.* 2 .*\(5, 20\)"
    with pytest.raises(AdapterError, match=message):
        Linear()([drawn(0, (Q,)), drawn(1), odd])


@pytest.mark.parametrize("weights", [[1.0], [1.0, float("nan")], []])
def test_weights_that_do_not_fit_are_refused(weights: list[float]) -> None:
    with pytest.raises(ConfigurationError, match=r"merge\.weights is .* but 2 adapters"):
        Linear()([drawn(0), drawn(1)], weights)


def test_no_adapter_and_negative_weights_of_an_average_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        Linear()([])
    for weights in ([0.0, 0.0], [2.0, -1.0]):
        with pytest.raises(ConfigurationError, match=r"merge\.weights is .*merge=linear"):
            WeightAverage()([drawn(0), drawn(1)], weights)


# Against PEFT's dense functions. Its ``linear``, ``ties`` and ``dare_*`` work on A and B separately
# (cross terms), so that only those behind them are compared; ``ties`` elects signs before it
# applies the weights, so it is given updates that are weighted already.

WEIGHTS = [0.5, -2.0, 1.5]
FULL = 20  # a rank at which no site loses anything


ADAPTERS = [drawn(seed, (Q, V), rank) for seed, rank in enumerate((2, 3, 4))]


def deltas(site: Site) -> list[Tensor]:
    return [adapter[site].dense() for adapter in ADAPTERS]


def weighted(site: Site) -> Tensor:
    return sum((w * d for w, d in zip(WEIGHTS, deltas(site), strict=True)), torch.zeros(()))


class TestSums:
    def test_linear_is_the_weighted_sum_and_exact(self) -> None:
        result = Linear()(ADAPTERS, WEIGHTS)
        for site in (Q, V):
            torch.testing.assert_close(result.adapter[site].dense(), weighted(site))
            expected = merge_utils.task_arithmetic(deltas(site), torch.tensor(WEIGHTS))
            torch.testing.assert_close(result.adapter[site].dense(), expected)
            assert result.adapter[site].rank == 9
        assert result.lost_energy == {Q: 0.0, V: 0.0}
        cut = Linear()(ADAPTERS, WEIGHTS, rank=2)
        sigma = torch.linalg.svdvals(weighted(Q).double()).square()
        assert cut.lost_energy[Q] == pytest.approx(float(sigma[2:].sum() / sigma.sum()), rel=1e-5)

    def test_weight_average_divides_by_the_sum_of_the_weights(self) -> None:
        mean = WeightAverage()(ADAPTERS).adapter
        torch.testing.assert_close(mean[V].dense(), torch.stack(deltas(V)).mean(dim=0))
        two = WeightAverage()(ADAPTERS, [3.0, 0.0, 1.0]).adapter
        expected = 0.75 * deltas(Q)[0] + 0.25 * deltas(Q)[2]
        torch.testing.assert_close(two[Q].dense(), expected)


class TestTies:
    @pytest.mark.parametrize("weights", [None, WEIGHTS])
    @pytest.mark.parametrize("density", [0.2, 0.5, 0.9])
    def test_it_is_that_of_peft_on_weighted_updates(
        self, density: float, weights: list[float] | None
    ) -> None:
        result = Ties(density)(ADAPTERS, weights, FULL)
        for site in (Q, V):
            parts = [w * d for w, d in zip(weights or [1.0] * 3, deltas(site), strict=True)]
            expected = merge_utils.ties(parts, torch.ones(3), density)
            torch.testing.assert_close(result.adapter[site].dense(), expected, rtol=1e-4, atol=2e-5)
            share = int(expected.count_nonzero()) / expected.numel()
            assert result.notes[site] == {"kept_share": pytest.approx(share)}
        sigma = torch.linalg.svdvals(expected.double()).square()
        lost = Ties(density)(ADAPTERS, weights, 3).lost_energy[V]
        assert lost == pytest.approx(float(sigma[3:].sum() / sigma.sum()), 1e-5)

    def test_zeros_are_not_counted_and_a_tie_goes_to_plus(self) -> None:
        given = [torch.tensor([[3.0, 0.0, 2.0, -4.0]]), torch.tensor([[1.0, 5.0, -2.0, 1.0]])]
        assert torch.equal(disjoint_mean(given), torch.tensor([[2.0, 5.0, 2.0, -4.0]]))


class TestDare:
    def test_it_combines_what_is_left_by_weight(self) -> None:
        total = Dare(0.6, seed=4)(ADAPTERS, WEIGHTS, FULL)
        voted = DareTies(0.6, seed=4)(ADAPTERS, WEIGHTS, FULL)
        for site in (Q, V):
            pairs = enumerate(zip(WEIGHTS, deltas(site), strict=True))
            left = torch.stack(
                [w * dropped_at_random(d, 0.6, 4, site, index) / 0.4 for index, (w, d) in pairs]
            )
            expected = merge_utils.task_arithmetic(list(left), torch.ones(3))
            torch.testing.assert_close(total.adapter[site].dense(), expected, rtol=1e-4, atol=5e-5)
            elected = merge_utils.calculate_majority_sign_mask(left)
            expected = merge_utils.disjoint_merge(left, elected)
            torch.testing.assert_close(voted.adapter[site].dense(), expected, rtol=1e-4, atol=5e-5)


def at_q(update: LowRank) -> LoraAdapter:
    return LoraAdapter({Q: update}, "some/base")


def wide(seed: int, rank: int = 3, scale: float = 1.0) -> LoraAdapter:
    """An adapter of one site in float64."""
    return at_q(drawn(seed, (Q,), rank, torch.float64)[Q].scaled(scale))


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
    @pytest.mark.parametrize("gamma", [0.3, 1.0])
    def test_it_descends_to_a_minimum_of_the_loss(self, gamma: float) -> None:
        start = normalised((0, 1, 2))
        shape = torch.stack(start).shape

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            now = torch.from_numpy(flat).reshape(shape).requires_grad_()
            value = loss(list(now), start, gamma)
            (gradient,) = torch.autograd.grad(value, now)
            return float(value.detach()), gradient.numpy().ravel()

        found = minimize(objective, torch.stack(start).numpy().ravel(), jac=True, tol=1e-12)
        ours = Decoupled(gamma, steps=1500).orthogonalised(start)
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
        if gamma == Decoupled.gamma:
            assert Decoupled().orthogonalised(start).after == pytest.approx(ours.after, rel=1e-3)

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


class TestDecoupling:
    def test_magnitudes_and_directions_are_averaged_apart(self) -> None:
        adapters, weights = [wide(0, 2), wide(1, 3, scale=20.0)], [1.0, 3.0]
        result = Decoupled(steps=0)(adapters, weights)
        given = [dense(adapter).numpy() for adapter in adapters]
        norms = [np.linalg.norm(delta, axis=0) for delta in given]
        magnitude = 0.25 * norms[0] + 0.75 * norms[1]
        direction = 0.25 * given[0] / norms[0] + 0.75 * given[1] / norms[1]
        np.testing.assert_allclose(dense(result.adapter), direction * magnitude, rtol=1e-9)
        assert result.adapter[Q].rank == 5
        assert result.lost_energy == {Q: 0.0}

    def test_the_directions_are_those_of_the_turned_factors(self) -> None:
        adapters = [wide(0), wide(1)]
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

    def test_it_is_free_of_the_gauge_and_of_the_rank_of_zeros(self) -> None:
        adapters = [wide(0), wide(1)]
        expected = Decoupled()(adapters).adapter
        generator = torch.Generator().manual_seed(9)
        gauge = torch.randn(3, 3, generator=generator, dtype=torch.float64)
        update = adapters[0][Q]
        moved = LowRank(gauge @ update.A, update.B @ torch.linalg.inv(gauge), update.scale)
        padded = adapters[1][Q].truncated(5).matrix
        again = Decoupled()([at_q(moved), at_q(padded)]).adapter
        assert relative_error(again, expected) < 1e-7

    def test_columns_of_zeros_have_no_direction(self) -> None:
        one, other = wide(0), wide(1)
        a = one[Q].A.clone()
        a[:, 4] = 0
        result = Decoupled(steps=0)([at_q(LowRank(a, one[Q].B)), other]).adapter
        torch.testing.assert_close(dense(result)[:, 4], 0.25 * dense(other)[:, 4])


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (Ties, {"density": 0.0}, r"merge\.method\.density is 0\.0.* up to 1"),
        (Ties, {"density": 1.1}, r"merge\.method\.density is 1\.1"),
        (DareTies, {"p": 1.0}, r"merge\.method\.p is 1\.0"),
        (Decoupled, {"gamma": 0.0}, r"gamma is 0\.0, it takes a number above 0; the default is 1"),
        (Decoupled, {"steps": -1}, r"method\.steps is -1, it takes 0 or .* the default is 100"),
        (Decoupled, {"lr": 2.0}, r"method\.lr is 2\.0, it takes a number between 0 and 2"),
    ],
)
def test_options_out_of_range_are_refused(
    method: type[Combiner], options: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        method(**options)
