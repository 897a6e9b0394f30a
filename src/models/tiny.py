"""The tiny pair: two small base models of different families, built where they are needed."""

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ..data.tiny_language import TinyLanguage
from ..exceptions import ModelError
from .base import BaseModel
from .pretraining import Pretraining, pretrain
from .sources import LocalModel
from .threads import one_thread
from .tiny_tokenizers import BOS, EOS, PAD, byte_pairs, word_level
from .weights import StreamedWeights

_log = logging.getLogger(__name__)

# Raise it when the code of a build changes what comes out of it.
_BUILD = 1
_LIBRARIES = ("tokenizers", "torch", "transformers")
_COMMON = {
    "num_attention_heads": 4,
    # Wider than usual, as so few steps leave the embeddings near to where they were drawn.
    "initializer_range": 0.1,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
}
_SOURCE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    **_COMMON,
}
_TARGET = {
    "hidden_size": 48,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 64,
    **_COMMON,
}


@dataclass(frozen=True)
class _Side:
    """What the base model of one side is made of."""

    config: Callable[..., PretrainedConfig]
    entries: Mapping[str, Any]
    tokens: int | None  # of byte-level BPE; None: whole words

    def tokenizer(self, documents: Sequence[str]) -> PreTrainedTokenizerFast:
        if self.tokens is None:
            return word_level(documents)
        return byte_pairs(documents, self.tokens)

    def network(self, vocabulary: int, seed: int) -> PreTrainedModel:
        """Return the network with its weights drawn from the seed."""
        config = self.config(vocab_size=vocabulary, **self.entries)
        # transformers draws weights from the global generator, which belongs to nobody here.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


_SIDES = {
    "source": _Side(LlamaConfig, _SOURCE, tokens=480),
    "target": _Side(Gemma3TextConfig, _TARGET, tokens=None),
}


@dataclass(frozen=True)
class TinyModel:
    """One base model of the tiny pair, pre-trained on the tiny language at its first use.

    The source is a Llama of three layers and width 64 with a byte-level BPE tokenizer, the
    target a Gemma 3 of two layers and width 48 whose tokenizer knows whole words.

    Attributes:
        side: ``source`` or ``target``.
        seed: Draws documents and weights, and orders the documents.
        documents: Pre-training documents.
        steps: Pre-training steps.
    """

    side: str
    seed: int = 0
    documents: int = 12_000
    steps: int = 400

    def __post_init__(self) -> None:
        if self.side not in _SIDES:
            raise ModelError(
                f"the tiny pair has no side {self.side!r}, but it has {' and '.join(_SIDES)}; "
                "correct pair.source or pair.target"
            )

    @property
    def name(self) -> str:
        """``tiny-source`` or ``tiny-target``."""
        return f"tiny-{self.side}"

    @property
    def key(self) -> str:
        """A short hash of all that determines the weights and the tokenizer."""
        made_of = {
            "build": _BUILD,
            "model": asdict(self),
            "entries": _SIDES[self.side].entries,
            "tokens": _SIDES[self.side].tokens,
            "language": TinyLanguage().fingerprint(),
            "pretraining": asdict(self._pretraining),
            "libraries": {library: version(library) for library in _LIBRARIES},
        }
        return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def _pretraining(self) -> Pretraining:
        return Pretraining(steps=self.steps, seed=self.seed)

    def folder(self, cache: Path) -> Path:
        """Return where the model is or will be kept; it exists when the model is complete."""
        return cache / "tiny" / self.key / self.side

    def load(self, cache: Path) -> BaseModel:
        """Return the model out of the cache, after building it where it is missing.

        Several processes may ask for it at once: one of them builds, the others wait. A build
        that is killed leaves nothing that a later one would take for a model.
        """
        return self._built(cache).load(cache)

    def weights(self, cache: Path) -> StreamedWeights:
        """Open the weights in the cache, after building the model where it is missing."""
        return self._built(cache).weights(cache)

    def _built(self, cache: Path) -> LocalModel:
        # In a process of a pool the one that started it shows the progress.
        self.build(cache, show_progress=multiprocessing.parent_process() is None)
        return LocalModel(path=str(self.folder(cache)), name=self.name)

    def build(self, cache: Path, *, show_progress: bool = True) -> None:
        """Build the model in the cache unless it is there."""
        folder = self.folder(cache)
        if folder.is_dir():
            return
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f"{self.side}.lock"), self.name):
            if folder.is_dir():
                return
            for left_over in folder.parent.glob(f".{self.side}-*"):
                shutil.rmtree(left_over)
            scratch = Path(tempfile.mkdtemp(prefix=f".{self.side}-", dir=folder.parent))
            try:
                self._write(scratch / "model", show_progress)
                os.replace(scratch / "model", folder)
            finally:
                shutil.rmtree(scratch)

    def _write(self, folder: Path, show_progress: bool) -> None:
        side = _SIDES[self.side]
        documents = TinyLanguage().documents(self.documents, self.seed)
        tokenizer = side.tokenizer(documents)
        rows = [[*row, EOS] for row in tokenizer(documents)["input_ids"]]
        network = side.network(len(tokenizer), self.seed)
        with one_thread(), _bar(f"pre-training {self.name}", self.steps, show_progress) as report:
            pretrain(network, rows, self._pretraining, report)
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


@contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    """Hold the lock; the operating system frees it when its holder is killed."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.info("another process is building %s; waiting for it", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _bar(title: str, steps: int, shown: bool) -> Iterator[Callable[[int, float], None]]:
    """Show a progress bar on stderr; yields what tells it the steps done and the loss."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} steps, loss {task.fields[loss]:.2f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=sys.stderr), disable=not shown) as progress:
        task = progress.add_task(title, total=steps, loss=float("nan"))
        yield lambda step, loss: progress.update(task, completed=step, loss=loss)
