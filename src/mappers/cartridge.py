"""A cartridge: a source adapter that acts on the target behind projection heads, by hooks.

In the order of this file: what one source site does at one target site; the cartridge of all
sites, attached, saved and loaded; and :func:`exported`, the LoRA that comes nearest to it on text.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from ..adapters import LoraAdapter, LowRank, Site
from ..alignment.linear_maps import reduced_rank_regression
from ..alignment.moments import PairedMoments
from ..exceptions import AdapterError
from ..files import reading, staged_folder, writing
from ..models.architectures import SiteTable
from ..models.hooks import Tap, attached
from .heads import ProjectionHead


class CartridgeSite(nn.Module):
    """What one source site does at one target site.

    ``weight * (U(y + s B A x) - U(y))`` with ``x = D(x_T)``, ``y = W_S x + b_S``: the target's
    input is projected to the source's, the frozen adapter acts, and the change that it makes of
    the source's output is projected to the target's.

    Args:
        source: The source site.
        target: The target site.
        weight: Of what the source site gives.
        input_projection: D, from the target module's input to the source's.
        output_projection: U, from the source module's output to the target's.
        module_weight: ``W_S``.
        module_bias: ``b_S``.
        update: The source adapter's update there.
    """

    module_weight: Tensor
    module_bias: Tensor
    A: Tensor
    B: Tensor

    def __init__(
        self,
        source: Site,
        target: Site,
        weight: float,
        input_projection: ProjectionHead,
        output_projection: ProjectionHead,
        module_weight: Float[Tensor, "out in"],
        module_bias: Float[Tensor, " out"],
        update: LowRank,
    ) -> None:
        super().__init__()
        self.source, self.target, self.weight = source, target, weight
        self.input_projection = input_projection
        self.output_projection = output_projection
        self.register_buffer("module_weight", module_weight)
        self.register_buffer("module_bias", module_bias)
        self.register_buffer("A", update.A.float())
        self.register_buffer("B", update.B.float() * update.scale)

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """Return the change of the target module's output at its input ``x``."""
        read = self.input_projection(x)
        before = nn.functional.linear(read, self.module_weight, self.module_bias)
        change = read @ self.A.mT @ self.B.mT
        after: Tensor = self.output_projection(before + change)
        return self.weight * (after - self.output_projection(before))


_WEIGHTS = "cartridge.safetensors"
_FORMAT = 2


