"""The weights of a base model on disk, a tensor at a time: to read, to run and to factorise."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from jaxtyping import Float
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..adapters import Site
from ..alignment.svd import TruncatedSvd, randomised_svd
from ..exceptions import ModelError
from ..files import read_json, reading
from ..store import Key, Store
from .architectures import ARCHITECTURES, EMBEDDING, HEAD, SiteTable, head_name, input_norm

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "BF16", "F16")  # as safetensors calls them
_FACTORS = ("U", "S", "V")
PROBE = "The number 7 is odd."  # of which any tokenizer makes tokens
# What a config may say: some times that of the largest models, so that nothing is built of a
# number that is none.
_LARGEST = {
    "num_hidden_layers": 1024,
    "hidden_size": 2**18,
    "intermediate_size": 2**20,
    "num_attention_heads": 2**12,
    "num_key_value_heads": 2**12,
    "head_dim": 2**14,
    "vocab_size": 2**24,
    "max_position_embeddings": 2**40,
}
_HEAD_ROWS = 8192  # multiplied at once: 100 MB in float32 at a width of 3072


@dataclass(frozen=True, eq=False)
class StreamedWeights:
    """The weights of one base model on disk, read from its safetensors shards one at a time.

    Nothing is kept: a shard is memory-mapped for each tensor anew, and a tensor's pages leave
    memory with the tensor. So a whole model passes through in the memory of its largest weight.

    Attributes:
        name: The hub id that adapters for the model carry.
        folder: In the layout that ``save_pretrained`` writes.
        config: The model's config.
        shards: The file of each tensor by the tensor's name.
        shapes: The shape of each tensor, as the shards' headers have it.
    """

    name: str
    folder: Path
    config: PretrainedConfig
    shards: Mapping[str, Path]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def open(cls, folder: Path, name: str) -> "StreamedWeights":
        """Read the config and the shards' headers of the model in ``folder``, but no weight.

        Raises:
            ModelError: the folder holds no model, its architecture is unknown, its weights are
                quantised or no safetensors, or a shard is missing or damaged.
        """
        config = read_config(folder)
        if getattr(config, "quantization_config", None) is not None:
            raise ModelError(
                f"the weights in {folder} are quantised (config.json has a quantization_config), "
                "but loraport takes float32, bfloat16 or float16; give the model that they were "
                "made from, or save it dequantised with `save_pretrained`"
            )
        shards: dict[str, Path] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for file in _shard_files(folder):
            with _opened(file) as shard:
                for key in shard.keys():  # noqa: SIM118 - a shard is no mapping
                    header = shard.get_slice(key)
                    dtype = header.get_dtype()
                    if key.endswith(".weight") and dtype not in _FLOATS:
                        raise ModelError(
                            f"{key} in {file} has the dtype {dtype}; it takes one of "
                            f"{', '.join(_FLOATS)}: save the model as one of them"
                        )
                    shards[key], shapes[key] = file, tuple(header.get_shape())
        return cls(name, folder, config, shards, shapes)

    @cached_property
    def sites(self) -> SiteTable:
        """The modules that LoRA can adapt."""
        return SiteTable.of(self.config)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer, which is read when it is first asked for."""
        return read_tokenizer(self.folder)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor in the dtype that it is stored in, on the CPU.

        Raises:
            ModelError: there is no such tensor, or its shard is missing or damaged.
        """
        stored = self._stored(name)
        with _opened(self.shards[stored]) as shard:
            # The tensor holds the mapping by itself, so that it outlives the shard's closing.
            return shard.get_tensor(stored)

    def _stored(self, name: str) -> str:
        """Return a tensor's name in its shard; ModelError where there is no such tensor."""
        # A checkpoint that was saved without its head names its tensors without ``model.``.
        stored = name if name in self.shards else name.removeprefix("model.")
        if stored not in self.shards:
            raise ModelError(
                f"the weights in {self.folder} have no tensor {name}, which the model's config "
                f"({self.config.model_type}) calls for; fetch the folder again, or correct its "
                "config.json"
            )
        return stored

    def weight(self, site: Site) -> Float[Tensor, "out in"]:
        """Return the weight of the site's linear module in the dtype that it is stored in.

        Raises:
            ModelError: the model has no such site, its tensor is missing or damaged, or has not
                the shape that the config gives it; so do the methods below.
        """
        if site not in self.sites.shapes:
            raise ModelError(
                f"{self.name} ({self.config.model_type}, {self.sites.layers} layers) has no module "
                f"{site.module_name}; give the base model that the site belongs to"
            )
        return self._shaped(f"{site.module_name}.weight", self.sites.shapes[site])

    def embedding(self) -> Float[Tensor, "tokens width"]:
        """Return the input embedding of each token, without gemma's factor sqrt(width)."""
        return self._shaped(EMBEDDING, (int(self.config.vocab_size), int(self.config.hidden_size)))

    def input_gain(self, site: Site) -> Float[Tensor, " in"] | None:
        """Return by what RMSNorm multiplies the normalised residual in front of the site.

        In float32; None for o and down, which read no normalised residual.
        """
        norm = input_norm(self.config, site)
        if norm is None:
            return None
        name, offset = norm
        gain = self._shaped(name, (int(self.config.hidden_size),)).float()
        return gain + offset if offset else gain

    def check_shapes(self) -> None:
        """Raise ModelError unless the large matrices are there and as the config makes them.

        No weight is read, so that a config of somebody else cannot ask for more memory or layers
        than there are weights.
        """
        for site, shape in self.sites.shapes.items():
            self._of_shape(f"{site.module_name}.weight", shape)
        self._of_shape(EMBEDDING, (int(self.config.vocab_size), int(self.config.hidden_size)))

    def _shaped(self, name: str, shape: tuple[int, ...]) -> Tensor:
        self._of_shape(name, shape)
        return self.tensor(name)

    def _of_shape(self, name: str, shape: tuple[int, ...]) -> None:
        found = self.shapes[self._stored(name)]
        if found != shape:
            raise ModelError(
                f"{name} in {self.folder} has the shape {found}, but config.json "
                f"({self.config.model_type}) makes it {shape}; weights and config must be of one "
                "model"
            )


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer in a model's folder; ModelError where it cannot be read."""
    takes = (
        "tokenizer.json and tokenizer_config.json, as `save_pretrained` of a tokenizer writes them"
    )
    with reading(f"the tokenizer in {folder}", takes, ModelError):
        found = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        if not found(PROBE)["input_ids"]:
            raise ValueError(f"it makes no token of {PROBE!r}")
        return found


