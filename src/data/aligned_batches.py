"""Aligned texts in batches: of like length together, padded when they are asked for."""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from .aligned_batch import AlignedBatch, TokenBatch


class AlignedText(NamedTuple):
    """One text as both models read it; of the text itself only the tokens are kept.

    Attributes:
        source_ids: The source's tokens.
        target_ids: The target's tokens.
        source_places: Places of the source's aligned tokens.
        target_places: Places of the target's aligned tokens, one by one the same ends.
        document: The text's number in its split.
    """

    source_ids: NDArray[np.int32]
    target_ids: NDArray[np.int32]
    source_places: NDArray[np.int32]
    target_places: NDArray[np.int32]
    document: int


class AlignedBatches(Dataset[AlignedBatch]):
    """Prepared batches in a fixed order, padded when they are asked for.

    A map, not a stream, so that each of several processes can take its own batches.

    Args:
        texts: What the batches are made of.
        batch_tokens: Tokens a batch at most on either side, padding included; a text that is
            longer goes alone.
        padding: The padding tokens of source and target.
        seed: Of the order of the batches; their texts are of like length.
    """

    def __init__(
        self,
        texts: Sequence[AlignedText],
        batch_tokens: int,
        padding: tuple[int, int],
        seed: str,
    ) -> None:
        self.texts, self.padding = texts, padding
        self.batches = list(_length_batches(texts, batch_tokens))
        random.Random(seed).shuffle(self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, item: int) -> AlignedBatch:
        texts = [self.texts[place] for place in self.batches[item]]
        source = _padded([text.source_ids for text in texts], self.padding[0])
        target = _padded([text.target_ids for text in texts], self.padding[1])
        documents = [np.full(len(text.source_places), text.document) for text in texts]
        return AlignedBatch(
            source,
            target,
            _flat([text.source_places for text in texts], source.input_ids.shape[1]),
            _flat([text.target_places for text in texts], target.input_ids.shape[1]),
            torch.from_numpy(np.concatenate(documents)),
        )


def _length_batches(texts: Sequence[AlignedText], tokens: int) -> Iterator[list[int]]:
    """Yield the places of texts in batches of like length, longest first.

    Padded to its longest text, a batch has at most so many tokens on either side.
    """
    lengths = [(len(text.source_ids), len(text.target_ids)) for text in texts]
    order = sorted(range(len(texts)), key=lambda place: (-max(lengths[place]), place))
    batch: list[int] = []
    longest = 0
    for place in order:
        longest = max(longest, *lengths[place])
        if batch and (len(batch) + 1) * longest > tokens:
            yield batch
            batch, longest = [], max(lengths[place])
        batch.append(place)
    if batch:
        yield batch


def _padded(rows: Sequence[NDArray[np.int32]], padding: int) -> TokenBatch:
    """Return the rows padded at the right."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), padding)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.from_numpy(row)
    return TokenBatch(ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long())


def _flat(places: Sequence[NDArray[np.int32]], width: int) -> Int[Tensor, " anchors"]:
    """Return the places within rows of a width as places in the flattened batch."""
    rows = [row * width + of_row.astype(np.int64) for row, of_row in enumerate(places)]
    return torch.from_numpy(np.concatenate(rows))
