from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from loraport.adapters import Role, Site
from loraport.mappers.pseudo_activations import PseudoActivations
from loraport.models import ARCHITECTURES, BaseModel
from loraport.models.weights import StreamedWeights

CPU = torch.device("cpu")
TOKENS = torch.tensor([2, 3, 40, 97, 200])


def silenced(base: BaseModel) -> BaseModel:
    """No layer writes anything, so that every layer reads the embeddings alone."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in base.network.named_parameters():
        if "o_proj" in name or "down_proj" in name:
            parameter.zero_()
        elif "norm" in name or "bias" in name:  # Ones and zeros would hide their use.
            parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
    return base


def seen(base: BaseModel) -> dict[Site, tuple[Tensor, Tensor]]:
    """What each module reads and writes where every token is a sequence of its own."""
    found: dict[Site, tuple[Tensor, Tensor]] = {}
    for site in base.sites.shapes:

        def note(
            _module: nn.Module, inputs: tuple[Tensor], output: Tensor, site: Site = site
        ) -> None:
            found[site] = inputs[0][:, 0], output[:, 0]

        base.network.get_submodule(site.module_name).register_forward_hook(note)
    with torch.inference_mode():
        base.network(input_ids=TOKENS[:, None])
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_a_layer_does_with_single_tokens(
    architecture: str, pico: Callable[[str], BaseModel], tmp_path: Path
) -> None:
    base = silenced(pico(architecture))
    base.network.save_pretrained(tmp_path)
    weights = StreamedWeights.open(tmp_path, base.name)
    activations = PseudoActivations(weights, TOKENS, CPU)
    for site, (inputs, outputs) in seen(base).items():
        torch.testing.assert_close(activations.inputs(site), inputs)
        torch.testing.assert_close(activations.outputs(site), outputs)


def test_what_is_written_is_the_weight_times_what_is_read(
    pico: Callable[[str], BaseModel], tmp_path: Path
) -> None:
    base = pico("llama")
    base.network.save_pretrained(tmp_path)
    activations = PseudoActivations(StreamedWeights.open(tmp_path, base.name), TOKENS, CPU)
    for role in (Role.O, Role.DOWN):
        site = Site(1, role)
        weight = base.network.get_parameter(f"{site.module_name}.weight")
        expected = activations.inputs(site) @ weight.mT
        torch.testing.assert_close(activations.outputs(site), expected)
        assert expected.abs().max() > 0.01


def test_weights_of_another_dtype_are_computed_in_float32(
    pico: Callable[[str], BaseModel], tmp_path: Path
) -> None:
    base = pico("qwen2")
    base.network.bfloat16().save_pretrained(tmp_path)
    activations = PseudoActivations(StreamedWeights.open(tmp_path, base.name), TOKENS, CPU)
    assert activations.outputs(Site(0, Role.DOWN)).dtype == torch.float32
