"""Which dimensions of two models' queries and keys turn at about the same frequency."""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PretrainedConfig

from ...alignment.axis_plan import AxisPlan
from ...alignment.permutations import best_assignment


def rope_plan(
    source: Float[Tensor, " source_pairs"], target: Float[Tensor, " target_pairs"]
) -> AxisPlan:
    """Match the dimensions of a head of queries and keys under rotary position embeddings.

    The i-th and the (i + dims / 2)-th dimension turn together at the i-th frequency, so that a
    permutation across frequencies would change what attention computes: each pair is matched
    to one of about its own frequency. Heads of the same width are matched dimension by
    dimension, whatever their base frequencies.

    Args:
        source: Logarithms of the frequencies of the source's pairs.
        target: Those of the target's.
    """
    # Squares, under which the best assignment between two lists of one length keeps their order.
    gaps = (source[:, None] - target).square()
    pairs = best_assignment(-gaps)
    return AxisPlan(torch.kron(torch.eye(2), pairs))


def log_frequencies(config: PretrainedConfig, layer: int, dims: int) -> Float[Tensor, " pairs"]:
    """Return the logarithms of a layer's rotary frequencies, ``-(2 i / dims) log(theta)``.

    Theta may differ between layers with local and with global attention, as in gemma3. What
    stretches frequencies for long contexts is left out.

    Args:
        config: The model's config.
        layer: Counted from 0.
        dims: Width of a head.
    """
    parameters = config.rope_parameters
    if "rope_theta" not in parameters:
        parameters = parameters[config.layer_types[layer]]
    steps = torch.arange(dims // 2, dtype=torch.float64)
    return -2 * steps / dims * math.log(parameters["rope_theta"])
