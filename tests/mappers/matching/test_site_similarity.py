import numpy as np
import pytest
import torch

from loraport.adapters import Role, Site
from loraport.alignment.axis_plan import AxisPlan
from loraport.mappers.matching.site_similarity import site_similarity
from loraport.mappers.weight_mapper import BasePair
from loraport.models.weights import StreamedWeights


@pytest.fixture
def pair(tmp_path, pico, pico_target):
    """Models whose norms' gains differ from dimension to dimension."""
    opened = []
    for name, base in (("source", pico("llama")), ("target", pico_target)):
        generator = torch.Generator().manual_seed(1)
        state = dict(base.network.state_dict())
        for key, tensor in state.items():
            if "norm" in key:
                state[key] = tensor + torch.rand(tensor.shape, generator=generator)
        base.network.save_pretrained(tmp_path / name, state_dict=state)
        opened.append(StreamedWeights.open(tmp_path / name, name))
    source, target = opened
    return BasePair(source, target)


@pytest.mark.parametrize("role", list(Role))
def test_units_are_compared_in_the_targets_residual_stream(pair, role):
    joint = torch.zeros(32, 48)
    places = torch.randperm(48, generator=torch.Generator().manual_seed(2))[:32]
    joint[torch.arange(32), places] = -1
    site = Site(1, role)
    found = site_similarity(pair, site, Site(2, role), AxisPlan(joint))

    def units(model: StreamedWeights, layer: int) -> np.ndarray:
        weight = model.weight(Site(layer, role)).numpy()
        if role in (Role.O, Role.DOWN):
            return weight.T
        gemma = "gemma" in model.config.model_type
        norm = {
            "self_attn": "input_layernorm",
            "mlp": "pre_feedforward_layernorm" if gemma else "post_attention_layernorm",
        }[role.block]
        return weight * (gemma + model.tensor(f"model.layers.{layer}.{norm}.weight").numpy())

    one, other = units(pair.source, 1) @ joint.numpy(), units(pair.target, 2)
    expected = one @ other.T / np.linalg.norm(one) / np.linalg.norm(other)
    np.testing.assert_allclose(found.inner, expected, atol=1e-6)
