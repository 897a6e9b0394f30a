"""What every suite is: items that a model is asked, numbers for each answer, and their cache."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ..adapters import LoraAdapter
from ..files import write_whole
from ..models import BaseModel, attached
from ..models.hooks import Attachable


@dataclass(frozen=True, eq=False)
class SuiteScore:
    """How one model answers a suite's items, in their order.

    Attributes:
        answers: What the model answered each item, as text: a choice, or what it wrote.
        rows: Metric to one number an item, such as 1 for right and 0 for wrong; NaN where an item
            does not count for that metric. Rows of two models are paired, item by item.
        whole: Metrics of all answers together, such as self-BLEU.
    """

    answers: tuple[str, ...]
    rows: Mapping[str, Float[Tensor, " items"]]
    whole: Mapping[str, float]

    def means(self) -> dict[str, float]:
        """Return every metric's mean over the items that count, and the metrics of the whole."""
        return {n: float(torch.nanmean(v.double())) for n, v in self.rows.items()} | {**self.whole}


@runtime_checkable
class Suite(Protocol):
    """A set of items with a way to score answers to them."""

    @property
    def name(self) -> str:
        """As in ``suite=``, and in tables."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics in the order in which they are shown; the first is the main one."""
        ...

    def prompts(self) -> tuple[str, ...]:
        """Return what is asked, an item each: drift is measured there as well."""
        ...

    def content_hash(self) -> str:
        """Return the SHA-256 of the items and of every setting that a score depends on."""
        ...

    def score(self, base: BaseModel) -> SuiteScore:
        """Return the score of the model as it is, with what is attached to it."""
        ...


def hashed(*parts: object) -> str:
    """Return the SHA-256 of parts that JSON can hold."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class SuiteCache:
    """Scores adapters on suites, and keeps each score in a file named by what it depends on.

    Attributes:
        folder: Where the files lie.
    """

    folder: Path

    def score(
        self, base: BaseModel, adapter: LoraAdapter | Attachable | None, suite: Suite
    ) -> SuiteScore:
        """Return the score of a base model with an adapter, or without one, on a suite."""
        parts = [
            base.fingerprint,
            adapter.content_hash() if adapter is not None else "no adapter",
            suite.content_hash(),
            str(base.network.dtype),
        ]
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        path = self.folder / suite.name / f"{key}.json"
        known = _read(path)
        if known is not None:
            return known
        with attached(base.network, adapter):
            score = suite.score(base)
        _write(path, score)
        return score


def _read(path: Path) -> SuiteScore | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        rows = {
            name: torch.tensor([_number(value) for value in values], dtype=torch.float64)
            for name, values in kept["rows"].items()
        }
        whole = {name: float(_number(value)) for name, value in kept["whole"].items()}
        score = SuiteScore(tuple(kept["answers"]), rows, whole)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not there, or damaged: it is computed again
    complete = all(len(values) == len(score.answers) for values in rows.values())
    return score if complete else None


def _write(path: Path, score: SuiteScore) -> None:
    kept = {
        "answers": list(score.answers),
        "rows": {name: [_plain(v) for v in row.tolist()] for name, row in score.rows.items()},
        "whole": {name: _plain(value) for name, value in score.whole.items()},
    }
    write_whole(path, json.dumps(kept, allow_nan=False))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _plain(value: float) -> float | None:
    return None if value != value else value
