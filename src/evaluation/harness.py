"""Every task of lm-eval as a suite: by name, from the hub or from local files.

The tasks and the runner are lm-eval's own (0.4.13); the model behind them is
:class:`.batched_lm.BatchedLM`. lm-eval is an extra of the package and imported where it is needed.
"""

import contextlib
import difflib
import importlib
import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel as Record
from pydantic import ConfigDict, Field, TypeAdapter, model_validator

from ..exceptions import ConfigurationError
from ..models.loading import BaseModel
from ..option_types import Count, OptionalCount, Takes
from .suite import SuiteScore, checked, hashed
from .written_answers import from_hub, json_lines

_SCORED = "lm-eval-1"  # part of the content hash: to be changed with whatever changes a score
_SEED = 1234  # lm-eval's own default, of few-shot examples and sampled answers
_NAMES = {"acc": "accuracy", "acc_norm": "accuracy_norm"}  # as the tables call them

# Task to its folder in lm-eval: the index of all 14,000 tasks takes seconds to read.
_FOLDERS = {
    **{"arc_easy": "arc", "arc_challenge": "arc", "openbookqa": "openbookqa"},
    **{"hellaswag": "hellaswag", "piqa": "piqa", "winogrande": "winogrande"},
    **{"boolq": "super_glue/boolq", "social_iqa": "siqa"},
}


class HarnessTask:
    """A task of lm-eval.

    Metrics are those of the task, an item each where they are numbers (``acc`` and ``acc_norm``
    are called ``accuracy`` and ``accuracy_norm``), else of the whole. Of multiple choice also
    ``nll``: ``-log p`` of the right choice in nats, normalised over the choices.

    ``task`` is lm-eval's object; the other arguments are those of :func:`lm_eval_suites`.
    """

    def __init__(
        self,
        task: Any,
        *,
        limit: int | None = None,
        chat_template: bool = False,
        batch_tokens: int = 2048,
        batch_rows: int = 16,
    ) -> None:
        self.task, self.limit, self.chat_template = task, limit, chat_template
        self.batch_tokens, self.batch_rows = batch_tokens, batch_rows
        with _without_bars():
            task.build_all_requests(limit=limit, rank=0, world_size=1)
        self._asked = [(instance.doc_id, instance.args) for instance in task.instances]
        choices = ["nll"] if task.OUTPUT_TYPE == "multiple_choice" else []
        self.metrics = (
            *(self._label(m, f.name) for f in task._filters for m in task.aggregation()),
            *choices,
        )

    @property
    def name(self) -> str:
        """As lm-eval names the task."""
        return str(self.task.config.task)

    def prompts(self) -> tuple[str, ...]:
        """Return each item's first context."""
        firsts: dict[int, str] = {}
        for item, arguments in self._asked:
            firsts.setdefault(item, str(arguments[0]))
        return tuple(firsts.values())

    def content_hash(self) -> str:
        """Return the SHA-256 of the requests, the right answers and how they are scored."""
        version = importlib.import_module("lm_eval").__version__
        docs = [doc for _, doc in self.task.doc_iterator(rank=0, limit=self.limit, world_size=1)]
        settings = (_SCORED, version, self.chat_template, self.metrics)
        return hashed(settings, repr(self._asked), json.dumps(docs, default=repr))

    def score(self, base: BaseModel) -> SuiteScore:
        """Return the model's answers and the metrics of each, by lm-eval's own runner."""
        from lm_eval.evaluator import evaluate

        from .batched_lm import BatchedLM

        model = BatchedLM(base, batch_tokens=self.batch_tokens, batch_rows=self.batch_rows)
        with torch.random.fork_rng(), _without_bars():
            torch.manual_seed(_SEED)
            found = evaluate(
                model,
                {"tasks": {self.name: self.task}, "groups": {}, "group_map": {}},
                limit=self.limit,
                bootstrap_iters=0,
                apply_chat_template=self.chat_template,
            )
        samples = found["samples"][self.name]
        rows: dict[str, list[float]] = {}
        whole: dict[str, float] = {}
        for filtered in self.task._filters:
            kept = [sample for sample in samples if sample["filter"] == filtered.name]
            for metric in kept[0]["metrics"]:
                label, values = self._label(metric, filtered.name), [s[metric] for s in kept]
                if all(isinstance(value, int | float) for value in values):
                    rows[label] = [float(value) for value in values]
                else:  # parts that lm-eval puts together, such as an F1 score's
                    value = found["results"][self.name].get(f"{metric},{filtered.name}")
                    whole |= {label: float(value)} if isinstance(value, int | float) else {}
        kept = [sample for sample in samples if sample["filter"] == self.task._filters[0].name]
        if self.task.OUTPUT_TYPE == "multiple_choice":
            rows["nll"] = [self._nll(sample) for sample in kept]
        columns = {name: torch.tensor(row, dtype=torch.float64) for name, row in rows.items()}
        return SuiteScore(tuple(map(self._answer, kept)), columns, whole)

    def _label(self, metric: str, filtered: str) -> str:
        """Return what a metric is called; lm-eval's filters are named where there are several."""
        name = _NAMES.get(metric, metric)
        return name if filtered == self.task._filters[0].name else f"{name},{filtered}"

    def _answer(self, sample: Mapping[str, Any]) -> str:
        """Return the likeliest choice, or what was written."""
        answers = sample["filtered_resps"]
        if self.task.OUTPUT_TYPE != "multiple_choice":
            return str(answers[0])
        choices = self.task.doc_to_choice(sample["doc"])
        values = [value for value, _ in answers[: len(choices)]]
        return str(choices[values.index(max(values))])

    def _nll(self, sample: Mapping[str, Any]) -> float:
        """Return the right choice's nll; NaN where several are right, or none is."""
        doc, choices = sample["doc"], self.task.doc_to_choice(sample["doc"])
        # Where contexts are told apart by the choices, lm-eval gives the right one as the text.
        right = self.task.doc_to_text(doc) if self.task.multiple_input else sample["target"]
        right = choices.index(right) if isinstance(right, str) and right in choices else right
        if not isinstance(right, int) or not 0 <= right < len(choices):
            return float("nan")
        values = [value for value, _ in sample["filtered_resps"][: len(choices)]]
        return -float(torch.tensor(values, dtype=torch.float64).log_softmax(dim=0)[right])


