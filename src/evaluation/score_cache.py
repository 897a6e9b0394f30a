"""Scores that are computed once: by the content of the model, the adapter, the task."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from ..adapters import LoraAdapter
from ..data import PromptTemplate, Task
from ..files import write_whole
from ..models import BaseModel, attached
from ..models.attach import Attachable
from .scoring import TaskScore


@runtime_checkable
class Scorer(Protocol):
    """A way to score a task; its ``repr`` says every setting that matters."""

    def score(self, base: BaseModel, task: Task, template: PromptTemplate) -> TaskScore:
        """Return the task's score of the model as it is."""
        ...


@dataclass(frozen=True)
class ScoreCache:
    """Scores adapters on tasks, and keeps each score in a file named by what it depends on.

    Attributes:
        folder: Where the files lie.
        scorer: What scores.
        template: The prompt.
    """

    folder: Path
    scorer: Scorer
    template: PromptTemplate

    def score(
        self, base: BaseModel, adapter: LoraAdapter | Attachable | None, task: Task
    ) -> TaskScore:
        """Return the score of a base model with an adapter, or without one, on a task."""
        path = self.folder / f"{self._key(base, adapter, task)}.json"
        known = _read(path, len(task.test))
        if known is not None:
            return known
        with attached(base.network, adapter):
            score = self.scorer.score(base, task, self.template)
        _write(path, score)
        return score

    def _key(self, base: BaseModel, adapter: LoraAdapter | Attachable | None, task: Task) -> str:
        parts = [
            base.fingerprint,
            adapter.content_hash() if adapter is not None else "no adapter",
            task.content_hash(),
            repr(self.scorer),
            repr(self.template),
            str(base.network.dtype),
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _read(path: Path, rows: int) -> TaskScore | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        score = TaskScore(
            tuple(kept["predictions"]),
            torch.tensor(kept["correct"]),
            None if kept["row_nll"] is None else torch.tensor(kept["row_nll"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or damaged: it is computed again
    known = (score.predictions, score.correct, score.row_nll)
    return score if all(part is None or len(part) == rows for part in known) else None


def _write(path: Path, score: TaskScore) -> None:
    kept = {
        "predictions": list(score.predictions),
        "correct": score.correct.tolist(),
        "row_nll": None if score.row_nll is None else score.row_nll.tolist(),
    }
    write_whole(path, json.dumps(kept))
