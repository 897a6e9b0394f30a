"""What part of the gap a refined adapter will recover, from what is measured without task data.

It is fitted on anchors: tasks of the same pair whose adapters were ported in the same way, and
whose gap recovered was then measured with the tasks' own data.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..exceptions import DataError
from ..files import reading

LEAST_POINTS = 4
"""With fewer anchors nothing is said of the next one."""
LEAST_RECOVERED = 0.3
"""The part of the gap that has to be expected for a go."""

_LEVEL = 0.9
# The penalty weighs as much as one anchor: features without any relation then cost little.
_PENALTY = 1.0
_FACTS = ("task", "gap_recovered", "gap_recovered_nll")
_WANTED = (
    'a calibration, {"pair": NAME, "refinement": NAME, "features": [NAMES], "points": '
    '[{"task": NAME, "gap_recovered": NUMBER, each feature: NUMBER}, ...]}'
)


class AnchorPoint(NamedTuple):
    """A task, what was measured of its port without its data, and the gap recovered with them.

    The gap recovered is ``(ported - base) / (oracle - base)``.
    """

    task: str
    features: Mapping[str, float]
    gap_recovered: float


@dataclass(frozen=True)
class AnchorCalibration:
    """The anchors of a pair, and the refinement that they were ported with."""

    pair: str
    refinement: str
    features: tuple[str, ...]
    points: tuple[AnchorPoint, ...]

    @classmethod
    def packaged(cls, pair: str) -> "AnchorCalibration | None":
        """Return what comes with loraport for a pair; None where nothing was measured."""
        file = files(__package__) / "calibration" / f"{pair}.json"
        return cls.parse(file.read_text(encoding="utf-8"), file.name) if file.is_file() else None

    @classmethod
    def read(cls, path: Path) -> "AnchorCalibration":
        """Read a file; DataError as :meth:`parse`, or where it cannot be read."""
        with reading(path, _WANTED, DataError):
            return cls.parse(path.read_text(encoding="utf-8"), str(path))

    @classmethod
    def parse(cls, text: str, called: str) -> "AnchorCalibration":
        """Read the text of a file that messages call ``called``.

        Raises:
            DataError: it is no JSON, or lacks something.
        """
        with reading(called, _WANTED, DataError):
            content = json.loads(text)
            features = tuple(map(str, content["features"]))
            if not features or set(features) & set(_FACTS):
                raise ValueError(f"its features are {list(features)}")
            points = tuple(_point(row, features) for row in content["points"])
            tasks = [point.task for point in points]
            if len(set(tasks)) < len(tasks):
                raise ValueError(f"an anchor stands twice: {', '.join(sorted(tasks))}")
            return cls(str(content["pair"]), str(content["refinement"]), features, points)


def _point(row: Mapping[str, Any], features: tuple[str, ...]) -> AnchorPoint:
    numbers = {name: float(row[name]) for name in (*features, "gap_recovered")}
    if bad := [name for name, value in numbers.items() if not math.isfinite(value)]:
        raise ValueError(f"{row['task']}: {', '.join(bad)} is not finite")
    gap = numbers.pop("gap_recovered")
    return AnchorPoint(str(row["task"]), numbers, gap)


# What to expect of another adapter.


class Expectation(NamedTuple):
    """The part of the gap that is expected to be recovered, with its interval."""

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
        features: Their names.
        predict: The regression.
        half_width: Of the interval.
        loo_error: Mean absolute leave-one-out residual.
        anchors: How many there are.
    """

    features: tuple[str, ...]
    predict: Callable[[Float[Tensor, " features"]], float]
    half_width: float
    loo_error: float
    anchors: int

    @classmethod
    def fit(cls, points: Sequence[AnchorPoint], features: Sequence[str]) -> "ExpectedRecovery":
        """Fit on at least :data:`LEAST_POINTS` anchors."""
        rows = [[point.features[name] for name in features] for point in points]
        x = torch.tensor(rows, dtype=torch.float64)
        y = torch.tensor([point.gap_recovered for point in points], dtype=torch.float64)
        residuals = []
        for index, (row, actual) in enumerate(zip(x, y.tolist(), strict=True)):
            others = torch.arange(len(y)) != index
            residuals.append(abs(actual - _ridge(x[others], y[others])(row)))
        rank = min(len(y), math.ceil((len(y) + 1) * _LEVEL))
        return cls(
            tuple(features),
            _ridge(x, y),
            half_width=sorted(residuals)[rank - 1],
            loo_error=sum(residuals) / len(residuals),
            anchors=len(y),
        )

    @property
    def level(self) -> float:
        """The coverage that the interval stands for."""
        return min(_LEVEL, self.anchors / (self.anchors + 1))

    def expect(self, features: Mapping[str, float]) -> Expectation:
        """Return what is to be expected of an adapter with these features, others among them."""
        row = torch.tensor([features[name] for name in self.features], dtype=torch.float64)
        value = self.predict(row)
        return Expectation(value, value - self.half_width, value + self.half_width)


def _ridge(
    x: Float[Tensor, "anchors features"], y: Float[Tensor, " anchors"]
) -> Callable[[Float[Tensor, " features"]], float]:
    """Return the prediction of a ridge regression on standardised features."""
    mean, deviation = x.mean(0), x.std(0, correction=0)
    deviation = torch.where(deviation > 1e-9, deviation, torch.ones_like(deviation))
    scaled = (x - mean) / deviation
    gram = scaled.T @ scaled + _PENALTY * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(gram, scaled.T @ (y - y.mean()))
    return lambda row: float(y.mean() + ((row - mean) / deviation * weights).sum())
