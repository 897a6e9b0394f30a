"""Against PEFT, where it is right, and against the papers' formulas in numpy.

PEFT's known errors, around which these tests go: ``linear``, ``ties`` and ``dare_*`` work on A and
B separately (cross terms), so that only the ``*_svd`` types and the dense functions behind them
are compared; ``ties`` elects signs before it applies the weights, so that it is given updates that
are weighted already; ``*_svd`` applied the scale twice before its pull request 3111. It keeps
``int(density * entries)`` entries, so that densities are compared where that is whole.
"""

import copy
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import merge_utils
from torch import Tensor

from loraport.adapters import LoraAdapter, LowRank, Role, Site, cosine
from loraport.adapters.combine import Dare, DareTies, Linear, Ties, WeightAverage, disjoint_mean
from loraport.adapters.sparsify import dropped_at_random
from loraport.exceptions import ConfigurationError
from loraport.models import BaseModel

Q, V = Site(0, Role.Q), Site(1, Role.V)
SHAPES = {Q: (10, 20), V: (20, 15)}
WEIGHTS = [0.5, -2.0, 1.5]
FULL = 20  # a rank at which no site loses anything


def drawn(seed: int, rank: int = 3, scale: float = 0.5) -> LoraAdapter:
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for site, (out, in_) in SHAPES.items():
        a = torch.randn(rank, in_, generator=generator)
        updates[site] = LowRank(a, torch.randn(out, rank, generator=generator), scale + seed)
    return LoraAdapter(updates, "some/base")


ADAPTERS = [drawn(seed, rank) for seed, rank in enumerate((2, 3, 4))]


def deltas(site: Site) -> list[Tensor]:
    return [adapter[site].dense() for adapter in ADAPTERS]


def weighted(site: Site) -> Tensor:
    return sum((w * d for w, d in zip(WEIGHTS, deltas(site), strict=True)), torch.zeros(()))


def ties_of_the_paper(
    taus: list[NDArray[np.float32]], density: float, lambda_: float = 1.0
) -> NDArray[np.float32]:
    """Algorithm 1 of Yadav et al., 2023, entry by entry."""
    trimmed = []
    for tau in taus:
        keep = np.argsort(-np.abs(tau), axis=None)[: round(density * tau.size)]
        kept = np.zeros(tau.size, tau.dtype)
        kept[keep] = tau.reshape(-1)[keep]
        trimmed.append(kept)
    merged = np.zeros(taus[0].size, taus[0].dtype)
    for place in range(merged.size):
        entries = [float(tau[place]) for tau in trimmed]
        positive = sum(e for e in entries if e > 0)
        negative = -sum(e for e in entries if e < 0)
        sign = 1 if positive >= negative else -1
        agreeing = [e for e in entries if e * sign > 0]
        merged[place] = lambda_ * np.mean(agreeing) if agreeing else 0
    return merged.reshape(taus[0].shape)


class TestSums:
    def test_linear_is_the_weighted_sum_and_exact(self) -> None:
        result = Linear()(ADAPTERS, WEIGHTS)
        for site in SHAPES:
            torch.testing.assert_close(result.adapter[site].dense(), weighted(site))
            expected = merge_utils.task_arithmetic(deltas(site), torch.tensor(WEIGHTS))
            torch.testing.assert_close(result.adapter[site].dense(), expected)
            assert result.adapter[site].rank == 9
        assert result.lost_energy == {Q: 0.0, V: 0.0}

    def test_without_weights_it_is_the_sum(self) -> None:
        result = Linear()(ADAPTERS)
        torch.testing.assert_close(result.adapter[V].dense(), torch.stack(deltas(V)).sum(dim=0))

    def test_a_rank_cuts_the_sum_and_says_what_is_lost(self) -> None:
        result = Linear()(ADAPTERS, WEIGHTS, rank=2)
        u, sigma, vt = torch.linalg.svd(weighted(Q).double())
        expected = (u[:, :2] * sigma[:2]) @ vt[:2]
        torch.testing.assert_close(
            result.adapter[Q].dense().double(), expected, rtol=1e-4, atol=1e-4
        )
        lost = float(sigma[2:].square().sum() / sigma.square().sum())
        assert result.lost_energy[Q] == pytest.approx(lost, rel=1e-5)
        assert result.adapter[Q].rank == 2

    def test_weight_average_divides_by_the_sum_of_the_weights(self) -> None:
        mean = WeightAverage()(ADAPTERS).adapter
        torch.testing.assert_close(mean[V].dense(), torch.stack(deltas(V)).mean(dim=0))
        two = WeightAverage()(ADAPTERS, [3.0, 0.0, 1.0]).adapter
        expected = 0.75 * deltas(Q)[0] + 0.25 * deltas(Q)[2]
        torch.testing.assert_close(two[Q].dense(), expected)


