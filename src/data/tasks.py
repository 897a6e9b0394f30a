"""Text-classification tasks: what one is, how its rows are asked, and where tasks come from.

They come from a folder (:class:`TaskFolder`) or from the Hugging Face hub (:class:`HubTasks`).
"""

import hashlib
import json
import logging
import random
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, ValidationError

from ..exceptions import ConfigurationError, DataError
from ..option_types import faults
from .corpora import check_split, cut_at_word, reading_hub, split_of

_log = logging.getLogger(__name__)

Entry = TypeVar("Entry")
File = TypeVar("File", bound=BaseModel)


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
        labels: The answers, each natural words.
        train: Rows to train an adapter on.
        test: Rows to score on; never seen in training.

    Raises:
        DataError: the labels are no choice, or a row has a label that is not among them.
    """

    name: str
    instruction: str
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    test: tuple[Example, ...]

    def __post_init__(self) -> None:
        words = set(map(str.strip, self.labels)) - {""}
        if not 1 < len(words) == len(self.labels):
            raise DataError(
                f"task {self.name} has the labels {list(self.labels)}, but a classification task "
                "takes two or more words, each once, white space at their ends not counted; "
                "correct its task.json"
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


@runtime_checkable
class TaskSource(Protocol):
    """Anything that tasks can be loaded from: a folder, the hub, a generator."""

    def names(self) -> tuple[str, ...]:
        """Return the names of all tasks that there are."""
        ...

    def load(self, names: Sequence[str] | None = None) -> dict[str, Task]:
        """Return the named tasks in the order asked for; ``None`` asks for all.

        Raises:
            DataError: a name is unknown, or a task cannot be read.
        """
        ...


def refuse_unknown(wanted: Sequence[str], known: Sequence[str], holder: str) -> None:
    """Raise DataError where a name is not among those that ``holder`` knows."""
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise DataError(
            f"unknown task{'s' if len(unknown) > 1 else ''} {', '.join(map(str, unknown))}: "
            f"{holder} has {', '.join(known)}; correct tasks.names or tasks.held_out"
        )


def in_turn(queues: Iterable[Iterable[Entry]]) -> Iterator[Entry]:
    """Yield one entry of each queue after the other; those at their end are passed over.

    >>> "".join(in_turn(["abc", "", "de"]))
    'adbec'
    """
    waiting = deque(map(iter, queues))
    while waiting:
        queue = waiting.popleft()
        for entry in islice(queue, 1):
            yield entry
            waiting.append(queue)


@dataclass(frozen=True)
class TaskTexts:
    """The texts of tasks' training rows, shuffled together, without instruction and answer.

    Test rows are never read. Which tasks are given is the caller's decision: those that are held
    out must not be among them. A row's hash decides its split, the same in every task.
    """

    tasks: Sequence[Task]
    seed: int = 0

    def texts(self, split: str) -> Iterator[str]:
        """Yield the texts of the split."""
        check_split(split)
        rows = [
            row.text for task in self.tasks for row in task.train if split_of(row.text) == split
        ]
        random.Random(f"prompts {self.seed} {split}").shuffle(rows)
        yield from rows


class _TaskFile(BaseModel):
    """What is read of ``task.json``."""

    name: str | None = None
    instruction: str
    labels: tuple[str, ...]


class _Row(BaseModel):
    """What is read of a line of ``train.jsonl`` or ``test.jsonl``."""

    text: str
    label: str


_LAYOUT = (
    'NAME/task.json {"instruction": ..., "labels": [...]}, and NAME/train.jsonl and '
    'NAME/test.jsonl with a row {"text": ..., "label": ...} a line'
)


class TaskFolder:
    """The tasks of a folder ``<path>/<name>/{task.json, train.jsonl, test.jsonl}``.

    ``task.json`` holds at least ``instruction`` and ``labels``; other keys are left alone. Each
    line of the two other files is a row ``{"text": ..., "label": ...}``.

    Raises:
        DataError: ``path`` is no folder, or no folder in it holds a ``task.json``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._names = tuple(sorted(file.parent.name for file in self.path.glob("*/task.json")))
        if not self._names:
            what = "holds no task" if self.path.is_dir() else "does not exist"
            raise DataError(
                f"the task folder {self.path} {what}; set paths.tasks to a folder that holds, for "
                f"each task, {_LAYOUT}"
            )

    def names(self) -> tuple[str, ...]:
        """Return the names of all tasks, in alphabetical order."""
        return self._names

    def load(self, names: Sequence[str] | None = None) -> dict[str, Task]:
        """Return the named tasks in the order asked for; ``None`` asks for all."""
        wanted = self._names if names is None else tuple(names)
        refuse_unknown(wanted, self._names, f"the task folder {self.path}")
        return {name: self._read(name) for name in wanted}

    def _read(self, name: str) -> Task:
        folder = self.path / name
        file = folder / "task.json"
        about = _parsed(_TaskFile, _read_text(file), str(file))
        if about.name not in (None, name):
            raise DataError(
                f"{file} describes the task {about.name!r}, but lies in the folder {name!r}; give "
                "both one name"
            )
        task = Task(
            name=name,
            instruction=about.instruction,
            labels=about.labels,
            train=_read_rows(folder / "train.jsonl"),
            test=_read_rows(folder / "test.jsonl"),
        )
        if folder not in _said:
            _said.add(folder)
            for remark in repeated(task):
                _log.warning("%s: %s", folder, remark)
        return task


