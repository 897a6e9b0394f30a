"""What a model's modules would read and write if a token stood alone at their layer."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.activations import ACT2FN

from ..adapters import Role, Site
from ..models.taps import INPUT_ROLE
from ..models.weights import StreamedWeights

# Their embeddings enter the residual multiplied by sqrt(width).
_SCALED = ("gemma2", "gemma3_text")


class PseudoActivations:
    """Inputs and outputs of a layer's modules, computed from the embeddings of single tokens.

    Every layer is given the embeddings themselves as its residual, as if no layer stood below:
    exact in layer 0 for a sequence of one token (but for the MLP, whose residual lacks what the
    attention writes), a stand-in elsewhere. A token that attends to itself alone passes its
    value on, so that o reads the values, repeated over the query heads that share them.

    Args:
        weights: The model.
        tokens: Token ids.
        device: Where matrices are multiplied.
    """

    def __init__(
        self, weights: StreamedWeights, tokens: Int[Tensor, " n"], device: torch.device
    ) -> None:
        self.weights, self.device = weights, device
        rows = weights.embedding()[tokens.cpu()].to(device, torch.float32)
        if weights.config.model_type in _SCALED:
            rows = rows * weights.config.hidden_size**0.5
        power = rows.square().mean(dim=1, keepdim=True)
        self._normalised = rows * (power + float(weights.config.rms_norm_eps)).rsqrt()
        self._layer = -1
        self._known: dict[tuple[str, Role], Tensor] = {}

    def inputs(self, site: Site) -> Float[Tensor, "n in"]:
        """Return what the site's module reads at each token.

        Raises:
            ModelError: a weight is missing or damaged.
        """
        role = INPUT_ROLE[site.role]
        known = self._of_layer(site.layer)
        if ("in", role) not in known:
            known["in", role] = self._inputs(Site(site.layer, role))
        return known["in", role]

    def outputs(self, site: Site) -> Float[Tensor, "n out"]:
        """Return what the site's module writes at each token.

        Raises:
            ModelError: a weight is missing or damaged.
        """
        known = self._of_layer(site.layer)
        if ("out", site.role) not in known:
            product = self.inputs(site) @ self._parameter(self.weights.weight(site)).mT
            known["out", site.role] = product + self._bias(site)
        return known["out", site.role]

    def _of_layer(self, layer: int) -> dict[tuple[str, Role], Tensor]:
        """Return what is known of a layer; one layer is remembered at a time."""
        if layer != self._layer:
            self._layer, self._known = layer, {}
        return self._known

    def _inputs(self, site: Site) -> Float[Tensor, "n in"]:
        if site.role is Role.O:
            return self._attended(self.outputs(Site(site.layer, Role.V)))
        if site.role is Role.DOWN:
            gate = self._activation(self.outputs(Site(site.layer, Role.GATE)))
            return gate * self.outputs(Site(site.layer, Role.UP))
        gain = self.weights.input_gain(site)
        return self._normalised if gain is None else self._normalised * self._parameter(gain)

    def _attended(self, values: Float[Tensor, "n values"]) -> Float[Tensor, "n in"]:
        """Repeat each key-value head's values over the query heads that share it."""
        config = self.weights.config
        keys, queries = int(config.num_key_value_heads), int(config.num_attention_heads)
        heads = values.reshape(len(values), keys, -1)
        return heads.repeat_interleave(queries // keys, dim=1).flatten(1)

    def _activation(self, gate: Float[Tensor, "n inner"]) -> Float[Tensor, "n inner"]:
        config = self.weights.config
        # Gemma names its activation apart.
        name = getattr(config, "hidden_activation", None) or config.hidden_act
        activated: Tensor = ACT2FN[name](gate)
        return activated

    def _bias(self, site: Site) -> Tensor | float:
        """Return the module's bias, or 0 where it has none."""
        name = f"{site.module_name}.bias"
        stored = {name, name.removeprefix("model.")} & self.weights.shards.keys()
        return self._parameter(self.weights.tensor(name)) if stored else 0.0

    def _parameter(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, torch.float32)
