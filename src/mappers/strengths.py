"""The ridge strengths that a mapper chooses among."""

import math
from collections.abc import Sequence

from ..exceptions import ConfigurationError

STRENGTHS = (1e-3, 1e-2, 1e-1, 0.3, 1.0, 3.0, 10.0, float("inf"))


def checked_strengths(strengths: Sequence[float]) -> tuple[float, ...]:
    """Return the strengths that were asked for.

    Raises:
        ConfigurationError: there are none, or one is not positive: without a penalty a
            regression in more dimensions than anchors meets every anchor, and leave-one-out
            says nothing.
    """
    if not strengths or not all(strength > 0 for strength in strengths):
        raise ConfigurationError(
            f"mapper.strengths is {list(strengths)}; it takes one or more positive numbers, inf "
            "for the mean adapter, such as [0.01,0.1,1,inf]"
        )
    return tuple(float(strength) for strength in strengths)


def finite_strengths(strengths: Sequence[float]) -> tuple[float, ...]:
    """Return the strengths that were asked for, of a mapper that fits maps on text.

    Raises:
        ConfigurationError: there are none, or one is not positive and finite.
    """
    if not strengths or not all(0 < strength < math.inf for strength in strengths):
        raise ConfigurationError(
            f"mapper.strengths is {list(strengths)}; it takes one or more positive finite "
            "numbers, such as [0.001,0.01,0.1,1]"
        )
    return tuple(float(strength) for strength in strengths)
