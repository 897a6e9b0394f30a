"""What part of the gap a refined adapter will close, from what is measured without task data.

Fitted on anchors: tasks of the same pair whose adapters were ported in the same way, and whose
gap recovered was then measured with the tasks' own data.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..exceptions import DataError
from .anchor_calibration import AnchorPoint

LEAST_POINTS = 4
"""Fewer anchors say nothing of the next one."""
LEAST_RECOVERED = 0.3
"""Of the gap, that has to be expected for a go."""
_LEVEL = 0.9
# The penalty is worth one anchor: features that say nothing then cost little.
_PENALTY = 1.0


class Expectation(NamedTuple):
    """The part of the gap that is expected, with its interval."""

    value: float
    low: float
    high: float

    @property
    def go(self) -> bool:
        """Whether the interval is above 0, and at least :data:`LEAST_RECOVERED` is expected."""
        return self.low > 0 and self.value >= LEAST_RECOVERED


@dataclass(frozen=True)
class ExpectedRecovery:
    """Ridge regression of the gap recovered on a few features, with a jackknife interval.

    The interval's half-width is a quantile of the absolute leave-one-out residuals, ranked as in
    conformal prediction (Barber et al. 2021, "Predictive inference with the jackknife+"): the
    ``ceil((n + 1) * 0.9)``-th smallest. With fewer than nine anchors that rank does not exist;
    then it is the largest residual, which stands for a level of ``n / (n + 1)``.

    Attributes:
        features: Names of what is fitted on.
        centre: Their means over the anchors.
        spread: Their standard deviations; 1 where there is none.
        weights: Of the standardised features.
        intercept: The anchors' mean gap recovered.
        half_width: Of the interval.
        loo_error: Mean absolute leave-one-out residual.
        anchors: How many there are.
    """

    features: tuple[str, ...]
    centre: tuple[float, ...]
    spread: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float
    half_width: float
    loo_error: float
    anchors: int

    @classmethod
    def fit(cls, points: Sequence[AnchorPoint], features: Sequence[str]) -> "ExpectedRecovery":
        """Fit on anchors.

        Raises:
            DataError: there are too few of them.
        """
        if len(points) < LEAST_POINTS:
            raise DataError(
                f"{len(points)} anchors say too little of the next one; it takes at least "
                f"{LEAST_POINTS}"
            )
        rows = [[point.features[name] for name in features] for point in points]
        x = torch.tensor(rows, dtype=torch.float64)
        y = torch.tensor([point.gap_recovered for point in points], dtype=torch.float64)
        residuals = torch.stack([_left_out(x, y, place) for place in range(len(y))]).abs()
        rank = min(len(y), math.ceil((len(y) + 1) * _LEVEL))
        centre, spread, weights, intercept = _ridge(x, y)
        return cls(
            tuple(features),
            tuple(centre.tolist()),
            tuple(spread.tolist()),
            tuple(weights.tolist()),
            intercept,
            half_width=float(residuals.sort().values[rank - 1]),
            loo_error=float(residuals.mean()),
            anchors=len(y),
        )

    @property
    def level(self) -> float:
        """The coverage that the interval stands for."""
        return min(_LEVEL, self.anchors / (self.anchors + 1))

    def expect(self, features: Mapping[str, float]) -> Expectation:
        """Return what is to be expected of an adapter with these features.

        Raises:
            DataError: one of those that were fitted is missing.
        """
        missing = [name for name in self.features if name not in features]
        if missing:
            raise DataError(
                f"{', '.join(missing)} was not measured, but what to expect was fitted on it; "
                "leave it out of the calibration's features"
            )
        value = self.intercept
        rows = zip(self.features, self.centre, self.spread, self.weights, strict=True)
        for name, centre, spread, weight in rows:
            value += weight * (features[name] - centre) / spread
        return Expectation(value, value - self.half_width, value + self.half_width)


def _left_out(
    x: Float[Tensor, "anchors features"], y: Float[Tensor, " anchors"], place: int
) -> Float[Tensor, ""]:
    """Return what a fit on the other anchors misses one by."""
    kept = torch.arange(len(y)) != place
    centre, spread, weights, intercept = _ridge(x[kept], y[kept])
    return y[place] - intercept - ((x[place] - centre) / spread * weights).sum()


def _ridge(
    x: Float[Tensor, "anchors features"], y: Float[Tensor, " anchors"]
) -> tuple[
    Float[Tensor, " features"], Float[Tensor, " features"], Float[Tensor, " features"], float
]:
    """Return the features' means and spreads, the weights and the mean of ``y``."""
    centre, spread = x.mean(0), x.std(0, correction=0)
    spread = torch.where(spread > 1e-9, spread, torch.ones_like(spread))
    scaled = (x - centre) / spread
    gram = scaled.T @ scaled + _PENALTY * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(gram, scaled.T @ (y - y.mean()))
    return centre, spread, weights, float(y.mean())
