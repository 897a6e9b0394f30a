"""Tasks from the Hugging Face hub, by definitions of where their rows are and what they ask."""

import random
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..exceptions import ConfigurationError, DataError
from .task_source import refuse_unknown
from .tasks import Example, Task


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
        self.rows_train = rows_train
        self.rows_test = rows_test
        self.text_chars = text_chars
        self.seed = seed

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
        rows = {
            split: self._draw(f"{self.seed} {name} {split}", definition, hub_split, count, seen)
            for split, hub_split, count in (
                ("test", definition.test_split, self.rows_test),
                ("train", definition.train_split, self.rows_train),
            )
        }
        return Task(
            name=name,
            instruction=definition.instruction,
            labels=definition.labels,
            train=rows["train"],
            test=rows["test"],
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
        queues = []
        for label, indices in indices_of.items():
            generator.shuffle(indices)
            queues.append(self._fresh(dataset, indices, label, definition.text_column, seen))
        rows: list[Example] = []
        while queues and len(rows) < count:
            queue = queues.pop(0)
            if row := next(queue, None):
                rows.append(row)
                queues.append(queue)
        generator.shuffle(rows)
        return tuple(rows)

    def _fresh(
        self, dataset: Any, indices: Sequence[int], label: str, text_column: str, seen: set[str]
    ) -> Iterator[Example]:
        """Yield the tidied rows whose text was not seen before."""
        for index in indices:
            text = tidied(str(dataset[index][text_column]), self.text_chars)
            key = "".join(filter(str.isalnum, text.lower()))
            if key and key not in seen:
                seen.add(key)
                yield Example(text, label)


def tidied(text: str, chars: int) -> str:
    r"""Fold white space, drop control characters, and cut at a word boundary.

    >>> tidied("one\n\n two\x07  three", 9)
    'one two'
    """
    folded = re.sub(r"\s+", " ", text)
    clean = "".join(c for c in folded if unicodedata.category(c) != "Cc").strip()
    if len(clean) <= chars:
        return clean
    cut = clean[: chars + 1].rpartition(" ")[0]
    return cut if cut else clean[:chars]


def _define(name: str, fields: Mapping[str, object]) -> TaskDefinition:
    try:
        return TaskDefinition.model_validate(dict(fields))
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()
        )
        raise ConfigurationError(
            f"the definition of the task {name} is not valid ({faults}); it takes "
            f"{', '.join(TaskDefinition.model_fields)}; correct tasks.definitions.{name}"
        ) from None


def _load_split(definition: TaskDefinition, split: str) -> Any:
    """Return one split as a ``datasets.Dataset``; any failure says what to do without the hub."""
    import datasets  # here, because it takes a second and only this source needs it

    source = f"the data set {definition.hub_id} ({definition.config or 'default'}, split {split})"
    try:
        dataset = datasets.load_dataset(
            definition.hub_id, definition.config, split=split, revision=definition.revision
        )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(
            f"{source} could not be loaded from the Hugging Face hub: {reason}; if there is no "
            "network, set paths.tasks=DIR to a folder that holds NAME/task.json, "
            "NAME/train.jsonl and NAME/test.jsonl for each task"
        ) from error
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
