from itertools import combinations_with_replacement, pairwise, product
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from loraport.alignment import relative_depth
from loraport.alignment.layer_matching import ManyToOne, Monotone, Spread

DEPTHS = [*product(range(1, 13), repeat=2), (30, 18), (24, 16), (16, 24), (28, 32)]


def test_relative_depth_pairs_the_ends_and_rounds_the_exact_layer_half_up() -> None:
    for source, target in DEPTHS:
        pairs = relative_depth(source, target)
        if target == 1:
            assert pairs == (source - 1,)
            continue
        assert (pairs[0], pairs[-1]) == (0, source - 1)
        assert list(pairs) == sorted(pairs)
        exact = [layer * (source - 1) / (target - 1) for layer in range(target)]
        away = [pair - layer for pair, layer in zip(pairs, exact, strict=True)]
        assert all(-0.5 + 1e-9 < distance <= 0.5 + 1e-9 for distance in away)
    # round(t * 29 / 17), computed by hand.
    pairs = relative_depth(30, 18)
    assert [pairs[t] for t in (0, 1, 2, 8, 9, 16, 17)] == [0, 2, 3, 14, 15, 27, 29]


CONF = Path(__file__).resolve().parents[2] / "conf" / "pairing"
NAMES = ["many_to_one", "monotone", "relative_depth", "spread"]
PAIRINGS = {name: instantiate(OmegaConf.load(CONF / f"{name}.yaml")) for name in NAMES}
SHAPES = [(1, 1), (1, 5), (5, 1), (6, 6), (18, 30), (30, 18)]


def noise(target: int, source: int, seed: int = 0) -> Tensor:
    return torch.rand(target, source, generator=torch.Generator().manual_seed(seed))


def sources(pairing) -> list[int]:
    """The one source layer of each target layer."""
    assert all(len(feeds) == 1 and feeds[0][1] == 1 for feeds in pairing.feeds)
    return [feeds[0][0] for feeds in pairing.feeds]


def fed(pairing) -> list[int]:
    """The one target layer of each source layer."""
    found = [(s, t) for t, feeds in enumerate(pairing.feeds) for s, _ in feeds]
    assert sorted(s for s, _ in found) == list(range(pairing.source_layers))
    return [t for _, t in sorted(found)]


