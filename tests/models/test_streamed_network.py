import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from loraport.exceptions import ModelError
from loraport.models import ARCHITECTURES, BaseModel, StreamedWeights
from loraport.models import streamed_network as module
from loraport.models.streamed_network import hollow_network, streaming

IDS = torch.arange(2, 42).reshape(2, 20)  # longer than the sliding window


def told(network: nn.Module) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = network(input_ids=IDS).logits
    return logits


def streamed(weights: StreamedWeights) -> Tensor:
    network = hollow_network(weights)
    with streaming(network, weights):
        return told(network)


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


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
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
    torch.testing.assert_close(logits, told(loaded), rtol=1e-5, atol=1e-5)
    assert logits.std() > 0.1


# Gemma multiplies embeddings by sqrt(width) in the dtype that they are stored in.
@pytest.mark.parametrize(("architecture", "near"), [("qwen2", 1e-5), ("gemma3_text", 5e-2)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
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
    torch.testing.assert_close(logits, told(loaded), rtol=near, atol=near)


def test_shards_and_a_head_in_parts_change_nothing(
    pico_target: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pico_target.network.save_pretrained(tmp_path, max_shard_size="20KB")
    weights = StreamedWeights.open(tmp_path, "pico")
    assert len(set(weights.shards.values())) > 2
    monkeypatch.setattr(module, "_HEAD_ROWS", 7)  # of 260
    torch.testing.assert_close(streamed(weights), told(pico_target.network), rtol=1e-5, atol=1e-5)


@pytest.fixture
def weights(pico_target: BaseModel, tmp_path: Path) -> StreamedWeights:
    pico_target.network.save_pretrained(tmp_path / "model")
    return StreamedWeights.open(tmp_path / "model", "pico/target")


def test_a_hollow_network_takes_no_memory_and_draws_nothing(weights: StreamedWeights) -> None:
    before = torch.get_rng_state()
    network = hollow_network(weights)
    assert torch.equal(torch.get_rng_state(), before)
    assert not network.training
    assert_hollow(network)
    shapes = {name: tuple(p.shape) for name, p in network.named_parameters()}
    assert shapes["model.layers.2.self_attn.q_proj.weight"] == (48, 48)
    assert shapes["model.embed_tokens.weight"] == (260, 48)


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
        told(network)
    assert len(seen) == 3 * 7
    assert seen == {name: [f"{name}.weight"] for name in seen}


def test_the_network_is_hollow_again_afterwards(weights: StreamedWeights) -> None:
    network = hollow_network(weights)
    with streaming(network, weights):
        first = told(network)
    assert_hollow(network)
    assert not told(network).any()
    with streaming(network, weights):
        assert torch.equal(told(network), first)


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
        told(network)
    assert_hollow(network)
    part = network.get_submodule("model.layers.0.mlp.down_proj")
    part.forward = stop  # within the module whose weights are there
    with pytest.raises(KeyboardInterrupt), streaming(network, weights):
        told(network)
    del part.forward
    assert_hollow(network)


def test_a_checkpoint_without_the_prefix_is_streamed(
    weights: StreamedWeights, pico_target: BaseModel
) -> None:
    file = weights.folder / "model.safetensors"
    stored = load_file(file)
    save_file({name.removeprefix("model."): tensor for name, tensor in stored.items()}, file)
    logits = streamed(StreamedWeights.open(weights.folder, "pico/target"))
    torch.testing.assert_close(logits, told(pico_target.network), rtol=1e-5, atol=1e-5)
