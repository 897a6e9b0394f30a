"""How long work shows how far it is: bars at a terminal, a line a minute elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

_SECONDS = 60.0  # between two lines


class ProgressLines(Progress):
    """Prints a line a minute: what is done, how much of how much, and how long the rest takes."""

    def __init__(self, console: Console, unit: str = "") -> None:
        super().__init__(console=console, disable=True)
        self._unit, self._last = f" {unit}" if unit else "", time.monotonic()

    def update(self, task_id: TaskID, **changes: Any) -> None:
        """Change a task, and print a line where the last one is a minute old."""
        super().update(task_id, **changes)
        self._print()

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Advance a task, and print a line where the last one is a minute old."""
        super().advance(task_id, advance)
        self._print()

    def _print(self) -> None:
        now = time.monotonic()
        if now - self._last < _SECONDS:
            return
        shown = [self._text(task) for task in self.tasks if task.visible and not task.finished]
        if shown:
            self._last = now
            self.console.print("; ".join(shown), markup=False, highlight=False, soft_wrap=True)

    def _text(self, task: Task) -> str:
        if task.total is None:
            return task.description
        left = task.time_remaining
        remaining = "" if left is None else f", {timedelta(seconds=round(left))} remaining"
        return f"{task.description}: {task.completed:.0f}/{task.total:.0f}{self._unit}{remaining}"


def shown_progress(unit: str = "", *, hidden: bool = False) -> Progress:
    """Return the progress of long work, on standard error.

    Args:
        unit: What is counted, where the descriptions do not say it.
        hidden: Show nothing, where another process shows it.
    """
    console = Console(stderr=True)
    if not console.is_terminal and not hidden:
        return ProgressLines(console, unit)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}, remaining" if unit else "remaining"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=hidden)


@contextmanager
def shown_steps() -> Iterator[Callable[[str, int, int], None]]:
    """Show one step of long work after the other, beginning with the loading of models.

    Yields:
        What is called with a step's name, how much of it is done, and of how much. A step that
        begins again has a remaining time of its own.
    """
    with shown_progress() as shown:
        bars = {"": shown.add_task("loading models", total=None)}
        last: dict[str, int] = {}

        def tell(step: str, done: int, total: int) -> None:
            if step not in last or done < last[step]:
                for bar in bars.values():
                    shown.update(bar, visible=False)
                bars[step] = shown.add_task(step, total=total)
            last[step] = done
            shown.update(bars[step], completed=done, total=total, visible=True)

        yield tell
