"""Anchors of a pair whose adapters were ported, and what came of it: what expectations rest on."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from ..exceptions import DataError

_FACTS = ("task", "gap_recovered", "gap_recovered_nll")
_WANTED = (
    'a calibration takes {"pair": NAME, "refinement": NAME, "features": [NAMES], "points": '
    '[{"task": NAME, "gap_recovered": NUMBER, each feature: NUMBER}, ...]}'
)


class AnchorPoint(NamedTuple):
    """What was measured of one anchor.

    Attributes:
        task: Its name.
        features: What was measured without the task's data.
        gap_recovered: (ported - base) / (oracle - base), with them.
    """

    task: str
    features: Mapping[str, float]
    gap_recovered: float


@dataclass(frozen=True)
class AnchorCalibration:
    """The anchors of a pair.

    Attributes:
        pair: Its name.
        refinement: Name of the refinement that they were ported with.
        features: The names of what is fitted on.
        points: The anchors.
        command: What measured them.
    """

    pair: str
    refinement: str
    features: tuple[str, ...]
    points: tuple[AnchorPoint, ...]
    command: str = ""

    @classmethod
    def packaged(cls, pair: str) -> "AnchorCalibration | None":
        """Return what comes with loraport for a pair; None where nothing was measured.

        Raises:
            DataError: the file is damaged.
        """
        place = files(__package__) / "calibration" / f"{pair}.json"
        if not place.is_file():
            return None
        return cls.parse(place.read_text(encoding="utf-8"), f"{pair}.json")

    @classmethod
    def read(cls, path: Path) -> "AnchorCalibration":
        """Read a file.

        Raises:
            DataError: it is missing, is no JSON, or lacks something.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read ({error}); {_WANTED}") from None
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, called: str) -> "AnchorCalibration":
        """Read the text of a file that messages call ``called``.

        Raises:
            DataError: it is no JSON, or lacks something.
        """
        try:
            content = json.loads(text)
            features = tuple(map(str, content["features"]))
            points = tuple(_point(row, features) for row in content["points"])
            pair, refinement = str(content["pair"]), str(content["refinement"])
            command = str(content.get("command", ""))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            told = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{called} cannot be used ({told}); {_WANTED}") from None
        twice = {p.task for p in points if sum(p.task == other.task for other in points) > 1}
        if twice:
            raise DataError(f"{called} has the anchors {', '.join(sorted(twice))} twice; {_WANTED}")
        return cls(pair, refinement, features, points, command)

    def without(self, tasks: Sequence[str]) -> "AnchorCalibration":
        """Return the calibration without some tasks, such as the one that is ported."""
        kept = tuple(point for point in self.points if point.task not in tasks)
        return replace(self, points=kept)


def _point(row: Mapping[str, Any], features: tuple[str, ...]) -> AnchorPoint:
    numbers = {name: float(row[name]) for name in (*features, "gap_recovered")}
    bad = [name for name, value in numbers.items() if not math.isfinite(value)]
    if bad or not features or set(features) & set(_FACTS):
        raise ValueError(f"{row['task']}: {', '.join(bad or features) or 'no features'}")
    gap = numbers["gap_recovered"]
    return AnchorPoint(str(row["task"]), {n: numbers[n] for n in features}, gap)
