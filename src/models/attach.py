"""Adapters, LoRA or other, on a base model for as long as a ``with`` block lasts."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..adapters import LoraAdapter, LowRank, Site
from ..exceptions import ModelError
from .sites import SiteTable


@runtime_checkable
class Attachable(Protocol):
    """Anything that acts on a network by hooks, and is known by its content."""

    def hooks(self, network: PreTrainedModel) -> list[RemovableHandle]:
        """Let it act in every forward pass until the hooks are removed.

        Raises:
            LoraportError: it does not fit the network; then no hook is left.
        """
        ...

    def content_hash(self) -> str:
        """Return a hash of all that determines what it does."""
        ...


def _check(table: SiteTable, adapter: LoraAdapter) -> None:
    """Refuse an adapter that has a site or a shape which the model has not."""
    for site, update in adapter.items():
        if site not in table.shapes:
            raise ModelError(
                f"the adapter of {adapter.base_model} has the site {site.module_name}, but the "
                f"model ({table.architecture}, {table.layers} layers) has no such module; attach "
                "it to the base model that it was made for"
            )
        if update.shape != table.shapes[site]:
            raise ModelError(
                f"the adapter of {adapter.base_model} updates {site.module_name} by a matrix of "
                f"shape {update.shape}, but the model's weight has the shape "
                f"{table.shapes[site]} ({table.architecture}, {table.layers} layers); attach it "
                "to the base model that it was made for"
            )


def _hook(network: PreTrainedModel, site: Site, update: LowRank) -> RemovableHandle:
    """Add the update to what the site's module puts out."""
    module = network.get_submodule(site.module_name)
    weight: Tensor = getattr(module, "weight")  # noqa: B009 - a Module's attributes are untyped
    down = update.A.to(weight)
    up = update.B.to(weight)

    def add(_module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        # Grouped as PEFT groups it, so that the sums round alike.
        low = nn.functional.linear(inputs[0], down)
        return output + nn.functional.linear(low, up) * update.scale

    return module.register_forward_hook(add)


@contextmanager
def attached(network: PreTrainedModel, adapter: LoraAdapter | Attachable | None) -> Iterator[None]:
    """Let every forward pass inside the block be one with the adapter.

    A LoRA adapter adds ``scale * B (A x)`` at each site; what is :class:`Attachable` acts by its
    own hooks. No weight is touched, so that the base model is bit-equal again afterwards.
    ``None`` leaves the base model as it is, for the scores without adapter.

    Raises:
        ModelError: the model lacks one of the adapter's sites, or a shape does not fit.
    """
    handles: list[RemovableHandle] = []
    try:
        if isinstance(adapter, LoraAdapter):
            _check(SiteTable.of(network.config), adapter)
            handles = [_hook(network, site, update) for site, update in adapter.items()]
        elif adapter is not None:
            handles = adapter.hooks(network)
        yield
    finally:
        for handle in handles:
            handle.remove()
