"""Distillation on a few unlabelled inputs of the task."""

from dataclasses import dataclass
from typing import ClassVar

from ..exceptions import DataError
from .base import Lesson
from .exercises import Exercises, distinct
from .label_refinement import LabelRefinement
from .label_teacher import check_teaches, confidence, label_shares, teacher_answers


@dataclass(frozen=True, kw_only=True)
class PromptDistill(LabelRefinement):
    """The source answers the user's own inputs; the target learns the answers.

    Chosen generic texts may stand beside them: a few dozen inputs alone are learned by heart.

    Attributes:
        generic: So many chosen generic texts are learned from beside the inputs, where
            there is a corpus.
        repeats: The inputs are seen so many times an epoch.
    """

    generic: int = 512
    repeats: int = 4

    information_class: ClassVar[str] = "unlabelled prompts"

    def exercises(self, lesson: Lesson) -> Exercises:
        """Return the inputs with the teacher's distributions, and generic texts beside them.

        Raises:
            DataError: there are no inputs, or nothing can be learned from the teacher's answers.
        """
        inputs = list(distinct(lesson.inputs))
        if not inputs:
            raise DataError(
                f"prompt distillation takes unlabelled inputs of the task, but got "
                f"{len(lesson.inputs)}, none with any text; give inputs=FILE, "
                "a text a line, or choose refine=corpus_distill, which takes generic texts alone"
            )
        found = teacher_answers(lesson, inputs, temperature=self.temperature, what="inputs")
        report = {
            "inputs": len(inputs),
            "input_shares": label_shares(found, lesson.question.labels),
            "input_confidence": confidence(found),
        }
        own = Exercises(tuple(inputs), found, report).repeated(self.repeats)
        if lesson.texts is None or self.generic == 0:
            return Exercises(
                own.texts, own.targets, report, check_teaches(found, lesson.question.labels)
            )
        return own.beside(self.of_corpus(self.generic).exercises(lesson))
