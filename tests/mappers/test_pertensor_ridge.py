from collections.abc import Callable
from dataclasses import replace

import numpy as np
from sklearn.linear_model import Ridge
from torch import Tensor

from loraport.adapters import AdapterStack, Role, Site
from loraport.data import AnchorSet, ZooPairs
from loraport.mappers.pertensor_ridge import PerTensorRidgeMapper

STRENGTH = 0.3
# Three layers of the source feed two of the target: the first and the last.
PARTNERS = {0: 0, 1: 2}


def test_each_site_is_ridge_on_its_partner(
    noisy_zoo: ZooPairs, dense: Callable[[AdapterStack, Site], Tensor]
) -> None:
    anchors = AnchorSet.of(noisy_zoo, list(noisy_zoo.source)[1:])
    query = AdapterStack.of({"t00": noisy_zoo.source["t00"]})
    mapper = PerTensorRidgeMapper(strengths=[STRENGTH])
    mapper.fit(anchors)
    predicted = mapper.map(noisy_zoo.source["t00"])
    for site in anchors.target:
        partner = Site(PARTNERS[site.layer], site.role)
        x, y = dense(anchors.source, partner).numpy(), dense(anchors.target, site).numpy()
        penalty = STRENGTH * ((x - x.mean(axis=0)) ** 2).sum() / len(x)
        model = Ridge(alpha=penalty, solver="svd").fit(x, y)
        full = model.predict(dense(query, partner).numpy()).reshape(predicted[site].shape)
        u, sigma, vt = np.linalg.svd(full, full_matrices=False)
        best = (u[:, :4] * sigma[:4]) @ vt[:4]
        np.testing.assert_allclose(predicted[site].dense().numpy(), best, atol=1e-5)


def test_each_site_chooses_its_own_strength(planted_zoo: Callable[..., ZooPairs]) -> None:
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
