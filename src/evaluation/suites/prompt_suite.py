"""Suites out of JSON files: prompts, each with constraints on the form of its answer."""

import hashlib
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from pydantic import BaseModel as Record
from pydantic import ConfigDict, Field, ValidationError, field_validator

from ...exceptions import ConfigurationError, DataError
from ...models.loading import BaseModel
from .base import SuiteScore
from .diversity import distinct, self_bleu
from .format_constraints import AnyConstraint
from .prompt_forms import PLAIN_PROMPT, ChatTemplate, check_chat, prompt_form
from .prompt_rows import PromptRow
from .written_answers import write_answers

PACKAGED = ("coding_suite", "creativity_suite")
"""The suites that come with the package."""

_RULES = 1  # raise it when what meets a constraint changes


class ConstrainedPrompt(PromptRow):
    """A prompt and what the form of its answer has to be.

    Attributes:
        id: What it is called; once in a file.
        constraints: At least one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(min_length=1)
    constraints: tuple[AnyConstraint, ...] = Field(min_length=1)


class PromptFile(Record):
    """What a suite's JSON file holds.

    Attributes:
        name: Of the suite, in tables and folders: letters, digits, ``_``, ``-``.
        about: What it is for.
        prompts: At least one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    about: str = ""
    prompts: tuple[ConstrainedPrompt, ...] = Field(min_length=1)

    @field_validator("prompts")
    @classmethod
    def _of_different_names(
        cls, prompts: tuple[ConstrainedPrompt, ...]
    ) -> tuple[ConstrainedPrompt, ...]:
        ids = [prompt.id for prompt in prompts]
        twice = sorted({each for each in ids if ids.count(each) > 1})
        if twice:
            raise ValueError(f"the id {', '.join(twice)} stands at more than one prompt")
        return prompts


class PromptSuite:
    """The prompts of a JSON file, answered greedily and checked by their constraints.

    Metrics of each prompt: ``followed`` (share of its constraints that are met) and
    ``all_followed`` (1 where all are). Of all answers together: ``distinct_1`` to ``distinct_3``
    and ``self_bleu``; ``chat_template`` is 1 where the model was asked in its chat template.

    Args:
        path: The file, or the name of one that comes with the package.
        max_new_tokens: Tokens an answer at most.
        chat: ``template``, ``plain``, or ``auto``: the chat template where there is one.
        plain_prompt: The frame of a prompt without a chat template.
        batch_rows: Prompts that go through the model together, at most.

    Raises:
        ConfigurationError: an option has a value that it cannot take.
        DataError: the file is missing or malformed; the message names prompt and field.
    """

    metrics = ("followed", "all_followed", "distinct_1", "distinct_2", "distinct_3", "self_bleu")

    def __init__(
        self,
        path: str | Path,
        *,
        max_new_tokens: int = 96,
        chat: str = "auto",
        plain_prompt: str = PLAIN_PROMPT,
        batch_rows: int = 64,
    ) -> None:
        self.file = read_prompt_file(path)
        for option, number in (("max_new_tokens", max_new_tokens), ("batch_rows", batch_rows)):
            if number < 1:
                raise ConfigurationError(
                    f"suite.{self.name}.{option}={number}, but it takes 1 or more"
                )
        check_chat(chat, plain_prompt)
        self.max_new_tokens, self.batch_rows = max_new_tokens, batch_rows
        self.chat, self.plain_prompt = chat, plain_prompt

    @property
    def name(self) -> str:
        """As the file says."""
        return self.file.name

    def prompts(self) -> tuple[str, ...]:
        """Return the prompts."""
        return tuple(each.prompt for each in self.file.prompts)

    def content_hash(self) -> str:
        """Return the SHA-256 of the file's content and of every setting of the answers."""
        settings = [_RULES, self.max_new_tokens, self.batch_rows, self.chat, self.plain_prompt]
        whole = json.dumps([self.file.model_dump(mode="json"), settings])
        return hashlib.sha256(whole.encode()).hexdigest()

    def score(self, base: BaseModel) -> SuiteScore:
        """Return the model's answers and which constraints they meet.

        Raises:
            ModelError: the tokenizer cannot put a prompt into the form that was asked for.
        """
        form = prompt_form(base, self.chat, self.plain_prompt)
        answers = write_answers(
            base,
            self.prompts(),
            form,
            max_new_tokens=self.max_new_tokens,
            batch_rows=self.batch_rows,
        )
        followed = torch.tensor(
            [
                _followed(each, answer)
                for each, answer in zip(self.file.prompts, answers, strict=True)
            ],
            dtype=torch.float64,
        )
        rows = {"followed": followed, "all_followed": (followed == 1).double()}
        whole = {f"distinct_{n}": distinct(answers, n) for n in (1, 2, 3)}
        whole["self_bleu"] = self_bleu(answers)
        whole["chat_template"] = float(isinstance(form, ChatTemplate))
        return SuiteScore(tuple(answers), rows, whole)


def _followed(prompt: ConstrainedPrompt, answer: str) -> float:
    met = [constraint.met(answer.strip()) for constraint in prompt.constraints]
    return math.fsum(met) / len(met)


def read_prompt_file(path: str | Path) -> PromptFile:
    """Return the content of a suite's JSON file.

    Args:
        path: The file, or one of :data:`PACKAGED`.

    Raises:
        DataError: the file is missing, not JSON, or malformed.
    """
    if str(path) in PACKAGED:
        packaged = files(__package__) / "prompts" / f"{path}.json"
        return _parsed(packaged.read_text(encoding="utf-8"), str(path))
    try:
        content = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"the suite {path} cannot be read ({reason}); it takes a JSON file with name and "
            f"prompts, or one of {', '.join(PACKAGED)}"
        ) from None
    return _parsed(content, str(path))


def _parsed(content: str, where: str) -> PromptFile:
    try:
        read = json.loads(content)
    except ValueError as error:
        raise DataError(f"the suite {where} is not JSON ({error}); correct the file") from None
    try:
        return PromptFile.model_validate(read)
    except ValidationError as error:
        faults = "; ".join(
            f"{_place(read, fault['loc'])}: {fault['msg']}" for fault in error.errors()
        )
        raise DataError(
            f"the suite {where} is not valid: {faults}; it takes "
            '{"name", "about", "prompts": [{"id", "prompt", "constraints": [{"kind", ...}]}]}'
        ) from None


def _place(read: object, loc: Sequence[int | str]) -> str:
    """Return where a fault is: the prompt by its id, if it has one, and the field."""
    if len(loc) < 2 or loc[0] != "prompts" or not isinstance(read, dict):
        return ".".join(map(str, loc)) or "the whole"
    prompt = read["prompts"][loc[1]]
    named = prompt.get("id") if isinstance(prompt, dict) else None
    who = f"prompt {named!r}" if named else f"prompt number {int(loc[1]) + 1}"
    return ", ".join([who, ".".join(map(str, loc[2:]))]) if loc[2:] else who
