"""Prompts of tasks as a source of texts."""

import random
from collections.abc import Iterator, Sequence

from .tasks import PromptTemplate, Task
from .text_source import check_split, split_of


class TaskPrompts:
    """The training rows of tasks as a model is asked about them, without the answers.

    Test rows are never read. Which tasks are given is the caller's decision: those that are
    held out must not be among them. A row's hash decides its split, the same in every task.

    Args:
        tasks: The tasks.
        template: How a row is asked.
        seed: Shuffles the rows of all tasks together.
    """

    def __init__(
        self, tasks: Sequence[Task], template: PromptTemplate | None = None, seed: int = 0
    ) -> None:
        self.tasks, self.seed = tuple(tasks), seed
        self.template = template or PromptTemplate()

    def texts(self, split: str) -> Iterator[str]:
        """Yield the prompts of the split.

        Raises:
            DataError: there is no such split.
        """
        check_split(split)
        rows = [
            (task, row.text)
            for task in self.tasks
            for row in task.train
            if split_of(row.text) == split
        ]
        random.Random(f"prompts {self.seed} {split}").shuffle(rows)
        for task, text in rows:
            yield self.template.ask(task, text)
