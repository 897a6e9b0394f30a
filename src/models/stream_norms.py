"""The norms between a decoder layer's modules and the residual stream."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..adapters import Role, Site

# What follows the modules that write to the stream, in gemma2 and gemma3; others add at once.
_BEHIND = {Role.O: "post_attention_layernorm", Role.DOWN: "post_feedforward_layernorm"}


@dataclass(frozen=True, eq=False)
class WriteNorm:
    """What is added to the residual stream for a module's output ``y``.

    ``gain * y / rms(y)`` where a norm follows the module, else ``y``. A small change ``dy`` then
    adds ``gain * P dy / rms(y)``, and P takes away what is parallel to y.

    Attributes:
        gain: Of each channel; ones without a norm.
        normed: Whether a norm follows.
    """

    gain: Float[Tensor, " width"]
    normed: bool

    @classmethod
    def of(cls, network: PreTrainedModel, site: Site) -> "WriteNorm":
        """Return what follows a site of role o or down."""
        layer = network.get_submodule(f"model.layers.{site.layer}")
        # Llamas have a post_attention_layernorm too, but it is what the MLP reads.
        if not hasattr(layer, _BEHIND[Role.DOWN]):
            return cls(torch.ones(int(network.config.hidden_size), device=network.device), False)
        return cls(_gain(layer.get_submodule(_BEHIND[site.role])), True)

    def radius(self, y: Float[Tensor, "rows width"]) -> Float[Tensor, "rows 1"]:
        """Return what a change of each output is divided by on its way into the stream."""
        if not self.normed:
            return y.new_ones(len(y), 1)
        return sizes(y)

    def tangential(
        self, change: Float[Tensor, "rows width"], y: Float[Tensor, "rows width"]
    ) -> Float[Tensor, "rows width"]:
        """Return a change of the outputs without the part that the norm takes away."""
        if not self.normed:
            return change
        unit = nn.functional.normalize(y, dim=1)
        return change - unit * (unit * change).sum(dim=1, keepdim=True)


def read_gain(network: PreTrainedModel, layer: int) -> Float[Tensor, " width"]:
    """Return the channels' gain, without sign, of the norm that reads the stream behind a layer."""
    layers = int(network.config.num_hidden_layers)
    name = "model.norm" if layer + 1 == layers else f"model.layers.{layer + 1}.input_layernorm"
    return _gain(network.get_submodule(name)).abs()


def sizes(stream: Float[Tensor, "rows width"]) -> Float[Tensor, "rows 1"]:
    """Return what a norm divides each row of the stream by, but for its epsilon."""
    return stream.square().mean(dim=1, keepdim=True).sqrt()


def _gain(norm: nn.Module) -> Tensor:
    """Ask the norm itself: some multiply by their weight, gemmas by 1 more than it."""
    width = len(next(norm.parameters()))
    with torch.inference_mode():
        gain: Tensor = norm(torch.ones(width, device=next(norm.parameters()).device))
    return gain
