from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from loraport.adapters import AdapterStack, LoraAdapter, Role, Site
from loraport.data import AnchorSet, ZooPairs
from loraport.exceptions import ConfigurationError
from loraport.mappers.global_ridge import GlobalRidgeMapper
from loraport.mappers.spaces import space_named

SITE = Site(1, Role.V)


def test_delta_space_compares_and_adds_updates(
    noisy_zoo: ZooPairs, dense: Callable[[AdapterStack, Site], Tensor]
) -> None:
    stack = AdapterStack.of(noisy_zoo.target)
    space, rows = space_named("delta"), dense(stack, SITE)
    torch.testing.assert_close(space.gram(stack[SITE], stack[SITE]), rows @ rows.mT)
    coefficients = torch.linspace(-1, 1, len(rows), dtype=torch.float64)
    total = space.combine(stack[SITE], coefficients, 5)
    torch.testing.assert_close(
        total.dense().double().flatten(), coefficients @ rows, atol=1e-5, rtol=0
    )
    assert not space.gauge_dependent


def test_factor_space_compares_and_adds_factors(noisy_zoo: ZooPairs) -> None:
    stack = AdapterStack.of(noisy_zoo.target)[SITE]
    rows = torch.cat([stack.A.flatten(1), stack.B.flatten(1)], dim=1).double()
    space = space_named("factors")
    torch.testing.assert_close(space.gram(stack, stack), rows @ rows.mT)
    coefficients = torch.linspace(-1, 2, len(rows), dtype=torch.float64)
    total = space.combine(stack, coefficients, 4)
    found = torch.cat([total.A.flatten(), total.B.flatten()]).double()
    torch.testing.assert_close(found, coefficients @ rows, atol=1e-5, rtol=0)
    assert space.gauge_dependent


def test_unknown_space_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"mapper\.space is 'flat'.*delta, factors"):
        space_named("flat")


class TestAdapterOfAnotherRank:
    def adapters(self, zoo: ZooPairs) -> tuple[AnchorSet, LoraAdapter]:
        query = zoo.source["t00"].map(lambda update: update.truncated(2).matrix)
        return AnchorSet.of(zoo, list(zoo.source)[1:]), query

    def test_updates_can_be_compared(self, noisy_zoo: ZooPairs) -> None:
        anchors, query = self.adapters(noisy_zoo)
        mapper: Any = GlobalRidgeMapper()
        mapper.fit(anchors)
        assert all(update.rank == 4 for update in mapper.map(query).values())

    def test_factors_cannot(self, noisy_zoo: ZooPairs) -> None:
        anchors, query = self.adapters(noisy_zoo)
        mapper: Any = GlobalRidgeMapper("factors")
        mapper.fit(anchors)
        with pytest.raises(ConfigurationError, match=r"rank 2 with factors of rank 4.*space=delta"):
            mapper.map(query)
