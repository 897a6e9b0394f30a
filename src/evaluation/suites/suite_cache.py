"""Suites' scores that are computed once: by the content of the model, the adapter, the suite."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from ...adapters import LoraAdapter
from ...files import write_whole
from ...models import BaseModel, attached
from ...models.hooks import Attachable
from .base import Suite, SuiteScore


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
        path = self.folder / suite.name / f"{_key(base, adapter, suite)}.json"
        known = _read(path)
        if known is not None:
            return known
        with attached(base.network, adapter):
            score = suite.score(base)
        _write(path, score)
        return score


def _key(base: BaseModel, adapter: LoraAdapter | Attachable | None, suite: Suite) -> str:
    parts = [
        base.fingerprint,
        adapter.content_hash() if adapter is not None else "no adapter",
        suite.content_hash(),
        str(base.network.dtype),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read(path: Path) -> SuiteScore | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        rows = {
            name: torch.tensor(
                [float("nan") if number is None else number for number in numbers],
                dtype=torch.float64,
            )
            for name, numbers in kept["rows"].items()
        }
        whole = {n: float("nan") if v is None else float(v) for n, v in kept["whole"].items()}
        score = SuiteScore(tuple(kept["answers"]), rows, whole)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not there, or damaged: it is computed again
    whole_rows = all(len(numbers) == len(score.answers) for numbers in rows.values())
    return score if whole_rows else None


def _write(path: Path, score: SuiteScore) -> None:
    kept = {
        "answers": list(score.answers),
        "rows": {name: _plain(numbers.tolist()) for name, numbers in score.rows.items()},
        "whole": dict(zip(score.whole, _plain(list(score.whole.values())), strict=True)),
    }
    write_whole(path, json.dumps(kept, allow_nan=False))


def _plain(numbers: list[float]) -> list[float | None]:
    return [None if number != number else number for number in numbers]
