"""What a model with an adapter writes behind prompts, kept in the cache."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..adapters import LoraAdapter
from ..data.prompts import left_padded, positions
from ..data.token_alignment import TokenEndReader, TokenEnds
from ..exceptions import ConfigurationError, DataError
from ..models.generation import MostLikely, NextToken, generate, text_behind
from ..models.hooks import Attachable, attached
from ..models.likelihood import LOGIT_POSITIONS, last_logits
from ..models.loading import BaseModel
from .base import RefinementProgress, Teacher, cache_folder, in_shards, silent

_ROWS = 32  # of a portion: so much work is lost at most when a run is stopped


class Continuation(NamedTuple):
    """What was written behind a prompt.

    Attributes:
        prompt: The prompt.
        text: What follows it; empty where the model ended at once.
        ended: Whether the model came to its end, or was stopped at the last token allowed.
    """

    prompt: str
    text: str
    ended: bool


def continuations(
    base: BaseModel,
    adapter: LoraAdapter | Attachable | None,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 48,
    cache: Path | None = None,
    step: str = "writing",
    progress: RefinementProgress = silent,
) -> list[Continuation]:
    """Return how the model with the adapter goes on behind each prompt, decoded greedily.

    Prompts of like length go through the model together. With a cache the portions that are
    finished are kept, so that a stopped run goes on, and the same question costs nothing again.

    Args:
        base: The model.
        adapter: What acts on it; None for the model alone.
        prompts: What it reads.
        max_new_tokens: Tokens a continuation at most.
        cache: Folder of what is kept; None keeps nothing.
        step: What ``progress`` is told that is being done.
        progress: Is told how many portions are done.

    Raises:
        ConfigurationError: ``max_new_tokens`` is below 1.
        ModelError: the adapter does not fit the model.
        OutputError: the cache cannot be written.
    """
    if max_new_tokens < 1:
        raise ConfigurationError(
            f"max_new_tokens={max_new_tokens}, but a continuation takes at least 1 token"
        )
    tokens: list[list[int]] = base.tokenizer(list(prompts))["input_ids"] if prompts else []
    order = sorted(range(len(prompts)), key=lambda place: len(tokens[place]))
    parts = [order[start : start + _ROWS] for start in range(0, len(order), _ROWS)]

    def work(places: Sequence[int]) -> list[tuple[str, bool]]:
        rows = [tokens[place] for place in places]
        return written(base, rows, max_new_tokens=max_new_tokens, choice=MostLikely())

    acting = "no adapter" if adapter is None else adapter.content_hash()
    key_parts = [base.fingerprint, acting, str(base.network.dtype), list(prompts)]
    folder = cache_folder(cache, "continuations", [*key_parts, max_new_tokens, _ROWS])
    with attached(base.network, adapter):
        made = in_shards(folder, parts, work, step=step, progress=progress)
    texts = {
        place: portion
        for places, portions in zip(parts, made, strict=True)
        for place, portion in zip(places, portions, strict=True)
    }
    return [Continuation(prompt, *texts[place]) for place, prompt in enumerate(prompts)]


def written(
    base: BaseModel, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, choice: NextToken
) -> list[tuple[str, bool]]:
    """Return the text that the model writes behind each prompt, and whether it came to its end.

    A character that was cut off at the last token allowed is left out.

    Args:
        base: The model, with what is attached to it.
        prompts: Their tokens.
        max_new_tokens: Tokens a row at most.
        choice: Chooses each next token.
    """
    rows = generate(base, prompts, max_new_tokens=max_new_tokens, choice=choice)
    end = int(base.tokenizer.eos_token_id)
    found = []
    for prompt, row in zip(prompts, rows, strict=True):
        ended = row[-1:] == [end]
        text = text_behind(base, prompt, row[:-1] if ended else row)
        found.append((text if ended else text.rstrip("\ufffd"), ended))
    return found


# How likely a model finds the chunks of a continuation that two tokenizers have in common.
#
# Two tokenizers cut a continuation at different bytes. Between neighbouring bytes at which a token
# of each ends lies a chunk: the same bytes for both, one or more whole tokens for either, so that
# its likelihoods under two models can be compared.
#
# Source: approximate likelihood matching, Minixhofer et al., 2025 (arXiv 2503.20083), section 3.


class ChunkTokens(NamedTuple):
    """Prompt and continuation as one tokenizer reads them, cut into chunks.

    Attributes:
        input_ids: The tokens up to the end of the last chunk.
        bounds: Places in ``input_ids``: of the last token before the first chunk, then of the
            last token of each chunk.
    """

    input_ids: list[int]
    bounds: list[int]

    @property
    def chunks(self) -> int:
        """How many chunks there are."""
        return len(self.bounds) - 1

    @property
    def predicted(self) -> int:
        """How many tokens the chunks have together."""
        return self.bounds[-1] - self.bounds[0]


class ChunkedText(NamedTuple):
    """A continuation in the chunks that two tokenizers have in common.

    Attributes:
        source: As the source's tokenizer reads it.
        target: As the target's does; its chunks are those of the source.
        left_out: Share of the continuation's bytes that are in no chunk: where a token reaches
            from the prompt into the continuation, they are those before the next common end.
    """

    source: ChunkTokens
    target: ChunkTokens
    left_out: float


class ChunkReader:
    """Cuts continuations into the chunks that two tokenizers have in common.

    Where the teacher came to its end, the token that says so is the last chunk: it is another
    token in each model, but says the same.

    Args:
        source: A fast one, with a token for the end of text.
        target: Likewise.

    Raises:
        ModelError: a tokenizer is not a fast one.
    """

    def __init__(self, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase) -> None:
        self._readers = TokenEndReader(source), TokenEndReader(target)
        self._ends = int(source.eos_token_id), int(target.eos_token_id)

    def read(self, written: Sequence[Continuation]) -> list[ChunkedText]:
        """Return the chunks of each continuation; there may be none."""
        texts = [each.prompt + each.text for each in written]
        source, target = (reader.read(texts) for reader in self._readers)
        return [self._chunked(*row) for row in zip(written, source, target, strict=True)]

    def _chunked(self, written: Continuation, source: TokenEnds, target: TokenEnds) -> ChunkedText:
        start, size = len(written.prompt.encode()), len(written.text.encode())
        ends = [end for end in source.places if end >= start and end in target.places]
        if not ends:
            return ChunkedText(ChunkTokens([], [0]), ChunkTokens([], [0]), 1.0)
        sides = [
            self._side(read, ends, end_token if written.ended else None)
            for read, end_token in zip((source, target), self._ends, strict=True)
        ]
        left_out = 1 - (ends[-1] - ends[0]) / size if size else 0.0
        return ChunkedText(sides[0], sides[1], left_out)

    @staticmethod
    def _side(read: TokenEnds, ends: Sequence[int], end_token: int | None) -> ChunkTokens:
        """Return what one tokenizer reads up to the last common end, and the end of text."""
        bounds = [read.places[end] for end in ends]
        ids = list(read.input_ids[: bounds[-1] + 1])
        if end_token is None:
            return ChunkTokens(ids, bounds)
        return ChunkTokens([*ids, end_token], [*bounds, bounds[-1] + 1])


def batch_chunk_likelihoods(
    base: BaseModel, rows: Sequence[ChunkTokens]
) -> Float[Tensor, "rows chunks"]:
    """Return the log-likelihood of each chunk, in one forward pass, in float32.

    It is the sum over the chunk's tokens, given all tokens before them, in nats; 0 where a row
    has no more chunks. Gradients flow to whatever in the network takes them. Logits are taken at
    the positions of chunks only.

    Args:
        base: The model, with what is attached to it.
        rows: What it reads; at least one chunk each.
    """
    network, device = base.network, base.network.device
    pad = int(base.tokenizer.pad_token_id)
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
    """Return the sum over each chunk's tokens.

    Args:
        tokens: A number a token; those of a row's chunks stand at its end.
        rows: The chunks.
    """
    most = max(row.chunks for row in rows)
    # What stands before a row's chunks goes to a column that is cut off.
    owners = torch.full(tokens.shape, most, dtype=torch.long)
    for place, row in enumerate(rows):
        sizes = torch.tensor(row.bounds).diff()
        owners[place, tokens.shape[1] - row.predicted :] = torch.arange(
            row.chunks
        ).repeat_interleave(sizes)
    sums = tokens.new_zeros(len(rows), most + 1)
    return sums.scatter_add(1, owners.to(tokens.device), tokens)[:, :most]


def row_batches(rows: Sequence[ChunkTokens], tokens: int = 4096) -> Iterator[list[int]]:
    """Give the places of rows that go through a model together, longest first.

    Args:
        rows: At least one chunk each.
        tokens: Tokens a batch at most, padding included, unless a row alone has more.
    """
    order = sorted(range(len(rows)), key=lambda place: -len(rows[place].input_ids))
    while order:
        length, count, predicted = len(rows[order[0]].input_ids), 0, 0
        for place in order:
            predicted = max(predicted, rows[place].predicted)
            over = (count + 1) * length > tokens or (count + 1) * predicted > LOGIT_POSITIONS
            if count and over:
                break
            count += 1
        yield order[:count]
        order = order[count:]


@torch.inference_mode()
def chunk_likelihoods(base: BaseModel, rows: Sequence[ChunkTokens]) -> list[Float[Tensor, " _"]]:
    """Return the log-likelihood of each chunk of each row, in float32 on the CPU.

    Args:
        base: The model, with what is attached to it.
        rows: What it reads; at least one chunk each.
    """
    found: dict[int, Tensor] = {}
    for places in row_batches(rows):
        chosen = [rows[place] for place in places]
        sums = batch_chunk_likelihoods(base, chosen).cpu()
        for place, row, each in zip(places, chosen, sums, strict=True):
            found[place] = each[: row.chunks].clone()
    return [found[place] for place in range(len(rows))]


# How far the chunk likelihoods of two models are apart.

# So near to 1 float32 no longer holds 1 - p; gradients stop there.
_SUREST = -1e-6


def binary_divergence(
    teacher: Float[Tensor, "*shape"], student: Float[Tensor, "*shape"], temperature: float
) -> Float[Tensor, "*shape"]:
    """Return the Kullback-Leibler divergence between "this chunk" and "any other one".

    Each chunk likelihood p gives the distribution ``(p**(1/temperature), 1 - p**(1/temperature))``.
    The divergence falls as 1 / temperature where that is high, so it is multiplied by it; the
    strength of the gradient then hardly depends on the temperature. With a temperature near
    infinity it is ``a log(a / b) - a + b``, where a and b are the negative log-likelihoods: the
    likelihoods of chunks of any length are matched. At 1 only likely chunks count.

    Args:
        teacher: Log-likelihoods, in nats.
        student: Log-likelihoods of the same chunks.
        temperature: At least 1.

    Source: Minixhofer et al., 2025 (arXiv 2503.20083), approximate likelihood matching with the
    KL divergence; their code has the temperature 100.
    """
    log_p = (teacher / temperature).clamp(max=_SUREST)
    log_q = (student / temperature).clamp(max=_SUREST)
    other_p, other_q = (torch.log(-torch.expm1(x)) for x in (log_p, log_q))
    same = log_p.exp() * (log_p - log_q)
    return temperature * (same + other_p.exp() * (other_p - other_q))


class ChunkAgreement(NamedTuple):
    """How alike two models find the same continuations.

    Attributes:
        gap: Mean absolute difference of the log-likelihoods of a chunk, in nats.
        divergence: Mean binary divergence of a chunk at temperature 1, in nats.
        cross_entropy: Mean negative log-likelihood that the student gives to a chunk of what
            the teacher wrote, in nats.
        chunks: Over how many chunks.
    """

    gap: float
    divergence: float
    cross_entropy: float
    chunks: int

    @classmethod
    def of(
        cls,
        teacher: Sequence[Float[Tensor, " _"]],
        student: Sequence[Float[Tensor, " _"]],
    ) -> "ChunkAgreement":
        """Compare the log-likelihoods of the chunks of some texts, at least one."""
        expected, found = torch.cat(list(teacher)).double(), torch.cat(list(student)).double()
        return cls(
            float((expected - found).abs().mean()),
            float(binary_divergence(expected, found, 1.0).mean()),
            float(-found.mean()),
            len(found),
        )


# What the teacher writes behind prompts, and how likely it finds each chunk of it.


class TeacherGeneration(NamedTuple):
    """A prompt, what the teacher wrote behind it, and how likely it found that.

    Attributes:
        written: Prompt and continuation.
        source: Both as the source's tokenizer reads them.
        target: As the target's does, in the same chunks.
        expected: Log-likelihood of each chunk under the source with its adapter, in nats.
        excess: By how much that is more than under the source alone.
        left_out: Share of the continuation's bytes that are in no chunk.
    """

    written: Continuation
    source: ChunkTokens
    target: ChunkTokens
    expected: Float[Tensor, " _"]
    excess: Float[Tensor, " _"]
    left_out: float

    @property
    def mean_excess(self) -> float:
        """Mean excess of a chunk: how much the adapter has to do with this text."""
        return float(self.excess.mean())


@dataclass(frozen=True)
class TeacherGenerations:
    """The texts that can be learned from, and how many cannot.

    Attributes:
        texts: The texts, in the order of their prompts.
        empty: Prompts behind which the teacher wrote nothing.
        unaligned: Prompts whose continuation has no chunk that both tokenizers share.
    """

    texts: tuple[TeacherGeneration, ...]
    empty: int
    unaligned: int


def teacher_generations(
    teacher: Teacher,
    target: BaseModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 48,
    cache: Path | None = None,
    progress: RefinementProgress = silent,
) -> TeacherGenerations:
    """Let the teacher write behind each prompt, and ask it how likely it finds its chunks.

    Args:
        teacher: Who writes.
        target: The model whose tokenizer has a part in what a chunk is.
        prompts: What the teacher reads.
        max_new_tokens: Tokens a continuation at most.
        cache: Folder of what is kept, so that a stopped run goes on; None keeps nothing.
        progress: Is told how far the work is.

    Raises:
        DataError: the teacher writes nothing, or the same behind every prompt.
    """
    base, adapter = teacher.base, teacher.adapter
    every = continuations(
        base,
        adapter,
        prompts,
        max_new_tokens=max_new_tokens,
        cache=cache,
        step="the teacher writes",
        progress=progress,
    )
    written = [each for each in every if each.text.strip()]
    _check(written, len(every), base.name)
    chunked = ChunkReader(base.tokenizer, target.tokenizer).read(written)
    both = [each for each in zip(written, chunked, strict=True) if each[1].source.chunks]
    rows = [text.source for _, text in both]
    expected, alone = (
        _likelihoods(base, acting, rows, cache, step, progress)
        for acting, step in (
            (adapter, "the teacher reads what it wrote"),
            (None, "the source alone reads it"),
        )
    )
    texts = [
        TeacherGeneration(each, text.source, text.target, taught, taught - bare, text.left_out)
        for (each, text), taught, bare in zip(both, expected, alone, strict=True)
    ]
    return TeacherGenerations(tuple(texts), len(every) - len(written), len(written) - len(both))


def most_telling(texts: Sequence[TeacherGeneration], count: int) -> list[TeacherGeneration]:
    """Return the texts with the highest mean excess, in the order they had.

    Source: TiTok (arXiv 2510.04682), selection of samples.
    """
    ranked = sorted(range(len(texts)), key=lambda place: -texts[place].mean_excess)
    return [texts[place] for place in sorted(ranked[:count])]


def kept_chunks(excess: Float[Tensor, " chunks"], keep: float) -> Bool[Tensor, " chunks"]:
    """Return which chunks of a text are learned from: the share with the highest excess.

    At least one is.

    Source: TiTok (arXiv 2510.04682), selection of tokens; here of chunks.
    """
    count = max(1, round(keep * len(excess)))
    kept = torch.zeros(len(excess), dtype=torch.bool)
    kept[excess.sort(descending=True, stable=True).indices[:count]] = True
    return kept


def _check(written: Sequence[Continuation], asked: int, name: str) -> None:
    """Refuse a teacher of whom nothing can be learned."""
    if asked and not written:
        raise DataError(
            f"{name} with its adapter writes nothing behind any of {asked} prompts; distillation "
            "takes what it writes: give the prompt.template that the adapter was trained with, "
            "and prompt.labels if it chooses among some"
        )
    if len(written) > 1 and len({each.text for each in written}) == 1:
        raise DataError(
            f"{name} with its adapter writes {written[0].text[:60]!r} behind each of "
            f"{len(written)} prompts; distillation takes answers that differ: check "
            "prompt.template, and that the adapter belongs to this model"
        )


def _likelihoods(
    base: BaseModel,
    adapter: LoraAdapter | None,
    rows: Sequence[ChunkTokens],
    cache: Path | None,
    step: str,
    progress: RefinementProgress,
) -> list[Float[Tensor, " _"]]:
    """Return the log-likelihood of each chunk, kept in portions."""
    parts = [rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS)]
    acting = "no adapter" if adapter is None else adapter.content_hash()
    key_parts = [base.fingerprint, acting, str(base.network.dtype), _ROWS, rows]
    folder = cache_folder(cache, "chunk_likelihoods", key_parts)

    def work(part: Sequence[ChunkTokens]) -> list[list[float]]:
        return [each.tolist() for each in chunk_likelihoods(base, part)]

    with attached(base.network, adapter):
        made = in_shards(folder, parts, work, step=step, progress=progress)
    return [torch.tensor(row) for portion in made for row in portion]
