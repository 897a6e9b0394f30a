"""Generic texts as exercises: the teacher labels a pool of them, and some are chosen."""

from collections.abc import Set
from dataclasses import dataclass
from itertools import islice

from ..data.text_source import TRAIN, VALIDATION, cut_at_word
from ..exceptions import DataError
from .agreement import HeldOut
from .base import Lesson
from .exercises import Exercises, distinct
from .label_teacher import (
    check_teaches,
    confidence,
    label_balance,
    label_shares,
    teacher_answers,
)
from .selection import TextSelection

_WANTED = "set paths.corpus to a folder with train.txt and validation.txt, or with *.jsonl"


@dataclass(frozen=True)
class GenericTexts:
    """How texts of the corpus become exercises.

    Attributes:
        count: So many are learned from.
        pool: So many are labelled by the teacher, and the others chosen among them.
        selection: Which.
        text_chars: Texts are cut at a word to so many characters where the question itself does
            not say how long a text may be.
        temperature: Of the teacher's distributions.
    """

    count: int
    pool: int
    selection: TextSelection
    text_chars: int
    temperature: float

    def exercises(self, lesson: Lesson) -> Exercises:
        """Return the chosen texts with the teacher's distributions.

        Raises:
            DataError: there is no corpus, it has too few texts, or nothing can be learned from
                the teacher's answers to them.
        """
        labels = lesson.question.labels
        pool = self.texts(lesson, TRAIN, max(self.count, self.pool))
        if len(pool) < len(labels):
            raise DataError(
                f"the corpus has {len(pool)} training texts that are not empty and differ, but "
                f"distillation takes at least {len(labels)}, and some hundreds to be of use; "
                f"{_WANTED}"
            )
        found = teacher_answers(lesson, pool, temperature=self.temperature, what="texts")
        notes = check_teaches(found, labels)
        if len(pool) < self.count:
            notes += (
                f"The corpus has {len(pool)} texts of the {self.count} that were asked for; all "
                "of them were used.",
            )
        places = self.selection.choose(pool, found, self.count, lesson.seed)
        chosen = found[places]
        shares = label_shares(found, labels)
        report = {
            "generic_texts": len(places),
            "pool": len(pool),
            "pool_shares": shares,
            "chosen_shares": label_shares(chosen, labels),
            "pool_balance": label_balance(shares),
            "pool_confidence": confidence(found),
            "chosen_confidence": confidence(chosen),
        }
        return Exercises(tuple(pool[place] for place in places), chosen, report, notes)

    def held_out(self, lesson: Lesson, count: int) -> HeldOut | None:
        """Return validation texts of the corpus with the teacher's answers; None without any."""
        if lesson.texts is None or count == 0:
            return None
        learned = set(self.texts(lesson, TRAIN, max(self.count, self.pool)))
        texts = self.texts(lesson, VALIDATION, count, without=learned)
        if not texts:
            return None
        found = teacher_answers(lesson, texts, temperature=self.temperature, what="held-out texts")
        return HeldOut(lesson.question, texts, found)

    def texts(
        self, lesson: Lesson, split: str, count: int, without: Set[str] = frozenset()
    ) -> list[str]:
        """Return the first texts of a split that differ, cut as the question takes them.

        Raises:
            DataError: there is no corpus, or it cannot be read.
        """
        if lesson.texts is None:
            raise DataError(f"distillation takes generic texts, but there is no corpus; {_WANTED}")
        chars = lesson.question.text_chars or self.text_chars
        cut = (cut_at_word(text.strip(), chars) for text in lesson.texts.texts(split))
        return list(islice((text for text in distinct(cut) if text not in without), count))
