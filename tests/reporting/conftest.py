"""Results of a made-up run, with planted accuracies."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from loraport.evaluation.assembly import summarise, task_result
from loraport.evaluation.records import PairRecord, Provenance, Results
from loraport.evaluation.scoring import TaskScore
from loraport.reporting.pages import write_report

from .benchmark_sample import full_benchmark

CONTROLS = ("mean", "random", "swapped")


def score(right: int, rows: int = 100, *, likelihoods: bool = True) -> TaskScore:
    """The first ``right`` of the rows are answered right, with the better likelihood."""
    correct = torch.arange(rows) < right
    nll = torch.where(correct, 0.2, 2.0) if likelihoods else None
    return TaskScore(predictions=("yes",) * rows, correct=correct, row_nll=nll)


def conditions(base: int, predicted: int, oracle: int, **others: int) -> dict[str, TaskScore]:
    given = {"source_base": 40, "source": 85, "mean": base + 5, "random": base - 1}
    given |= {"swapped": base + 2} | others
    given |= {"base": base, "predicted": predicted, "oracle": oracle}
    return {name: score(right) for name, right in given.items()}


def results_of(tasks: Mapping[str, Mapping[str, TaskScore]], **fields: Any) -> Results:
    given: dict[str, Any] = {
        "config": {"mapper": {"_target_": "loraport.mappers.PcaMlp", "components": 8}},
        "pair": PairRecord(name="tiny", source="tiny-source", target="tiny-target"),
        "mapper": "pca_mlp",
        "data_access": "anchors",
        "space": "delta",
        "seed": 0,
        "controls": CONTROLS,
        "tasks": {
            name: task_result(scores, CONTROLS, weight_cosine=0.61, relative_error=0.8)
            for name, scores in tasks.items()
        },
        "summary": summarise(tasks, CONTROLS),
        "mapper_report": {"anchors": ["sst2", "subj"], "strength": 0.1},
        "timing": {"fit": 1.5},
        "provenance": Provenance(
            versions={"python": "3.11.7", "torch": "2.13.0"},
            hashes={"target": "ab" * 32},
            revisions={"loraport": None},
        ),
    }
    return Results(**(given | fields))


@pytest.fixture(scope="session")
def full_report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """The files of the report of :func:`full_benchmark`, the page first."""
    return tuple(write_report(full_benchmark(), tmp_path_factory.mktemp("report")))


@pytest.fixture(scope="session")
def results() -> Results:
    return results_of(
        {
            "emotion": conditions(30, 50, 60),
            "tweet_emotion": conditions(45, 70, 72),
            "bbc_news": conditions(62, 80, 94),
            "ethos_binary": conditions(51, 57, 64),
            "trec": conditions(46, 47, 47),
        }
    )
