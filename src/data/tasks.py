"""Text-classification tasks as values: what a row is, and how a row becomes a prompt."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..exceptions import DataError


class Example(NamedTuple):
    """One labelled row."""

    text: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """A classification task with natural-language labels.

    Attributes:
        name: Unique among the tasks of a run; also its folder's name.
        instruction: The question that the prompt asks about a text.
        labels: The answers, each natural words, none part of another.
        train: Rows to train an adapter on.
        test: Rows to score on; never seen in training.

    Raises:
        DataError: there are fewer than two labels, or a row has a label that is not among them.
    """

    name: str
    instruction: str
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    test: tuple[Example, ...]

    def __post_init__(self) -> None:
        if len(set(self.labels)) < 2:
            raise DataError(
                f"task {self.name} has the labels {list(self.labels)}, but a classification task "
                "takes at least two different ones; correct its task.json"
            )
        strangers = {row.label for row in (*self.train, *self.test)} - set(self.labels)
        if strangers:
            raise DataError(
                f"task {self.name} has rows labelled {sorted(strangers)}, but its labels are "
                f"{list(self.labels)}; correct the rows or the labels in its task.json"
            )

    def limited(self, rows: int | None) -> "Task":
        """Return the task with at most the first ``rows`` test rows; ``None`` keeps them all."""
        return self if rows is None else replace(self, test=self.test[:rows])

    def content_hash(self) -> str:
        """Return the SHA-256 of the instruction, the labels and every row, in order."""
        content = json.dumps([self.instruction, self.labels, self.train, self.test])
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class PromptTemplate:
    """How a row is shown to a model and how the model is expected to answer.

    Attributes:
        prompt: Template of the prompt, with the fields ``{text}`` and ``{instruction}``.
        completion: Template of the answer, with the field ``{label}``.
        text_chars: The text is cut to so many characters; ``None`` keeps it whole.
    """

    prompt: str = "{text}\n{instruction}\nAnswer:"
    completion: str = " {label}"
    text_chars: int | None = None

    def __post_init__(self) -> None:
        if "{text}" not in self.prompt or "{label}" not in self.completion:
            raise DataError(
                f"the prompt template {self.prompt!r} with the completion {self.completion!r} "
                "would drop the row; the first takes {text}, the second takes {label}"
            )

    def ask(self, task: Task, text: str) -> str:
        """Return the prompt that asks ``task``'s question about ``text``."""
        # Not str.format: a text may hold braces, and so may an instruction.
        cut = text[: self.text_chars]
        return self.prompt.replace("{instruction}", task.instruction).replace("{text}", cut)

    def answer(self, label: str) -> str:
        """Return the completion that gives ``label`` as the answer."""
        return self.completion.replace("{label}", label)
