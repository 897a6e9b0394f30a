from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch

from loraport.exceptions import ModelError
from loraport.models import BaseModel, HubModel, LocalModel
from loraport.models.weights import StreamedWeights


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


def test_dtype_is_taken(pico_source: BaseModel, tmp_path: Path) -> None:
    save(pico_source, tmp_path / "model")
    loaded = LocalModel(path=str(tmp_path / "model"), dtype="bfloat16").load(tmp_path)
    assert loaded.network.dtype == torch.bfloat16
    assert loaded.fingerprint.endswith("-bfloat16")


def test_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json.*save_pretrained"):
        LocalModel(path=str(tmp_path)).load(tmp_path)


def test_truncated_weights_are_refused(pico_source: BaseModel, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save(pico_source, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="could not be read"):
        LocalModel(path=str(folder)).load(tmp_path)


def test_unknown_dtype_is_refused_with_the_known_ones(
    pico_source: BaseModel, tmp_path: Path
) -> None:
    save(pico_source, tmp_path / "model")
    with pytest.raises(ModelError, match=r"'fp32'.*float32, bfloat16, float16"):
        LocalModel(path=str(tmp_path / "model"), dtype="fp32").load(tmp_path)


def test_hub_out_of_reach_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match=r"no-one/no-model.*pair=local pair\.source\.path="
    ) as caught:
        HubModel("no-one/no-model").load(tmp_path)
    assert "hf auth login" in str(caught.value)


def test_local_weights_are_those_that_load_gives(pico_target: BaseModel, tmp_path: Path) -> None:
    folder = tmp_path / "gemma"
    save(pico_target, folder)
    source = LocalModel(path=str(folder), name="hub/id")
    weights = source.weights(tmp_path)
    assert weights.name == source.name
    assert_same_weights(weights, source.load(tmp_path))


def assert_same_weights(weights: StreamedWeights, base: BaseModel) -> None:
    assert weights.sites == base.sites
    for site in base.sites.shapes:
        assert torch.equal(
            weights.weight(site), base.network.get_parameter(f"{site.module_name}.weight")
        )


def test_weights_of_a_folder_without_a_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json.*save_pretrained"):
        LocalModel(path=str(tmp_path)).weights(tmp_path)


def test_hub_weights_are_fetched_without_other_formats(
    pico_source: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(pico_source, tmp_path / "repository")
    asked: dict[str, Any] = {}

    def snapshot(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.update(name=name, revision=revision, patterns=allow_patterns)
        return str(tmp_path / "repository")

    monkeypatch.setattr("loraport.models.sources.snapshot_download", snapshot)
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


def test_hub_weights_come_out_of_its_cache_without_a_network(
    pico_source: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--pico--source"
    save(pico_source, repository / "snapshots" / "0123abcd")
    (repository / "refs").mkdir()
    (repository / "refs" / "v2").write_text("0123abcd")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    weights = HubModel("pico/source", revision="v2").weights(tmp_path)
    assert weights.folder.name == "0123abcd"
    assert_same_weights(weights, pico_source)


@pytest.mark.parametrize("name", ["no-one/no-model", "not//an id"])
def test_hub_weights_out_of_reach_say_what_to_set(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=rf"{name} at revision v2 is .*pair=local.*path="):
        HubModel(name, revision="v2").weights(tmp_path)
