"""The weights of a base model on disk, one tensor at a time."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import xxhash
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from ..adapters.sites import Role, Site
from ..exceptions import ModelError
from .sites import ARCHITECTURES, SiteTable

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Their RMSNorm multiplies by 1 + weight, and a norm of its own stands in front of the MLP.
_GEMMA = ("gemma2", "gemma3_text")
_ATTENTION_INPUTS = (Role.Q, Role.K, Role.V)
_MLP_INPUTS = (Role.GATE, Role.UP)


@dataclass(frozen=True, eq=False)
class StreamedWeights:
    """The weights of one base model on disk, read from its safetensors shards one at a time.

    Nothing is kept: a shard is memory-mapped for each tensor anew, and a tensor's pages leave
    memory with the tensor. So a whole model passes through in the memory of its largest weight.

    Attributes:
        name: The hub id that adapters for the model carry.
        folder: The folder, in the layout that ``save_pretrained`` writes.
        config: The model's config.
        shards: The file of each tensor by the tensor's name.
    """

    name: str
    folder: Path
    config: PretrainedConfig
    shards: Mapping[str, Path]

    @classmethod
    def open(cls, folder: Path, name: str) -> "StreamedWeights":
        """Read the config and the shards' headers of the model in ``folder``, but no weight.

        Raises:
            ModelError: the folder holds no model, its architecture is unknown, its weights are
                quantised or no safetensors, or a shard is missing or damaged.
        """
        config = _config(folder)
        SiteTable.of(config)  # An unknown architecture is refused before any weight is read.
        if getattr(config, "quantization_config", None) is not None:
            raise ModelError(
                f"the weights in {folder} are quantised (config.json has a quantization_config), "
                "but loraport takes float32, bfloat16 or float16; give the model that they were "
                "made from, or save it dequantised with `save_pretrained`"
            )
        shards: dict[str, Path] = {}
        for file in _shard_files(folder):
            with _opened(file) as shard:
                shards.update(dict.fromkeys(shard.keys(), file))
        return cls(name, folder, config, shards)

    @cached_property
    def sites(self) -> SiteTable:
        """The modules that LoRA can adapt."""
        return SiteTable.of(self.config)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, which is read when it is first asked for.

        Raises:
            ModelError: the folder has none, or it cannot be read.
        """
        try:
            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise ModelError(
                f"the tokenizer in {self.folder} could not be read "
                f"({str(error).splitlines()[0]}); it takes tokenizer.json and "
                "tokenizer_config.json, as `save_pretrained` of a tokenizer writes them"
            ) from error

    def tensor(self, name: str) -> Tensor:
        """Return a tensor in the dtype that it is stored in, on the CPU.

        A checkpoint that was saved without its head names its tensors without ``model.``; they
        are found by either name.

        Raises:
            ModelError: there is no such tensor, or its shard is missing or damaged.
        """
        stored = name if name in self.shards else name.removeprefix("model.")
        if stored not in self.shards:
            raise ModelError(
                f"the weights in {self.folder} have no tensor {name}, which the model's config "
                f"({self.config.model_type}) calls for; fetch the folder again, or correct its "
                "config.json"
            )
        with _opened(self.shards[stored]) as shard:
            # The tensor holds the mapping by itself, so that it outlives the shard's closing.
            return shard.get_tensor(stored)

    def weight(self, site: Site) -> Float[Tensor, "out in"]:
        """Return the weight of the site's linear module in the dtype that it is stored in.

        Raises:
            ModelError: the model has no such site, its tensor is missing or damaged, or has not
                the shape that the config gives it.
        """
        if site not in self.sites.shapes:
            raise ModelError(
                f"{self.name} ({self.config.model_type}, {self.sites.layers} layers) has no module "
                f"{site.module_name}; give the base model that the site belongs to"
            )
        name = f"{site.module_name}.weight"
        return self._shaped(name, self.tensor(name), self.sites.shapes[site])

    def embedding(self) -> Float[Tensor, "tokens width"]:
        """Return the input embedding of each token, without gemma's factor sqrt(width).

        Raises:
            ModelError: the tensor is missing, damaged or has not the shape that the config says.
        """
        name = "model.embed_tokens.weight"
        shape = int(self.config.vocab_size), int(self.config.hidden_size)
        return self._shaped(name, self.tensor(name), shape)

    def input_gain(self, site: Site) -> Float[Tensor, " in"] | None:
        """Return by what RMSNorm multiplies the normalised residual in front of the site.

        q, k and v read the residual behind ``input_layernorm``; gate and up behind
        ``post_attention_layernorm``, or ``pre_feedforward_layernorm`` in gemma2 and gemma3.
        Gemma multiplies by 1 + weight.

        Returns:
            The gain in float32, or None for o and down, which read no normalised residual.

        Raises:
            ModelError: the tensor is missing, damaged or has not the model's width.
        """
        gemma = self.config.model_type in _GEMMA
        if site.role in _ATTENTION_INPUTS:
            norm = "input_layernorm"
        elif site.role in _MLP_INPUTS:
            norm = "pre_feedforward_layernorm" if gemma else "post_attention_layernorm"
        else:
            return None
        name = f"model.layers.{site.layer}.{norm}.weight"
        gain = self._shaped(name, self.tensor(name), (int(self.config.hidden_size),)).float()
        return 1 + gain if gemma else gain

    def _shaped(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        if tuple(tensor.shape) != shape:
            raise ModelError(
                f"{name} in {self.folder} has the shape {tuple(tensor.shape)}, but config.json "
                f"({self.config.model_type}) makes it {shape}; weights and config must be of one "
                "model"
            )
        return tensor


def content_hash(weight: Float[Tensor, "out in"]) -> str:
    """Return a hash over dtype, shape and bytes of a weight, without a copy of it.

    Two models that share a weight share its hash, wherever they lie and however they are sharded.
    XXH3 in 128 bits: it tells contents apart twenty times faster than SHA-256, but is no defence
    against somebody who wants two to look alike.
    """
    digest = xxhash.xxh3_128(f"{weight.dtype} {tuple(weight.shape)} ".encode())
    digest.update(weight.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _config(folder: Path) -> PretrainedConfig:
    """Return the config of the model in the folder."""
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(
            f"the base model folder {folder} has no config.json, but it takes what "
            "`save_pretrained` of a model and of its tokenizer write; correct the path"
        )
    try:
        architecture = json.loads(file.read_bytes()).get("model_type", "")
        if architecture not in ARCHITECTURES:
            # Which transformers need not know either: let the site table refuse it.
            return PretrainedConfig.from_dict({"model_type": str(architecture)})
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, AttributeError, ArithmeticError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{file} could not be read ({reason}); it takes a model's config as JSON; fetch the "
            "file again"
        ) from error


def _shard_files(folder: Path) -> list[Path]:
    """Return the safetensors files that hold the model in the folder."""
    single, index = folder / _SINGLE, folder / _INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        pickled = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
        found = f"only {pickled[0]}, a pickle, which can run any code" if pickled else "neither"
        raise ModelError(
            f"the weights in {folder} are not readable as safetensors: it takes {_SINGLE} or "
            f"{_INDEX} with its shards, and there is {found}; convert the model once with "
            "transformers, where you trust it: AutoModelForCausalLM.from_pretrained(DIR)"
            ".save_pretrained(OTHER_DIR)"
        )
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{index} could not be read ({error}); it takes JSON with a weight_map from tensors "
            "to shards; fetch the file again"
        ) from error
    for name in names:
        if not (folder / name).is_file():
            raise ModelError(
                f"the shard {folder / name} is missing: {_INDEX} names {len(names)} shards; "
                "fetch it again, for example with `hf download`"
            )
    return [folder / name for name in names]


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Map a shard; closing it gives its pages back once no tensor of it is left."""
    try:
        with safe_open(file, framework="pt") as shard:
            yield shard
    except (SafetensorError, OSError) as error:
        size = f"{file.stat().st_size} bytes long" if file.is_file() else "missing"
        raise ModelError(
            f"the shard {file} ({size}) is damaged or could not be read ({error}); fetch it "
            "again, for example with `hf download`, and compare its size with the hub's"
        ) from error
