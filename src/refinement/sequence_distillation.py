"""Distilling an adapter that writes freely, across tokenizers: no labels, no logits to share."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar

import torch

from ..adapters import LoraAdapter
from ..data.shuffled_batches import seeded_batches
from ..data.text_source import TRAIN, VALIDATION
from ..exceptions import ConfigurationError, DataError
from .base import Lesson, Refined, Refinement
from .cache_folder import cache_folder
from .chunk_likelihoods import chunk_likelihoods
from .exercises import distinct
from .likelihood_matching import ChunkAgreement
from .sequence_report import SequenceFindings
from .sequence_student import ChunkBatch, SequenceStudent
from .student_training import Course, train_student
from .taught_texts import TaughtText, most_telling, taught_texts

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

    information_class: ClassVar[str] = "generic text"

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

    def refine(self, start: LoraAdapter, lesson: Lesson) -> Refined:
        """Distil with the lesson's inputs where it has some, and else with its generic texts."""
        if lesson.inputs:
            # A quarter at most, as inputs of the task are dear.
            held_out = min(self.held_out, len(lesson.inputs) // 4)
            count = len(lesson.inputs) - held_out
            return self.distil(start, lesson, lesson.inputs[:count], lesson.inputs[count:])
        if lesson.texts is None:
            raise DataError(
                "sequence distillation has neither texts nor inputs, but the teacher has to read "
                "something; set paths.corpus to a corpus, or give unlabelled inputs"
            )
        learned, held_out_texts = (
            list(islice(distinct(lesson.texts.texts(split)), count))
            for split, count in ((TRAIN, self.pool), (VALIDATION, self.held_out))
        )
        return self.distil(start, lesson, learned, held_out_texts)

    def distil(
        self, start: LoraAdapter, lesson: Lesson, texts: Sequence[str], held_out: Sequence[str]
    ) -> Refined:
        """Distil with given texts.

        Args:
            start: The adapter to begin from.
            lesson: Teacher, target, question, cache and seed; its texts are not looked at.
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
            list(distinct(map(lesson.question.ask, part))) for part in (texts, held_out)
        )
        taught = taught_texts(
            lesson.teacher,
            lesson.target,
            list(distinct([*prompts, *apart])),
            max_new_tokens=self.max_new_tokens,
            cache=lesson.cache,
            progress=lesson.progress,
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
        options = {"seed": lesson.seed, "lr": self.lr}
        student = SequenceStudent(
            lesson.target, start, tau=self.tau, ce_weight=self.ce_weight, **options
        )
        with closing(student):
            before = _agreement(student, kept_apart)
            course = self._train(student, chosen, kept_apart, start, lesson)
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
            course,
        )
        named = {"method": "sequence_distillation", "options": asdict(self)}
        return Refined(adapter, named | findings.report())

    def _train(
        self,
        student: SequenceStudent,
        chosen: Sequence[TaughtText],
        held_out: Sequence[TaughtText],
        start: LoraAdapter,
        lesson: Lesson,
    ) -> Course:
        places = seeded_batches(
            [len(text.target.input_ids) for text in chosen],
            batch_size=self.batch_size,
            epochs=self.epochs,
            seed=lesson.seed,
        )
        batches = [ChunkBatch.of([chosen[place] for place in batch], self.keep) for batch in places]

        def measure() -> float:
            agreement = _agreement(student, held_out)
            return float("inf") if agreement is None else agreement.gap

        return train_student(
            student,
            batches,
            self._folder(chosen, held_out, start, lesson),
            measure=measure if held_out else None,
            checks=self.checks,
            step="the student learns to write",
            progress=lesson.progress,
        )

    def _folder(
        self,
        chosen: Sequence[TaughtText],
        held_out: Sequence[TaughtText],
        start: LoraAdapter,
        lesson: Lesson,
    ) -> Path | None:
        """Return where the unfinished training is kept, named by all that it depends on."""
        made_of = [
            [type(self).__name__, asdict(self), lesson.seed],
            [lesson.teacher.base.fingerprint, lesson.teacher.adapter.content_hash()],
            [lesson.target.fingerprint, start.content_hash()],
            [[text.written for text in part] for part in (chosen, held_out)],
        ]
        return cache_folder(lesson.cache, "students", made_of)


@torch.no_grad()
def _agreement(student: SequenceStudent, texts: Sequence[TaughtText]) -> ChunkAgreement | None:
    """Compare the student with its teacher; None where there is nothing to compare by."""
    if not texts:
        return None
    found = chunk_likelihoods(student.base, [text.target for text in texts])
    return ChunkAgreement.of([text.expected for text in texts], found)
