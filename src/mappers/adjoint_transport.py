"""Linear transport whose writers also carry the gradients of a text's likelihood back."""

import math
from collections.abc import Sequence

from ..adapters import Site
from ..alignment.linear_maps import STRENGTHS, LinearMap, Ridge
from ..alignment.two_sided import TwoSidedRidge, gradient_r2
from ..exceptions import ConfigurationError
from ..models.pair_statistics import TapPair
from ..models.taps import Tap
from .corpus_mapper import ROLES
from .fitted_maps import Writer
from .linear_corpus_mapper import Gathered, LinearCorpusMapper
from .strengths import finite_strengths


class AdjointTransportMapper(LinearCorpusMapper):
    """Carries A by ridge regression on activations, and B by one on activations and gradients.

    ``A_T = A_S M`` with ``x_S ~ M x_T``, as
    :class:`~loraport.mappers.transport.TransportMapper` has it, and ``B_T = N B_S`` with both
    ``dy_T ~ N dy_S`` and ``g_S ~ N^T g_T``. What an adapter writes need not lie where activations
    vary; what it does to the likelihood of a text is then what the two models have in common
    (:mod:`~loraport.models.gradients`).

    Args:
        roles: The roles of adapters that it shall carry.
        strengths: Ridge strengths to choose among by held-out error, for the input and the
            output of each module, relative to the mean square of a coordinate.
        behaviour: Weight of the gradients' error beside that of the outputs, each relative to
            what there is to explain; 0 is ridge regression on outputs alone.
        min_r2: See :class:`~loraport.mappers.linear_carrier.LinearCarrier`.
        match_norm: Likewise.
        memory_gb: Gigabytes that statistics may take.

    Raises:
        ConfigurationError: a role does not exist, or a number is out of its range.
    """

    def __init__(
        self,
        roles: Sequence[str] = ROLES,
        strengths: Sequence[float] = STRENGTHS,
        behaviour: float = 1.0,
        min_r2: float | None = None,
        match_norm: bool = False,
        memory_gb: float = 2.0,
    ) -> None:
        super().__init__(roles, min_r2, match_norm, memory_gb)
        if not 0 <= behaviour < math.inf:
            raise ConfigurationError(
                f"mapper.behaviour is {behaviour}; it takes a finite number from 0 on, such as 1"
            )
        self.ridge = Ridge(finite_strengths(strengths))
        self.two_sided = TwoSidedRidge(behaviour, self.ridge.strengths)
        self.save_hyperparameters(
            {
                "roles": [role.value for role in self.roles],
                "strengths": list(self.ridge.strengths),
                "behaviour": behaviour,
                "min_r2": min_r2,
                "match_norm": match_norm,
                "memory_gb": memory_gb,
            }
        )

    def tap_pairs(self, source: Site, target: Site) -> tuple[TapPair, ...]:
        """Return also where the gradients are read."""
        gradients = Tap.gradient(source), Tap.gradient(target)
        return *super().tap_pairs(source, target), gradients

    def read(self, source: Site, target: Site, gathered: Gathered) -> LinearMap:
        """Return ``X_S^T X_T (X_T^T X_T + lambda I)^-1``."""
        return self.ridge.backward(*gathered.inputs(source, target))

    def write(self, source: Site, target: Site, gathered: Gathered) -> LinearMap:
        """Return the solution N of ``N C_y + w C_g N = R``."""
        outputs, gradients = (of(source, target) for of in (gathered.outputs, gathered.gradients))
        return self.two_sided.forward(outputs, gradients)

    def writer(self, source: Site, target: Site, gathered: Gathered) -> Writer:
        """Return the same, with how well it carries held-out gradients back."""
        found = self.write(source, target, gathered)
        return Writer.of(found, gradient_r2(found.matrix, gathered.gradients(source, target)))