_said: set[Path] = set()


def repeated(task: Task) -> Iterator[str]:
    """Say which texts stand in a task more than once, and what that does to its numbers."""
    train, test = (Counter(row.text for row in rows) for rows in (task.train, task.test))
    for split, texts in (("training", train), ("test", test)):
        if more := texts.total() - len(texts):
            yield f"{more} of {texts.total()} {split} rows repeat the text of another"
    if both := sum(count for text, count in test.items() if text in train):
        yield (
            f"{both} of {test.total()} test rows are training rows too, so that scores on them "
            "look better than on new ones"
        )
    labels: dict[str, set[str]] = {}
    for row in (*task.train, *task.test):
        labels.setdefault(row.text, set()).add(row.label)
    if torn := [text for text, found in labels.items() if len(found) > 1]:
        yield f"{len(torn)} texts have several labels, such as {torn[0][:60]!r}"


def _read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read ({error}); a task takes {_LAYOUT}") from None


def _read_rows(file: Path) -> tuple[Example, ...]:
    # Not str.splitlines: a text may hold a line separator that JSON need not escape.
    lines = enumerate(_read_text(file).split("\n"), start=1)
    rows = [(n, _parsed(_Row, line, f"{file}, line {n},")) for n, line in lines if line.strip()]
    if not rows:
        raise DataError(f"{file} is empty, but takes at least one row")
    if empty := [n for n, row in rows if not row.text.strip()]:
        raise DataError(
            f"{file} has {len(empty)} rows without a text, the first in line {empty[0]}; remove "
            "them, or give each its text"
        )
    return tuple(Example(row.text, row.label) for _, row in rows)


def _parsed(kind: type[File], text: str, where: str) -> File:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        raise DataError(
            f"{where} cannot be used ({faults(error)}): {text.strip()[:80]!r}; a task takes "
            f"{_LAYOUT}"
        ) from None


