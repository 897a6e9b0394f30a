"""A student that learns to find what its teacher wrote as likely as the teacher does."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..adapters import LoraAdapter
from ..data.corpora import TRAIN, VALIDATION
from ..data.prompts import seeded_batches
from ..exceptions import ConfigurationError, DataError
from ..models.loading import BaseModel
from .base import DistillationInputs, Refined, Refinement, RefinementReport, cache_folder, distinct
from .teacher_generations import (
    ChunkAgreement,
    ChunkTokens,
    TeacherGeneration,
    TeacherGenerations,
    batch_chunk_likelihoods,
    binary_divergence,
    chunk_likelihoods,
    kept_chunks,
    most_telling,
    teacher_generations,
)
from .trainer import Student, TrainingResult, train_student


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
    def of(cls, texts: Sequence[TeacherGeneration], keep: float) -> "ChunkBatch":
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


# What a sequence distillation says of itself.

_MUCH = 0.05  # share of bytes in no chunk from which on it is said


class SequenceFindings(NamedTuple):
    """What was found on the way.

    Attributes:
        asked: Texts to learn from that were asked for.
        max_new_tokens: Tokens that the teacher could write at most.
        taught: Of pool and held-out texts.
        pool: The texts that could have been learned from.
        chosen: Those that were.
        held_out: Those by which agreement was measured.
        before: Agreement of the start with the teacher; None where no text was held out.
        after: That of the refined adapter.
        result: The training.
    """

    asked: int
    max_new_tokens: int
    taught: TeacherGenerations
    pool: Sequence[TeacherGeneration]
    chosen: Sequence[TeacherGeneration]
    held_out: Sequence[TeacherGeneration]
    before: ChunkAgreement | None
    after: ChunkAgreement | None
    result: TrainingResult

    @property
    def left_out(self) -> float:
        """Mean share of a continuation's bytes that are in no chunk."""
        return _mean([text.left_out for text in self.chosen])

    def report(self) -> RefinementReport:
        """Return the findings as plain data; excess and agreement are in nats a chunk."""
        return {
            "texts": len(self.chosen),
            "pool": len(self.pool),
            "held_out": len(self.held_out),
            "empty": self.taught.empty,
            "unaligned": self.taught.unaligned,
            "chunks": sum(text.source.chunks for text in self.chosen),
            "left_out": self.left_out,
            "ended": _mean([float(text.written.ended) for text in self.chosen]),
            "excess": _mean([text.mean_excess for text in self.chosen]),
            "excess_of_pool": _mean([text.mean_excess for text in self.pool]),
            "agreement_before": None if self.before is None else self.before._asdict(),
            "agreement_after": None if self.after is None else self.after._asdict(),
            "steps": self.result.steps,
            "best_step": self.result.best_step,
            "measured": {str(step): value for step, value in self.result.measured.items()},
            "seconds": self.result.seconds,
            "notes": self.notes(),
        }

    def notes(self) -> list[str]:
        """Return what a user should know, in words."""
        notes = []
        if len(self.chosen) < self.asked:
            notes.append(
                f"{len(self.chosen)} texts could be learned from, of {self.asked} asked for"
            )
        if self.taught.empty:
            notes.append(f"behind {self.taught.empty} prompts the teacher wrote nothing")
        if self.left_out > _MUCH:
            notes.append(
                f"{self.left_out:.0%} of what the teacher wrote is in no chunk that both "
                "tokenizers have; a prompt.template that ends in a word, not in a space, avoids it"
            )
        if not any(text.written.ended for text in self.chosen):
            notes.append(
                f"the teacher never came to its end within {self.max_new_tokens} tokens, so that "
                "the student has not learned where to stop"
            )
        if self.after is None:
            notes.append("no text was held out, so that agreement with the teacher is not known")
        return notes


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# Distilling an adapter that writes freely, across tokenizers: no labels, no logits to share.

_LEAST = 2  # texts to learn from


