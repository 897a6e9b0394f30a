"""Suites out of JSON files: prompts, each with constraints on the form of its answer.

The same idea as IFEval (Zhou et al., 2023, arXiv 2311.07911), which lm-eval asks by
``suite=[harness] suite.harness.tasks=[ifeval]``; these need no network and no further package.
"""

import ast
import json
import math
import re
import warnings
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel as Record
from pydantic import ConfigDict, Field, field_validator, validate_call

from ..exceptions import DataError
from ..models.loading import BaseModel
from ..option_types import Count
from .creativity import distinct, self_bleu
from .suite import SuiteScore, checked, hashed
from .written_answers import PLAIN_PROMPT, Chat, PlainPrompt, PromptForm, PromptRow, parsed

PACKAGED = ("coding_suite", "creativity_suite")  # the suites that come with the package
_RULES = 1  # raise it when what meets a constraint changes

# --- Constraints: a kind each, by its name in the file --------------------------------------------

Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], Field(min_length=1)]

_FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\u201d\u2019]*(?:\s+|$)")
_BULLET = re.compile(r"\s*(?:[-*\u2022]|\d+[.)])\s+\S")


def max_words(answer: str, *, words: Count) -> bool:
    """At most so many words; an answer without words does not meet it."""
    return 0 < len(answer.split()) <= words


def min_words(answer: str, *, words: Count) -> bool:
    """At least so many words."""
    return len(answer.split()) >= words


def sentences(answer: str, *, count: Count) -> bool:
    """Exactly so many sentences: parts that end in a full stop, ``!`` or ``?``, or at the end."""
    return sum(bool(part.strip()) for part in _SENTENCE_END.split(answer)) == count


def lines(answer: str, *, count: Count) -> bool:
    """Exactly so many lines that are not empty."""
    return sum(bool(line.strip()) for line in answer.splitlines()) == count


def starts_with(answer: str, *, text: Text) -> bool:
    """Begins with a text."""
    return answer.startswith(text)


def ends_with(answer: str, *, text: Text) -> bool:
    """Ends with a text."""
    return answer.endswith(text)


def contains(answer: str, *, texts: Texts) -> bool:
    """Holds every one of some texts; capitals do not matter."""
    return all(text.lower() in answer.lower() for text in texts)


def excludes(answer: str, *, texts: Texts) -> bool:
    """Says something, and holds none of some texts; capitals do not matter."""
    return bool(answer) and not any(text.lower() in answer.lower() for text in texts)


def regex(answer: str, *, pattern: re.Pattern[str]) -> bool:
    """Has a place that a regular expression matches, as Python's ``re`` reads it."""
    return pattern.search(answer) is not None


def json_(answer: str, *, keys: tuple[str, ...] = ()) -> bool:
    """Is JSON, or its first fenced block is; with ``keys``, an object that has them all."""
    try:
        value: Any = json.loads(_code(answer))
    except (ValueError, RecursionError):
        return False
    return not keys or (isinstance(value, dict) and set(keys) <= value.keys())


