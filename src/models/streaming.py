"""The weights of a base model on disk, one tensor at a time."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
import xxhash
from accelerate import init_empty_weights
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..adapters.lora import Role, Site
from ..alignment.svd import TruncatedSvd, randomised_svd
from ..exceptions import ModelError
from ..files import write_whole
from .architectures import ARCHITECTURES, SiteTable

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


# A whole network that runs without ever being whole in memory.

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


# Factorisations of base weights, kept on disk under the weights' content.

# Raise it when the code changes what is kept or what comes out of a factorisation.
_FORMAT = 4
_PARTS = ("U", "S", "V")


class FactorCache:
    """Truncated SVDs of base weights, each computed once.

    A factorisation lies in a file under the hash of the weight's content and of all that the
    computation depends on, so that it serves every adapter, pair and copy of the model. Several
    processes may use one folder: a file appears whole, by a rename.

    Args:
        folder: Where the files lie; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._pending: Future[None] | None = None
        self._pending_file: Path | None = None

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

        What was kept has the very bits that were computed; a kept file that is damaged is
        computed again. For the other arguments see
        :func:`~loraport.alignment.svd.randomised_svd`.

        Raises:
            ModelError: the weight cannot be read, or has entries that are not finite.
            OutputError: the factorisation before this one could not be kept: the disk is full,
                or the place forbidden. Each is written while the next is computed.
        """
        weight = weights.weight(site)
        options = {
            "rank": rank,
            "oversampling": oversampling,
            "power_iterations": power_iterations,
            "seed": seed,
        }
        file = self._file(weight, options)
        if file is not None:
            if file == self._pending_file:  # a model ported to itself
                self.flush()
            kept = _read(file, weights.sites.shapes[site])
            if kept is not None:
                return _moved(kept, device)
        try:
            svd = randomised_svd(weight.to(device), **options)
        except ValueError as error:
            raise ModelError(
                f"{site.module_name} of {weights.name} cannot be factorised ({error}); fetch the "
                f"weights in {weights.folder} again"
            ) from error
        if file is not None:
            self.flush()
            self._pending, self._pending_file = _writer().submit(_write, file, svd), file
        return svd

    def _file(self, weight: Float[Tensor, "out in"], options: dict[str, int]) -> Path | None:
        """Return where the factorisation of a weight is kept."""
        if self._folder is None:
            return None
        settings = " ".join(str(value) for value in (_FORMAT, *options.values()))
        key = hashlib.sha256(f"{content_hash(weight)} {settings}".encode()).hexdigest()
        return self._folder / key[:2] / f"{key}.safetensors"

    def flush(self) -> None:
        """Wait until everything is kept.

        Raises:
            OutputError: it cannot be kept: the disk is full, or the place forbidden.
        """
        pending, self._pending, self._pending_file = self._pending, None, None
        if pending is not None:
            pending.result()


@cache
def _writer() -> ThreadPoolExecutor:
    """One thread that writes while the next weight is factorised."""
    return ThreadPoolExecutor(1, thread_name_prefix="factor-cache")


def _moved(svd: TruncatedSvd, device: torch.device) -> TruncatedSvd:
    return TruncatedSvd(svd.U.to(device), svd.S.to(device), svd.V.to(device), svd.energy)


def _read(file: Path, shape: tuple[int, int]) -> TruncatedSvd | None:
    """Return what a file holds; None if it is not there or damaged."""
    try:
        with safe_open(file, framework="pt") as opened:
            # Copied out of the memory map, where they are aligned otherwise than what was
            # computed: products with them would not round alike.
            u, s, v = (opened.get_tensor(part).clone() for part in _PARTS)
            svd = TruncatedSvd(u, s, v, float.fromhex(opened.metadata()["energy"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
    return svd if (len(u), len(v)) == shape else None


def _write(file: Path, svd: TruncatedSvd) -> None:
    """Write a factorisation, whole or not at all."""
    here = _moved(svd, torch.device("cpu"))
    content = save(dict(zip(_PARTS, here[:3], strict=True)), {"energy": here.energy.hex()})
    write_whole(file, content)
