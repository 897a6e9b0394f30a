"""What a refinement is: anything that betters a target adapter by what the models do."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from ..adapters import LoraAdapter
from ..data.question import Question
from ..data.tasks import Example
from ..data.text_source import TextSource
from ..models.base import BaseModel

Report = dict[str, Any]
Progress = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and how much there is."""


def silent(_step: str, _done: int, _total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """The source model with the adapter that is ported: what the target is to behave like.

    Attributes:
        base: The source.
        adapter: Its adapter.
    """

    base: BaseModel
    adapter: LoraAdapter


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a refinement may learn from.

    Attributes:
        teacher: The source with its adapter.
        target: The model that the adapter is ported to.
        question: What the adapter is asked; the text itself where nobody says.
        texts: Generic texts; None where there is no corpus.
        inputs: Unlabelled inputs of the task itself.
        examples: Labelled ones.
        cache: Folder in which unfinished and finished work is kept; None keeps nothing.
        seed: Of every draw.
        progress: Is told how far the work is.
    """

    teacher: Teacher
    target: BaseModel
    question: Question = field(default_factory=Question)
    texts: TextSource | None = None
    inputs: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    cache: Path | None = None
    seed: int = 0
    progress: Progress = silent


class Refined(NamedTuple):
    """A better adapter of the target, and what was found on the way.

    Attributes:
        adapter: The adapter.
        report: What was done, used and measured, as plain data.
    """

    adapter: LoraAdapter
    report: Report


class Refinement(ABC):
    """Betters an adapter of the target that a mapper has made.

    Attributes:
        information_class: What it may use, in the words of the evaluation protocol: ``generic
            text``, ``unlabelled prompts`` or ``few-shot``.
    """

    information_class: ClassVar[str]

    @abstractmethod
    def refine(self, start: LoraAdapter, lesson: Lesson) -> Refined:
        """Return the refined adapter.

        Args:
            start: What the mapper made, at the target's sites; it may do nothing yet.
            lesson: What to learn from.

        Raises:
            LoraportError: the lesson lacks what the refinement needs, or cannot be used.
        """
