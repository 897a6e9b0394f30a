import pytest
import torch

from loraport.adapters import AdapterStack, LoraAdapter, LowRank, Role, Site, cosine
from loraport.evaluation.controls import random_adapter, swapped

SHAPES = {Site(0, Role.Q): (7, 6), Site(1, Role.DOWN): (5, 9)}


def drawn(seed: int, size: float = 1.0) -> LoraAdapter:
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for place, (site, (out, in_)) in enumerate(SHAPES.items()):
        a = torch.randn(3, in_, generator=generator) * size
        updates[site] = LowRank(a, torch.randn(out, 3, generator=generator) * (1 + 9 * place), 0.5)
    return LoraAdapter(updates, "some/base")


ANCHORS = {f"t{seed}": drawn(seed, size=1.0 + seed) for seed in range(4)}


class TestRandom:
    control = random_adapter(AdapterStack.of(ANCHORS), "target/base", seed=0)

    def test_each_site_is_as_large_as_the_anchors_are_on_average(self) -> None:
        assert self.control.base_model == "target/base"
        assert list(self.control) == list(SHAPES)
        for site, update in self.control.items():
            norms = [
                float(adapter[site].to(torch.float64).dense().norm())
                for adapter in ANCHORS.values()
            ]
            expected = (sum(norm**2 for norm in norms) / len(norms)) ** 0.5
            assert float(update.dense().norm()) == pytest.approx(expected, rel=1e-5)
            assert (update.shape, update.rank) == (SHAPES[site], 3)

    def test_it_is_drawn_by_the_seed(self) -> None:
        stack = AdapterStack.of(ANCHORS)
        same, other = (random_adapter(stack, "target/base", seed) for seed in (0, 1))
        assert same.content_hash() == self.control.content_hash()
        assert other.content_hash() != self.control.content_hash()

    def test_it_has_no_direction_of_the_anchors(self) -> None:
        stack = AdapterStack.of(ANCHORS)
        cosines = [
            cosine(random_adapter(stack, "target/base", 100 + seed), ANCHORS["t0"])
            for seed in range(200)
        ]
        # Each is about 1 / sqrt(42) or less in size, and their mean vanishes.
        assert abs(sum(cosines) / len(cosines)) < 0.04
        assert max(map(abs, cosines)) < 0.8

    def test_sites_that_no_anchor_changes_stay_so(self) -> None:
        silent = {name: a.map(lambda update: update.scaled(0.0)) for name, a in ANCHORS.items()}
        assert random_adapter(AdapterStack.of(silent), "target/base", 0).norm() == 0


class TestSwapped:
    def test_each_task_has_the_next_one_s_adapter(self) -> None:
        partners = swapped(ANCHORS, [drawn(9)])
        assert partners == {
            "t0": ANCHORS["t1"],
            "t1": ANCHORS["t2"],
            "t2": ANCHORS["t3"],
            "t3": ANCHORS["t0"],
        }

    def test_single_task_has_the_first_spare_one(self) -> None:
        spare = drawn(9)
        assert swapped({"t0": ANCHORS["t0"]}, [spare, drawn(8)]) == {"t0": spare}

    def test_there_may_be_none(self) -> None:
        assert swapped({"t0": ANCHORS["t0"]}, []) == {}
        assert swapped({}, [drawn(9)]) == {}
