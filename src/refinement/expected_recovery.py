"""What part of the gap a refined adapter will recover, from what is measured without task data.

It is fitted on anchors: tasks of the same pair whose adapters were ported in the same way, and
whose gap recovered was then measured with the tasks' own data.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
    'a calibration, {"pair": NAME, "refinement": NAME, "setting": {...} as in report.json, '
    '"features": [NAMES], "points": [{"task": NAME, "gap_recovered": NUMBER, each feature: '
    "NUMBER}, ...]}"
)
_SHOWN = 4  # of what differs between two settings


class AnchorPoint(NamedTuple):
    """A task, what was measured of its port without its data, and the gap recovered with them.

    The gap recovered is ``(ported - base) / (oracle - base)``.
    """

    task: str
    features: Mapping[str, float]
    gap_recovered: float


@dataclass(frozen=True)
class AnchorCalibration:
    """The anchors of a pair, and what they were ported with.

    Attributes:
        pair: Its name.
        refinement: Name of the refinement.
        features: What is fitted on.
        points: The anchors.
        setting: What else they were ported with, by name, as ``refinement.setting`` of
            ``report.json``; empty where nobody wrote it down.
        models: Names of source and target, where they were written down.
    """

    pair: str
    refinement: str
    features: tuple[str, ...]
    points: tuple[AnchorPoint, ...]
    setting: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[str, ...] = ()

    @classmethod
    def packaged(cls, pair: str, models: Sequence[str] = ()) -> "AnchorCalibration | None":
        """Return what comes with loraport for a pair, or for models of these names.

        None where nothing was measured. Models of a name may have other weights: the setting
        tells.
        """
        folder = sorted((files(__package__) / "calibration").iterdir(), key=lambda f: f.name)
        known = [cls.parse(f.read_text("utf-8"), f.name) for f in folder if f.name[-5:] == ".json"]
        named = [one for one in known if one.pair == pair]
        alike = [one for one in known if one.models and one.models == tuple(models)]
        return next(iter(named + alike), None)

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
            setting, models = dict(content.get("setting", {})), content.get("models", ())
            pair, refinement = str(content["pair"]), str(content["refinement"])
            return cls(pair, refinement, features, points, setting, tuple(map(str, models)))

    def differences(self, setting: Mapping[str, Any]) -> str:
        """Return by what a port's setting differs from that of the anchors; nothing where alike."""
        if not self.setting:
            return "it is not written down what the anchors of this pair were measured with"
        missing = "nothing"
        names = [
            name
            for name in dict.fromkeys((*self.setting, *setting))
            if self.setting.get(name, missing) != setting.get(name, missing)
        ]
        if not names:
            return ""
        theirs, ours = (
            ", ".join(f"{name}={one.get(name, missing)}" for name in names[:_SHOWN])
            for one in (self.setting, setting)
        )
        more = f" (and {len(names) - _SHOWN} more)" if len(names) > _SHOWN else ""
        return f"the anchors were measured with {theirs}, but this port has {ours}{more}"


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


def left_out(points: Sequence[AnchorPoint], features: Sequence[str]) -> list[Expectation]:
    """Return what the other anchors tell of each, as a port of it would be told.

    Empty where so few are left that nothing is said.
    """
    if len(points) <= LEAST_POINTS:
        return []
    return [
        ExpectedRecovery.fit([*points[:place], *points[place + 1 :]], features).expect(one.features)
        for place, one in enumerate(points)
    ]


def hit_rate(points: Sequence[AnchorPoint], expected: Sequence[Expectation]) -> float | None:
    """Return how often a go is given to what recovers enough, and to nothing else; None of none."""
    hits = [
        told.go == (point.gap_recovered >= LEAST_RECOVERED)
        for point, told in zip(points, expected, strict=False)
    ]
    return sum(hits) / len(hits) if hits else None


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
