from itertools import permutations

import pytest
import torch
from transformers import AutoConfig

from loraport.mappers.matching.rope import log_frequencies, rope_plan


def frequencies(theta: float, dims: int) -> torch.Tensor:
    return theta ** (-torch.arange(0, dims, 2, dtype=torch.float64) / dims)


@pytest.mark.parametrize("thetas", [(1e4, 1e4), (1e4, 1e6), (5e5, 1e4)])
@pytest.mark.parametrize("dims", [2, 12, 64])
def test_heads_of_one_width_are_matched_dimension_by_dimension(thetas, dims):
    plan = rope_plan(*(frequencies(theta, dims).log() for theta in thetas))
    assert torch.equal(plan.joint, torch.eye(dims))


@pytest.mark.parametrize("dims", [(6, 12), (12, 6), (8, 10)])
def test_pairs_of_nearest_frequency_are_matched_and_stay_together(dims):
    source, target = frequencies(1e4, dims[0]).log(), frequencies(1e6, dims[1]).log()
    joint = rope_plan(source, target).joint
    first, second = joint[: dims[0] // 2, : dims[1] // 2], joint[dims[0] // 2 :, dims[1] // 2 :]
    assert torch.equal(first, second)
    assert int(joint.sum()) == 2 * int(first.sum()) == min(dims)
    gaps = (source[:, None] - target).square()
    if dims[0] > dims[1]:
        gaps, first = gaps.mT, first.mT
    best = min(
        sum(float(gaps[i, j]) for i, j in enumerate(chosen))
        for chosen in permutations(range(gaps.shape[1]), gaps.shape[0])
    )
    assert float((first * gaps).sum()) == pytest.approx(best)


def test_frequencies_are_those_of_the_model(pico):
    for architecture in ("llama", "qwen2", "gemma2"):
        network = pico(architecture).network
        expected = network.model.rotary_emb.inv_freq
        found = log_frequencies(network.config, 0, 2 * len(expected)).exp()
        torch.testing.assert_close(found.float(), expected)


def test_theta_of_local_and_of_global_attention_are_told_apart():
    config = AutoConfig.for_model(
        "gemma3_text",
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        },
    )
    for layer, theta in enumerate((1e4, 1e6)):
        expected = frequencies(theta, 16)
        torch.testing.assert_close(log_frequencies(config, layer, 16).exp(), expected)
