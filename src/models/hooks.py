"""Hooks on a base model: adapters for as long as a ``with`` block lasts, and where to read."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..adapters import LoraAdapter, LowRank, Role, Site
from .architectures import INPUT_ROLE, SiteTable


@runtime_checkable
class Attachable(Protocol):
    """Anything that acts on a network by hooks, and is known by its content."""

    def hooks(self, network: PreTrainedModel) -> list[RemovableHandle]:
        """Let it act in every forward pass until the hooks are removed.

        Raises LoraportError where it does not fit the network; then no hook is left.
        """
        ...

    def content_hash(self) -> str:
        """Return a hash of all that determines what it does."""
        ...


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
        AdapterError: the model lacks one of the adapter's sites, or a shape does not fit.
    """
    handles: list[RemovableHandle] = []
    try:
        if isinstance(adapter, LoraAdapter):
            table = SiteTable.of(network.config)
            model = f"the model ({table.architecture}, {table.layers} layers)"
            way_out = "attach it to the base model that it was made for"
            table.check(adapter, "the adapter", model, way_out)
            handles = [_hook(network, site, update) for site, update in adapter.items()]
        elif adapter is not None:
            handles = adapter.hooks(network)
        yield
    finally:
        for handle in handles:
            handle.remove()


SIDES = ("source", "target")


class Tap(NamedTuple):
    """Where activations are read in a network: one row a token.

    ``place`` is ``input`` or ``output`` of a role's module; ``gradient`` of the text's end with
    respect to that output; or, without a role, ``residual``: the stream behind the layer, which is
    what the next layer reads.
    """

    layer: int
    place: str
    role: Role | None = None

    @classmethod
    def input(cls, site: Site) -> "Tap":
        """Return what a site's module reads; q, k and v share it, and gate and up."""
        return cls(site.layer, "input", INPUT_ROLE[site.role])

    @classmethod
    def output(cls, site: Site) -> "Tap":
        """Return what a site's module writes, with its bias and with what is attached to it."""
        return cls(site.layer, "output", site.role)

    @classmethod
    def gradient(cls, site: Site) -> "Tap":
        """Return by how much the log-likelihood of a text's end rises with what a site writes."""
        return cls(site.layer, "gradient", site.role)

    @classmethod
    def residual(cls, layer: int) -> "Tap":
        """Return the residual stream behind a layer."""
        return cls(layer, "residual")

    @property
    def label(self) -> str:
        """A name for files and reports, such as ``3.q.input`` or ``3.residual``."""
        if self.role is None:
            return f"{self.layer}.{self.place}"
        return f"{self.layer}.{self.role.value}.{self.place}"

    def label_on(self, side: str) -> str:
        """Return a name that also says which of :data:`SIDES` is read: ``source.3.q.input``."""
        return f"{side}.{self.label}"


def tap_widths(table: SiteTable, taps: Iterable[Tap]) -> dict[Tap, int]:
    """Return the width of the activations that each tap gives.

    >>> from transformers import LlamaConfig
    >>> table = SiteTable.of(LlamaConfig(hidden_size=32, intermediate_size=40))
    >>> tap_widths(table, [Tap.residual(0), Tap.input(Site(0, Role.DOWN))]).values()
    dict_values([32, 40])
    """
    widths = {}
    for tap in taps:
        # The residual stream is as wide as what q reads.
        out, in_ = table.shapes[Site(tap.layer, tap.role or Role.Q)]
        widths[tap] = out if tap.place in ("output", "gradient") else in_
    return widths
