"""A student that learns to find what its teacher wrote as likely as the teacher does."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..adapters import LoraAdapter
from ..models.base import BaseModel
from .chunk_likelihoods import ChunkTokens, batch_chunk_likelihoods
from .likelihood_matching import binary_divergence
from .student import Student
from .taught_texts import TaughtText, kept_chunks


class ChunkBatch(NamedTuple):
    """Texts to learn from.

    Attributes:
        rows: What the student reads.
        expected: The teacher's log-likelihood of each chunk; 0 where a row has no more.
        kept: The chunks that are learned from.
    """

    rows: list[ChunkTokens]
    expected: Float[Tensor, "rows chunks"]
    kept: Bool[Tensor, "rows chunks"]

    @classmethod
    def of(cls, texts: Sequence[TaughtText], keep: float) -> "ChunkBatch":
        """Gather texts, of whose chunks the share ``keep`` with the highest excess is kept."""
        pad = torch.nn.utils.rnn.pad_sequence
        kept = pad([kept_chunks(text.excess, keep) for text in texts], batch_first=True)
        expected = pad([text.expected for text in texts], batch_first=True)
        return cls([text.target for text in texts], expected, kept)


class SequenceStudent(Student):
    """Matches the teacher's chunk likelihoods, and learns to write what the teacher wrote.

    The loss is the mean over the kept chunks of :func:`binary_divergence`, plus ``ce_weight``
    times that of their negative log-likelihood, which is sequence-level distillation (Kim and
    Rush, 2016, arXiv 1606.07947).

    Args:
        base: The target.
        start: The adapter to begin from.
        tau: Temperature of the divergence.
        ce_weight: Weight of the negative log-likelihood.
        options: What :class:`Student` takes besides.
    """

    def __init__(
        self, base: BaseModel, start: LoraAdapter, *, tau: float, ce_weight: float, **options: Any
    ) -> None:
        super().__init__(base, start, **options)
        self.tau, self.ce_weight = tau, ce_weight

    def loss(self, batch: ChunkBatch) -> Float[Tensor, ""]:
        """Return the mean loss of a chunk that is kept."""
        found = batch_chunk_likelihoods(self.base, batch.rows)
        expected = batch.expected.to(found)
        each = binary_divergence(expected, found, self.tau) - self.ce_weight * found
        return each[batch.kept.to(found.device)].mean()
