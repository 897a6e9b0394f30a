"""A whole network that runs without ever being whole in memory."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate import init_empty_weights
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from .weights import StreamedWeights

_HEAD = "lm_head.weight"
# Rows of the head that are multiplied at once: 100 MB in float32 at a width of 3072.
_HEAD_ROWS = 8192


def hollow_network(weights: StreamedWeights) -> PreTrainedModel:
    """Return a model's network whose parameters take no memory and hold zeros.

    Each is one zero, expanded to its shape: other libraries see a network on the CPU, to which
    PEFT can add an adapter.
    """
    with init_empty_weights(include_buffers=False):
        network = AutoModelForCausalLM.from_config(weights.config, dtype=torch.float32)
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            _place(module, name, torch.zeros(()).expand(parameter.shape))
    network.eval()
    return network


@contextmanager
def streaming(network: nn.Module, weights: StreamedWeights) -> Iterator[None]:
    """Let each module read its weights before it runs and drop them after, in float32.

    Only an embedding is looked up in the dtype in which it is stored, and gemma's factor multiplied
    in that. When the block ends, however it ends, the network is hollow again.

    Args:
        network: A hollow network, or a PEFT model around one; what PEFT added is left alone.
        weights: Where the parameters come from.
    """
    with ExitStack() as stack:
        for name, module in network.named_modules():
            names = [own for own, _ in module.named_parameters(recurse=False)]
            if not names or "lora_" in name:
                continue
            base = name.removeprefix("base_model.model.").replace(".base_layer", "")
            if f"{base}.weight" == _HEAD:
                stack.enter_context(_headed(module, weights))
            else:
                stack.enter_context(_fed(module, base, names, weights))
        yield


@contextmanager
def _fed(
    module: nn.Module, base: str, names: list[str], weights: StreamedWeights
) -> Iterator[None]:
    empty = dict(module.named_parameters(recurse=False))

    def read(_module: nn.Module, _inputs: Any) -> None:
        for name in names:
            stored = weights.tensor(f"{base}.{name}")
            # Of an embedding only a few rows are used: it stays as it is stored.
            table = isinstance(module, nn.Embedding)
            _place(module, name, stored if table else stored.float())

    def drop(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        for name in names:
            _place(module, name, empty[name].data)
        return output.float() if isinstance(module, nn.Embedding) else output

    handles = module.register_forward_pre_hook(read), module.register_forward_hook(drop)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name in names:  # where the module raised, nothing has dropped them
            _place(module, name, empty[name].data)


@contextmanager
def _headed(module: nn.Module, weights: StreamedWeights) -> Iterator[None]:
    """Multiply by the head some rows at a time: it is the largest matrix of a small model."""

    def forward(x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch tokens"]:
        tied = bool(getattr(weights.config, "tie_word_embeddings", False))
        head = weights.embedding() if tied else weights.tensor(_HEAD)
        starts = range(0, head.shape[0], _HEAD_ROWS)
        parts = [x @ head[start : start + _HEAD_ROWS].float().mT for start in starts]
        return torch.cat(parts, dim=-1)

    object.__setattr__(module, "forward", forward)
    try:
        yield
    finally:
        object.__delattr__(module, "forward")  # that of its class is back


def _place(module: nn.Module, name: str, tensor: Tensor) -> None:
    setattr(module, name, nn.Parameter(tensor, requires_grad=False))
