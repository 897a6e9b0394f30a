import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from loraport.adapters import Role, Site
from loraport.alignment.svd import TruncatedSvd, randomised_svd
from loraport.exceptions import ModelError, OutputError
from loraport.models import ARCHITECTURES, BaseModel, StreamedWeights
from loraport.models import streaming as module
from loraport.models.streaming import FactorCache, hollow_network, streaming

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


def test_every_site_is_read_from_one_file_and_from_shards(
    pico_target: BaseModel, tmp_path: Path
) -> None:
    saved_in_shards(pico_target, tmp_path / "many")
    for folder in (save(pico_target, tmp_path / "one"), tmp_path / "many"):
        weights = StreamedWeights.open(folder, pico_target.name)
        assert (weights.name, weights.sites) == (pico_target.name, pico_target.sites)
        for site in weights.sites.shapes:
            expected = pico_target.network.get_parameter(f"{site.module_name}.weight")
            assert torch.equal(weights.weight(site), expected)
        embedding = pico_target.network.get_parameter("model.embed_tokens.weight")
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


def test_tokenizer_is_read_when_it_is_asked_for(pico_source: BaseModel, folder: Path) -> None:
    tokenizer = StreamedWeights.open(folder, "pico/source").tokenizer
    assert tokenizer("the film was bad") == pico_source.tokenizer("the film was bad")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    weights = StreamedWeights.open(folder, "pico/source")
    with pytest.raises(ModelError, match=r"tokenizer in .* cannot be read"):
        _ = weights.tokenizer


def test_names_without_the_prefix_are_found(folder: Path) -> None:
    file = folder / "model.safetensors"
    expected = load_file(file)
    save_file({name.removeprefix("model."): t for name, t in expected.items()}, file)
    weights = StreamedWeights.open(folder, "pico/source")
    assert torch.equal(weights.weight(Q0), expected[f"{Q0.module_name}.weight"])


CONFIG, WEIGHTS = "config.json", "model.safetensors"


def configured(folder: Path, **options: object) -> None:
    config = json.loads((folder / CONFIG).read_text()) | options
    (folder / CONFIG).write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / CONFIG).unlink(), r"no config\.json"),
        (lambda f: (f / CONFIG).write_text("[]"), r"config\.json cannot be read"),
        (lambda f: configured(f, hidden_size="wide"), r"config\.json cannot be read"),
        (lambda f: configured(f, model_type="gemma3"), r"'gemma3'.*knows gemma2, gemma3_text"),
        (lambda f: configured(f, model_type="unheard-of"), r"'unheard-of'.*does not know"),
        (lambda f: configured(f, quantization_config={"quant_method": "fp8"}), "are quantised"),
        (
            lambda f: (f / WEIGHTS).rename(f / "pytorch_model.bin"),
            r"pytorch_model\.bin, a pickle.*save_pretrained",
        ),
        (lambda f: (f / WEIGHTS).unlink(), "there is neither; convert"),
        (
            lambda f: (f / WEIGHTS).write_bytes(b"short"),
            r"model\.safetensors \(5 bytes long\) cannot .* is damaged",
        ),
    ],
)
def test_folders_that_cannot_be_read_are_refused_before_any_weight(
    spoil: Callable[[Path], object], message: str, folder: Path
) -> None:
    spoil(folder)
    with pytest.raises(ModelError, match=message):
        StreamedWeights.open(folder, "spoilt")


def test_missing_shards_and_broken_indices_are_named(
    pico_target: BaseModel, tmp_path: Path
) -> None:
    shard = saved_in_shards(pico_target, tmp_path)[1]
    weights = StreamedWeights.open(tmp_path, "pico/target")
    shard.unlink()
    with pytest.raises(ModelError, match=rf"{shard.name} \(missing\)"):
        weights.tensor(next(name for name, file in weights.shards.items() if file == shard))
    with pytest.raises(ModelError, match=rf"{shard.name} is missing.*hf download"):
        StreamedWeights.open(tmp_path, "missing")
    for text in ("{", "{}"):
        (tmp_path / "model.safetensors.index.json").write_text(text)
        with pytest.raises(ModelError, match=r"index\.json cannot be read"):
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


IDS = torch.arange(2, 42).reshape(2, 20)  # longer than the sliding window


def logits_of(network: nn.Module) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = network(input_ids=IDS).logits
    return logits


def streamed(weights: StreamedWeights) -> Tensor:
    network = hollow_network(weights)
    with streaming(network, weights):
        return logits_of(network)


