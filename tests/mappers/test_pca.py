import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from torch import Tensor

from loraport.adapters import AdapterStack, LowRank, Role, Site, relative_error
from loraport.data import AnchorSet, ZooPairs
from loraport.exceptions import ConfigurationError
from loraport.mappers.pca import PCAMLPMapper, PCARidgeMapper, fit_components, leave_one_out

Planted = Callable[..., ZooPairs]
Recipe = Callable[..., Any]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]

FROM, TO = Site(3, Role.Q), Site(1, Role.Q)


def gram(seed: int, n: int = 5) -> torch.Tensor:
    x = torch.randn(n, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x @ x.mT


@pytest.mark.parametrize(
    ("components", "message"),
    [
        (5, r"mapper\.components is 5, but 5 anchors span at most 4 .*set mapper\.components=4"),
        (0, r"mapper\.components is 0; it takes 1 or more"),
    ],
)
def test_components_that_there_cannot_be(components: int, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        fit_components({FROM: gram(0)}, {TO: gram(1)}, {TO: FROM}, components)


STRENGTHS = [1e-3, 0.3, math.inf]


def predicted_by_sklearn(
    x: np.ndarray, y: np.ndarray, new: np.ndarray, components: int, strength: float
) -> np.ndarray:
    """Ridge between the scores of two principal component analyses."""
    if math.isinf(strength):
        return np.broadcast_to(y.mean(axis=0), (len(new), y.shape[1]))
    read, write = (PCA(components, svd_solver="full").fit(points) for points in (x, y))
    known = read.transform(x)
    penalty = strength * (known**2).sum() / len(x)
    model = Ridge(alpha=penalty, solver="svd").fit(known, write.transform(y))
    scores = model.predict(read.transform(new)).reshape(len(new), components)
    return write.inverse_transform(scores)


def points(rows: int, dim: int, seed: int) -> np.ndarray:
    return 1 + np.random.default_rng(seed).standard_normal((rows, dim))


@pytest.mark.parametrize("components", [1, 3, 8])
def test_leave_one_out_is_that_of_refitting(components: int) -> None:
    x, y = points(7, 12, 0), points(7, 9, 1)
    kept = min(components, 5)  # six points are left, which span five
    expected = np.empty((len(STRENGTHS), 7))
    for place, strength in enumerate(STRENGTHS):
        for out in range(7):
            others = np.delete(np.arange(7), out)
            found = predicted_by_sklearn(x[others], y[others], x[[out]], kept, strength)
            expected[place, out] = ((found[0] - y[out]) ** 2).sum()
    grams = torch.from_numpy(x @ x.T), torch.from_numpy(y @ y.T)
    errors = leave_one_out(*grams, components, STRENGTHS)
    np.testing.assert_allclose(errors.numpy(), expected, rtol=1e-8)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_each_site_is_ridge_between_the_components(
    strength: float,
    noisy_zoo: ZooPairs,
    anchors: AnchorSet,
    dense: Callable[[AdapterStack, Site], Tensor],
    assert_best: Callable[[LowRank, Any], None],
) -> None:
    query = AdapterStack.of({"t00": noisy_zoo.source["t00"]})
    mapper = PCARidgeMapper(components=5, strengths=[strength])
    mapper.fit(anchors)
    for site, update in mapper.map(noisy_zoo.source["t00"]).items():
        partner = Site({0: 0, 1: 2}[site.layer], site.role)
        known, goal = dense(anchors.source, partner).numpy(), dense(anchors.target, site).numpy()
        new = dense(query, partner).numpy()
        assert_best(update, predicted_by_sklearn(known, goal, new, 5, strength))


def test_the_strength_is_that_of_least_error(anchors: AnchorSet) -> None:
    mapper = PCARidgeMapper(components=3, strengths=[1e-3, 1.0, 10.0])
    mapper.fit(anchors)
    expected = torch.zeros(4, dtype=torch.float64)
    for site, stack in anchors.target.items():
        partner = anchors.source[Site({0: 0, 1: 2}[site.layer], site.role)]
        gram = stack.delta_gram(stack)
        errors = leave_one_out(partner.delta_gram(partner), gram, 3, [1e-3, 1.0, 10.0, math.inf])
        expected += errors.mean(dim=1) / gram.diagonal().mean()
    report = mapper.report()
    assert report["strength"] == [1e-3, 1.0, 10.0][int(expected[:3].argmin())]
    relative = float(expected[:3].min() / expected[3])
    assert report["loo_error_relative_to_mean"] == pytest.approx(relative)
    assert relative < 0.5
    assert report["components"] == 3


def test_a_site_that_no_anchor_changes_spoils_nothing(noisy_zoo: ZooPairs) -> None:
    silent = next(iter(noisy_zoo.target["t00"]))
    target = {
        name: replace(adapter, sites={**adapter.sites, silent: adapter[silent].scaled(0.0)})
        for name, adapter in noisy_zoo.target.items()
    }
    mapper = PCARidgeMapper(components=3)
    mapper.fit(AnchorSet.of(ZooPairs(noisy_zoo.source, target), list(target)[1:]))
    assert mapper.report()["loo_error_relative_to_mean"] < 0.5
    assert mapper.map(noisy_zoo.source["t00"])[silent].norm() == 0


def fitted(zoo: ZooPairs, names: list[str], **options: Any) -> PCAMLPMapper:
    mapper = PCAMLPMapper(**options)
    mapper.fit(AnchorSet.of(zoo, names))
    return mapper


def error(mapper: Any, zoo: ZooPairs, names: list[str]) -> float:
    errors = [relative_error(mapper.map(zoo.source[name]), zoo.target[name]) for name in names]
    return sum(errors) / len(errors)


def test_untrained_it_turns_one_frame_into_the_other(planted_zoo: Planted) -> None:
    # Whitened scores of the same latents differ by a turn only, which the common frame undoes.
    zoo = planted_zoo(20)
    names = list(zoo.source)
    for components in (3, 8):
        assert error(fitted(zoo, names[2:], components=components), zoo, names[:2]) < 1e-4


def test_training_learns_which_coordinates_can_be_trusted(
    train: Recipe, planted_zoo: Planted
) -> None:
    # One of three latents says nothing about the target, so that full gains are too bold.
    zoo = planted_zoo(60, unrelated=1)
    names = list(zoo.source)
    overrides = ("mapper.components=3", "mapper.width=8", "mapper.lr=0.03", "trainer.max_epochs=80")
    mapper = train("pca_mlp", zoo, names[:20], *overrides)
    assert error(mapper, zoo, names[:20]) < 0.9 * error(
        fitted(zoo, names[20:], components=3), zoo, names[:20]
    )
    gains = mapper.report()["gains"]
    assert mapper.report()["components"] == len(gains) == 3
    assert min(gains) < 0.9


def test_the_global_generator_is_neither_read_nor_moved(train: Recipe, noisy_zoo: ZooPairs) -> None:
    hashes = set()
    for seed in (1, 2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            mapper = train("pca_mlp", noisy_zoo, ["t00"], "trainer.max_epochs=3")
        hashes.add(mapper.map(noisy_zoo.source["t00"]).content_hash())
    assert len(hashes) == 1
    before = torch.get_rng_state()
    PCAMLPMapper()
    assert torch.equal(torch.get_rng_state(), before)