@dataclass(frozen=True, kw_only=True)
class SequenceDistillation(Refinement):
    """Teaches the target to write what the source with its adapter writes.

    The teacher goes on behind prompts made of texts; its continuations are cut into the chunks
    that both tokenizers have in common; the student matches the teacher's likelihood of each
    (:class:`SequenceStudent`). Of a pool of texts those are taken with which the adapter has
    most to do, and of each text the chunks.

    Attributes:
        texts: Texts to learn from.
        pool: Texts that they are chosen from.
        held_out: Texts by which agreement with the teacher is measured; never learned from.
        epochs: How often each text is seen.
        batch_size: Texts a step.
        lr: Learning rate of the student.
        tau: Temperature of the likelihoods, at least 1; that of the authors' code is 100.
        ce_weight: Weight of the plain negative log-likelihood of what the teacher wrote.
        keep: Share of the chunks of each text that is learned from, those with the highest
            excess. All by default: a chunk that the source finds likely without its adapter may
            be news to the target. On the tiny pair 0.7 keeps the form of an answer and loses its
            content.
        max_new_tokens: Tokens that the teacher writes at most.
        checks: So many times agreement is measured on the way; the best student is kept.

    Raises:
        ConfigurationError: an option is out of its range.

    Source: approximate likelihood matching (Minixhofer et al., 2025, arXiv 2503.20083); choice
    of texts and chunks as TiTok's (2025, arXiv 2510.04682).
    """

    data_access: ClassVar[str] = "generic text"

    texts: int = 128
    pool: int = 192
    held_out: int = 32
    epochs: int = 2
    batch_size: int = 8
    lr: float = 2e-3
    tau: float = 100.0
    ce_weight: float = 0.3
    keep: float = 1.0
    max_new_tokens: int = 48
    checks: int = 4

    def __post_init__(self) -> None:
        for name in ("texts", "held_out", "epochs", "batch_size", "max_new_tokens", "checks"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)}, but it takes at least 1")
        if self.pool < self.texts:
            raise ConfigurationError(
                f"pool={self.pool}, but {self.texts} texts are to be chosen from it; it takes at "
                "least as many as texts"
            )
        if not 0 < self.keep <= 1:
            raise ConfigurationError(f"keep={self.keep}, but it takes a share above 0, up to 1")
        if self.tau < 1 or self.ce_weight < 0 or self.lr <= 0:
            raise ConfigurationError(
                f"tau={self.tau}, ce_weight={self.ce_weight}, lr={self.lr}, but they take at "
                "least 1, at least 0, and more than 0"
            )

    def refine(self, start: LoraAdapter, distillation_inputs: DistillationInputs) -> Refined:
        """Distil with the lesson's inputs where it has some, and else with its generic texts."""
        if distillation_inputs.inputs:
            # A quarter at most, as inputs of the task are dear.
            held_out = min(self.held_out, len(distillation_inputs.inputs) // 4)
            count = len(distillation_inputs.inputs) - held_out
            return self.distil(
                start,
                distillation_inputs,
                distillation_inputs.inputs[:count],
                distillation_inputs.inputs[count:],
            )
        if distillation_inputs.texts is None:
            raise DataError(
                "sequence distillation has neither texts nor inputs, but the teacher has to read "
                "something; set paths.corpus to a corpus, or give unlabelled inputs"
            )
        learned, held_out_texts = (
            list(islice(distinct(distillation_inputs.texts.texts(split)), count))
            for split, count in ((TRAIN, self.pool), (VALIDATION, self.held_out))
        )
        return self.distil(start, distillation_inputs, learned, held_out_texts)

    def distil(
        self,
        start: LoraAdapter,
        distillation_inputs: DistillationInputs,
        texts: Sequence[str],
        held_out: Sequence[str],
    ) -> Refined:
        """Distil with given texts.

        Args:
            start: The adapter to begin from.
            distillation_inputs: Teacher, target, prompt, cache and seed; its texts are not used.
            texts: The pool.
            held_out: Texts to measure agreement by; without any the last student is kept.

        Raises:
            DataError: there are too few texts, or nothing can be learned of the teacher.
        """
        if len(texts) < _LEAST:
            raise DataError(
                f"sequence distillation has {len(texts)} texts to learn from, but takes at least "
                f"{_LEAST}; give a corpus with more texts, or more inputs"
            )
        prompts, apart = (
            list(distinct(map(distillation_inputs.question.ask, part)))
            for part in (texts, held_out)
        )
        taught = teacher_generations(
            distillation_inputs.teacher,
            distillation_inputs.target,
            list(distinct([*prompts, *apart])),
            max_new_tokens=self.max_new_tokens,
            cache=distillation_inputs.cache,
            progress=distillation_inputs.progress,
        )
        pool = [text for text in taught.texts if text.written.prompt in set(prompts)]
        kept_apart = [text for text in taught.texts if text.written.prompt not in set(prompts)]
        chosen = most_telling(pool, self.texts)
        if len(chosen) < _LEAST:
            raise DataError(
                f"of {len(texts)} texts {len(chosen)} can be learned from, but it takes at least "
                f"{_LEAST}: behind {taught.empty} the teacher wrote nothing, and of "
                f"{taught.unaligned} continuations the tokenizers share no chunk; give more "
                "texts, or correct prompt.template"
            )
        options = {"seed": distillation_inputs.seed, "lr": self.lr}
        student = SequenceStudent(
            distillation_inputs.target, start, tau=self.tau, ce_weight=self.ce_weight, **options
        )
        with closing(student):
            before = _agreement(student, kept_apart)
            result = self._train(student, chosen, kept_apart, start, distillation_inputs)
            after = _agreement(student, kept_apart)
            adapter = student.adapter()
        findings = SequenceFindings(
            self.texts,
            self.max_new_tokens,
            taught,
            pool,
            chosen,
            kept_apart,
            before,
            after,
            result,
        )
        named = {"method": "sequence_distillation", "options": asdict(self)}
        return Refined(adapter, named | findings.report())

    def _train(
        self,
        student: SequenceStudent,
        chosen: Sequence[TeacherGeneration],
        held_out: Sequence[TeacherGeneration],
        start: LoraAdapter,
        distillation_inputs: DistillationInputs,
    ) -> TrainingResult:
        places = seeded_batches(
            [len(text.target.input_ids) for text in chosen],
            batch_size=self.batch_size,
            epochs=self.epochs,
            seed=distillation_inputs.seed,
        )
        batches = [ChunkBatch.of([chosen[place] for place in batch], self.keep) for batch in places]

        def measure() -> float:
            agreement = _agreement(student, held_out)
            return float("inf") if agreement is None else agreement.gap

        return train_student(
            student,
            batches,
            self._folder(chosen, held_out, start, distillation_inputs),
            measure=measure if held_out else None,
            checks=self.checks,
            step="the student learns to write",
            progress=distillation_inputs.progress,
        )

    def _folder(
        self,
        chosen: Sequence[TeacherGeneration],
        held_out: Sequence[TeacherGeneration],
        start: LoraAdapter,
        distillation_inputs: DistillationInputs,
    ) -> Path | None:
        """Return where the unfinished training is kept, named by all that it depends on."""
        key_parts = [
            [type(self).__name__, asdict(self), distillation_inputs.seed],
            [
                distillation_inputs.teacher.base.fingerprint,
                distillation_inputs.teacher.adapter.content_hash(),
            ],
            [distillation_inputs.target.fingerprint, start.content_hash()],
            [[text.written for text in part] for part in (chosen, held_out)],
        ]
        return cache_folder(distillation_inputs.cache, "students", key_parts)


@torch.no_grad()
def _agreement(
    student: SequenceStudent, texts: Sequence[TeacherGeneration]
) -> ChunkAgreement | None:
    """Compare the student with its teacher; None where there is nothing to compare by."""
    if not texts:
        return None
    found = chunk_likelihoods(student.base, [text.target for text in texts])
    return ChunkAgreement.of([text.expected for text in texts], found)
