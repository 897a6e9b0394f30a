import copy
import json
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from loraport.adapters import read_adapter
from loraport.data.prompts import PromptSpec, answer_tokens, prompt_tokens
from loraport.data.tasks import PromptTemplate, Task, TaskFolder
from loraport.evaluation.scoring import LikelihoodScorer
from loraport.exceptions import ModelError
from loraport.models import (
    BaseModel,
    ChunkedGguf,
    HubModel,
    LocalModel,
    ModelSource,
    PackagedGguf,
    attached,
)
from loraport.models.generation import MostLikely, generate
from loraport.models.likelihood import log_likelihoods
from loraport.models.loading import learning_dtype, one_thread
from loraport.models.streaming import StreamedWeights
from loraport.store import Key


def test_converted_copy_computes_in_its_dtype_and_leaves_the_model_alone(
    pico_target: BaseModel,
) -> None:
    ids = torch.tensor([[1, 40, 50, 60]])
    exact = pico_target.network(input_ids=ids).logits
    copy = pico_target.converted(torch.bfloat16)
    rounded = copy.network(input_ids=ids).logits
    assert rounded.dtype == torch.bfloat16
    assert copy.fingerprint == f"{pico_target.fingerprint}-bfloat16"
    assert 0 < float((rounded.float() - exact).norm() / exact.norm()) < 0.05
    assert torch.equal(pico_target.network(input_ids=ids).logits, exact)
    buffers = zip(pico_target.network.buffers(), copy.network.buffers(), strict=True)
    assert all(torch.equal(one, other) for one, other in buffers), "positions stay exact"
    assert pico_target.converted(torch.float32) is pico_target


def save(base: BaseModel, folder: Path) -> None:
    base.network.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)


def test_local_folder_gives_the_model_that_was_saved(
    pico_target: BaseModel, tmp_path: Path
) -> None:
    save(pico_target, tmp_path / "gemma")
    loaded = LocalModel(path=str(tmp_path / "gemma")).load(tmp_path)
    ids = torch.arange(2, 40)[None]
    with torch.inference_mode():
        assert torch.equal(
            loaded.network(input_ids=ids).logits, pico_target.network(input_ids=ids).logits
        )
    assert loaded.name == "gemma"
    assert loaded.tokenizer("Which film?") == pico_target.tokenizer("Which film?")
    assert not loaded.network.training
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    source = LocalModel(path=str(tmp_path / "gemma"), name="hub/id", dtype="bfloat16")
    weights, half = source.weights(tmp_path), source.load(tmp_path)
    assert weights.name == half.name == "hub/id"
    assert half.network.dtype == torch.bfloat16
    assert half.fingerprint == f"{loaded.fingerprint}-bfloat16"
    assert_same_weights(weights, loaded)


def test_fingerprint_follows_weights_and_tokenizer_but_not_a_readme(
    pico_source: BaseModel, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    save(pico_source, folder)
    source = LocalModel(path=str(folder), name="hub/id")
    first = source.load(tmp_path)
    (folder / "README.md").write_text("notes")
    assert source.load(tmp_path).fingerprint == first.fingerprint
    assert first.name == "hub/id"
    with torch.no_grad():
        first.network.model.norm.weight[0] += 1e-3
    first.network.save_pretrained(folder)
    changed = source.load(tmp_path).fingerprint
    assert changed != first.fingerprint
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace('"film"', '"movie"'))
    assert source.load(tmp_path).fingerprint != changed


@pytest.mark.parametrize("read", [ModelSource.load, ModelSource.weights])
def test_folder_without_a_model_is_refused(
    read: Callable[[ModelSource, Path], object], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"no config\.json.*save_pretrained"):
        read(LocalModel(path=str(tmp_path)), tmp_path)


