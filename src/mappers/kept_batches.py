"""Aligned batches of text that a mapper keeps in its checkpoint."""

from collections.abc import Sequence

from torch import Tensor

from ..data.aligned_batch import AlignedBatch, TokenBatch

PlainBatch = dict[str, Tensor]
"""A batch as a checkpoint holds it: its tensors by name."""


class KeptBatches:
    """The first batches that come in, until they hold enough aligned tokens.

    Args:
        tokens: So many.

    Attributes:
        batches: What has been kept.
    """

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self.batches: list[AlignedBatch] = []

    @property
    def tokens(self) -> int:
        """Aligned tokens that have been kept."""
        return sum(len(batch.documents) for batch in self.batches)

    def offer(self, batch: AlignedBatch) -> None:
        """Keep a batch, its last aligned tokens left out where they are too many."""
        missing = self._tokens - self.tokens
        if missing > 0:
            source, target = (
                TokenBatch(*(tensor.cpu() for tensor in side))
                for side in (batch.source, batch.target)
            )
            # Copied, so that a checkpoint does not hold what they are a part of.
            places, targets, documents = (
                part[:missing].cpu().clone()
                for part in (batch.source_places, batch.target_places, batch.documents)
            )
            self.batches.append(AlignedBatch(source, target, places, targets, documents))

    def state(self) -> list[PlainBatch]:
        """Return the batches as plain tensors."""
        return [
            {
                "source_ids": batch.source.input_ids,
                "source_mask": batch.source.attention_mask,
                "target_ids": batch.target.input_ids,
                "target_mask": batch.target.attention_mask,
                "source_places": batch.source_places,
                "target_places": batch.target_places,
                "documents": batch.documents,
            }
            for batch in self.batches
        ]

    def restore(self, state: Sequence[PlainBatch]) -> None:
        """Take back what :meth:`state` returned."""
        self.batches = [
            AlignedBatch(
                TokenBatch(plain["source_ids"], plain["source_mask"]),
                TokenBatch(plain["target_ids"], plain["target_mask"]),
                plain["source_places"],
                plain["target_places"],
                plain["documents"],
            )
            for plain in state
        ]
