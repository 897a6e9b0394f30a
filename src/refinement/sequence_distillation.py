"""Distillation of an adapter that writes freely, across tokenizers: no labels, no common logits.

The teacher continues prompts made of texts; its continuations are cut into the chunks that both
tokenizers share (:mod:`.teacher_generations`); the student matches the teacher's likelihood of
each chunk (:class:`SequenceStudent`).
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from statistics import fmean
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..adapters import LoraAdapter
from ..data.corpora import TRAIN, VALIDATION, TextSource
from ..data.prompts import seeded_batches
from ..exceptions import DataError
from ..models.loading import BaseModel
from .base import Distillation, DistillationInputs, Refined, RefinementReport, distinct
from .teacher_generations import (
    ChunkTokens,
    TeacherGeneration,
    TeacherGenerations,
    batch_chunk_likelihoods,
    chunk_likelihoods,
    highest_excess,
    kept_chunks,
    teacher_generations,
)
from .trainer import Student, TrainingResult, train_student

_LEAST_TEXTS = 2
_MUCH_LEFT_OUT = 0.05  # share of bytes in no chunk from which on a note says so

# How far the chunk likelihoods of two models are apart.

_SUREST = -1e-6
"""Log-likelihoods are capped here: nearer to 0 float32 no longer holds 1 - p."""


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
        teacher: Log-likelihoods of chunks, in nats.
        student: Those of the same chunks.
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
    """How alike the likelihoods are that two models give to the same chunks, in nats.

    Attributes:
        gap: Mean absolute difference of the log-likelihoods of a chunk.
        divergence: Mean binary divergence of a chunk at temperature 1.
        cross_entropy: Mean negative log-likelihood that the student gives to a chunk.
        chunks: Number of chunks.
    """

    gap: float
    divergence: float
    cross_entropy: float
    chunks: int

    @classmethod
    def between(
        cls, teacher: Sequence[Float[Tensor, " _"]], student: Sequence[Float[Tensor, " _"]]
    ) -> "ChunkAgreement":
        """Compare the log-likelihoods of the chunks of some texts, at least one."""
        expected, actual = torch.cat(list(teacher)).double(), torch.cat(list(student)).double()
        return cls(
            float((expected - actual).abs().mean()),
            float(binary_divergence(expected, actual, 1.0).mean()),
            float(-actual.mean()),
            len(actual),
        )

    @classmethod
    def of(cls, base: BaseModel, texts: Sequence[TeacherGeneration]) -> "ChunkAgreement":
        """Compare a model, with what is attached to it, with the teacher on texts."""
        student = chunk_likelihoods(base, [text.chunks.target for text in texts])
        return cls.between([text.expected for text in texts], student)


# The student.


class ChunkBatch(NamedTuple):
    """What the student reads, the teacher's log-likelihood of each chunk, and which ones count."""

    rows: list[ChunkTokens]
    expected: Float[Tensor, "rows chunks"]
    kept: Bool[Tensor, "rows chunks"]

    @classmethod
    def of(cls, texts: Sequence[TeacherGeneration], keep: float) -> "ChunkBatch":
        """Gather texts, of whose chunks the share ``keep`` with the highest excess is kept."""
        pad = torch.nn.utils.rnn.pad_sequence
        kept = pad([kept_chunks(text.excess, keep) for text in texts], batch_first=True)
        expected = pad([text.expected for text in texts], batch_first=True)
        return cls([text.chunks.target for text in texts], expected, kept)


class SequenceStudent(Student):
    """Learns the teacher's chunk likelihoods, and to write what the teacher wrote.

    The loss is the mean over the kept chunks of :func:`binary_divergence`, plus ``ce_weight``
    times that of their negative log-likelihood, which is sequence-level distillation (Kim and
    Rush, 2016, arXiv 1606.07947).

    ``tau`` is the divergence's temperature; ``options`` are those of :class:`Student`.
    """

    def __init__(
        self, base: BaseModel, start: LoraAdapter, *, tau: float, ce_weight: float, **options: Any
    ) -> None:
        super().__init__(base, start, **options)
        self.tau, self.ce_weight = tau, ce_weight
        self.key_parts += [tau, ce_weight]

    def loss(self, batch: ChunkBatch) -> Float[Tensor, ""]:
        """Return the mean loss of a chunk that is kept."""
        actual = batch_chunk_likelihoods(self.base, batch.rows)
        expected = batch.expected.to(actual)
        losses = binary_divergence(expected, actual, self.tau) - self.ce_weight * actual
        return losses[batch.kept.to(actual.device)].mean()


# The refinement.


