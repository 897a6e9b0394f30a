"""Trains an adapter that answers in a fixed style, for tests of refinement without labels."""

import re
from collections.abc import Callable, Sequence
from contextlib import closing

from jaxtyping import Float
from torch import Tensor

from loraport.adapters import LoraAdapter, Role
from loraport.data.prompts import seeded_batches
from loraport.models import BaseModel
from loraport.refinement.teacher_generations import (
    ChunkTokens,
    Continuation,
    batch_chunk_likelihoods,
    chunked,
)
from loraport.refinement.trainer import Student, train_student

from .conftest import zero_adapter


class StyleStudent(Student):
    """Learns to write given answers."""

    def loss(self, batch: list[ChunkTokens]) -> Float[Tensor, ""]:
        """Return the mean negative log-likelihood of an answer's token."""
        found = batch_chunk_likelihoods(self.base, batch)
        return -found.sum() / sum(row.predicted for row in batch)


def format_rate(texts: Sequence[str], pattern: str) -> float:
    """The share of texts that a pattern matches whole."""
    return sum(re.fullmatch(pattern, text.strip()) is not None for text in texts) / len(texts)


def style_adapter(
    base: BaseModel,
    prompts: Sequence[str],
    answer: Callable[[str], str],
    *,
    epochs: int,
    batch_size: int = 8,
    lr: float = 2e-3,
    rank: int = 8,
    roles: Sequence[Role] = (Role.Q, Role.V),
) -> LoraAdapter:
    """Return an adapter that answers each prompt by ``answer(prompt)`` and then ends."""
    written = [Continuation(prompt, answer(prompt), True) for prompt in prompts]
    rows = [text.source for text in chunked(written, base.tokenizer, base.tokenizer)]
    places = seeded_batches(
        [len(row.input_ids) for row in rows], batch_size=batch_size, epochs=epochs, seed=0
    )
    with closing(StyleStudent(base, zero_adapter(base, rank=rank, roles=roles), lr=lr)) as student:
        train_student(student, [[rows[place] for place in batch] for batch in places])
        return student.adapter()
