import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from loraport.adapters import Role, Site
from loraport.exceptions import ModelError
from loraport.models import ARCHITECTURES, BaseModel
from loraport.models.weights import StreamedWeights, content_hash

Q0 = Site(0, Role.Q)


def save(base: BaseModel, folder: Path) -> Path:
    base.network.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    return folder


def saved_in_shards(base: BaseModel, folder: Path) -> list[Path]:
    base.network.save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    return shards


@pytest.fixture
def folder(pico_source: BaseModel, tmp_path: Path) -> Path:
    return save(pico_source, tmp_path / "model")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_site_of_every_architecture_is_read(
    architecture: str, pico: Callable[[str], BaseModel], tmp_path: Path
) -> None:
    base = pico(architecture)
    weights = StreamedWeights.open(save(base, tmp_path), base.name)
    assert weights.name == base.name
    assert weights.sites == base.sites
    for site in base.sites.shapes:
        expected = base.network.get_parameter(f"{site.module_name}.weight")
        assert torch.equal(weights.weight(site), expected)
    embedding = base.network.get_parameter("model.embed_tokens.weight")
    assert torch.equal(weights.embedding(), embedding)


def module_inputs(network: PreTrainedModel, sites: list[Site]) -> dict[Site, torch.Tensor]:
    """What each site's module and each layer's norms get, in one forward pass."""
    seen: dict[Site, torch.Tensor] = {}
    for site in sites:

        def note(_module: torch.nn.Module, inputs: tuple[torch.Tensor], site: Site = site) -> None:
            seen[site] = inputs[0][0]

        network.get_submodule(site.module_name).register_forward_pre_hook(note)
    with torch.inference_mode():
        network(input_ids=torch.arange(2, 12)[None])
    return seen


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gain_is_what_the_normalised_residual_is_multiplied_by(
    architecture: str, pico: Callable[[str], BaseModel], tmp_path: Path
) -> None:
    base = pico(architecture)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in base.network.named_parameters():
        if "layernorm" in name:  # Ones and zeros would hide which norm is meant.
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
    weights = StreamedWeights.open(save(base, tmp_path), base.name)
    for site, inputs in module_inputs(base.network, list(base.sites.shapes)).items():
        gain = weights.input_gain(site)
        if site.role in (Role.O, Role.DOWN):
            assert gain is None
            continue
        assert gain is not None
        # Divided by its gain, a row has a mean square of 1.
        squares = (inputs / gain).square().mean(dim=-1)
        torch.testing.assert_close(squares, torch.ones_like(squares), rtol=1e-3, atol=0)


def test_shards_give_what_one_file_gives(pico_target: BaseModel, tmp_path: Path) -> None:
    one = StreamedWeights.open(save(pico_target, tmp_path / "one"), "pico/target")
    saved_in_shards(pico_target, tmp_path / "many")
    many = StreamedWeights.open(tmp_path / "many", "pico/target")
    assert len(set(many.shards.values())) > 2
    for site in one.sites.shapes:
        assert torch.equal(one.weight(site), many.weight(site))
        assert content_hash(one.weight(site)) == content_hash(many.weight(site))


def test_a_tensor_outlives_its_shard_and_keeps_its_dtype(
    pico_source: BaseModel, tmp_path: Path
) -> None:
    file = save(pico_source, tmp_path) / "model.safetensors"
    stored = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
    save_file(stored, file)
    weights = StreamedWeights.open(tmp_path, "pico/source")
    weight = weights.weight(Q0)
    shutil.rmtree(tmp_path)
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, stored[f"{Q0.module_name}.weight"])


def test_content_hash_follows_bytes_dtype_and_shape(folder: Path, tmp_path: Path) -> None:
    weights = StreamedWeights.open(folder, "pico/source")
    name = f"{Q0.module_name}.weight"
    hashes = {site: content_hash(weights.weight(site)) for site in weights.sites.shapes}
    assert len(set(hashes.values())) == len(hashes)
    stored = load_file(folder / "model.safetensors")
    for changed in (stored[name] + 1e-6, stored[name].half(), stored[name].mT.contiguous()):
        save_file({**stored, name: changed}, folder / "model.safetensors")
        assert content_hash(StreamedWeights.open(folder, "pico/source").weight(Q0)) != hashes[Q0]
    save_file(stored, folder / "model.safetensors")
    assert content_hash(StreamedWeights.open(folder, "another name").weight(Q0)) == hashes[Q0]