def test_what_cannot_be_loaded_is_refused(pico_source: BaseModel, tmp_path: Path) -> None:
    save(pico_source, tmp_path)
    with pytest.raises(ModelError, match=r"'fp32'.*float32, bfloat16, float16"):
        LocalModel(path=str(tmp_path), dtype="fp32").load(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cannot be read"):
        LocalModel(path=str(tmp_path)).load(tmp_path)


def assert_same_weights(weights: StreamedWeights, base: BaseModel) -> None:
    assert weights.sites == base.sites
    for site in base.sites.shapes:
        assert torch.equal(
            weights.weight(site), base.network.get_parameter(f"{site.module_name}.weight")
        )


def test_hub_weights_are_fetched_without_other_formats(
    pico_source: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(pico_source, tmp_path / "repository")
    asked: dict[str, Any] = {}

    def snapshot(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(tmp_path / "repository")

    monkeypatch.setattr("loraport.models.loading.snapshot_download", snapshot)
    weights = HubModel("pico/source", revision="v2").weights(tmp_path)
    assert_same_weights(weights, pico_source)
    assert weights.name == asked["name"] == "pico/source"
    assert asked["revision"] == "v2"

    def fetched(file: str) -> bool:
        return any(fnmatch(file, pattern) for pattern in asked["patterns"])

    assert all(map(fetched, ["config.json", "tokenizer.json", "tokenizer.model", "vocab.json"]))
    assert all(map(fetched, ["model-00001-of-00002.safetensors", "model.safetensors.index.json"]))
    others = ["pytorch_model.bin", "consolidated.safetensors", "original/model.safetensors"]
    assert not any(map(fetched, [*others, "README.md", "onnx/model.onnx", "model.gguf"]))


def test_hub_model_comes_out_of_its_cache_without_a_network(
    pico_source: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--pico--source"
    save(pico_source, repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "v2").write_text("0123abcd")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    source = HubModel("pico/source", revision="v2")
    weights, loaded = source.weights(tmp_path), source.load(tmp_path)
    assert weights.folder.name == loaded.fingerprint == "0123abcd"
    assert weights.name == loaded.name == "pico/source"
    assert_same_weights(weights, loaded)
    assert_same_weights(weights, pico_source)


@pytest.mark.parametrize("name", ["no-one/no-model", "not//an id"])
def test_hub_out_of_reach_says_what_to_set(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=rf"{name} at revision v2 is .*hf auth login.*pair=local"):
        HubModel(name, revision="v2").load(tmp_path)


FAKE = PackagedGguf(name="pico/source", distribution="fake-model", file="fake_model/model.gguf")


@pytest.fixture
def built(pico_source: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Install a package whose file becomes the source model; the files that were dequantised."""
    packages = tmp_path / "packages"
    (packages / "fake_model").mkdir(parents=True)
    (packages / "fake_model" / "model.gguf").write_bytes(b"weights")
    info = packages / "fake_model-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-model\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(packages)
    read: list[Path] = []

    def dequantised(gguf: Path, folder: Path) -> None:
        read.append(gguf)
        save(pico_source, folder)

    monkeypatch.setattr("loraport.models.loading.dequantised", dequantised)
    return read


def test_model_is_built_once_and_kept_under_the_hash_of_its_file(
    built: list[Path], pico_source: BaseModel, tmp_path: Path
) -> None:
    first, first_folder = FAKE.load(tmp_path / "cache"), FAKE.folder(tmp_path / "cache")
    assert_same_weights(FAKE.weights(tmp_path / "cache"), pico_source)
    assert [path.name for path in built] == ["model.gguf"]
    assert first.name == "pico/source"
    assert first.fingerprint == sha256(b"weights").hexdigest()
    ids = torch.arange(2, 9)[None]
    assert torch.equal(first.network(input_ids=ids).logits, pico_source.network(ids).logits)
    # Another file of the same package and name is another model.
    (tmp_path / "packages" / "fake_model" / "model.gguf").write_bytes(b"other weights")
    assert FAKE.folder(tmp_path / "cache") != first_folder
    assert len(built) == 2


def test_package_that_is_not_installed_names_the_extra(tmp_path: Path) -> None:
    chunked = ChunkedGguf(name="b", distribution="none-such", module="none", file="b.gguf")
    for source in (PackagedGguf(name="a", distribution="none-such", file="a.gguf"), chunked):
        with pytest.raises(ModelError, match=r"none-such.*not installed.*make offline-models"):
            source.load(tmp_path)


@pytest.mark.usefixtures("built")
def test_file_that_the_package_lacks_is_named(tmp_path: Path) -> None:
    lacking = PackagedGguf(name="pico", distribution="fake-model", file="fake_model/other.gguf")
    with pytest.raises(ModelError, match=r"fake-model 1\.0 has no file fake_model/other\.gguf"):
        lacking.folder(tmp_path)


@pytest.fixture(params=["smollm2", "gemma3"])
def real(request: pytest.FixtureRequest, cache: Path) -> BaseModel:
    source: ModelSource = request.getfixturevalue(request.param)
    return source.load(cache)


def real_task(shared: Path, name: str, rows: int) -> Task:
    return TaskFolder(shared / "data" / "tasks").load([name])[name].limited(rows)


@pytest.mark.real
def test_dequantised_weights_are_those_that_transformers_reads(
    smollm2: PackagedGguf, cache: Path
) -> None:
    kept = smollm2.load(cache)
    gguf = smollm2.gguf_file(cache)
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
def test_real_tokenizers_and_heads(real: BaseModel) -> None:
    bos = 2 if "gemma" in real.name else None
    text = "It's 2026, a fine naïve film 🎬\nWhich feeling is it?\nAnswer:"
    encoded = real.tokenizer(text, return_offsets_mapping=True)
    spans = [span for span in encoded["offset_mapping"] if span[0] < span[1]]
    assert {place for start, end in spans for place in range(start, end)} == set(range(len(text)))
    assert (encoded["input_ids"][0] == bos) == (bos is not None)
    assert real.tokenizer.pad_token_id is not None
    assert real.network.get_output_embeddings().weight is (
        real.network.get_input_embeddings().weight
    )
    assert getattr(real.network.config, "quantization_config", None) is None


@pytest.mark.real
def test_scores_of_the_shared_zoo_come_out_again(real: BaseModel, shared: Path) -> None:
    folder = shared / "zoo" / ("target" if "gemma" in real.name else "source") / "trec"
    written = json.loads((folder / "metrics.json").read_text())
    task = real_task(shared, "trec", written["rows"])
    template = PromptTemplate(text_chars=200)
    plain = LikelihoodScorer().score(real, task, template)
    with attached(real.network, read_adapter(folder)):
        adapted = LikelihoodScorer().score(real, task, template)
    assert plain.accuracy == pytest.approx(written["base_accuracy"], abs=0.011)
    assert plain.nll == pytest.approx(written["base_nll"], abs=2e-3)
    assert adapted.accuracy == pytest.approx(written["accuracy"], abs=0.011)
    assert adapted.nll == pytest.approx(written["nll"], abs=2e-3)


@pytest.mark.real
def test_labels_are_the_same_tokens_alone_and_behind_a_prompt(
    real: BaseModel, shared: Path
) -> None:
    template = PromptTemplate(text_chars=200)
    for name in TaskFolder(shared / "data" / "tasks").names():
        task = real_task(shared, name, rows=3)
        asked = PromptSpec.of(task, template)
        answers = answer_tokens(real.tokenizer, asked)
        prompts = prompt_tokens(real.tokenizer, asked, [row.text for row in task.test])
        for prompt, row in zip(prompts, task.test, strict=True):
            whole = asked.ask(row.text) + asked.answer(row.label)
            assert prompt + answers[row.label] == real.tokenizer(whole)["input_ids"]


LARGE = "loraport.models.loading._LARGE"


def test_fingerprint_dtype_device_and_precision_are_in_keys(
    pico: Callable[[str], BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = pico("llama")
    on_meta: Any = copy.deepcopy(base.network)
    on_meta.to("meta")
    others = [
        replace(base, fingerprint="another"),
        replace(base, network=on_meta),
    ]
    others.append(replace(base.converted(torch.bfloat16), fingerprint=base.fingerprint))
    keys = {Key.of("scores", **each.key_parts) for each in (base, *others)}
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "medium")
    assert len(keys | {Key.of("scores", **base.key_parts)}) == 5


@pytest.mark.parametrize(("units", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_bfloat16_for_large_networks_where_there_are_units_for_it(
    units: bool, expected: torch.dtype, pico_target: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: units)
    assert learning_dtype("auto", pico_target) == torch.float32
    assert learning_dtype("bfloat16", pico_target) == torch.bfloat16
    monkeypatch.setattr(LARGE, pico_target.network.num_parameters())
    assert learning_dtype("auto", pico_target) == expected


def test_one_thread_gives_the_threads_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"num_hidden_layers": 4}, r"no tensor model\.layers\.2\.self_attn\.q_proj"),
        ({"num_hidden_layers": 1}, r"it has beyond it \d+ \(model\.layers\.1\."),
        (
            {"intermediate_size": 72},
            r"model\.layers\.0\.mlp\.gate_proj\.weight .* has the shape \(40, 32\)",
        ),
        ({"model_type": "mistral", "num_hidden_layers": 5}, r"no tensor model\.layers\.2"),
        ({"attention_bias": True}, r"it lacks \d+ \(model\.layers\.0\.self_attn\.k_proj\.bias"),
    ],
    ids=str,
)
def test_weights_that_are_not_those_of_the_config_are_refused(
    pico_source: BaseModel, tmp_path: Path, changed: dict[str, Any], named: str
) -> None:
    """transformers would fill what is missing with random numbers."""
    save(pico_source, tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changed))
    with pytest.raises(ModelError, match=named):
        LocalModel(path=str(tmp_path)).load(tmp_path)


def test_weights_are_read_of_safetensors_alone(pico_source: BaseModel, tmp_path: Path) -> None:
    save(pico_source, tmp_path)
    torch.save(pico_source.network.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"safetensors"):
        LocalModel(path=str(tmp_path)).load(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_beside_a_model_is_not_run(
    pico_source: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """Nor is anybody asked whether to run it."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))
    save(pico_source, tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    names = {
        "config.json": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"},
        "tokenizer_config.json": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
    }
    path = tmp_path / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": names[file]}))
    LocalModel(path=str(tmp_path)).load(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b.safetensors", 3])
def test_a_shard_is_a_file_of_its_folder(
    pico_source: BaseModel, tmp_path: Path, name: object
) -> None:
    save(pico_source, tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-1.safetensors")
    index = {"weight_map": {"model.norm.weight": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"index\.json (names the shard|cannot be read)"):
        StreamedWeights.open(tmp_path, "x")


@pytest.mark.parametrize("use", ["scoring", "writing"])
def test_prompts_beyond_the_window_are_told_once_with_numbers(
    pico_source: BaseModel,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    use: str,
) -> None:
    monkeypatch.setattr("loraport.models.loading._said", set())
    monkeypatch.setattr(pico_source.network.config, "max_position_embeddings", 9)
    spec = PromptSpec("{text}", ("good", "very good"))
    texts = ["the film " * 4, "the " * 12, "the film"]

    def run() -> object:
        if use == "scoring":
            return log_likelihoods(pico_source, spec, texts)
        tokens = pico_source.tokenizer(texts)["input_ids"]
        return generate(pico_source, tokens, max_new_tokens=2, choice=MostLikely())

    run()
    run()
    [record] = caplog.records
    # Behind a prompt come the beginning of "very good", or the two tokens that are written.
    longest, many, called = (
        (13, 1, "scoring labels") if use == "scoring" else (14, 2, "writing answers")
    )
    assert record.getMessage().startswith(
        f"{called}: {many} of 3 prompts take more than the 9 tokens of the window of "
        f"pico/source (the longest {longest}): "
    )
    monkeypatch.setattr(pico_source.network.config, "max_position_embeddings", 512)
    monkeypatch.setattr("loraport.models.loading._said", set())
    run()
    assert len(caplog.records) == 1
