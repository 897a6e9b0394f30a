"""Inputs and labelled examples out of files that a user gives."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..data.tasks import Example
from ..exceptions import DataError

_INPUTS = 'inputs= takes a file with a text a line, or *.jsonl with rows {"text": ...}'
_EXAMPLES = 'examples= takes *.jsonl with rows {"text": ..., "label": ...}'


def given_inputs(file: str | Path) -> tuple[str, ...]:
    """Return the texts of a file, each once, in their order.

    Raises:
        DataError: the file cannot be read, is empty, or a row has no text.
    """
    path = Path(file).expanduser()
    if path.suffix == ".jsonl":
        texts = [_field(row, "text", where, _INPUTS) for where, row in _rows(path, _INPUTS)]
    else:
        texts = [line for _, line in _lines(path, _INPUTS)]
    return tuple(dict.fromkeys(texts))


def given_examples(file: str | Path, labels: tuple[str, ...]) -> tuple[Example, ...]:
    """Return the labelled texts of a file.

    Args:
        file: The file.
        labels: The labels that there are; none where answers are written freely.

    Raises:
        DataError: the file cannot be read, is empty, or a row has no text or a label that is
            not among them.
    """
    path = Path(file).expanduser()
    examples = []
    for where, row in _rows(path, _EXAMPLES):
        text, label = (_field(row, name, where, _EXAMPLES) for name in ("text", "label"))
        if labels and label not in labels:
            raise DataError(
                f"{where} has the label {label!r}, but the labels are {', '.join(labels)}; "
                "correct the row, or prompt.labels"
            )
        examples.append(Example(text, label))
    return tuple(examples)


def _lines(path: Path, wanted: str) -> list[tuple[str, str]]:
    """Return where each line is, and the line, empty ones left out."""
    try:
        # Not str.splitlines: a text may hold a line separator that JSON need not escape.
        content = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); {wanted}") from None
    found = [
        (f"{path}, line {number},", line.strip())
        for number, line in enumerate(content, start=1)
        if line.strip()
    ]
    if not found:
        raise DataError(f"{path} is empty; {wanted}")
    return found


def _rows(path: Path, wanted: str) -> Iterator[tuple[str, Any]]:
    for where, line in _lines(path, wanted):
        try:
            yield where, json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{where} is not JSON ({error}); {wanted}") from None


def _field(row: Any, name: str, where: str, wanted: str) -> str:
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise DataError(f'{where} has no "{name}" with text; {wanted}')
    return value