@dataclass(frozen=True, kw_only=True)
class SequenceDistillation(Distillation):
    """Teaches the target to write what the source with its adapter writes.

    Of a pool of texts those are learned from to which the adapter contributes most, and of each
    text the chunks.

    Attributes:
        texts: Number of texts to learn from.
        tau: Temperature of the likelihoods, at least 1; that of the authors' code is 100.
        ce_weight: Weight of the plain negative log-likelihood of what the teacher wrote.
        keep: Share of the chunks of each text that is learned from, those with the highest
            excess. All by default: a chunk that the source finds likely without its adapter may
            be news to the target. On the tiny pair 0.7 keeps the form of an answer and loses its
            content.
        max_new_tokens: Tokens that the teacher writes at most.

    Source: approximate likelihood matching (Minixhofer et al., 2025, arXiv 2503.20083); choice
    of texts and chunks as TiTok's (2025, arXiv 2510.04682).
    """

    name: ClassVar[str] = "sequence_distillation"
    data_access: ClassVar[str] = "generic text"
    needs_texts: ClassVar[bool] = True

    texts: int = 128
    pool: int = 192
    held_out: int = 32
    epochs: int = 2
    checks: int = 4
    tau: float = 100.0
    ce_weight: float = 0.3
    keep: float = 1.0
    max_new_tokens: int = 48

    def refine(self, start: LoraAdapter, data: DistillationInputs) -> Refined:
        """Distil on the inputs of the task where there are some, otherwise on generic texts.

        Stopped, and called again with the same store, it goes on.
        """
        if data.inputs:
            # A quarter at most is held out, as inputs of the task are scarce.
            count = len(data.inputs) - min(self.held_out, len(data.inputs) // 4)
            texts, held_out = list(data.inputs[:count]), list(data.inputs[count:])
        else:
            texts = _first(data.texts, TRAIN, max(self.texts, self.pool))
            held_out = _first(data.texts, VALIDATION, self.held_out)
        prompts = dict.fromkeys(distinct(map(data.prompt_spec.ask, texts)))
        every = list(distinct([*prompts, *map(data.prompt_spec.ask, held_out)]))
        generations = teacher_generations(data, every, self.max_new_tokens)
        pool = [text for text in generations.texts if text.written.prompt in prompts]
        aside = [text for text in generations.texts if text.written.prompt not in prompts]
        chosen = highest_excess(pool, self.texts)
        if len(chosen) < _LEAST_TEXTS:
            raise DataError(
                f"of {len(texts)} texts {len(chosen)} can be learned from, but it takes at least "
                f"{_LEAST_TEXTS}: after {generations.empty} the teacher wrote nothing, and of "
                f"{generations.unaligned} continuations the tokenizers share no chunk; set "
                "paths.corpus to one of more texts, give more inputs, or correct prompt.template"
            )
        options = {"seed": data.seed, "lr": self.lr, "warmup_steps": self.warmup_steps}
        options |= {"tau": self.tau, "ce_weight": self.ce_weight}
        epochs = {"batch_size": self.batch_size, "epochs": self.epochs, "seed": data.seed}
        batches = seeded_batches([len(text.chunks.target.input_ids) for text in chosen], **epochs)
        compare = partial(ChunkAgreement.of, data.target, aside) if aside else None
        with closing(SequenceStudent(data.target, start, **options)) as student:
            before = compare() if compare else None
            result = train_student(
                student,
                [ChunkBatch.of([chosen[row] for row in rows], self.keep) for rows in batches],
                store=data.store,
                measure=(lambda: compare().gap) if compare else None,
                measured_on=[[text.chunks.target, text.expected] for text in aside],
                start_value=before.gap if before else None,
                checks=self.checks,
                step="the student learns to write",
                progress=data.progress,
            )
            after = compare() if compare else None
            adapter = student.adapter()
        report = self._report(generations, pool, chosen, result) | {
            "held_out": len(aside),
            "agreement_before": before._asdict() if before else None,
            "agreement_after": after._asdict() if after else None,
        }
        if not aside:
            report["notes"] += [
                "no text was held out, so that agreement with the teacher is not known"
            ]
        return Refined(adapter, report)

    def _report(
        self,
        generations: TeacherGenerations,
        pool: Sequence[TeacherGeneration],
        chosen: Sequence[TeacherGeneration],
        result: TrainingResult,
    ) -> RefinementReport:
        """Return what was learned from, and the training; excess is in nats a chunk."""
        left_out = fmean(text.chunks.left_out for text in chosen)
        ended = fmean(text.written.ended for text in chosen)
        notes = []
        if len(chosen) < self.texts:
            notes.append(f"{len(chosen)} texts could be learned from, of {self.texts} asked for")
        if generations.empty:
            notes.append(f"after {generations.empty} prompts the teacher wrote nothing")
        if left_out > _MUCH_LEFT_OUT:
            notes.append(
                f"{left_out:.0%} of what the teacher wrote is in no chunk that both "
                "tokenizers have; a prompt.template that ends in a word, not in a space, avoids it"
            )
        if not ended:
            notes.append(
                f"the teacher never came to its end within {self.max_new_tokens} tokens, so that "
                "the student has not learned where to stop"
            )
        return {
            "method": self.name,
            "options": asdict(self),
            "texts": len(chosen),
            "pool": len(pool),
            "empty": generations.empty,
            "unaligned": generations.unaligned,
            "chunks": sum(text.chunks.source.chunks for text in chosen),
            "left_out": left_out,
            "ended": ended,
            "excess": fmean(text.mean_excess for text in chosen),
            "excess_of_pool": fmean(text.mean_excess for text in pool),
            "steps": result.steps,
            "best_step": result.best_step,
            "measured": {str(step): value for step, value in result.measured.items()},
            "seconds": result.seconds,
            "notes": notes,
        }


def _first(source: TextSource | None, split: str, count: int) -> list[str]:
    return [] if source is None else list(islice(distinct(source.texts(split)), count))
