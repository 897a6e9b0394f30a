"""The tiny pair: two small base models of different families, pre-trained where they are needed."""

import multiprocessing
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ..exceptions import ModelError
from ..models.loading import ModelSource, one_thread
from ..progress import shown_progress
from ..store import Key, Store
from .language import TinyLanguage

_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """Settings of a pre-training with AdamW.

    The learning rate rises over ``warmup_steps`` to ``lr`` and falls linearly to zero; ``seed``
    orders the documents.
    """

    steps: int = 400
    batch_size: int = 32  # documents a step
    lr: float = 8e-3
    warmup_steps: int = 40
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    seed: int = 0

    def share(self, step: int) -> float:
        """Return the share of the learning rate that a step, counted from 0, uses."""
        rising = (step + 1) / max(1, self.warmup_steps)
        falling = (self.steps - step) / max(1, self.steps - self.warmup_steps)
        return min(rising, falling, 1.0)


def _batches(
    documents: Sequence[Sequence[int]], settings: Pretraining
) -> Iterator[Int[Tensor, "documents tokens"]]:
    """Yield one batch a step, padded at the right by -100; each pass is a new shuffle."""
    rows = [torch.tensor(document) for document in documents]
    generator = torch.Generator().manual_seed(settings.seed)
    order: list[int] = []
    for _ in range(settings.steps):
        while len(order) < settings.batch_size:
            order += torch.randperm(len(rows), generator=generator).tolist()
        chosen, order = order[: settings.batch_size], order[settings.batch_size :]
        batch = pad_sequence([rows[row] for row in chosen], batch_first=True)
        lengths = torch.tensor([len(rows[row]) for row in chosen])
        yield batch.masked_fill(torch.arange(batch.shape[1]) >= lengths[:, None], _IGNORED)


def pretrain(
    network: PreTrainedModel,
    documents: Sequence[Sequence[int]],
    settings: Pretraining,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train a network in place to predict every token of the documents, given as token numbers.

    ``report`` is called after each step with the number of steps done and the loss in nats a token.
    """
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=settings.lr,
        betas=(0.9, 0.98),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, settings.share)
    network.train()
    for step, batch in enumerate(_batches(documents, settings), start=1):
        # Documents are padded at their ends, where causal attention needs no mask.
        logits = network(input_ids=batch[:, :-1].clamp(min=0), use_cache=False).logits
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=_IGNORED
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
        optimizer.step()
        schedule.step()
        report(step, float(loss.detach()))
    network.eval()


_SPECIAL = {
    "pad_token": "<pad>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
}
PAD, BOS, EOS, _UNKNOWN = range(len(_SPECIAL))
"""The special tokens' numbers in both tokenizers."""

# A word or a sign together with the space before it; a line break stands alone.
_PIECE = r" ?\w+|\n| ?[^\s\w]"


def _fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        **_SPECIAL,
    )


def word_level(documents: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows the documents' words whole and begins a text with ``<bos>``.

    A word with the space before it is another token than at the start of a line. Words that are
    in no document become ``<unk>``.
    """
    pieces = sorted({piece for text in documents for piece in re.findall(_PIECE, text)})
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL.values(), *pieces])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), behavior="isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS)]
    )
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(_SPECIAL.values()))
    return _fast(tokenizer)


def byte_pairs(documents: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with so many tokens; it adds none to a text's start.

    256 of its tokens are single bytes, so that it can encode any text.

    Source: Sennrich, Haddow and Birch, 2016; on bytes: Radford et al., 2019.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(_SPECIAL.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return _fast(tokenizer)


_LIBRARIES = ("tokenizers", "torch", "transformers")  # that decide what a seed gives
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


_SIDES = {
    "source": _Side(LlamaConfig, _SOURCE, tokens=480),
    "target": _Side(Gemma3TextConfig, _TARGET, tokens=None),
}


@dataclass(frozen=True)
class TinyModel(ModelSource):
    """One base model of the tiny pair, pre-trained on the tiny language at its first use.

    The source is a Llama of three layers and width 64 with a byte-level BPE tokenizer, the
    target a Gemma 3 of two layers and width 48 whose tokenizer knows whole words.

    Attributes:
        side: ``source`` or ``target``.
        seed: Draws documents and weights, and orders the documents.
        documents: Pre-training documents.
        steps: Pre-training steps.
        name: ``tiny-source`` or ``tiny-target``.
    """

    side: str
    seed: int = 0
    documents: int = 12_000
    steps: int = 400
    name: str = field(init=False)
    dtype: str = field(init=False, default="float32")

    def __post_init__(self) -> None:
        if self.side not in _SIDES:
            raise ModelError(
                f"the tiny pair has no side {self.side!r}, but it has {' and '.join(_SIDES)}; "
                "correct pair.source or pair.target"
            )
        object.__setattr__(self, "name", f"tiny-{self.side}")

    @property
    def key(self) -> Key:
        """What the model is kept under: all that determines the weights and the tokenizer."""
        return Key.of(
            "tiny",
            model=self,
            entries=_SIDES[self.side].entries,
            tokens=_SIDES[self.side].tokens,
            language=TinyLanguage().fingerprint(),
            pretraining=self._pretraining,
            libraries={library: version(library) for library in _LIBRARIES},
        )

    @property
    def _pretraining(self) -> Pretraining:
        return Pretraining(steps=self.steps, seed=self.seed)

    def folder(self, cache: Path) -> Path:
        """Return the folder of the model, which is built where it is missing, by one process."""
        return Store(cache).made_folder(self.key, self._write)

    def _write(self, folder: Path) -> None:
        side = _SIDES[self.side]
        documents = TinyLanguage().documents(self.documents, self.seed)
        tokenizer = (
            word_level(documents) if side.tokens is None else byte_pairs(documents, side.tokens)
        )
        rows = [[*row, EOS] for row in tokenizer(documents)["input_ids"]]
        config = side.config(vocab_size=len(tokenizer), **side.entries)
        # transformers draws weights from the global generator, which belongs to nobody here.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        # In a process of a pool the one that started it shows the progress.
        hidden = multiprocessing.parent_process() is not None
        with one_thread(), shown_progress("steps", hidden=hidden) as progress:
            task = progress.add_task(f"pre-training {self.name}", total=self.steps)
            pretrain(
                network,
                rows,
                self._pretraining,
                lambda step, loss: progress.update(
                    task, completed=step, description=f"pre-training {self.name}, loss {loss:.2f}"
                ),
            )
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
