"""How much a text's likelihood depends on what each module writes: gradients beside activations.

Two models assign a likelihood to the same string. What a change of a module's output does to it
is, to first order, the inner product with the gradient, so that gradients say which directions
of two models have the same effect, whether or not activations ever vary along them.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..data.aligned_batch import TokenBatch
from .activations import Activations, activations, hooked, rows_at
from .taps import Tap

# Logits of so many positions are held at once; 256 are 268 MB for a vocabulary of 262,144.
_POSITIONS = 256


def readings(
    network: PreTrainedModel,
    tokens: TokenBatch,
    places: Int[Tensor, " rows"],
    taps: Iterable[Tap],
) -> Mapping[Tap, Float[Tensor, "rows _"]]:
    """Return what :func:`activations` does, and gradients where a tap asks for them.

    The gradients are those of the log-likelihood of what lies between a text's first and last
    aligned tokens, so that both models say how likely the same characters are.

    Args:
        network: The model; an attached adapter takes part.
        tokens: Texts as it reads them.
        places: Tokens by their places in ``tokens.input_ids.flatten()``, in rising order.
        taps: Where to read.
    """
    wanted = set(taps)
    asked = {tap for tap in wanted if tap.place == "gradient"}
    if not asked:
        return activations(network, tokens, places, wanted)
    # With gradients the whole network runs anyway: the activations are read on the way.
    outputs = {Tap(tap.layer, "output", tap.role): tap for tap in asked}
    kept: dict[Tap, Tensor] = {}
    at = places.to(network.device)
    with ExitStack() as hooks:
        hooks.callback(_rooted(network).remove)
        for tap in (wanted - asked) | set(outputs):
            hooks.callback(hooked(network, tap, partial(kept.__setitem__, tap)).remove)
        with torch.enable_grad():
            hidden: Tensor = network.get_decoder()(
                input_ids=tokens.input_ids.to(network.device),
                attention_mask=tokens.attention_mask.to(network.device),
                use_cache=False,
            )[0]
        rise = _likelihood_gradient(network, tokens, at, hidden.detach())
        found = torch.autograd.grad(hidden, [kept[tap] for tap in outputs], rise, allow_unused=True)
    read: Activations = {
        outputs[tap]: rows_at(torch.zeros_like(kept[tap]) if grad is None else grad, at)
        for tap, grad in zip(outputs, found, strict=True)
    }
    return read | {tap: rows_at(kept[tap].detach(), at) for tap in wanted - asked}


def _likelihood_gradient(
    network: PreTrainedModel, tokens: TokenBatch, places: Tensor, hidden: Tensor
) -> Float[Tensor, "texts tokens width"]:
    """Return the gradient of the texts' log-likelihood with respect to the last hidden states.

    A piece of the positions at a time: the logits of all of them would not fit into memory.
    """
    ids = tokens.input_ids.to(network.device)
    head: Any = network.get_output_embeddings()
    cap = getattr(network.config, "final_logit_softcapping", None)
    states, follows = hidden.flatten(0, 1), ids.flatten().roll(-1)
    rise = torch.zeros_like(states)
    for piece in torch.split(_predicting(places, ids.shape[1]), _POSITIONS):
        with torch.enable_grad():
            at = states[piece].requires_grad_()
            logits = head(at).float()
            if cap is not None:
                logits = cap * torch.tanh(logits / cap)
            likelihood = -nn.functional.cross_entropy(logits, follows[piece], reduction="sum")
        rise[piece] = torch.autograd.grad(likelihood, at)[0]
    return rise.view_as(hidden)


def _predicting(places: Int[Tensor, " rows"], width: int) -> Int[Tensor, " positions"]:
    """Return the places whose next token lies between a text's first and last aligned ones."""
    texts = places // width
    new = torch.cat([texts.new_ones(1, dtype=torch.bool), texts[1:] != texts[:-1]])
    first, last = places[new], places[torch.cat([new[1:], new.new_ones(1)])]
    pieces = zip(first.tolist(), last.tolist(), strict=True)
    return torch.cat([torch.arange(start, end, device=places.device) for start, end in pieces])


def _rooted(network: PreTrainedModel) -> Any:
    """Let gradients flow although no parameter takes one: from the embeddings on."""
    embedding: Any = network.get_input_embeddings()
    return embedding.register_forward_hook(
        lambda _module, _inputs, output: output.detach().requires_grad_()
    )