def _without_bars() -> contextlib.AbstractContextManager[object]:
    """Hide lm-eval's progress bars, which no option turns off."""
    return contextlib.redirect_stderr(io.StringIO())


@checked("suite.harness")
def lm_eval_suites(
    tasks: Annotated[
        Sequence[str],
        Field(min_length=1),
        Takes("a list of lm-eval's tasks, such as [arc_easy,hellaswag]"),
    ],
    *,
    option: str = "suite.harness",
    path: str | Path | None = None,
    suites: str | Path | None = None,
    limit: OptionalCount = None,
    num_fewshot: int | None = None,
    chat_template: bool = False,
    batch_tokens: Count = 2048,
    batch_rows: Count = 16,
) -> list[HarnessTask]:
    """Return a suite for each task; a group or a tag of lm-eval stands for all of its tasks.

    The options are described in ``conf/suite/harness.yaml``; ``option`` is where they are set, for
    messages. A file of ``path``, or of the folder ``reasoning`` in ``suites``, has rows in the
    columns of lm-eval's task or, of the eight multiple-choice tasks, :class:`ChoiceQuestion`.

    Raises:
        ConfigurationError: lm-eval is missing, or a task is unknown or runs programs.
        DataError: data is missing or malformed.
    """
    if path is None and suites is not None:
        path = Path(suites) / "reasoning"
    folder = None if path is None else Path(path)
    found: dict[str, Any] = {}
    for name in tasks:
        index = _index(name, option)
        found |= _local(index, name, folder, option) if folder else _remote(index, name, option)
    for name, task in found.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise _runs_programs(name, option)
        shots = task.get_config("num_fewshot") if num_fewshot is None else num_fewshot
        task.set_config(key="num_fewshot", value=shots or 0)
        task.set_fewshot_seed(seed=_SEED)
    return [
        HarnessTask(
            task,
            limit=limit,
            chat_template=chat_template,
            batch_tokens=batch_tokens,
            batch_rows=batch_rows,
        )
        for task in found.values()
    ]


