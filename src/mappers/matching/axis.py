"""An axis of a network on which units of the source and of the target have been matched."""

from collections.abc import Mapping
from dataclasses import dataclass

from ...alignment.axis_plan import AxisPlan


@dataclass(frozen=True, eq=False)
class Axis:
    """A plan, and what there is to tell about it.

    Attributes:
        plan: Which units correspond.
        facts: The plan's statistics and how it was reached, for the report.
    """

    plan: AxisPlan
    facts: Mapping[str, float | int]
