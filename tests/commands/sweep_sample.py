"""Made-up runs of train.py and evaluate.py on disk, as a sweep leaves them."""

from pathlib import Path
from typing import Any

import torch
import yaml

from loraport.evaluation.assembly import summarise, task_result
from loraport.evaluation.records import PairRecord, Provenance, Results
from loraport.evaluation.scoring import TaskScore

CONTROLS = ("mean",)
PAIR = PairRecord(name="tiny", source="tiny-source", target="tiny-target")


def scores(predicted: int, rows: int = 100) -> dict[str, TaskScore]:
    """A task with a base of 30 and an oracle of 60 right answers in a hundred."""
    right = {"base": 30, "source_base": 40, "source": 85, "oracle": 60, "mean": 35}
    correct = {
        name: torch.arange(rows) < n for name, n in (right | {"predicted": predicted}).items()
    }
    return {
        name: TaskScore(("yes",) * rows, row, torch.where(row, 0.2, 2.0))
        for name, row in correct.items()
    }


def training(predicted: int, **fields: Any) -> Results:
    """Results of train.py whose mapper answers so many rows in a hundred right."""
    tasks = {"trec": scores(predicted)}
    given: dict[str, Any] = {
        "config": {"seed": 0},
        "pair": PAIR,
        "mapper": "global_ridge",
        "data_access": "anchors",
        "seed": 0,
        "controls": CONTROLS,
        "tasks": {name: task_result(found, CONTROLS) for name, found in tasks.items()},
        "summary": summarise(tasks, CONTROLS),
        "timing": {"fit": 1.5},
        "provenance": Provenance(versions={"torch": "2.13.0"}),
    }
    return Results(**(given | fields))


def write_job(folder: Path, *asked: str) -> Path:
    """Write what Hydra leaves of a job, and return its folder."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(asked)))
    return folder
