from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from loraport.adapters import AdapterStack, Site
from loraport.data import AnchorSet, ZooPairs
from loraport.mappers.mean import MeanMapper


def test_it_is_the_dense_mean_cut_to_the_rank(
    noisy_zoo: ZooPairs, dense: Callable[[AdapterStack, Site], Tensor]
) -> None:
    anchors = AnchorSet.of(noisy_zoo, list(noisy_zoo.source)[1:])
    mapper = MeanMapper()
    mapper.fit(anchors)
    predicted = mapper.map(noisy_zoo.source["t00"])
    for site, stack in anchors.target.items():
        rank, shape = stack.A.shape[1], predicted[site].shape
        mean = dense(anchors.target, site).mean(dim=0).reshape(shape).numpy()
        u, sigma, vt = np.linalg.svd(mean, full_matrices=False)
        best = (u[:, :rank] * sigma[:rank]) @ vt[:rank]
        assert sigma[rank - 1] > 1e-3
        np.testing.assert_allclose(predicted[site].dense().numpy(), best, atol=1e-5)


def test_in_factor_space_it_is_the_mean_of_the_factors(noisy_zoo: ZooPairs) -> None:
    anchors = AnchorSet.of(noisy_zoo, list(noisy_zoo.source)[1:])
    mapper = MeanMapper("factors")
    mapper.fit(anchors)
    for site, update in mapper.map(noisy_zoo.source["t00"]).items():
        torch.testing.assert_close(update.A, anchors.target[site].A.mean(dim=0))
        torch.testing.assert_close(update.B, anchors.target[site].B.mean(dim=0))


def test_every_task_has_the_same_prediction(noisy_zoo: ZooPairs) -> None:
    mapper = MeanMapper()
    mapper.fit(AnchorSet.of(noisy_zoo, list(noisy_zoo.source)[2:]))
    one, other = (mapper.map(noisy_zoo.source[name]) for name in ("t00", "t01"))
    assert one.content_hash() == other.content_hash()
    assert mapper.report() == {"anchors": list(noisy_zoo.source)[2:]}