class TestTies:
    @pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
    def test_it_is_that_of_the_paper(self, density: float) -> None:
        result = Ties(density)(ADAPTERS, rank=FULL)
        for site in SHAPES:
            expected = ties_of_the_paper([d.numpy() for d in deltas(site)], density)
            np.testing.assert_allclose(result.adapter[site].dense(), expected, atol=2e-5)
            share = np.count_nonzero(expected) / expected.size
            assert result.notes[site] == {"kept_share": pytest.approx(share)}

    def test_equal_weights_are_the_lambda_of_the_paper(self) -> None:
        result = Ties(0.2)(ADAPTERS, [0.4] * 3, FULL)
        expected = ties_of_the_paper([d.numpy() for d in deltas(V)], 0.2, 0.4)
        np.testing.assert_allclose(result.adapter[V].dense(), expected, atol=2e-5)

    @pytest.mark.parametrize("weights", [None, WEIGHTS])
    def test_it_is_that_of_peft_on_weighted_updates(self, weights: list[float] | None) -> None:
        result = Ties(0.3)(ADAPTERS, weights, FULL)
        for site in SHAPES:
            given = [w * d for w, d in zip(weights or [1.0] * 3, deltas(site), strict=True)]
            expected = merge_utils.ties(given, torch.ones(3), 0.3)
            torch.testing.assert_close(result.adapter[site].dense(), expected, rtol=1e-4, atol=2e-5)
        # With weights that differ, PEFT's own order elects other signs.
        other = merge_utils.ties(deltas(Q), torch.tensor(WEIGHTS), 0.3)
        weighted_first = [w * d for w, d in zip(WEIGHTS, deltas(Q), strict=True)]
        assert not torch.allclose(other, merge_utils.ties(weighted_first, torch.ones(3), 0.3))

    def test_zeros_are_not_counted_and_a_tie_goes_to_plus(self) -> None:
        given = [torch.tensor([[3.0, 0.0, 2.0, -4.0]]), torch.tensor([[1.0, 5.0, -2.0, 1.0]])]
        assert torch.equal(disjoint_mean(given), torch.tensor([[2.0, 5.0, 2.0, -4.0]]))

    def test_what_is_cut_to_a_rank_is_said(self) -> None:
        result = Ties(0.2)(ADAPTERS, rank=3)
        expected = ties_of_the_paper([d.numpy() for d in deltas(V)], 0.2)
        sigma = torch.linalg.svdvals(torch.from_numpy(expected).double()).square()
        assert result.lost_energy[V] == pytest.approx(float(sigma[3:].sum() / sigma.sum()), 1e-5)

    @pytest.mark.parametrize("density", [0.0, 1.1, -0.2, float("nan")])
    def test_a_density_out_of_range_is_refused(self, density: float) -> None:
        with pytest.raises(ConfigurationError, match=r"merge\.method\.density is .* up to 1"):
            Ties(density)