def test_tokenizer_is_read_when_it_is_asked_for(pico_source: BaseModel, folder: Path) -> None:
    tokenizer = StreamedWeights.open(folder, "pico/source").tokenizer
    assert tokenizer("the film was bad") == pico_source.tokenizer("the film was bad")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    weights = StreamedWeights.open(folder, "pico/source")
    with pytest.raises(ModelError, match=r"tokenizer in .* could not be read"):
        _ = weights.tokenizer


def test_names_without_the_prefix_are_found(folder: Path) -> None:
    file = folder / "model.safetensors"
    expected = load_file(file)
    save_file({name.removeprefix("model."): t for name, t in expected.items()}, file)
    weights = StreamedWeights.open(folder, "pico/source")
    assert torch.equal(weights.weight(Q0), expected[f"{Q0.module_name}.weight"])


def test_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        StreamedWeights.open(tmp_path, "nothing")


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "llama", "hidden_size": "wide"}'])
def test_broken_config_is_refused(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json could not be read"):
        StreamedWeights.open(folder, "broken")


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3", "unheard-of"])
def test_unknown_architecture_is_refused_before_any_weight(
    architecture: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": architecture}))
    with pytest.raises(ModelError, match=rf"'{architecture}'.*loraport.*gemma3_text.*llama"):
        StreamedWeights.open(tmp_path, "unknown")


def test_quantised_weights_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="are quantised"):
        StreamedWeights.open(folder, "quantised")


def test_pickled_weights_are_refused_with_the_way_to_convert(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, a pickle.*save_pretrained"):
        StreamedWeights.open(folder, "pickled")
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"there is neither; convert"):
        StreamedWeights.open(folder, "none")


def test_missing_shard_is_named(pico_target: BaseModel, tmp_path: Path) -> None:
    shard = saved_in_shards(pico_target, tmp_path)[1]
    shard.unlink()
    with pytest.raises(ModelError, match=rf"{shard.name} is missing.*hf download"):
        StreamedWeights.open(tmp_path, "missing")


def test_truncated_shard_is_named_with_its_size(pico_target: BaseModel, tmp_path: Path) -> None:
    shard = saved_in_shards(pico_target, tmp_path)[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    size = shard.stat().st_size
    with pytest.raises(ModelError, match=rf"{shard.name} \({size} bytes long\) is damaged"):
        StreamedWeights.open(tmp_path, "truncated")


def test_shard_that_vanishes_later_is_named(folder: Path) -> None:
    weights = StreamedWeights.open(folder, "pico/source")
    (folder / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match=r"model\.safetensors \(5 bytes long\)"):
        weights.weight(Q0)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors \(missing\)"):
        weights.weight(Q0)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_broken_index_is_refused(text: str, pico_target: BaseModel, tmp_path: Path) -> None:
    saved_in_shards(pico_target, tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelError, match=r"index\.json could not be read"):
        StreamedWeights.open(tmp_path, "broken")


def test_absent_tensor_and_wrong_shape_are_refused(folder: Path) -> None:
    file = folder / "model.safetensors"
    stored = load_file(file)
    name = f"{Q0.module_name}.weight"
    save_file({key: tensor for key, tensor in stored.items() if key != name}, file)
    with pytest.raises(ModelError, match=rf"no tensor {name}"):
        StreamedWeights.open(folder, "absent").weight(Q0)
    save_file({**stored, name: stored[name][:-1].contiguous()}, file)
    with pytest.raises(ModelError, match=rf"{name} .*\(31, 32\).*\(32, 32\)"):
        StreamedWeights.open(folder, "misshapen").weight(Q0)
    with pytest.raises(ModelError, match=r"has no module model\.layers\.7"):
        StreamedWeights.open(folder, "shallow").weight(Site(7, Role.Q))
