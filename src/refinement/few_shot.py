"""Training on a few labelled examples of the task."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.nn.functional import one_hot

from ..exceptions import ConfigurationError, DataError
from .base import Lesson
from .exercises import Exercises
from .label_refinement import LabelRefinement
from .label_teacher import teacher_answers


@dataclass(frozen=True, kw_only=True)
class FewShot(LabelRefinement):
    """The target learns the user's labelled examples, and the teacher's answers beside them.

    The last weights are kept: examples may contradict the teacher, so that agreement with it is
    reported, but does not stop the training.

    Attributes:
        generic: So many chosen generic texts, with the teacher's answers, are learned from
            beside the examples, where there is a corpus.
        repeats: The examples are seen so many times an epoch.
        teacher_weight: Share of the teacher's distribution in the target of an example, from 0
            to 1; the rest is its label.
    """

    generic: int = 512
    repeats: int = 4
    teacher_weight: float = 0.0

    information_class: ClassVar[str] = "few-shot"
    stops_early: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.teacher_weight <= 1:
            raise ConfigurationError(
                f"refine.teacher_weight={self.teacher_weight}, but it takes a share from 0 to 1"
            )

    def exercises(self, lesson: Lesson) -> Exercises:
        """Return the examples with their labels, and generic texts beside them.

        Raises:
            DataError: there are no examples, or one has a label that the question has not.
        """
        labels, examples = lesson.question.labels, lesson.examples
        _check(lesson)
        places = torch.tensor([labels.index(example.label) for example in examples])
        targets = one_hot(places, len(labels)).float()
        texts = tuple(example.text for example in examples)
        if self.teacher_weight > 0:
            found = teacher_answers(lesson, texts, temperature=self.temperature, what="examples")
            targets = (1 - self.teacher_weight) * targets + self.teacher_weight * found
        counts = {label: sum(e.label == label for e in examples) for label in labels}
        report = {"examples": len(examples), "example_labels": counts}
        own = Exercises(texts, targets, report, _unseen(counts)).repeated(self.repeats)
        if lesson.texts is None or self.generic == 0:
            return own
        return own.beside(self.of_corpus(self.generic).exercises(lesson))


def _check(lesson: Lesson) -> None:
    """Refuse examples that cannot be learned from."""
    labels = lesson.question.labels
    if not lesson.examples:
        raise DataError(
            "few-shot refinement takes labelled examples of the task, but there are none; give "
            'examples=FILE, *.jsonl with rows {"text": ..., "label": ...}, or choose '
            "refine=prompt_distill, which takes inputs without labels"
        )
    strangers = sorted({example.label for example in lesson.examples} - set(labels))
    if strangers:
        raise DataError(
            f"examples are labelled {', '.join(map(repr, strangers))}, but the labels are "
            f"{', '.join(map(repr, labels))}; correct the examples or prompt.labels"
        )
    empty = sum(not example.text.strip() for example in lesson.examples)
    if empty:
        raise DataError(f"{empty} of {len(lesson.examples)} examples have no text; remove them")


def _unseen(counts: dict[str, int]) -> tuple[str, ...]:
    missing = [label for label, count in counts.items() if count == 0]
    if not missing:
        return ()
    return (f"No example is labelled {', '.join(map(repr, missing))}.",)
