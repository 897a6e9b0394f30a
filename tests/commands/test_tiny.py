"""The embedded default, whole: what a newcomer gets from the first command."""

import hashlib
import json
import os
import signal
import time
from operator import mul
from pathlib import Path

import pytest
import torch
from peft import PeftModel

from loraport.adapters import read_adapter
from loraport.data import PromptTemplate
from loraport.evaluation.records import Results, TransferReport
from loraport.evaluation.scoring import LikelihoodScorer
from loraport.models import attached
from loraport.tiny.models import TinyModel
from loraport.tiny.tasks import TinyTasks

from .conftest import finish, start_command

pytestmark = pytest.mark.slow
SEEDS = (0, 1, 2)
LEARNED = ("global_ridge", "pertensor_ridge", "pca_ridge", "pca_mlp")


def contents(folder: Path) -> dict[str, str]:
    """Every file that counts, by its hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".lock")
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def demo(cache: Path) -> Path:
    """The first command on an empty cache; two of them at once, as nobody promises to wait."""
    options = ("mapper=pca_mlp", "logger=csv")
    both = [start_command("train", cache, *options, f"hydra.run.dir=demo{n}") for n in (0, 1)]
    for process in both:
        finish(process)
    assert contents(cache / "demo0/adapters").keys() == contents(cache / "demo1/adapters").keys()
    return cache / "demo0"


def test_two_first_runs_at_once_agree(demo: Path):
    one, other = (Results.read(demo.parent / f"demo{n}" / "results.json") for n in (0, 1))
    assert one.tasks == other.tasks


def test_predicted_adapters_load_with_peft(demo: Path, cache: Path):
    ids = torch.tensor([[1, 7, 8, 9]])
    base = TinyModel("target").load(cache)
    plain = base.network(ids).logits.clone()
    folders = sorted((demo / "adapters").iterdir())
    assert len(folders) == 8
    for folder in folders:
        fresh = TinyModel("target").load(cache)
        model = PeftModel.from_pretrained(fresh.network, str(folder))
        assert (model(input_ids=ids).logits - plain).abs().max() > 1e-2


@pytest.mark.parametrize("seed", SEEDS)
def test_there_is_something_to_interpolate_and_it_is_found(demo: Path, cache: Path, seed: int):
    """Other tastes, other rows, other A: base, oracle, mean and the best learned mapper."""
    sweep = cache / f"sweep{seed}"
    finish(
        start_command(
            "train",
            cache,
            "-m",
            f"mapper={','.join(LEARNED)}",
            "logger=none",
            "evaluation.controls=[]",
            f"seed={seed}",
            f"tasks.source.seed={seed}",
            f"recipe.seed={seed}",
            f"recipe.init_seed={seed}",
            f"hydra.sweep.dir={sweep}",
        )
    )
    runs = [Results.read(path) for path in sorted(sweep.glob("*/results.json"))]
    assert len(runs) == len(LEARNED)

    def average(condition: str) -> float:
        scores = [task.scores[condition] or 0.0 for task in runs[0].tasks.values()]
        return sum(scores) / len(scores)

    assert len(runs[0].tasks) >= 8
    assert len(runs[0].mapper_report["anchors"]) >= 32
    assert average("base") <= 0.6
    assert average("oracle") >= 0.9
    assert average("mean") <= average("oracle") - 0.3
    best = max(run.summary.gap_recovered or 0.0 for run in runs)
    mean = runs[0].summary.control_gaps["mean"] or 0.0
    assert best >= 0.6
    assert best >= mean + 0.2


def test_the_default_port_brings_the_adapters_skill(demo: Path, cache: Path):
    """What one speaker likes arrives; taught by another speaker's adapter, it does not."""
    tasks = TinyTasks()
    taste = tasks.taste("speaker_33")
    # Whose taste has least to do with the first one's; all are asked alike.
    stranger = min(tasks.names(), key=lambda name: abs(sum(map(mul, tasks.taste(name), taste))))
    ports = [
        start_command("transfer", cache, f"adapter={name}", f"output={cache / 'ported' / name}")
        for name in ("speaker_33", stranger)
    ]
    told, _ = (finish(process) for process in ports)
    base, task = TinyModel("target").load(cache), tasks.load(["speaker_33"])["speaker_33"]

    def accuracy(name: str | None) -> float:
        adapter = None if name is None else read_adapter(cache / "ported" / name)
        with attached(base.network, adapter):
            return LikelihoodScorer().score(base, task, PromptTemplate()).accuracy

    bare, port, swapped = map(accuracy, (None, "speaker_33", stranger))
    print(f"base {bare:.3f}, port {port:.3f}, taught by {stranger} {swapped:.3f}")
    assert port >= 0.8
    assert port >= max(bare, swapped) + 0.2
    report = TransferReport.model_validate_json(
        (cache / "ported/speaker_33/report.json").read_bytes()
    )
    assert (report.mapper, report.data_access) == ("noop", "generic text")
    assert report.refinement is not None
    assert report.refinement.name == "corpus_distill"
    assert report.refinement.data == {"texts": ["corpus"]}
    measured = report.refinement.measured[0]
    assert measured["agreement_after"] > measured["agreement_before"] + 0.2
    assert report.refinement.drift.mean > 0
    assert {"diagnose", "refine", "drift", "verify"} <= report.timing.keys()
    assert "information class: generic text" in told


def test_killed_at_any_moment_the_next_start_ends_with_the_same_files(cache: Path):
    names = ",".join(TinyTasks().names()[:4])
    options = (f"tasks.names=[{names}]", f"tasks.held_out=[{names[:10]}]", "pair.workers=1")
    whole = cache / "whole"
    whole.mkdir()
    finish(start_command("anchors", whole, *options, f"paths.zoo={whole / 'zoo'}"))
    broken = cache / "broken"
    broken.mkdir()
    for patience in (5.0, 9.0, 14.0, 19.0):  # in the imports, the pre-training, the adapters
        process = start_command("anchors", broken, *options, f"paths.zoo={broken / 'zoo'}")
        time.sleep(patience)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()  # closes its pipe, too
    finish(start_command("anchors", broken, *options, f"paths.zoo={broken / 'zoo'}"))
    for part in ("zoo", "tiny"):
        assert contents(whole / part) == contents(broken / part)
    assert json.loads((broken / "zoo/manifest.json").read_text())["pair"] == "tiny"