def _runs_programs(name: str, option: str) -> ConfigurationError:
    return ConfigurationError(
        f"{option}.tasks has {name}, which runs programs that the model writes; HumanEval and MBPP "
        "are run in a sandbox by suite=code; leave it out"
    )


def _index(name: str, option: str) -> Any:
    """Return lm-eval's index of tasks in which a name stands."""
    index = _tasks(_FOLDERS.get(name))
    if name not in index.all_tasks:
        near = difflib.get_close_matches(name, index.all_tasks, n=5, cutoff=0.6)
        raise ConfigurationError(
            f"lm-eval has no task {name!r}"
            + (f", but {', '.join(near)}" if near else "; `lm-eval ls tasks` names them all")
            + f"; correct {option}.tasks"
        )
    # Before it is loaded: some run a program to see whether they may.
    if (index.task_index[name].cfg or {}).get("unsafe_code"):
        raise _runs_programs(name, option)
    return index


@cache
def _tasks(folder: str | None) -> Any:
    """Return the index of one of lm-eval's folders, or of all."""
    try:
        lm_eval = importlib.import_module("lm_eval")
        manager = importlib.import_module("lm_eval.tasks").TaskManager
    except ImportError as error:
        raise ConfigurationError(
            f"suites of lm-eval need a package that is not installed ({error}); install it with "
            "pip install 'loraport[suites]', or leave these suites out"
        ) from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what is meant
    if folder is None:
        return manager()
    place = Path(str(lm_eval.__file__)).parent / "tasks" / folder
    return manager(include_path=str(place), include_defaults=False)


def _remote(index: Any, name: str, option: str) -> dict[str, Any]:
    """Return a task, or those of a group, with data from the hub."""
    way_out = (
        f"if there is no network, set {option}.path=DIR to a folder that holds {name}.jsonl (for "
        "suite=reasoning also paths.suites=DIR with reasoning/NAME.jsonl)"
    )
    try:
        with from_hub(f"the data of {name}", way_out):
            return dict(index.load([name])["tasks"])
    except ImportError as error:
        raise ConfigurationError(
            f"the task {name} needs a package that is not installed ({error}); install it, or "
            f"leave {name} out of {option}.tasks"
        ) from None


# --- Local data -----------------------------------------------------------------------------------


class ChoiceQuestion(Record):
    """A question with its choices; a line of a local file. Other keys are left alone."""

    model_config = ConfigDict(frozen=True, strict=True)

    question: Annotated[str, Field(pattern=r"\S")]  # what is asked, without instruction
    choices: Annotated[tuple[Annotated[str, Field(pattern=r"\S")], ...], Field(min_length=2)]
    answer_index: Annotated[int, Field(ge=0)]  # index of the right choice, from 0
    # The right choice once more, where a file says it: it has to be the same.
    answer: str | None = None
    passage: str = ""  # a text that the question is about, where there is one

    @model_validator(mode="after")
    def _agree(self) -> "ChoiceQuestion":
        if self.answer_index >= len(self.choices):
            raise ValueError(f"answer_index {self.answer_index} of {len(self.choices)} choices")
        if self.answer not in (None, self.choices[self.answer_index]):
            raise ValueError("answer is not the choice at answer_index")
        return self


def _lettered(column: str) -> Callable[[ChoiceQuestion], dict[str, Any]]:
    def row(asked: ChoiceQuestion) -> dict[str, Any]:
        letters = [chr(ord("A") + n) for n in range(len(asked.choices))]
        choices = {"text": list(asked.choices), "label": letters}
        return {
            column: asked.question,
            "choices": choices,
            "answerKey": letters[asked.answer_index],
        }

    return row


def _numbered(
    text: str, columns: Sequence[str], label: str, first: int
) -> Callable[[ChoiceQuestion], dict[str, Any]]:
    def row(asked: ChoiceQuestion) -> dict[str, Any]:
        if len(asked.choices) != len(columns):
            raise ValueError(f"choices are {len(asked.choices)} instead of {len(columns)}")
        choices = dict(zip(columns, asked.choices, strict=True))
        right: int | str = asked.answer_index + first
        return {text: asked.question, **choices, label: str(right) if first else right}

    return row


