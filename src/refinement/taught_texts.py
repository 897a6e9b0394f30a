"""What the teacher writes behind prompts, and how likely it finds each chunk of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..adapters import LoraAdapter
from ..exceptions import DataError
from ..models.attach import attached
from ..models.base import BaseModel
from .base import Progress, Teacher, silent
from .cache_folder import cache_folder
from .chunk_likelihoods import ChunkReader, ChunkTokens, chunk_likelihoods
from .continuations import Continuation, continuations
from .portions import in_portions

_ROWS = 32  # of a portion


class TaughtText(NamedTuple):
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
class Taught:
    """The texts that can be learned from, and how many cannot.

    Attributes:
        texts: The texts, in the order of their prompts.
        empty: Prompts behind which the teacher wrote nothing.
        unaligned: Prompts whose continuation has no chunk that both tokenizers share.
    """

    texts: tuple[TaughtText, ...]
    empty: int
    unaligned: int


def taught_texts(
    teacher: Teacher,
    target: BaseModel,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 48,
    cache: Path | None = None,
    progress: Progress = silent,
) -> Taught:
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
        TaughtText(each, text.source, text.target, taught, taught - bare, text.left_out)
        for (each, text), taught, bare in zip(both, expected, alone, strict=True)
    ]
    return Taught(tuple(texts), len(every) - len(written), len(written) - len(both))


def most_telling(texts: Sequence[TaughtText], count: int) -> list[TaughtText]:
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
    progress: Progress,
) -> list[Float[Tensor, " _"]]:
    """Return the log-likelihood of each chunk, kept in portions."""
    parts = [rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS)]
    acting = "no adapter" if adapter is None else adapter.content_hash()
    made_of = [base.fingerprint, acting, str(base.network.dtype), _ROWS, rows]
    folder = cache_folder(cache, "chunk_likelihoods", made_of)

    def work(part: Sequence[ChunkTokens]) -> list[list[float]]:
        return [each.tolist() for each in chunk_likelihoods(base, part)]

    with attached(base.network, adapter):
        made = in_portions(folder, parts, work, step=step, progress=progress)
    return [torch.tensor(row) for portion in made for row in portion]