class Cartridge(nn.Module):
    """A source adapter with the heads that let it act on the target model, by hooks.

    Attributes:
        base_model: The hub id of the target.
        sites: All pairs of sites at which it acts.
    """

    sites: nn.ModuleList

    def __init__(self, base_model: str, sites: Iterable[CartridgeSite]) -> None:
        super().__init__()
        self.base_model = base_model
        self.sites = nn.ModuleList(sites)
        self.requires_grad_(False)

    def acts_at(self) -> dict[Site, list[CartridgeSite]]:
        """Return what acts at each target site."""
        acting: dict[Site, list[CartridgeSite]] = {}
        for site in self.sites:
            if isinstance(site, CartridgeSite):
                acting.setdefault(site.target, []).append(site)
        return acting

    def change(self, target: Site, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """Return the change of a target module's output at its input ``x``."""
        return _change(self.acts_at()[target], x)

    def hooks(self, network: PreTrainedModel) -> list[RemovableHandle]:
        """Move to where the network is, and act there until the hooks are removed."""
        acts_at, shapes = self.acts_at(), SiteTable.of(network.config).shapes
        for target, acting in acts_at.items():
            into, out = acting[0].input_projection.skip, acting[0].output_projection.skip
            expected = (out.out_features, into.in_features)
            if shapes.get(target) != expected:
                raise AdapterError(
                    f"the cartridge, made for {self.base_model}, acts on {target.module_name} of "
                    f"shape {expected}, but this model has {shapes.get(target, 'none')} there; "
                    "attach it to the model it was made for"
                )
        self.to(network.device)
        return [
            network.get_submodule(target.module_name).register_forward_hook(_acting(acting))
            for target, acting in acts_at.items()
        ]

    def attached(self, network: PreTrainedModel) -> AbstractContextManager[None]:
        """Let the cartridge act as long as a ``with`` block lasts.

        Raises:
            AdapterError: the network has other modules than the cartridge was made for.
        """
        return attached(network, self)

    def content_hash(self) -> str:
        """Return the SHA-256 of all that determines what the cartridge does."""
        return hashlib.sha256(self._bytes()).hexdigest()

    def save(self, folder: Path, *, overwrite: bool = False) -> None:
        """Write the cartridge into a folder of its own, whole or not at all.

        Raises:
            OutputError: the folder exists, or cannot be written.
        """
        with staged_folder(folder, overwrite=overwrite) as staged, writing(folder):
            self.write(staged)

    def write(self, folder: Path) -> None:
        """Write the cartridge's file into a folder that exists; see also staged_folder."""
        (folder / _WEIGHTS).write_bytes(self._bytes())

    def _bytes(self) -> bytes:
        # Sites of one layer share an input projection, whose weights the file holds once.
        inputs: dict[int, int] = {}
        described = [
            {
                "source": site.source.label,
                "target": site.target.label,
                "weight": site.weight,
                "input_projection_of": inputs.setdefault(id(site.input_projection), index),
            }
            for index, site in enumerate(self.sites)
            if isinstance(site, CartridgeSite)
        ]
        # Copies: sites that one source module feeds may hold it in the same memory.
        tensors = {name: tensor.cpu().clone() for name, tensor in _weights(self).items()}
        facts = {"format": _FORMAT, "base_model": self.base_model, "sites": described}
        return save(tensors, metadata={"cartridge": json.dumps(facts)})


def load_cartridge(folder: str | Path) -> Cartridge:
    """Read a cartridge that :meth:`Cartridge.save` wrote.

    Raises:
        AdapterError: the folder holds none, or it is damaged.
    """
    path = Path(folder).expanduser() / _WEIGHTS
    takes = (
        "a cartridge, in a folder that transfer.py wrote with cartridge=DIR: write it again where "
        "an earlier version wrote it"
    )
    with reading(path, takes, AdapterError):
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["cartridge"])
            if facts["format"] != _FORMAT:
                raise ValueError(f"format {facts['format']}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        sites: list[CartridgeSite] = []
        for index, described in enumerate(facts["sites"]):
            prefix, owner = f"sites.{index}.", described["input_projection_of"]
            shared = sites[owner].input_projection if owner < index else None
            site = CartridgeSite(
                Site.from_label(described["source"]),
                Site.from_label(described["target"]),
                described["weight"],
                shared or _head(tensors, f"{prefix}input_projection."),
                _head(tensors, f"{prefix}output_projection."),
                tensors[prefix + "module_weight"],
                tensors[prefix + "module_bias"],
                LowRank(tensors[prefix + "A"], tensors[prefix + "B"]),
            )
            sites.append(site)
        cartridge = Cartridge(facts["base_model"], sites)
        for name, weight in _weights(cartridge).items():
            weight.copy_(tensors[name])
        return cartridge.eval()


def _weights(cartridge: Cartridge) -> dict[str, Tensor]:
    """Return the heads' weights, each once by its first name, and all buffers."""
    named = dict[str, Tensor](cartridge.named_parameters())
    named |= cartridge.named_buffers(remove_duplicate=False)
    return {name: tensor.detach() for name, tensor in named.items()}


def _change(acting: Sequence[CartridgeSite], x: Tensor) -> Tensor:
    changes = [site(x) for site in acting]
    return torch.stack(changes).sum(dim=0) if len(changes) > 1 else changes[0]


def _acting(acting: Sequence[CartridgeSite]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """Return a hook that adds to what a module puts out."""

    def add(_module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output + _change(acting, inputs[0].float()).to(output.dtype)

    return add


def _head(tensors: Mapping[str, Tensor], prefix: str) -> ProjectionHead:
    """Return a head of the right shape, whose weights are still to be loaded."""
    out, width = tensors[prefix + "skip.weight"].shape
    inner = tensors.get(prefix + "inner.weight")
    hidden = 0 if inner is None else inner.shape[0]
    return ProjectionHead(width, out, hidden, torch.Generator())


_STRENGTHS = (1e-6, 1e-4, 1e-2, 1.0)


def exported(
    cartridge: Cartridge,
    train: Mapping[str, Float[Tensor, "rows _"]],
    held_out: Mapping[str, Float[Tensor, "more _"]],
    rank: int,
) -> tuple[LoraAdapter, dict[str, dict[str, Any]]]:
    """Return the adapter of a rank whose changes are nearest to a cartridge's.

    At each target site the cartridge's change of the module's output is regressed on the module's
    input, by reduced-rank ridge regression.

    Args:
        cartridge: What to make linear.
        train: What target modules read on text, by ``Tap.input(site).label_on("target")``.
        held_out: The same on other text, which chooses the ridge and measures the loss.
        rank: Of the LoRA at each site.

    Returns:
        The adapter in float32; and of each site the share ``r2`` of the cartridge's squared
        change on held-out text that the LoRA makes, ``lost``, and the chosen ``strength``.
    """
    updates, facts = {}, {}
    for target in cartridge.acts_at():
        label = Tap.input(target).label_on("target")
        moments = [_moments(cartridge, target, rows[label]) for rows in (train, held_out)]
        fit = reduced_rank_regression(moments[0], moments[1], rank, _STRENGTHS)
        update = LowRank(fit.A.float(), fit.B.float())
        updates[target] = update
        facts[target.label] = {
            "r2": fit.r2,
            "lost": 1 - fit.r2,
            "strength": fit.strength,
            "norm": update.norm(),
        }
    return LoraAdapter(updates, cartridge.base_model), facts


@torch.no_grad()
def _moments(cartridge: Cartridge, target: Any, rows: Tensor) -> PairedMoments:
    changes = torch.cat([cartridge.change(target, part) for part in torch.split(rows, 1024)])
    return PairedMoments.of(rows, changes)
