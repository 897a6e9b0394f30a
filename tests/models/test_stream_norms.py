from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from loraport.adapters import Role, Site
from loraport.data.aligned_batch import TokenBatch
from loraport.models import ARCHITECTURES, BaseModel
from loraport.models.layer_steps import LayerSteps
from loraport.models.stream_norms import WriteNorm, read_gain

TEXTS = TokenBatch(torch.arange(2, 22).reshape(2, 10), torch.ones(2, 10, dtype=torch.long))


def with_gains(base: BaseModel) -> BaseModel:
    """Give every norm another gain, some of them negative; a new model has them all alike."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in base.network.named_parameters():
        if "norm" in name:
            weight.data += torch.randn(weight.shape, generator=generator)
    return base


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_small_change_of_an_output_changes_the_stream_as_linearised(
    architecture: str, pico: Callable[[str], BaseModel]
) -> None:
    base = with_gains(pico(architecture))
    site = Site(1, Role.DOWN)
    steps = LayerSteps(base.network, TEXTS)
    below = steps.step(0, steps.first)
    _, y, before = (part.flatten(0, 1) for part in steps.watched(site, below))
    change = 1e-3 * torch.randn(y.shape, generator=torch.Generator().manual_seed(1))

    def nudged(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output + change.view_as(output)

    handle = base.network.get_submodule(site.module_name).register_forward_hook(nudged)
    after = steps.step(1, below).flatten(0, 1)
    handle.remove()
    norm = WriteNorm.of(base.network, site)
    assert norm.normed == architecture.startswith("gemma")
    expected = norm.gain * norm.tangential(change, y) / norm.radius(y)
    assert float((after - before - expected).norm() / expected.norm()) < 5e-3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_gain_of_what_reads_the_stream(
    architecture: str, pico: Callable[[str], BaseModel]
) -> None:
    network = with_gains(pico(architecture)).network
    extra = 1.0 if architecture.startswith("gemma") else 0.0
    first = network.get_parameter("model.layers.1.input_layernorm.weight")
    last = network.get_parameter("model.norm.weight")
    torch.testing.assert_close(read_gain(network, 0), (first + extra).abs(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(read_gain(network, 1), (last + extra).abs(), rtol=1e-4, atol=1e-5)


def test_each_writer_has_its_own_norm(pico: Callable[[str], BaseModel]) -> None:
    network = with_gains(pico("gemma3_text")).network
    gains = [WriteNorm.of(network, Site(0, role)).gain for role in (Role.O, Role.DOWN)]
    for gain, name in zip(gains, ("attention", "feedforward"), strict=True):
        weight = network.get_parameter(f"model.layers.0.post_{name}_layernorm.weight")
        torch.testing.assert_close(gain, weight + 1, rtol=1e-4, atol=1e-5)