def near(target: int, source: int, partners: list[int], fall: float = 0.15) -> Tensor:
    """Similarity 0.8 to a partner, and less to layers further from it."""
    away = (torch.arange(source) - torch.tensor(partners)[:, None]).abs()
    return (0.8 - fall * away).clamp_min(0.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", PAIRINGS)
class TestEveryPairing:
    def test_every_layer_has_a_partner_in_order(self, name, shape):
        target, source = shape
        for similarity in (noise(*shape), torch.zeros(shape), torch.ones(shape)):
            pairing = PAIRINGS[name].pair(similarity)
            assert pairing.source_layers == source
            assert len(pairing.feeds) == target
            if name == "many_to_one":
                assert fed(pairing) == sorted(fed(pairing))
                if source >= target:
                    assert set(fed(pairing)) == set(range(target))
            elif name != "spread":  # whose own tests say what it does
                assert set(sources(pairing)) <= set(range(source))
            if name == "monotone":
                assert sources(pairing) == sorted(sources(pairing))
            if name == "relative_depth":
                assert sources(pairing) == list(relative_depth(source, target))

    def test_without_similarity_it_is_relative_depth(self, name, shape):
        target, source = shape
        pairing = PAIRINGS[name].pair(torch.zeros(shape))
        if name in ("monotone", "relative_depth"):
            assert tuple(sources(pairing)) == relative_depth(source, target)
        elif name != "spread" and target > 1 and source > 1:
            ends = [t / (target - 1) - s / (source - 1) for s, t in enumerate(fed(pairing))]
            assert max(map(abs, ends)) <= 1 / (min(shape) - 1)


def test_planted_targets_of_a_shallower_source_are_found():
    similarity = near(4, 9, [1, 2, 5, 8]).mT + 0.02 * noise(9, 4)
    pairing = PAIRINGS["many_to_one"].pair(similarity)
    assert fed(pairing) == [1, 2, 5, 8]
    assert [t for t, feeds in enumerate(pairing.feeds) if not feeds] == [0, 3, 4, 6, 7]


def gain_of(similarity: Tensor, path: tuple[int, ...], options: Monotone, free: int) -> float:
    """The objective of a path, written out."""
    target, source = similarity.shape
    greatest, total = float(similarity.max()), 0.0
    for t, s in enumerate(path):
        usual = float(similarity[:, s].mean() + similarity[t].mean()) / 2
        away = abs(t / (target - 1) - s / (source - 1))
        total += float(similarity[t, s]) - usual - options.depth_prior * greatest * away
    repeats = sum(max(0, path.count(s) - free) for s in set(path))
    return total - options.repeat_penalty * greatest * repeats


@pytest.mark.parametrize(("shape", "free"), [((5, 6), 1), ((6, 4), 2), ((4, 4), 1)])
@pytest.mark.parametrize("seed", range(2))
def test_monotone_path_is_that_of_brute_force(shape, free, seed):
    similarity, options = noise(shape[0], shape[1], seed).double(), Monotone(0.3, 0.1)
    paths = combinations_with_replacement(range(shape[1]), shape[0])
    best = max(paths, key=lambda path: gain_of(similarity, path, options, free))
    assert tuple(sources(options.pair(similarity))) == best


@pytest.mark.parametrize("seed", range(2))
def test_segments_are_those_of_brute_force(seed):
    similarity, options = noise(3, 7, seed).double(), ManyToOne(repeat_penalty=0.3, depth_prior=0.1)
    paths = [
        path
        for path in product(range(3), repeat=7)
        if set(path) == {0, 1, 2} and all(a <= b for a, b in pairwise(path))
    ]
    same = Monotone(0.3, 0.1)
    best = max(paths, key=lambda path: gain_of(similarity.mT, path, same, 3))
    assert tuple(fed(options.pair(similarity))) == best


def test_favourite_layer_does_not_take_everything():
    # One source layer resembles all target layers more than their own counterparts do.
    similarity = near(6, 6, list(range(6)))
    similarity[:, 2] = 0.85
    assert len(set(sources(Monotone().pair(similarity)))) >= 5
    deep = near(6, 12, [0, 2, 4, 6, 8, 10])
    deep[1] = 0.85
    lengths = [len(feeds) for feeds in ManyToOne().pair(deep).feeds]
    assert max(lengths) <= 4
    assert sum(lengths) == 12


def test_depth_decides_between_nearly_equal_layers():
    similarity = 0.5 + 0.001 * noise(6, 11)
    assert tuple(sources(Monotone().pair(similarity))) == relative_depth(11, 6)


def test_weights_of_a_segment():
    similarity = torch.tensor([[0.6, 0.2, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    similarity[1, 2:] = torch.tensor([0.1, 0.3])
    assert ManyToOne().pair(similarity).matrix().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (18, 30), (1, 4), (4, 1)])
def test_spread_gives_away_each_source_layer_once(shape):
    weights = Spread().pair(noise(shape[0], shape[1])).matrix()
    assert weights.shape == shape
    torch.testing.assert_close(weights.sum(dim=0), torch.ones(shape[1]))
    assert (weights > 0).sum(dim=0).tolist() == [min(2, shape[0])] * shape[1]


def test_spread_takes_the_nearest_layers():
    feeds = Spread(2).pair(noise(4, 4)).feeds
    assert [sorted(layer for layer, _ in found) for found in feeds] == [
        [0, 1],
        [0, 1, 2],
        [2, 3],
        [3],
    ]
    assert Spread(1).pair(noise(3, 5)).matrix().argmax(dim=0).tolist() == [0, 0, 1, 1, 2]
