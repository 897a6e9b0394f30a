"""Tasks read from a folder: one subfolder a task, with its description and its rows."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..exceptions import DataError
from .task_source import refuse_unknown
from .tasks import Example, Task


class TaskFolder:
    """The tasks of a folder ``<path>/<name>/{task.json, train.jsonl, test.jsonl}``.

    ``task.json`` holds at least ``instruction`` and ``labels``; other keys are left alone. Each
    line of the two other files is a row ``{"text": ..., "label": ...}``.

    Args:
        path: The folder that holds the tasks' folders.

    Raises:
        DataError: ``path`` is no folder, or no folder in it holds a ``task.json``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise DataError(
                f"the task folder {self.path} does not exist; set paths.tasks to a folder that "
                "holds NAME/task.json, NAME/train.jsonl and NAME/test.jsonl for each task"
            )
        self._names = tuple(sorted(file.parent.name for file in self.path.glob("*/task.json")))
        if not self._names:
            raise DataError(
                f"the task folder {self.path} holds no task: none of its folders has a "
                "task.json; set paths.tasks to the folder above the tasks' own folders"
            )

    def names(self) -> tuple[str, ...]:
        """Return the names of all tasks, in alphabetical order."""
        return self._names

    def load(self, names: Sequence[str] | None = None) -> dict[str, Task]:
        """Return the named tasks in the order asked for; ``None`` asks for all.

        Raises:
            DataError: a name is unknown, a file is missing, or a row is malformed.
        """
        wanted = self._names if names is None else tuple(names)
        refuse_unknown(wanted, self._names, f"the task folder {self.path}")
        return {name: self._read(name) for name in wanted}

    def _read(self, name: str) -> Task:
        folder = self.path / name
        instruction, labels = _read_description(folder / "task.json", name)
        return Task(
            name=name,
            instruction=instruction,
            labels=labels,
            train=_read_rows(folder / "train.jsonl"),
            test=_read_rows(folder / "test.jsonl"),
        )


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(
            f"{file} is missing; a task's folder takes task.json, train.jsonl and test.jsonl"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{file} cannot be read ({error}); it takes readable text in UTF-8"
        ) from None


def _read_description(file: Path, name: str) -> tuple[str, tuple[str, ...]]:
    """Return the instruction and the labels that a task.json gives."""
    try:
        content = json.loads(_read_text(file))
    except json.JSONDecodeError as error:
        raise DataError(f"{file} is not JSON ({error}); correct or restore it") from None
    if not isinstance(content, dict):
        raise DataError(f"{file} holds a {type(content).__name__}, but takes a JSON object")
    if content.get("name", name) != name:
        raise DataError(
            f"{file} describes the task {content['name']!r}, but lies in the folder {name!r}; "
            "give both one name"
        )
    instruction, labels = content.get("instruction"), content.get("labels")
    if not isinstance(instruction, str):
        raise DataError(f"{file} has the instruction {instruction!r}, but takes a string")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise DataError(f"{file} has the labels {labels!r}, but takes a list of strings")
    return instruction, tuple(labels)


def _read_rows(file: Path) -> tuple[Example, ...]:
    # Not str.splitlines: a text may hold a line separator that JSON need not escape.
    lines = _read_text(file).split("\n")
    rows = tuple(
        _parse_row(line, f"{file}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    )
    if not rows:
        raise DataError(f"{file} is empty, but takes at least one row")
    return rows


def _parse_row(line: str, where: str) -> Example:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where} is not JSON ({error}); each line takes one object "
            '{"text": ..., "label": ...}; correct or restore the file'
        ) from None
    text, label = (row.get("text"), row.get("label")) if isinstance(row, dict) else (None, None)
    if not isinstance(text, str) or not isinstance(label, str):
        raise DataError(
            f'{where} is {line.strip()[:80]!r}, but each line takes one object {{"text": ..., '
            '"label": ...} with two strings; correct the row'
        )
    return Example(text, label)
