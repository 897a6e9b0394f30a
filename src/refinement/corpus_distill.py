"""Distillation on generic text: no data of the task at all."""

from dataclasses import dataclass
from typing import ClassVar

from .base import Lesson
from .exercises import Exercises
from .label_refinement import LabelRefinement


@dataclass(frozen=True, kw_only=True)
class CorpusDistill(LabelRefinement):
    """The source answers the adapter's question about generic texts; the target learns the answers.

    The teacher labels a pool of the corpus's training texts, in the adapter's own prompt; some
    are chosen, evenly over its predictions by default, and the target's LoRA is trained on its
    distributions over the labels. Nothing of the task is needed but the prompt's template and the
    labels' words.

    Attributes:
        texts: So many are learned from.
    """

    texts: int = 640

    information_class: ClassVar[str] = "generic text"

    def exercises(self, lesson: Lesson) -> Exercises:
        """Return the chosen texts of the corpus with the teacher's distributions.

        Raises:
            DataError: there is no corpus, it has too few texts, or nothing can be learned from
                the teacher's answers to them.
        """
        return self.of_corpus(self.texts).exercises(lesson)
