"""What a sequence distillation says of itself."""

from collections.abc import Sequence
from typing import NamedTuple

from .base import Report
from .likelihood_matching import ChunkAgreement
from .student_training import Course
from .taught_texts import Taught, TaughtText

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
        course: The training.
    """

    asked: int
    max_new_tokens: int
    taught: Taught
    pool: Sequence[TaughtText]
    chosen: Sequence[TaughtText]
    held_out: Sequence[TaughtText]
    before: ChunkAgreement | None
    after: ChunkAgreement | None
    course: Course

    @property
    def left_out(self) -> float:
        """Mean share of a continuation's bytes that are in no chunk."""
        return _mean([text.left_out for text in self.chosen])

    def report(self) -> Report:
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
            "steps": self.course.steps,
            "best_step": self.course.best_step,
            "measured": {str(step): value for step, value in self.course.measured.items()},
            "seconds": self.course.seconds,
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