class TestDare:
    def test_it_sums_what_is_left_by_weight(self) -> None:
        result = Dare(0.6, seed=4)(ADAPTERS, WEIGHTS, FULL)
        for site in SHAPES:
            left = [
                dropped_at_random(delta, 0.6, 4, site, place) / 0.4
                for place, delta in enumerate(deltas(site))
            ]
            expected = merge_utils.task_arithmetic(left, torch.tensor(WEIGHTS))
            torch.testing.assert_close(result.adapter[site].dense(), expected, rtol=1e-4, atol=5e-5)

    def test_dare_ties_elects_signs_among_what_is_left(self) -> None:
        result = DareTies(0.6, seed=4)(ADAPTERS, WEIGHTS, FULL)
        for site in SHAPES:
            left = torch.stack(
                [
                    weight * dropped_at_random(delta, 0.6, 4, site, place) / 0.4
                    for place, (weight, delta) in enumerate(zip(WEIGHTS, deltas(site), strict=True))
                ]
            )
            elected = merge_utils.calculate_majority_sign_mask(left)
            expected = merge_utils.disjoint_merge(left, elected)
            torch.testing.assert_close(result.adapter[site].dense(), expected, rtol=1e-4, atol=5e-5)

    def test_it_is_unbiased(self) -> None:
        adapters = [LoraAdapter({Q: adapter[Q]}, "some/base") for adapter in ADAPTERS]
        exact = Linear()(adapters, WEIGHTS).adapter[Q].dense()
        runs = [Dare(0.8, seed)(adapters, WEIGHTS, FULL).adapter[Q] for seed in range(400)]
        mean = torch.stack([run.dense() for run in runs]).mean(dim=0)
        assert float((mean * exact).sum() / exact.square().sum()) == pytest.approx(1, abs=0.03)
        # Each term of the sum has its own draw, of variance 4 D^2.
        pairs = zip(WEIGHTS, deltas(Q), strict=True)
        noise = sum(4 * float((w * d).square().sum()) / 400 for w, d in pairs)
        assert float((mean - exact).norm()) == pytest.approx(noise**0.5, rel=0.15)

    def test_nothing_dropped_is_the_sum(self) -> None:
        result = Dare(0.0)(ADAPTERS, WEIGHTS)
        exact = Linear()(ADAPTERS, WEIGHTS).adapter
        assert cosine(result.adapter, exact) == pytest.approx(1, abs=1e-9)
        assert max(result.lost_energy.values()) < 1e-9

    @pytest.mark.parametrize("method", [Dare, DareTies])
    @pytest.mark.parametrize("p", [1.0, -0.1])
    def test_a_share_out_of_range_is_refused(self, method: type[Dare], p: float) -> None:
        with pytest.raises(ConfigurationError, match=r"merge\.method\.p is "):
            method(p)


@pytest.fixture(scope="module")
def model(pico_source: BaseModel) -> PeftModel:
    """A model with two adapters of one rank and scale."""
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "v_proj"])
    generator = torch.Generator().manual_seed(3)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        model = get_peft_model(copy.deepcopy(pico_source.network), config, "one")
        model.add_adapter("other", config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def adapters(model: PeftModel) -> list[LoraAdapter]:
    layers = {
        Site.parse(name.removeprefix("base_model.model.")): module
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    return [
        LoraAdapter(
            {
                site: LowRank(
                    layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach(), 1.5
                )
                for site, layer in layers.items()
                if site is not None
            },
            "pico/source",
        )
        for name in ("one", "other")
    ]


@pytest.fixture(scope="module")
def merged(model: PeftModel) -> Callable[..., dict[str, Tensor]]:
    def merge(weights: list[float], **options: object) -> dict[str, Tensor]:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            model.add_weighted_adapter(["one", "other"], weights, "merged", **options)
            dense = {
                name.removeprefix("base_model.model."): module.get_delta_weight("merged")
                for name, module in model.named_modules()
                if hasattr(module, "lora_A")
            }
            model.delete_adapter("merged")
        return {name: delta.clone() for name, delta in dense.items()}

    return merge


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.5, -2.0]])
def test_linear_is_that_of_a_peft_model(adapters, merged, weights: list[float]) -> None:
    for kind, rank in (("cat", None), ("svd", 4)):
        theirs = merged(weights, combination_type=kind)
        ours = Linear()(adapters, weights, rank).adapter
        assert {site.module_name for site in ours} == set(theirs)
        for site, update in ours.items():
            torch.testing.assert_close(
                update.dense(), theirs[site.module_name], rtol=1e-4, atol=1e-4
            )


def test_ties_is_that_of_a_peft_model(adapters, merged) -> None:
    theirs = merged([1.0, 1.0], combination_type="ties_svd", density=0.25, svd_rank=6)
    for site, update in Ties(0.25)(adapters, rank=6).adapter.items():
        torch.testing.assert_close(update.dense(), theirs[site.module_name], rtol=1e-3, atol=1e-3)


def test_peft_s_linear_is_not_the_sum_but_has_cross_terms(adapters, merged) -> None:
    theirs = merged([1.0, 1.0], combination_type="linear")
    one, other = adapters
    for site in one:
        a, b = one[site].A + other[site].A, one[site].B + other[site].B
        torch.testing.assert_close(theirs[site.module_name], 1.5 * b @ a, rtol=1e-4, atol=1e-4)
        ours = Linear()(adapters).adapter[site].dense()
        error = (theirs[site.module_name] - ours).norm() / ours.norm()
        assert error > 0.5