def python(answer: str, *, function: str | None = None) -> bool:
    """Is Python, or its first fenced block is: it parses. It is never executed.

    Plain prose of one word parses too, so that something has to be defined, assigned or called;
    with ``function``, a function of this name is defined at the top.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in strings
            body = ast.parse(_code(answer)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    if function is not None:
        return any(isinstance(each, functions) and each.name == function for each in body)
    does = (ast.Call, ast.Await, ast.Yield, ast.YieldFrom)
    return any(not isinstance(s, ast.Expr) or isinstance(s.value, does) for s in body)


def bullets(answer: str, *, count: Count) -> bool:
    """Has exactly so many lines that begin with ``-``, ``*``, a bullet or a number."""
    return sum(bool(_BULLET.match(line)) for line in answer.splitlines()) == count


def no_repeats(answer: str, *, words: Count = 4) -> bool:
    """Says something, and no run of so many words stands in it twice; capitals do not matter."""
    said = re.findall(r"\w+", answer.lower())
    runs = [tuple(said[i : i + words]) for i in range(len(said) - words + 1)]
    return bool(said) and len(set(runs)) == len(runs)


def lower_case(answer: str) -> bool:
    """Has letters, and none of them is a capital."""
    return answer.islower()


def upper_case(answer: str) -> bool:
    """Has letters, and all of them are capitals."""
    return answer.isupper()


def _code(answer: str) -> str:
    """Return the first fenced block, or the whole answer where there is none."""
    fenced = _FENCED.search(answer)
    return fenced.group(1) if fenced else answer


# Kind to what says whether an answer, stripped of white space around it, meets it.
CONSTRAINTS = {
    function.__name__.rstrip("_"): validate_call(function)
    for function in (
        *(max_words, min_words, sentences, lines, starts_with, ends_with, contains, excludes),
        *(regex, json_, python, bullets, no_repeats, lower_case, upper_case),
    )
}


def met(answer: str, constraint: dict[str, Any]) -> bool:
    """Return whether an answer meets a constraint, ``{"kind", ...}`` as in the file."""
    fields = dict(constraint)
    kind = fields.pop("kind", None)
    if kind not in CONSTRAINTS:
        raise ValueError(f"there is no kind {kind!r}, but {', '.join(CONSTRAINTS)}")
    return bool(CONSTRAINTS[kind](answer, **fields))


# --- The suite ------------------------------------------------------------------------------------


class ConstrainedPrompt(PromptRow):
    """A prompt, its id for readers of the file, and what the form of its answer has to be."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    constraints: tuple[dict[str, Any], ...] = Field(min_length=1)

    @field_validator("constraints")
    @classmethod
    def _possible(cls, constraints: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for constraint in constraints:
            met("", constraint)
        return constraints


class PromptFile(Record):
    """What a suite's JSON file holds; the name is used in tables and folders."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    about: str = ""
    prompts: tuple[ConstrainedPrompt, ...] = Field(min_length=1)


class FormatSuite:
    """The prompts of a JSON file, answered greedily and checked by their constraints.

    Metrics of each prompt: ``followed`` (share of its constraints that are met) and
    ``all_followed`` (1 where all are). Of all answers together: ``distinct_1`` to ``distinct_3``
    and ``self_bleu``; ``chat_template`` is 1 where the model was asked in its chat template.

    The options are described in ``conf/suite/coding_suite.yaml``.
    """

    metrics = ("followed", "all_followed", "distinct_1", "distinct_2", "distinct_3", "self_bleu")

    @checked("suite.NAME")
    def __init__(
        self,
        path: str | Path,
        *,
        max_new_tokens: Count = 96,
        chat: Chat = "auto",
        plain_prompt: PlainPrompt = PLAIN_PROMPT,
        batch_rows: Count = 64,
    ) -> None:
        self.file = read_prompt_file(path)
        self.form = PromptForm(chat, plain_prompt, max_new_tokens, batch_rows)

    @property
    def name(self) -> str:
        """As the file says."""
        return self.file.name

    def prompts(self) -> tuple[str, ...]:
        """Return the prompts."""
        return tuple(each.prompt for each in self.file.prompts)

    def content_hash(self) -> str:
        """Return the SHA-256 of the file's content and of every setting of the answers."""
        return hashed(_RULES, asdict(self.form), self.file.model_dump(mode="json"))

    def score(self, base: BaseModel) -> SuiteScore:
        """Return the model's answers and which constraints they meet."""
        answers = self.form.answers(base, self.prompts())
        followed = []
        for prompt, answer in zip(self.file.prompts, answers, strict=True):
            found = [met(answer.strip(), constraint) for constraint in prompt.constraints]
            followed.append(math.fsum(found) / len(found))
        row = torch.tensor(followed, dtype=torch.float64)
        whole = {f"distinct_{n}": distinct(answers, n) for n in (1, 2, 3)}
        whole["self_bleu"] = self_bleu(answers)
        whole["chat_template"] = float(self.form.uses_template(base))
        return SuiteScore(answers, {"followed": row, "all_followed": (row == 1).double()}, whole)


def read_prompt_file(path: str | Path) -> PromptFile:
    """Return the content of a suite's JSON file, or of one of :data:`PACKAGED`.

    Raises:
        DataError: the file is missing, not JSON, or malformed.
    """
    packaged = files(__package__) / "prompts" / f"{path}.json"
    try:
        file = packaged if str(path) in PACKAGED else Path(path)
        content = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"the suite {path} cannot be read ({reason}); it takes a JSON file with name and "
            f"prompts, or one of {', '.join(PACKAGED)}"
        ) from None
    form = '{"name", "about", "prompts": [{"id", "prompt", "constraints": [{"kind", ...}]}]}'
    return parsed(f"the suite {path}", content, PromptFile.model_validate_json, form)
