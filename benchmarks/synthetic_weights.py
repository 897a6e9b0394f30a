"""Base models of well-known shapes with made-up weights, and an adapter for one of them.

Every weight is of low rank plus noise: 512 random directions whose singular values fall as
``i^-0.75``, and 5 % of the energy in a full matrix of noise, so that about 70 directions hold 90 %
of the energy. No two weights are equal. Written are the weights of the seven roles alone, in
bfloat16, which is all that a transfer through singular subspaces reads: no embedding, no norms.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from loraport.adapters import LoraAdapter, LowRank, Site, write_adapter
from loraport.models import SiteTable

DIRECTIONS, DECAY, NOISE_ENERGY = 512, 0.75, 0.05
LAYERS_A_SHARD = 2
NORM = 40.0


@dataclass(frozen=True)
class Shape:
    """The dimensions of a base model, and how many layers of it are written.

    Attributes:
        name: Of the model whose dimensions they are.
        architecture: The config's ``model_type``.
        layers: That the model has.
        hidden, inner, heads, key_heads: Its width, its MLP's, its query and its key-value heads.
        head: The width of a head.
        written: Layers that are written; None writes all.
    """

    name: str
    architecture: str
    layers: int
    hidden: int
    inner: int
    heads: int
    key_heads: int
    head: int = 128
    written: int | None = None

    def config(self) -> PretrainedConfig:
        """Return the config of what is written."""
        return AutoConfig.for_model(
            self.architecture,
            num_hidden_layers=self.written or self.layers,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_attention_heads=self.heads,
            num_key_value_heads=self.key_heads,
            head_dim=self.head,
        )

    @property
    def sites(self) -> SiteTable:
        """The sites of what is written."""
        return SiteTable.of(self.config())


QWEN_1_5B = Shape("Qwen2.5-1.5B", "qwen2", 28, 1536, 8960, 12, 2)
LLAMA_3B = Shape("Llama-3.2-3B", "llama", 28, 3072, 8192, 24, 8)
LLAMA_8B = Shape("Llama-3.1-8B", "llama", 32, 4096, 14336, 32, 8)
LLAMA_70B = Shape("Llama-3.1-70B", "llama", 80, 8192, 28672, 64, 8)


def weight(
    out: int, in_: int, noise: Float[Tensor, "out in"], generator: torch.Generator
) -> Float[Tensor, "out in"]:
    """Return a matrix of low rank plus a share of ``noise``, of Frobenius norm 40."""
    kept = min(DIRECTIONS, out, in_)
    values = torch.arange(1, kept + 1) ** -DECAY
    left = torch.randn(out, kept, generator=generator) / out**0.5
    right = torch.randn(kept, in_, generator=generator) / in_**0.5
    made = (left * values) @ right
    made *= (1 - NOISE_ENERGY) ** 0.5 / made.norm()
    made += noise * (NOISE_ENERGY**0.5 / noise.norm())
    return made * NORM


def write_model(shape: Shape, folder: Path, seed: int) -> None:
    """Write the config and the shards of a model."""
    generator = torch.Generator().manual_seed(seed)
    table = shape.sites
    folder.mkdir(parents=True)
    noise = {
        size: torch.randn(*size, generator=generator) for size in sorted(set(table.shapes.values()))
    }
    files: dict[str, str] = {}
    for first in range(0, table.layers, LAYERS_A_SHARD):
        file = f"model-{first:05d}.safetensors"
        tensors = {
            f"{site.module_name}.weight": weight(*size, noise[size], generator).bfloat16()
            for site, size in table.shapes.items()
            if first <= site.layer < first + LAYERS_A_SHARD
        }
        save_file(tensors, folder / file)
        files.update(dict.fromkeys(tensors, file))
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    shape.config().save_pretrained(folder)  # Last: it tells that the model is complete.


def write_random_adapter(shape: Shape, folder: Path, rank: int, seed: int) -> None:
    """Write an adapter with random factors at all seven roles."""
    generator = torch.Generator().manual_seed(seed)

    def update(site: Site) -> LowRank:
        out, in_ = table.shapes[site]
        a = torch.randn(rank, in_, generator=generator) / in_**0.5
        return LowRank(a, torch.randn(out, rank, generator=generator) / out**0.5, 2.0)

    table = shape.sites
    write_adapter(LoraAdapter({site: update(site) for site in table.shapes}, shape.name), folder)
