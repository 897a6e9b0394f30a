"""In which space adapters are compared and combined: their updates, or their raw factors."""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from ..adapters import LowRank, StackedSite
from ..exceptions import ConfigurationError


@runtime_checkable
class Space(Protocol):
    """How inner products and weighted sums of the updates of one site are taken."""

    gauge_dependent: bool

    def gram(self, one: StackedSite, other: StackedSite) -> Float[Tensor, "adapters others"]:
        """Return the inner products of all pairs, in float64."""
        ...

    def combine(
        self, site: StackedSite, coefficients: Float[Tensor, " adapters"], rank: int
    ) -> LowRank:
        """Return the weighted sum, of at most the given rank."""
        ...


class DeltaSpace:
    """The updates ``B A`` themselves: free of the gauge of their factors, and exact by Grams."""

    gauge_dependent = False

    def gram(self, one: StackedSite, other: StackedSite) -> Float[Tensor, "adapters others"]:
        """Return ``<B_i A_i, B_j A_j>``."""
        return one.delta_gram(other)

    def combine(
        self, site: StackedSite, coefficients: Float[Tensor, " adapters"], rank: int
    ) -> LowRank:
        """Return ``sum_i c_i B_i A_i``, cut to the nearest update of ``rank``."""
        return site.delta_sum(coefficients, rank)


class FactorSpace:
    """The flattened factors A and B, as the anchor methods were published.

    A and B are predicted apart, so that their product has cross terms ``c_i c_j B_i A_j``, and
    the same update in another gauge gives another prediction.
    """

    gauge_dependent = True

    def gram(self, one: StackedSite, other: StackedSite) -> Float[Tensor, "adapters others"]:
        """Return ``<A_i, A_j> + <B_i, B_j>``.

        Raises:
            ConfigurationError: the ranks differ, so that the factors cannot be compared.
        """
        if one.A.shape[1] != other.A.shape[1]:
            raise ConfigurationError(
                f"mapper.space=factors compares factors of rank {one.A.shape[1]} with factors of "
                f"rank {other.A.shape[1]}; it takes one rank: use mapper.space=delta"
            )
        return one.factor_gram(other)

    def combine(
        self, site: StackedSite, coefficients: Float[Tensor, " adapters"], rank: int
    ) -> LowRank:
        """Return ``(sum_i c_i B_i) (sum_i c_i A_i)``; its rank is that of the anchors."""
        return site.factor_sum(coefficients)


SPACES: dict[str, Space] = {"delta": DeltaSpace(), "factors": FactorSpace()}


def space_named(name: str) -> Space:
    """Return the space of a name.

    Raises:
        ConfigurationError: there is no such space.
    """
    if name not in SPACES:
        raise ConfigurationError(
            f"mapper.space is {name!r}; it takes one of {', '.join(SPACES)} (delta is the default)"
        )
    return SPACES[name]
