"""Base models whose GGUF file an installed PyPI package brings along."""

import hashlib
import importlib
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import torch
from filelock import FileLock
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ..exceptions import ModelError
from .base import BaseModel
from .sources import pretrained
from .weights import StreamedWeights

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
