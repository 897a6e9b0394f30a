"""Decoder layers run one at a time, so that each can be changed on the way up."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..adapters import Site
from ..data.aligned_batch import TokenBatch


class LayerSteps:
    """The decoder layers of a network on one batch of texts.

    Whoever changes a network from its lowest layer upward need not run the layers below again
    for every change: :meth:`step` takes what flows into a layer. Masks and rotary embeddings are
    those that the network itself makes of the batch, whatever its architecture.

    Attributes:
        first: What flows into the lowest layer.
    """

    first: Float[Tensor, "texts tokens width"]

    def __init__(self, network: PreTrainedModel, tokens: TokenBatch) -> None:
        self._layers: list[Any] = list(network.get_submodule("model.layers").children())
        self._network = network
        self._arguments: list[dict[str, Any]] = [{} for _ in self._layers]
        handles = [
            layer.register_forward_pre_hook(self._noting(place), with_kwargs=True)
            for place, layer in enumerate(self._layers)
        ]
        try:
            with torch.inference_mode():
                network.get_decoder()(
                    input_ids=tokens.input_ids.to(network.device),
                    attention_mask=tokens.attention_mask.to(network.device),
                    use_cache=False,
                )
        finally:
            for handle in handles:
                handle.remove()

    def _noting(self, place: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def note(_layer: nn.Module, inputs: tuple[Any, ...], arguments: dict[str, Any]) -> None:
            if place == 0:
                self.first = inputs[0]
            self._arguments[place] = arguments

        return note

    def step(
        self, layer: int, stream: Float[Tensor, "texts tokens width"]
    ) -> Float[Tensor, "texts tokens width"]:
        """Return what flows out of a layer; an attached adapter takes part."""
        with torch.inference_mode():
            out: Any = self._layers[layer](stream, **self._arguments[layer])
        return out[0] if isinstance(out, tuple) else out

    def watched(
        self, site: Site, stream: Float[Tensor, "texts tokens width"]
    ) -> tuple[
        Float[Tensor, "texts tokens in"],
        Float[Tensor, "texts tokens out"],
        Float[Tensor, "texts tokens width"],
    ]:
        """Return a module's input and output, and what flows out of its layer."""
        seen: list[Tensor] = []
        handle: RemovableHandle = self._network.get_submodule(
            site.module_name
        ).register_forward_hook(lambda _module, inputs, output: seen.extend((inputs[0], output)))
        try:
            out = self.step(site.layer, stream)
        finally:
            handle.remove()
        return seen[0], seen[1], out