def assert_hollow(network: nn.Module) -> None:
    """Every parameter is one zero, expanded, and no module has a hook or a forward of its own."""
    for name, parameter in network.named_parameters():
        assert parameter.untyped_storage().nbytes() <= 4, name
        assert not parameter.any(), name
    for name, part in network.named_modules():
        assert not part._forward_hooks, name
        assert not part._forward_pre_hooks, name
        assert "forward" not in vars(part), name


def lively(network: PreTrainedModel) -> PreTrainedModel:
    """Give the biases and gains, which start as zeros and ones, values that would be missed."""
    generator = torch.Generator().manual_seed(7)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return network


def reopened(network: PreTrainedModel, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Save a network in a dtype, and load it again in float32."""
    nn.Module.to(network, dtype)
    network.save_pretrained(folder)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize(("architecture", "tied"), [("qwen2", False), ("gemma2", True)])
def test_logits_are_those_of_the_loaded_network(
    pico: Callable[[str], BaseModel], tmp_path: Path, architecture: str, tied: bool
) -> None:
    config = copy.deepcopy(pico(architecture).network.config)
    config.tie_word_embeddings = tied
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = lively(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    loaded = reopened(network, tmp_path, torch.float32)
    logits = streamed(StreamedWeights.open(tmp_path, "pico"))
    torch.testing.assert_close(logits, logits_of(loaded), rtol=1e-5, atol=1e-5)
    assert logits.std() > 0.1


# Gemma multiplies embeddings by sqrt(width) in the dtype that they are stored in.
@pytest.mark.parametrize(
    ("architecture", "near", "dtype"),
    [("qwen2", 1e-5, torch.float16), ("gemma3_text", 5e-2, torch.bfloat16)],
)
def test_weights_in_half_precision_are_multiplied_in_float32(
    pico: Callable[[str], BaseModel],
    tmp_path: Path,
    architecture: str,
    near: float,
    dtype: torch.dtype,
) -> None:
    network = copy.deepcopy(pico(architecture).network)
    loaded = reopened(lively(network), tmp_path, dtype)
    weights = StreamedWeights.open(tmp_path, "pico")
    assert weights.embedding().dtype == dtype
    logits = streamed(weights)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, logits_of(loaded), rtol=near, atol=near)


def test_shards_and_a_head_in_parts_change_nothing(
    pico_target: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pico_target.network.save_pretrained(tmp_path, max_shard_size="20KB")
    weights = StreamedWeights.open(tmp_path, "pico")
    assert len(set(weights.shards.values())) > 2
    monkeypatch.setattr(module, "_HEAD_ROWS", 7)  # of 260
    torch.testing.assert_close(
        streamed(weights), logits_of(pico_target.network), rtol=1e-5, atol=1e-5
    )


@pytest.fixture
def weights(pico_target: BaseModel, tmp_path: Path) -> StreamedWeights:
    pico_target.network.save_pretrained(tmp_path / "model")
    return StreamedWeights.open(tmp_path / "model", "pico/target")


def test_one_module_at_a_time_is_filled(weights: StreamedWeights) -> None:
    network = hollow_network(weights)
    seen: dict[str, list[str]] = {}

    def filled() -> list[str]:
        return [name for name, p in network.named_parameters() if p.untyped_storage().nbytes() > 4]

    with streaming(network, weights):
        for name, part in network.named_modules():
            if isinstance(part, nn.Linear) and name != "lm_head":
                # torch calls hooks in their order: by then the module has read its weights.
                part.register_forward_pre_hook(
                    lambda *_, name=name: seen.__setitem__(name, filled())
                )
        logits_of(network)
    assert len(seen) == 3 * 7
    assert seen == {name: [f"{name}.weight"] for name in seen}


def test_the_network_is_hollow_before_and_afterwards_and_nothing_is_drawn(
    weights: StreamedWeights,
) -> None:
    before = torch.get_rng_state()
    network = hollow_network(weights)
    assert torch.equal(torch.get_rng_state(), before)
    assert not network.training
    assert_hollow(network)
    assert network.model.layers[2].self_attn.q_proj.weight.shape == (48, 48)
    with streaming(network, weights):
        first = logits_of(network)
    assert_hollow(network)
    assert not logits_of(network).any()
    with streaming(network, weights):
        assert torch.equal(logits_of(network), first)


def test_the_network_is_hollow_again_after_an_error(weights: StreamedWeights) -> None:
    file = weights.folder / "model.safetensors"
    name = "model.layers.1.mlp.down_proj.weight"
    stored = load_file(file)
    save_file({key: tensor for key, tensor in stored.items() if key != name}, file)
    opened = StreamedWeights.open(weights.folder, "pico/target")
    network = hollow_network(opened)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(ModelError, match=f"no tensor {name}"), streaming(network, opened):
        logits_of(network)
    assert_hollow(network)
    part = network.get_submodule("model.layers.0.mlp.down_proj")
    part.forward = stop  # within the module whose weights are there
    with pytest.raises(KeyboardInterrupt), streaming(network, weights):
        logits_of(network)
    del part.forward
    assert_hollow(network)


SETTINGS = {"rank": 4, "oversampling": 2, "power_iterations": 1, "seed": 0}
DOWN = Site(1, Role.DOWN)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of the matrices that were factorised."""
    shapes: list[tuple[int, ...]] = []

    def noting(matrix: torch.Tensor, rank: int, **settings: int) -> TruncatedSvd:
        shapes.append(tuple(matrix.shape))
        return randomised_svd(matrix, rank, **settings)

    monkeypatch.setattr("loraport.models.streaming.randomised_svd", noting)
    return shapes


def svd(
    cache: Path | None, weights: StreamedWeights, site: Site = DOWN, **other: Any
) -> TruncatedSvd:
    factors, settings = FactorCache(cache), {**SETTINGS, **other}
    done = factors.svd(weights, site, device=torch.device("cpu"), **settings)
    factors.flush()  # what is kept is written while the next weight is factorised
    return done


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_same(one: TruncatedSvd, other: TruncatedSvd) -> None:
    assert all(torch.equal(a, b) for a, b in zip(one[:3], other[:3], strict=True))
    assert [part.stride() for part in one[:3]] == [part.stride() for part in other[:3]]
    assert one.energy == other.energy


def test_the_second_time_gives_the_same_bits_without_computing(
    folder: Path, computed: list[Any], tmp_path: Path
) -> None:
    weights = StreamedWeights.open(folder, "pico/source")
    cold, warm = (svd(tmp_path / "cache", weights) for _ in range(2))
    assert computed == [(32, 40)]
    assert_same(cold, warm)
    assert_same(cold, randomised_svd(weights.weight(DOWN), **SETTINGS))


def test_a_weight_that_comes_twice_at_once_is_factorised_once(
    folder: Path, computed: list[Any], tmp_path: Path
) -> None:
    """As when a model is ported to itself."""
    weights, factors = StreamedWeights.open(folder, "pico/source"), FactorCache(tmp_path / "cache")
    one, other = (
        factors.svd(weights, DOWN, device=torch.device("cpu"), **SETTINGS) for _ in range(2)
    )
    assert_same(one, other)
    assert len(computed) == 1


def test_without_a_folder_nothing_is_kept(
    folder: Path, computed: list[Any], tmp_path: Path
) -> None:
    before = files(tmp_path)
    weights = StreamedWeights.open(folder, "pico/source")
    assert_same(svd(None, weights), svd(None, weights))
    assert len(computed) == 2
    assert files(tmp_path) == before


def test_every_setting_and_the_content_are_the_key_and_not_the_name(
    folder: Path, computed: list[Any], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    weights = StreamedWeights.open(folder, "pico/source")
    first = svd(cache, weights)
    for name in SETTINGS:
        svd(cache, weights, DOWN, **{name: 5})
    assert len(computed) == len(files(cache)) == 5
    folder.rename(tmp_path / "moved")
    moved = StreamedWeights.open(tmp_path / "moved", "another/name")
    assert_same(svd(cache, moved), first)
    assert len(computed) == 5
    stored = load_file(tmp_path / "moved" / "model.safetensors")
    name = f"{DOWN.module_name}.weight"
    half = stored[name].half()
    changed = stored[name] + torch.eye(40)[:32]
    for weight in (half, changed):
        save_file({**stored, name: weight}, tmp_path / "moved" / "model.safetensors")
        svd(cache, StreamedWeights.open(tmp_path / "moved", "another/name"))
    svd(cache, moved, Site(0, Role.DOWN))
    assert len(computed) == 8


def test_what_cannot_be_kept_is_said(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder is due")
    with pytest.raises(OutputError, match=r"cache.*cannot be written"):
        svd(tmp_path / "cache", StreamedWeights.open(folder, "pico/source"))


def test_weight_that_is_not_finite_is_refused(folder: Path, tmp_path: Path) -> None:
    file = folder / "model.safetensors"
    stored = load_file(file)
    stored[f"{DOWN.module_name}.weight"][0, 0] = float("nan")
    save_file(stored, file)
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj of pico/source.*not finite"):
        svd(tmp_path / "cache", StreamedWeights.open(folder, "pico/source"))
    assert not (tmp_path / "cache").exists()
