"""What refinements have in common that teach the target to answer by labels."""

import time
from abc import abstractmethod
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import ClassVar

from ..adapters import LoraAdapter
from ..exceptions import ConfigurationError, DataError
from .agreement import Agreement, HeldOut
from .base import Lesson, Refined, Refinement, Report
from .cache_folder import cache_folder
from .exercises import Exercises
from .generic_texts import GenericTexts
from .label_distillation import LabelStudent
from .selection import BalancedTexts, TextSelection
from .student_training import Course, train_student

_FORMAT = 1  # raise it when the same options train otherwise
_RECENT = 8  # steps over which a loss is averaged for the report


@dataclass(frozen=True, kw_only=True)
class LabelRefinement(Refinement):
    """Trains a LoRA on the target that begins from the given adapter, on texts with labels.

    A subclass says which texts. Where the question has no labels, the work is handed over to
    another refinement.

    Attributes:
        pool: So many generic texts are labelled by the teacher, and those to learn from chosen
            among them.
        selection: Which of them are chosen.
        text_chars: Generic texts are cut to so many characters where the question does not say.
        held_out: So many generic texts tell how far the student agrees with its teacher.
        epochs: How often each text is learned from; 0 keeps the given adapter.
        batch_size: Texts a step.
        lr: Learning rate.
        warmup_steps: Over which it rises.
        temperature: Of the teacher's distributions; below 1 they are sharper.
        checks: How often during training the agreement is measured; the best weights are kept.
            0 keeps the last.
        sequence: Takes over where the question has no labels.

    Raises:
        ConfigurationError: an option has a value it cannot take.
    """

    pool: int = 1024
    selection: TextSelection = field(default_factory=BalancedTexts)
    text_chars: int = 400
    held_out: int = 64
    epochs: int = 1
    batch_size: int = 8
    lr: float = 2e-3
    warmup_steps: int = 4
    temperature: float = 1.0
    checks: int = 2
    sequence: Refinement | None = None

    stops_early: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name, least)
            if value < least:
                raise ConfigurationError(f"refine.{name}={value}, but it takes {least} or more")
        for name in ("lr", "temperature"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(
                    f"refine.{name}={getattr(self, name)}, but it takes a number above 0"
                )

    @abstractmethod
    def exercises(self, lesson: Lesson) -> Exercises:
        """Return what the student learns from.

        Raises:
            DataError: the lesson lacks what is needed, or nothing can be learned from it.
        """

    def of_corpus(self, count: int) -> GenericTexts:
        """Return how so many texts of the corpus become exercises."""
        return GenericTexts(count, self.pool, self.selection, self.text_chars, self.temperature)

    def refine(self, start: LoraAdapter, lesson: Lesson) -> Refined:
        """Train the target to answer as the exercises say, and report how far it now does.

        Raises:
            DataError: the lesson lacks what is needed, or nothing can be learned from it.
            AdapterError: the start does not fit the target.
            KeyboardInterrupt: it was stopped; called again with the same cache, it goes on.
        """
        if not lesson.question.labels:
            return self._without_labels(start, lesson)
        begun = time.monotonic()
        exercises = self.exercises(lesson)
        held_out = self.of_corpus(0).held_out(lesson, self.held_out)
        student = LabelStudent(
            lesson.target,
            start,
            lesson.question,
            seed=lesson.seed,
            lr=self.lr,
            warmup_steps=self.warmup_steps,
        )
        with closing(student):
            before = None if held_out is None else held_out.agreement(lesson.target)
            course = self._train(student, exercises, held_out, before, lesson, start)
            after = None if held_out is None else held_out.agreement(lesson.target)
            report = exercises.report | _measured(before, after, held_out) | _facts(course)
            report["texts"] = len(set(exercises.texts))
            report["seconds"] = time.monotonic() - begun
            report["notes"] = [*exercises.notes, *self._notes(course, held_out)]
            return Refined(student.adapter(), report)

    def _train(
        self,
        student: LabelStudent,
        exercises: Exercises,
        held_out: HeldOut | None,
        before: Agreement | None,
        lesson: Lesson,
        start: LoraAdapter,
    ) -> Course:
        batches = student.batches(
            exercises.texts,
            exercises.targets,
            batch_size=self.batch_size,
            epochs=self.epochs,
            seed=lesson.seed,
        )
        stops = held_out if self.stops_early else None
        return train_student(
            student,
            batches,
            self._folder(exercises, stops, lesson, start),
            measure=None if stops is None else lambda: stops.agreement(lesson.target).kl,
            start_value=None if before is None else before.kl,
            checks=self.checks,
            step="distilling into the target",
            progress=lesson.progress,
        )

    def _without_labels(self, start: LoraAdapter, lesson: Lesson) -> Refined:
        if self.sequence is None:
            raise DataError(
                f"refine.{type(self).__name__} teaches answers by labels, but none are given; set "
                "prompt.labels to the words among which the adapter chooses, or refine.sequence "
                "to a refinement for adapters that write freely"
            )
        return self.sequence.refine(start, lesson)

    def _folder(
        self, exercises: Exercises, stops: HeldOut | None, lesson: Lesson, start: LoraAdapter
    ) -> Path | None:
        """Return where the unfinished training is kept: a hash of all that it depends on."""
        checked = None if stops is None else [stops.texts, stops.targets.tolist(), self.checks]
        made_of = [
            _FORMAT,
            lesson.target.fingerprint,
            start.content_hash(),
            asdict(lesson.question),
            [exercises.texts, exercises.targets.tolist()],
            checked,
            [self.epochs, self.batch_size, self.lr, self.warmup_steps, lesson.seed],
        ]
        return cache_folder(lesson.cache, "students", made_of)

    def _notes(self, course: Course, held_out: HeldOut | None) -> list[str]:
        notes = []
        if held_out is None and self.held_out > 0:
            notes.append(
                "There are no held-out generic texts, so that it is not known how far the target "
                "now answers as its teacher."
            )
        elif held_out is not None and len(held_out.texts) < self.held_out:
            notes.append(
                f"Agreement was measured on {len(held_out.texts)} texts of the {self.held_out} "
                "that were asked for: the corpus has no more validation texts."
            )
        if course.steps and course.measured and course.best_step == 0:
            notes.append(
                "Training brought the target no nearer to its teacher on held-out texts: the "
                "adapter was kept as it was before."
            )
        return notes


_LEAST = {
    **{"pool": 1, "text_chars": 1, "held_out": 0, "epochs": 0, "batch_size": 1},
    **{"warmup_steps": 0, "checks": 0, "texts": 1, "generic": 0, "repeats": 1},
}
"""The least value of each option that is a count."""


def _measured(
    before: Agreement | None, after: Agreement | None, held_out: HeldOut | None
) -> Report:
    return {
        "held_out": 0 if held_out is None else len(held_out.texts),
        "agreement_before": None if before is None else before.top_share,
        "agreement_after": None if after is None else after.top_share,
        "kl_before": None if before is None else before.kl,
        "kl_after": None if after is None else after.kl,
    }


def _facts(course: Course) -> Report:
    first, last = course.losses[:_RECENT], course.losses[-_RECENT:]
    return {
        "steps": course.steps,
        "training_seconds": course.seconds,
        "loss_first": sum(first) / len(first) if first else None,
        "loss_last": sum(last) / len(last) if last else None,
        "checks": {str(step): value for step, value in course.measured.items()},
        "best_step": course.best_step,
    }
