"""Activations of a base model at chosen places and tokens, as they are computed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..adapters.sites import Site
from ..data.aligned_batch import TokenBatch
from .taps import Tap

Activations = dict[Tap, Tensor]
"""One matrix (tokens x width) a tap, in the order of the tokens that were asked for."""


class _Enough(Exception):  # noqa: N818 - no error: the deepest tap has been read
    """Ends a forward pass of which nothing more is needed."""


def activations(
    network: PreTrainedModel,
    tokens: TokenBatch,
    places: Int[Tensor, " rows"],
    taps: Iterable[Tap],
) -> Mapping[Tap, Float[Tensor, "rows _"]]:
    """Return what flows through the taps at the given tokens; an attached adapter takes part.

    The head is never run, nor any layer above the deepest tap. What comes back is a copy of the
    chosen rows: nothing of the other tokens stays in memory.

    Args:
        network: The model.
        tokens: Texts as it reads them.
        places: Tokens by their places in ``tokens.input_ids.flatten()``.
        taps: Where to read.
    """
    wanted = set(taps)
    found: Activations = {}
    if not wanted:
        return found
    device = network.device
    at = places.to(device)
    # no_grad and not inference_mode, whose tensors autograd refuses when something is trained
    # on them later.
    with _reading(network, wanted, at, found), torch.no_grad(), suppress(_Enough):
        network.get_decoder()(
            input_ids=tokens.input_ids.to(device),
            attention_mask=tokens.attention_mask.to(device),
            use_cache=False,
        )
    return found


@contextmanager
def _reading(
    network: PreTrainedModel, taps: set[Tap], places: Tensor, found: Activations
) -> Iterator[None]:
    """Hook the taps for as long as the block lasts, however it ends."""
    with ExitStack() as hooks:
        for tap in taps:
            handle = hooked(network, tap, _keeper(tap, taps, places, found))
            hooks.callback(handle.remove)
        yield


def _keeper(
    tap: Tap, taps: set[Tap], places: Tensor, found: Activations
) -> Callable[[Tensor], None]:
    def keep(activation: Tensor) -> None:
        found[tap] = rows_at(activation, places)
        if len(found) == len(taps):
            raise _Enough

    return keep


def rows_at(
    activation: Float[Tensor, "texts tokens width"], places: Int[Tensor, " rows"]
) -> Float[Tensor, "rows width"]:
    """Return a copy of the rows at some places of the flattened batch."""
    return activation.flatten(0, 1).index_select(0, places)


def hooked(network: PreTrainedModel, tap: Tap, keep: Callable[[Tensor], None]) -> RemovableHandle:
    """Hand what flows through a tap to ``keep`` in every forward pass, until it is removed."""
    if tap.role is None:
        layer = network.get_submodule(f"model.layers.{tap.layer}")

        def behind(_module: nn.Module, _inputs: Any, output: Any) -> None:
            keep(output[0] if isinstance(output, tuple) else output)

        return layer.register_forward_hook(behind)
    module = network.get_submodule(Site(tap.layer, tap.role).module_name)
    if tap.place == "input":
        return module.register_forward_pre_hook(lambda _module, inputs: keep(inputs[0]))
    return module.register_forward_hook(lambda _module, _inputs, output: keep(output))