def read_config(folder: Path) -> PretrainedConfig:
    """Return the config of the model in a folder; ModelError where it cannot be read."""
    file = folder / "config.json"
    if not file.is_file():
        raise ModelError(
            f"the base model folder {folder} has no config.json, but it takes what "
            "`save_pretrained` of a model and of its tokenizer write; correct the path"
        )
    takes = "a model's config as JSON; fetch the file again"
    raw = read_json(file, takes, ModelError)
    with reading(file, takes, ModelError):
        for name, most in _LARGEST.items():
            value = raw.get(name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if value is not None and not (whole and 1 <= value <= most):
                raise ValueError(f"{name} is not a whole number from 1 to {most}")
        architecture = raw.get("model_type", "")
        if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
            # Which transformers need not know either: the site table refuses it.
            SiteTable.of(PretrainedConfig.from_dict({"model_type": str(architecture)[:80]}))
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        SiteTable.of(config)
        return config


def _shard_files(folder: Path) -> list[Path]:
    """Return the safetensors files that hold the model in the folder."""
    single, index = folder / _SINGLE, folder / _INDEX
    if single.is_file():
        return [single]
    if not index.is_file():
        pickled = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
        there = f"only {pickled[0]}, a pickle, which can run any code" if pickled else "neither"
        raise ModelError(
            f"the weights in {folder} are not readable as safetensors: it takes {_SINGLE} or "
            f"{_INDEX} with its shards, and there is {there}; convert the model once with "
            "transformers, where you trust it: AutoModelForCausalLM.from_pretrained(DIR)"
            ".save_pretrained(OTHER_DIR)"
        )
    takes = "JSON with a weight_map from tensors to shards; fetch the file again"
    found = read_json(index, takes, ModelError)
    with reading(index, takes, ModelError):
        names = sorted(set(found["weight_map"].values()))
        if not names or not all(isinstance(name, str) for name in names):
            raise TypeError("its weight_map names no shards, or one that is no text")
    for name in names:
        if Path(name).name != name:
            raise ModelError(
                f"{index} names the shard {name!r}, which is no plain file name; it takes files of "
                "its own folder: fetch the model again, from where you trust it"
            )
        if not (folder / name).is_file():
            raise ModelError(
                f"the shard {folder / name} is missing: {_INDEX} names {len(names)} shards; "
                "fetch it again, for example with `hf download`"
            )
    return [folder / name for name in names]


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Map a shard; closing it gives its pages back once no tensor of it is left."""
    size = f"{file.stat().st_size} bytes long" if file.is_file() else "missing"
    takes = (
        "a whole safetensors file, and is damaged: fetch it again, for example with `hf "
        "download`, and compare its size with the hub's"
    )
    with (
        reading(f"the shard {file} ({size})", takes, ModelError),
        safe_open(file, framework="pt") as shard,
    ):
        yield shard


def hollow_network(weights: StreamedWeights) -> PreTrainedModel:
    """Return a model's network whose parameters are one zero each, expanded to their shapes.

    They take no memory, but other libraries see a network on the CPU, to which PEFT can add an
    adapter.
    """
    takes = "a config that a network can be built of; fetch the file again"
    with (
        reading(weights.folder / "config.json", takes, ModelError),
        init_empty_weights(include_buffers=False),
    ):
        network = AutoModelForCausalLM.from_config(weights.config, dtype=torch.float32)
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            _place(module, name, torch.zeros(()).expand(parameter.shape))
    network.eval()
    return network


@contextmanager
def streaming(network: nn.Module, weights: StreamedWeights) -> Iterator[None]:
    """Let each module read its weights before it runs and drop them after, in float32.

    Only an embedding, of which few rows are used, is looked up in the dtype in which it is stored,
    and gemma's factor multiplied in that. When the block ends, however it ends, the network is
    hollow again. It may be a PEFT model around a hollow network; what PEFT added is left alone.
    """
    fed: list[tuple[nn.Module, dict[str, nn.Parameter]]] = []
    heads, handles = [], []
    try:
        for name, module in network.named_modules():
            hollow = dict(module.named_parameters(recurse=False))
            if not hollow or "lora_" in name:
                continue
            base = name.removeprefix("base_model.model.").replace(".base_layer", "")
            fed.append((module, hollow))
            if f"{base}.weight" == HEAD:
                vars(module)["forward"] = partial(_head_product, weights)
                heads.append(module)
            else:
                read = partial(_fill, weights, base)
                handles.append(module.register_forward_pre_hook(read))
                handles.append(module.register_forward_hook(partial(_drop, hollow)))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, hollow in fed:
            if module in heads:
                del vars(module)["forward"]  # that of its class is back
            module._parameters.update(hollow)  # where a module raised, nothing has dropped them


def _fill(weights: StreamedWeights, base: str, module: nn.Module, _inputs: Any) -> None:
    """Give a module its weights."""
    for name in dict(module.named_parameters(recurse=False)):
        stored = weights.tensor(f"{base}.{name}")
        _place(module, name, stored if isinstance(module, nn.Embedding) else stored.float())


def _drop(hollow: Mapping[str, nn.Parameter], module: nn.Module, _inputs: Any, output: Any) -> Any:
    """Take a module's weights away."""
    module._parameters.update(hollow)
    return output.float() if isinstance(module, nn.Embedding) else output


def _head_product(
    weights: StreamedWeights, x: Float[Tensor, "*batch width"]
) -> Float[Tensor, "*batch tokens"]:
    """Multiply by the head some rows at a time: it is the largest matrix of a small model."""
    head = weights.tensor(head_name(weights.config))
    starts = range(0, head.shape[0], _HEAD_ROWS)
    parts = [x @ head[start : start + _HEAD_ROWS].float().mT for start in starts]
    return torch.cat(parts, dim=-1)


def _place(module: nn.Module, name: str, tensor: Tensor) -> None:
    setattr(module, name, nn.Parameter(tensor, requires_grad=False))


class FactorCache:
    """Truncated SVDs of base weights, each computed once and kept under the weight's content.

    So one serves every adapter, pair and copy of the model. Without a folder nothing is kept.
    """

    def __init__(self, cache: Path | None) -> None:
        self._store = Store(cache)
        # Written by one thread while the next weight is factorised: gigabytes of a large model.
        self._pending: tuple[Key, Future[None]] | None = None

    def svd(
        self,
        weights: StreamedWeights,
        site: Site,
        *,
        rank: int,
        oversampling: int,
        power_iterations: int,
        seed: int,
        device: torch.device,
    ) -> TruncatedSvd:
        """Return the leading singular triplets of a site's weight, in float32 on ``device``.

        What was kept has the very bits that were computed. For the other arguments see
        :func:`~loraport.alignment.svd.randomised_svd`.

        Raises:
            ModelError: the weight cannot be read, or has entries that are not finite.
            OutputError: the factorisation before this one could not be kept: the disk is full,
                or the folder forbidden.
        """
        weight = weights.weight(site)
        options = {
            "rank": rank,
            "oversampling": oversampling,
            "power_iterations": power_iterations,
            "seed": seed,
        }
        key = None
        if self._store.root is not None:
            precision = torch.get_float32_matmul_precision()
            key = Key.of("factors", weight=weight, device=device, precision=precision, **options)
            if self._pending is not None and key == self._pending[0]:  # a model ported to itself
                self.flush()
            kept = self._store.get_tensors(key)
            if kept is not None:
                tensors, energy = kept
                u, s, v = (tensors[part].to(device) for part in _FACTORS)
                return TruncatedSvd(u, s, v, energy)
        try:
            svd = randomised_svd(weight.to(device), **options)
        except ValueError as error:
            raise ModelError(
                f"{site.module_name} of {weights.name} cannot be factorised ({error}); fetch the "
                f"weights in {weights.folder} again"
            ) from error
        if key is not None:
            self.flush()
            tensors = dict(zip(_FACTORS, svd[:3], strict=True))
            put = _writer().submit(self._store.put_tensors, key, tensors, svd.energy)
            self._pending = key, put
        return svd

    def flush(self) -> None:
        """Wait until everything is kept; OutputError where it cannot be."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending[1].result()


@cache
def _writer() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="factor-cache")
