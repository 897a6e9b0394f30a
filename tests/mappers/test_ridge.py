from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from torch import Tensor

from loraport.adapters import AdapterStack, LoraAdapter, LowRank, Role, Site, relative_error
from loraport.data import AnchorSet, ZooPairs
from loraport.mappers.ridge import GlobalRidgeMapper, PerTensorRidgeMapper

Planted = Callable[..., ZooPairs]
Dense = Callable[[AdapterStack, Site], Tensor]

STRENGTH = 0.3
Best = Callable[[LowRank, Any], None]


def test_it_is_kernel_ridge_on_the_normalised_gram(
    noisy_zoo: ZooPairs, anchors: AnchorSet, dense: Dense, assert_best: Best
) -> None:
    query = AdapterStack.of({"t00": noisy_zoo.source["t00"]})
    rows, asked = [], []
    for site in anchors.source:
        updates = dense(anchors.source, site)
        norm = updates.square().sum(dim=1).mean().sqrt()
        rows.append(updates / norm)
        asked.append(dense(query, site) / norm)
    known, new = torch.cat(rows, dim=1).numpy(), torch.cat(asked, dim=1).numpy()
    x, new = known - known.mean(axis=0), new - known.mean(axis=0)
    penalty = STRENGTH * np.trace(x @ x.T) / len(x)
    mapper = GlobalRidgeMapper(strengths=[STRENGTH])
    mapper.fit(anchors)
    for site, update in mapper.map(noisy_zoo.source["t00"]).items():
        y = dense(anchors.target, site).numpy()
        model = KernelRidge(alpha=penalty, kernel="precomputed").fit(x @ x.T, y - y.mean(axis=0))
        assert_best(update, model.predict(new @ x.T) + y.mean(axis=0))


def test_a_module_that_is_large_everywhere_counts_no_more_than_the_others(
    noisy_zoo: ZooPairs,
) -> None:
    large = Site(1, Role.V)

    def enlarged(adapter: LoraAdapter) -> LoraAdapter:
        return replace(adapter, sites={**adapter.sites, large: adapter[large].scaled(1000.0)})

    scaled = ZooPairs({n: enlarged(a) for n, a in noisy_zoo.source.items()}, noisy_zoo.target)
    predictions = []
    for zoo in (noisy_zoo, scaled):
        mapper = GlobalRidgeMapper(strengths=[STRENGTH])
        mapper.fit(AnchorSet.of(zoo, list(zoo.source)[1:]))
        predictions.append(mapper.map(zoo.source["t00"]))
    assert relative_error(predictions[1], predictions[0]) < 1e-5


def test_the_strength_is_chosen_by_what_the_zoo_allows(planted_zoo: Planted) -> None:
    reports = {}
    for unrelated in (0, 3):
        zoo = planted_zoo(unrelated=unrelated)
        mapper = GlobalRidgeMapper()
        mapper.fit(AnchorSet.of(zoo, list(zoo.source)))
        reports[unrelated] = mapper.report()
    assert reports[0]["strength"] == 1e-3
    assert reports[0]["loo_error_relative_to_mean"] < 1e-3
    assert reports[3]["strength"] >= 3
    assert reports[3]["loo_error_relative_to_mean"] == pytest.approx(1.0, abs=0.2)


# Three layers of the source feed two of the target: the first and the last.
PARTNERS = {0: 0, 1: 2}


def test_each_site_is_ridge_on_its_partner(
    noisy_zoo: ZooPairs, anchors: AnchorSet, dense: Dense, assert_best: Best
) -> None:
    query = AdapterStack.of({"t00": noisy_zoo.source["t00"]})
    mapper = PerTensorRidgeMapper(strengths=[STRENGTH])
    mapper.fit(anchors)
    for site, update in mapper.map(noisy_zoo.source["t00"]).items():
        partner = Site(PARTNERS[site.layer], site.role)
        x, y = dense(anchors.source, partner).numpy(), dense(anchors.target, site).numpy()
        penalty = STRENGTH * ((x - x.mean(axis=0)) ** 2).sum() / len(x)
        model = Ridge(alpha=penalty, solver="svd").fit(x, y)
        assert_best(update, model.predict(dense(query, partner).numpy()))


def test_each_site_chooses_its_own_strength(planted_zoo: Planted) -> None:
    odd = Site(1, Role.V)
    related, other = planted_zoo(), planted_zoo(unrelated=3)
    target = {
        name: replace(adapter, sites={**adapter.sites, odd: other.target[name][odd]})
        for name, adapter in related.target.items()
    }
    mapper = PerTensorRidgeMapper()
    mapper.fit(AnchorSet.of(ZooPairs(related.source, target), list(target)))
    report = mapper.report()
    assert report["strengths"].pop(odd.label) >= 3
    assert report["strengths"] == {"0.q": 1e-3, "0.v": 1e-3, "1.q": 1e-3}
    assert report["strength"] == 1e-3
    assert 0.2 < report["loo_error_relative_to_mean"] < 0.3
