from collections.abc import Callable
from typing import Any

import pytest
import torch

from loraport.adapters import relative_error
from loraport.data import AnchorSet, ZooPairs
from loraport.exceptions import ConfigurationError
from loraport.mappers.pca_mlp import PCAMLPMapper

pytestmark = [
    # Lightning 2.6 calls what torch 2.13 deprecates.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    # The places of a few anchors need no workers.
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]


def fitted(zoo: ZooPairs, names: list[str], **options: Any) -> PCAMLPMapper:
    mapper = PCAMLPMapper(**options)
    mapper.fit(AnchorSet.of(zoo, names))
    return mapper


def error(mapper: Any, zoo: ZooPairs, names: list[str]) -> float:
    errors = [relative_error(mapper.map(zoo.source[name]), zoo.target[name]) for name in names]
    return sum(errors) / len(errors)


def test_untrained_it_turns_one_frame_into_the_other(planted_zoo: Callable[..., ZooPairs]) -> None:
    # Whitened scores of the same latents differ by a turn only, which the common frame undoes.
    zoo = planted_zoo(20)
    names = list(zoo.source)
    assert error(fitted(zoo, names[2:], components=3), zoo, names[:2]) < 1e-4
    assert error(fitted(zoo, names[2:], components=8), zoo, names[:2]) < 1e-4


def test_more_components_than_anchors_is_refused(noisy_zoo: ZooPairs) -> None:
    names = list(noisy_zoo.source)[1:]
    with pytest.raises(ConfigurationError, match=r"components is 13, but 13 anchors .* most 12"):
        fitted(noisy_zoo, names, components=13)


def test_training_learns_which_coordinates_can_be_trusted(
    train: Callable[..., Any], planted_zoo: Callable[..., ZooPairs]
) -> None:
    # One of three latents says nothing about the target, so that full gains are too bold.
    zoo = planted_zoo(60, unrelated=1)
    names = list(zoo.source)
    overrides = ("mapper.components=3", "mapper.width=8", "mapper.lr=0.03")
    mapper = train("pca_mlp", zoo, names[:20], *overrides).best
    assert error(mapper, zoo, names[:20]) < 0.9 * error(
        fitted(zoo, names[20:], components=3), zoo, names[:20]
    )
    gains = mapper.report()["gains"]
    assert mapper.report()["components"] == len(gains) == 3
    assert min(gains) < 0.9


def test_the_global_generator_is_neither_read_nor_moved(
    train: Callable[..., Any], noisy_zoo: ZooPairs
) -> None:
    hashes = set()
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            mapper = train("pca_mlp", noisy_zoo, ["t00"], "trainer.max_epochs=3").last
        hashes.add(mapper.map(noisy_zoo.source["t00"]).content_hash())
    assert len(hashes) == 1
    before = torch.get_rng_state()
    PCAMLPMapper()
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_draws_other_weights() -> None:
    one, same, other = (PCAMLPMapper(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["mlp.0.weight"], other["mlp.0.weight"])