def _winogrande(asked: ChoiceQuestion) -> dict[str, Any]:
    if "_" not in asked.question:
        raise ValueError("question has no blank, which is a _")
    return _numbered("sentence", ("option1", "option2"), "answer", 1)(asked)


def _boolq(asked: ChoiceQuestion) -> dict[str, Any]:
    if len(asked.choices) != 2:
        raise ValueError(f"choices are {len(asked.choices)} instead of false and true")
    passage = f"{asked.passage}\n" if asked.passage else ""
    return {"passage": passage, "question": asked.question, "label": asked.answer_index}


def _hellaswag(asked: ChoiceQuestion) -> dict[str, Any]:
    clean = importlib.import_module("lm_eval.tasks.hellaswag.utils").preprocess
    query, choices = clean(asked.question), [clean(choice) for choice in asked.choices]
    if not query.strip() or not all(choice.strip() for choice in choices):
        raise ValueError("question or a choice is blank without its marks in brackets")
    return {"query": query, "choices": choices, "label": asked.answer_index}


# Task to how a question is a row in the columns that lm-eval's task reads.
_COLUMNS: Mapping[str, Callable[[ChoiceQuestion], dict[str, Any]]] = {
    "arc_easy": _lettered("question"),
    "arc_challenge": _lettered("question"),
    "openbookqa": _lettered("question_stem"),
    "hellaswag": _hellaswag,
    "piqa": _numbered("goal", ("sol1", "sol2"), "label", 0),
    "winogrande": _winogrande,
    "boolq": _boolq,
    "social_iqa": _numbered("question", ("answerA", "answerB", "answerC"), "label", 1),
}

# What is changed in lm-eval's tasks for questions, which hold less than the original.
_SHORTENED: Mapping[str, Mapping[str, Any]] = {
    # No activity label before the text, and text that is not divided into two.
    "hellaswag": {"process_docs": None},
    # A passage only where there is one; the question mark is there.
    "boolq": {"doc_to_text": "{{passage}}Question: {{question}}\nAnswer:"},
    # Context and question are one text.
    "social_iqa": {"doc_to_text": "Q: {{question}}\nA:"},
}


def _local(index: Any, name: str, folder: Path, option: str) -> dict[str, Any]:
    """Return lm-eval's task of a name on the rows of a local file."""
    entry = index.task_index[name]
    if entry.kind.name != "TASK" or entry.yaml_path is None:
        raise ConfigurationError(
            f"{option}.tasks has {name}, which is no single task with a YAML of lm-eval, but only "
            f"those can be asked of local files; name its tasks, or leave {option}.path out"
        )
    config = importlib.import_module("lm_eval.tasks._yaml_loader").load_yaml(entry.yaml_path)
    rows, questions = _rows(folder / f"{name}.jsonl", name, option)
    split = config.get("test_split") or config.get("validation_split") or "test"
    datasets = importlib.import_module("datasets")
    config |= {
        "custom_dataset": lambda **_: {split: datasets.Dataset.from_list(rows)},
        **{"training_split": None, "validation_split": None},
        **{"test_split": split, "fewshot_split": split},
        **(_SHORTENED.get(name, {}) if questions else {}),
    }
    for key in ("tag", "group", "task_list"):
        config.pop(key, None)
    return {name: importlib.import_module("lm_eval.api.task").ConfigurableTask(config=config)}


_JSON_OBJECT = TypeAdapter(dict[str, Any])


def _rows(file: Path, name: str, option: str) -> tuple[list[dict[str, Any]], bool]:
    """Return a file's rows in the columns of a task, and whether they are questions."""
    way_out = (
        f"set paths.suites to a folder that holds reasoning/{file.name}, or {option}.path to the "
        f"folder of {file.name}, leave {name} out of {option}.tasks, or leave both folders out to "
        "take the data from the Hugging Face hub"
    )
    found = json_lines(
        file, _JSON_OBJECT.validate_json, "a JSON object in the columns of lm-eval's task", way_out
    )
    if name not in _COLUMNS or "answer_index" not in found[0]:
        return found, False
    form = '{"question": ..., "choices": [...], "answer_index": ...} with texts that are not blank'

    def row(line: str) -> dict[str, Any]:
        return _COLUMNS[name](ChoiceQuestion.model_validate_json(line))

    return json_lines(file, row, form, way_out), True
