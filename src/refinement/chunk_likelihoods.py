"""How likely a model finds the chunks of a continuation that two tokenizers have in common.

Two tokenizers cut a continuation at different bytes. Between neighbouring bytes at which a token
of each ends lies a chunk: the same bytes for both, one or more whole tokens for either, so that
its likelihoods under two models can be compared.

Source: approximate likelihood matching, Minixhofer et al., 2025 (arXiv 2503.20083), section 3.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.answers import left_padded, positions
from ..data.token_alignment import TokenEndReader, TokenEnds
from ..models.base import BaseModel
from ..models.logits import LOGIT_POSITIONS, last_logits
from .continuations import Continuation


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
