import pytest
import torch

from loraport.adapters import Role, Site
from loraport.exceptions import ConfigurationError
from loraport.mappers.components import fit_components

FROM, TO = Site(3, Role.Q), Site(1, Role.Q)


def gram(seed: int, n: int = 5) -> torch.Tensor:
    x = torch.randn(n, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x @ x.mT


def test_each_target_site_has_the_components_of_its_partner() -> None:
    source, target = gram(0), gram(1)
    pair = fit_components({FROM: source}, {TO: target}, {TO: FROM}, 3)[TO]
    assert torch.equal(pair.source.gram, source)
    assert torch.equal(pair.target.gram, target)
    assert pair.source.directions.shape == pair.target.directions.shape == (5, 3)


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
