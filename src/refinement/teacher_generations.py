"""What the teacher writes, in the chunks that both tokenizers share, and how likely it finds them.

Two tokenizers cut a text at different bytes. Between neighbouring bytes at which a token of each
ends lies a chunk: the same bytes for both, one or more whole tokens for either, so that its
likelihoods under two models can be compared.

Source: approximate likelihood matching, Minixhofer et al., 2025 (arXiv 2503.20083), section 3;
excess and choice of texts and chunks as TiTok's (2025, arXiv 2510.04682).
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..adapters import LoraAdapter
from ..data.prompts import left_padded, pad_token, positions
from ..data.token_alignment import TokenEndReader
from ..exceptions import DataError
from ..models.generation import MostLikely, NextToken, generate, text_behind
from ..models.hooks import attached
from ..models.likelihood import LOGIT_POSITIONS, last_logits, length_batches
from ..models.loading import BaseModel
from ..store import Key, Store
from .base import NO_STORE, DistillationInputs, RefinementProgress, silent

_SHARD = 32  # rows: so much work is lost at most when a run is stopped
_BATCH_TOKENS = 4096  # of a forward pass, padding included


# What a model writes.


class Continuation(NamedTuple):
    """A prompt, what a model wrote after it, and whether the model came to its end.

    The text is empty where it ended at once; it has not ended where it was stopped at the last
    token allowed.
    """

    prompt: str
    text: str
    ended: bool


def continuations(
    base: BaseModel,
    adapter: LoraAdapter | None,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 48,
    store: Store = NO_STORE,
    progress: RefinementProgress = silent,
) -> list[Continuation]:
    """Return how the model, with the adapter if any, continues each prompt, decoded greedily.

    Prompts of like length go through the model together. Finished shards are kept, so that a
    stopped run goes on.
    """
    tokens: list[list[int]] = base.tokenizer(list(prompts))["input_ids"] if prompts else []
    order = sorted(range(len(prompts)), key=lambda index: len(tokens[index]))
    shards = [order[start : start + _SHARD] for start in range(0, len(order), _SHARD)]
    key = Key.of(
        "continuations",
        model=base.key_parts,
        adapter=adapter,
        shards=[[tokens[index] for index in shard] for shard in shards],
        max_new_tokens=max_new_tokens,
    )

    def work(shard: Sequence[int]) -> list[tuple[str, bool]]:
        rows = [tokens[index] for index in shard]
        return written(base, rows, max_new_tokens=max_new_tokens, choice=MostLikely())

    with attached(base.network, adapter):
        made = store.made_shards(key, shards, work, partial(progress, "the teacher writes"))
    texts = dict(zip(order, (row for shard in made for row in shard), strict=True))
    return [Continuation(prompt, *texts[index]) for index, prompt in enumerate(prompts)]


def written(
    base: BaseModel, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, choice: NextToken
) -> list[tuple[str, bool]]:
    """Return what the model writes after each prompt's tokens, and whether it came to its end.

    A character that was cut off at the last token allowed is left out.
    """
    rows = generate(base, prompts, max_new_tokens=max_new_tokens, choice=choice)
    end = base.tokenizer.eos_token_id
    texts = []
    for prompt, row in zip(prompts, rows, strict=True):
        ended = row[-1:] == [end]
        text = text_behind(base, prompt, row[:-1] if ended else row)
        texts.append((text if ended else text.rstrip("\ufffd"), ended))
    return texts


# The chunks that two tokenizers share.


class ChunkTokens(NamedTuple):
    """Prompt and continuation as one tokenizer reads them, up to the end of the last chunk.

    ``bounds`` are indices into ``input_ids``: of the last token before the first chunk, then of
    the last token of each chunk.
    """

    input_ids: list[int]
    bounds: list[int]

    @property
    def chunks(self) -> int:
        """Number of chunks."""
        return len(self.bounds) - 1

    @property
    def predicted(self) -> int:
        """Number of their tokens."""
        return self.bounds[-1] - self.bounds[0]


class ChunkedText(NamedTuple):
    """A continuation in the chunks that two tokenizers share.

    ``left_out`` is the share of its bytes that are in no chunk: where a token reaches from the
    prompt into the continuation, they are those before the next common end.
    """

    source: ChunkTokens
    target: ChunkTokens
    left_out: float


def chunked(
    written: Sequence[Continuation],
    source: PreTrainedTokenizerBase,
    target: PreTrainedTokenizerBase,
) -> list[ChunkedText]:
    """Cut continuations into the chunks that two tokenizers share; there may be none.

    Where the teacher came to its end, its end-of-text token is the last chunk: it is another
    token in each model, but means the same. A target that has none cannot learn it.

    Raises:
        ModelError: a tokenizer is not a fast one.
    """
    whole = [each.prompt + each.text for each in written]
    both_end = None not in (source.eos_token_id, target.eos_token_id)
    read = [TokenEndReader(tokenizer).read(whole) for tokenizer in (source, target)]
    texts = []
    for each, *sides in zip(written, *read, strict=True):
        start, size = len(each.prompt.encode()), len(each.text.encode())
        ends = [end for end in sides[0].places if end >= start and end in sides[1].places]
        if not ends:
            texts.append(ChunkedText(ChunkTokens([], [0]), ChunkTokens([], [0]), 1.0))
            continue
        tokens = []
        for side, tokenizer in zip(sides, (source, target), strict=True):
            bounds = [side.places[end] for end in ends]
            ids = list(side.input_ids[: bounds[-1] + 1])
            if each.ended and both_end:
                ids.append(int(tokenizer.eos_token_id))
                bounds.append(len(ids) - 1)
            tokens.append(ChunkTokens(ids, bounds))
        left_out = 1 - (ends[-1] - ends[0]) / size if size else 0.0
        texts.append(ChunkedText(tokens[0], tokens[1], left_out))
    return texts


# How likely a model finds each chunk.


def batch_chunk_likelihoods(
    base: BaseModel, rows: Sequence[ChunkTokens]
) -> Float[Tensor, "rows chunks"]:
    """Return the log-likelihood of each chunk, in nats, in one forward pass, in float32.

    It is the sum over the chunk's tokens, given all tokens before them; 0 where a row has no more
    chunks. Each row takes at least one. Logits are computed at the positions of chunks only.
    """
    network, device = base.network, base.network.device
    pad = pad_token(base.tokenizer)
    # The last token is only predicted, never read.
    ids, mask = left_padded([row.input_ids[:-1] for row in rows], pad)
    width = max(row.predicted for row in rows)
    logits = last_logits(
        network,
        width,
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        position_ids=positions(mask).to(device),
    ).float()
    predicted, _ = left_padded([row.input_ids[-row.predicted :] for row in rows], pad)
    chosen = logits.gather(2, predicted.to(device)[:, :, None])[:, :, 0]
    # Not log_softmax: it would hold the logits a second time for the backward pass.
    token_likelihoods = chosen - logits.logsumexp(dim=2)
    return chunk_sums(token_likelihoods, rows)


def chunk_sums(
    tokens: Float[Tensor, "rows width"], rows: Sequence[ChunkTokens]
) -> Float[Tensor, "rows chunks"]:
    """Return the sum over each chunk's tokens; those of a row's chunks are at its end."""
    most = max(row.chunks for row in rows)
    # Tokens before a row's chunks go to a column that is cut off.
    owners = torch.full(tokens.shape, most, dtype=torch.long)
    for owner, row in zip(owners, rows, strict=True):
        sizes = torch.tensor(row.bounds).diff()
        owner[len(owner) - row.predicted :] = torch.arange(row.chunks).repeat_interleave(sizes)
    sums = tokens.new_zeros(len(rows), most + 1)
    return sums.scatter_add(1, owners.to(tokens.device), tokens)[:, :most]


@torch.inference_mode()
def chunk_likelihoods(base: BaseModel, rows: Sequence[ChunkTokens]) -> list[Float[Tensor, " _"]]:
    """Return the log-likelihood of each chunk of each row, in float32 on the CPU."""
    sums: dict[int, Tensor] = {}
    lengths = [len(row.input_ids) for row in rows]
    most = LOGIT_POSITIONS // max((row.predicted for row in rows), default=1)
    for indices in length_batches(lengths, _BATCH_TOKENS, most):
        batch = batch_chunk_likelihoods(base, [rows[index] for index in indices]).cpu()
        for index, row in zip(indices, batch, strict=True):
            sums[index] = row[: rows[index].chunks].clone()
    return [sums[index] for index in range(len(rows))]


# What the target learns from.


class TeacherGeneration(NamedTuple):
    """A prompt, what the teacher wrote after it, and how likely it found that.

    ``expected`` are the log-likelihoods of the chunks under the source with its adapter, in nats;
    ``excess`` is how much higher they are than under the source alone.
    """

    written: Continuation
    chunks: ChunkedText
    expected: Float[Tensor, " _"]
    excess: Float[Tensor, " _"]

    @property
    def mean_excess(self) -> float:
        """Mean excess of a chunk: how much of this text is due to the adapter."""
        return float(self.excess.mean())


class TeacherGenerations(NamedTuple):
    """The texts that can be learned from, in the order of their prompts, and how many cannot.

    After ``empty`` prompts the teacher wrote nothing; ``unaligned`` continuations have no chunk
    that both tokenizers share.
    """

    texts: tuple[TeacherGeneration, ...]
    empty: int
    unaligned: int


def teacher_generations(
    data: DistillationInputs, prompts: Sequence[str], max_new_tokens: int
) -> TeacherGenerations:
    """Let the teacher write after each prompt, and compute how likely it finds each chunk.

    Finished shards are kept, so that a stopped run goes on.

    Raises:
        DataError: the teacher writes nothing, or the same after every prompt.
    """
    base, store, progress = data.teacher.base, data.store, data.progress
    every = continuations(
        base,
        data.teacher.adapter,
        prompts,
        max_new_tokens=max_new_tokens,
        store=store,
        progress=progress,
    )
    written = [each for each in every if each.text.strip()]
    _check(written, len(every), base.name)
    texts = zip(written, chunked(written, base.tokenizer, data.target.tokenizer), strict=True)
    both = [(each, text) for each, text in texts if text.source.chunks]
    rows = [text.source for _, text in both]

    def likelihoods(adapter: LoraAdapter | None, step: str) -> list[Float[Tensor, " _"]]:
        shards = [rows[start : start + _SHARD] for start in range(0, len(rows), _SHARD)]
        key = Key.of("chunk_likelihoods", model=base.key_parts, adapter=adapter, shards=shards)

        def work(shard: Sequence[ChunkTokens]) -> list[list[float]]:
            return [row.tolist() for row in chunk_likelihoods(base, shard)]

        with attached(base.network, adapter):
            made = store.made_shards(key, shards, work, partial(progress, step))
        return [torch.tensor(row) for shard in made for row in shard]

    with_adapter = likelihoods(data.teacher.adapter, "the teacher reads what it wrote")
    alone = likelihoods(None, "the source alone reads it")
    generations = [
        TeacherGeneration(each, text, mine, mine - bare)
        for (each, text), mine, bare in zip(both, with_adapter, alone, strict=True)
    ]
    empty, unaligned = len(every) - len(written), len(written) - len(both)
    return TeacherGenerations(tuple(generations), empty, unaligned)


def _check(written: Sequence[Continuation], prompts: int, name: str) -> None:
    """Refuse a teacher that nothing can be learned from."""
    if prompts and not written:
        raise DataError(
            f"{name} with its adapter writes nothing after any of {prompts} prompts; distillation "
            "takes what it writes: give the prompt.template that the adapter was trained with, "
            "and prompt.labels if it chooses among some"
        )
    if len(written) > 1 and len({each.text for each in written}) == 1:
        raise DataError(
            f"{name} with its adapter writes {written[0].text[:60]!r} after each of "
            f"{len(written)} prompts; distillation takes answers that differ: check "
            "prompt.template, and that the adapter belongs to this model"
        )


def highest_excess(texts: Sequence[TeacherGeneration], count: int) -> list[TeacherGeneration]:
    """Return the texts with the highest mean excess, in the order they had."""
    ranked = sorted(range(len(texts)), key=lambda index: -texts[index].mean_excess)
    return [texts[index] for index in sorted(ranked[:count])]


def kept_chunks(excess: Float[Tensor, " chunks"], keep: float) -> Bool[Tensor, " chunks"]:
    """Return which chunks of a text are learned from: the share with the highest excess.

    At least one is. TiTok selects tokens; here they are chunks.
    """
    count = max(1, round(keep * len(excess)))
    kept = torch.zeros(len(excess), dtype=torch.bool)
    kept[excess.sort(descending=True, stable=True).indices[:count]] = True
    return kept
