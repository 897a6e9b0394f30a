"""Base models from the hub and from a local folder."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..exceptions import ModelError
from .base import BaseModel
from .weights import StreamedWeights

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