class TaskDefinition(BaseModel):
    """Where a task's rows are on the hub, and what the task asks about them.

    Attributes:
        role: ``anchor`` or ``held_out``: what the task is meant for, for the reader only.
        instruction: The question that the prompt asks about a text.
        labels: The answers, as natural words.
        hub_id: The data set's id, or a local folder that ``datasets`` can load.
        config: The data set's configuration; None for its only one.
        train_split: Split that training rows are drawn from.
        test_split: Split that test rows are drawn from.
        text_column: Column that holds the text.
        label_column: Column that holds the label.
        label_map: Label on the hub, as a string, to label of the task.
        revision: Branch or commit of the data set, such as ``refs/convert/parquet`` for one that
            is built on a loading script; None for the main branch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: str = "anchor"
    instruction: str
    labels: tuple[str, ...]
    hub_id: str
    config: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    text_column: str = "text"
    label_column: str = "label"
    label_map: dict[str, str]
    revision: str | None = None


class HubTasks:
    """Tasks drawn from data sets of the hub: balanced over the labels, tidied, seeded.

    The test rows are drawn first. No text stands twice in a task, compared by letters and digits
    in lower case; across tasks nothing is compared.

    Args:
        definitions: Name of each task to the fields of its :class:`TaskDefinition`.
        rows_train: At most so many training rows a task.
        rows_test: At most so many test rows a task.
        text_chars: A text is cut at the last word boundary before so many characters.
        seed: Decides which rows are drawn, and their order.

    Raises:
        ConfigurationError: a definition has an unknown, a missing or a wrongly typed field.
    """

    def __init__(
        self,
        definitions: Mapping[str, Mapping[str, object]],
        rows_train: int = 800,
        rows_test: int = 300,
        text_chars: int = 400,
        seed: int = 0,
    ) -> None:
        self.definitions = {name: _define(name, fields) for name, fields in definitions.items()}
        self.rows_train, self.rows_test = rows_train, rows_test
        self.text_chars, self.seed = text_chars, seed

    def names(self) -> tuple[str, ...]:
        """Return the names of all defined tasks, in the order of their definitions."""
        return tuple(self.definitions)

    def load(self, names: Sequence[str] | None = None) -> dict[str, Task]:
        """Return the named tasks in the order asked for; ``None`` asks for all.

        Raises:
            DataError: a name is unknown, the hub or the data set cannot be reached, or the data
                set does not fit its definition.
        """
        wanted = self.names() if names is None else tuple(names)
        refuse_unknown(wanted, self.names(), "the definitions of the hub's tasks")
        return {name: self._read(name, self.definitions[name]) for name in wanted}

    def _read(self, name: str, definition: TaskDefinition) -> Task:
        seen: set[str] = set()

        def drawn(split: str, hub_split: str, count: int) -> tuple[Example, ...]:
            return self._draw(f"{self.seed} {name} {split}", definition, hub_split, count, seen)

        test = drawn("test", definition.test_split, self.rows_test)
        return Task(
            name=name,
            instruction=definition.instruction,
            labels=definition.labels,
            train=drawn("train", definition.train_split, self.rows_train),
            test=test,
        )

    def _draw(
        self, seed: str, definition: TaskDefinition, split: str, count: int, seen: set[str]
    ) -> tuple[Example, ...]:
        """Draw rows in turn from every label until there are enough or no rows are left."""
        dataset = _load_split(definition, split)
        # random.Random hashes a string seed by SHA-512: the same on every machine.
        generator = random.Random(seed)
        indices_of: dict[str, list[int]] = {label: [] for label in definition.labels}
        for index, value in enumerate(dataset[definition.label_column]):
            indices_of[_translate(value, definition, split)].append(index)
        for indices in indices_of.values():
            generator.shuffle(indices)

        def unseen(label: str) -> Iterator[Example]:
            for index in indices_of[label]:
                text = tidied(str(dataset[index][definition.text_column]), self.text_chars)
                key = "".join(filter(str.isalnum, text.lower()))
                if key and key not in seen:
                    seen.add(key)
                    yield Example(text, label)

        rows = list(islice(in_turn(map(unseen, indices_of)), count))
        generator.shuffle(rows)
        return tuple(rows)


def tidied(text: str, chars: int) -> str:
    r"""Fold white space, drop control characters, and cut at a word boundary.

    >>> tidied("one\n\n two\x07  three", 9)
    'one two'
    """
    folded = re.sub(r"\s+", " ", text)
    clean = "".join(c for c in folded if unicodedata.category(c) != "Cc").strip()
    return cut_at_word(clean, chars)


def _define(name: str, fields: Mapping[str, object]) -> TaskDefinition:
    try:
        return TaskDefinition.model_validate(dict(fields))
    except ValidationError as error:
        raise ConfigurationError(
            f"the definition of the task {name} is not valid ({faults(error)}); it takes "
            f"{', '.join(TaskDefinition.model_fields)}; correct tasks.definitions.{name}"
        ) from None


def _load_split(definition: TaskDefinition, split: str) -> Any:
    """Return one split as a ``datasets.Dataset``."""
    import datasets  # here, because it takes a second and only this source needs it

    source = f"the data set {definition.hub_id} ({definition.config or 'default'}, split {split})"
    with reading_hub(source, f"set paths.tasks=DIR to a folder that holds {_LAYOUT}"):
        dataset = datasets.load_dataset(
            definition.hub_id, definition.config, split=split, revision=definition.revision
        )
    missing = {definition.text_column, definition.label_column} - set(dataset.column_names)
    if missing:
        raise DataError(
            f"{source} has no column {', '.join(sorted(missing))}, but {dataset.column_names}; "
            "correct text_column or label_column in its definition"
        )
    return dataset


def _translate(value: object, definition: TaskDefinition, split: str) -> str:
    label = definition.label_map.get(str(value))
    if label not in definition.labels:
        raise DataError(
            f"the data set {definition.hub_id}, split {split}, has the label {value!r}, but its "
            f"definition maps {list(definition.label_map)} to {list(definition.labels)}; correct "
            "label_map, or choose a split that has labels"
        )
    return label
