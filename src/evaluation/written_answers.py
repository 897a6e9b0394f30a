"""Prompts from files or the hub, how a model is asked, and what it writes as an answer."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from jinja2 import TemplateError
from pydantic import AfterValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic import BaseModel as Record

from ..exceptions import ConfigurationError, DataError, ModelError
from ..models.generation import MostLikely, NextToken, NucleusSampling, generate, text_behind
from ..models.likelihood import length_batches
from ..models.loading import BaseModel
from ..option_types import Takes, faults

PLAIN_PROMPT = "Question: {prompt}\nAnswer:"  # how a model without a chat template is asked


def _framed(plain_prompt: str) -> str:
    if plain_prompt.count("{prompt}") != 1:
        raise ValueError
    return plain_prompt


# Whether a model is asked in its chat template; auto: where there is one.
Chat = Annotated[Literal["auto", "template", "plain"], Takes("one of auto, template, plain")]
PlainPrompt = Annotated[
    str,
    AfterValidator(_framed),
    Takes(f"a text with {{prompt}} in it, once; such as {PLAIN_PROMPT!r}"),
]
Probability = Annotated[float, Field(gt=0, le=1), Takes("a number above 0, at most 1")]

# Some templates name the day, or let the model think first: always the same day, never thinking.
_FIXED = {"date_string": "01 Jan 2025", "enable_thinking": False}

# --- Prompts --------------------------------------------------------------------------------------


class PromptRow(Record):
    """A prompt; a suite's own rows have more fields, and those of a file that are not used pass."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    prompt: str = Field(min_length=1)

    @field_validator("prompt")
    @classmethod
    def _not_blank(cls, prompt: str) -> str:
        if not prompt.strip():
            raise ValueError("the prompt is empty")
        return prompt


class HubPrompts(Record):
    """Where prompts are on the hub, and how a row there is one here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hub_id: str  # the data set's id, or a local folder that datasets can load
    config: str | None = None  # as split and revision: which part of it; see datasets.load_dataset
    split: str = "train"
    revision: str | None = None
    # Field here to column there; a column that is not named has its own name.
    columns: dict[str, str] = {}
    fixed: dict[str, str] = {}  # fields that are the same in every row
    # Field here to a mapping of its values there to those here.
    values: dict[str, dict[str, str]] = {}
    empty: str | None = None  # only rows in which this column is empty are prompts of their own

    def fields(self, row: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return a row's fields as they are called here; None for a row that is left out."""
        if self.empty is not None and row[self.empty]:
            return None
        fields = {**row, **{field: row[there] for field, there in self.columns.items()}}
        fields |= self.fixed
        for field, values in self.values.items():
            fields[field] = values.get(str(fields[field]), fields[field])
        return fields


T = TypeVar("T")
Row = TypeVar("Row", bound=PromptRow)


def json_lines(file: Path, parse: Callable[[str], T], takes: str, way_out: str) -> list[T]:
    """Return what is made of each line of a file that is not blank.

    What is wrong with a line ``parse`` says by a ValueError or a SyntaxError; ``takes`` and
    ``way_out`` say in messages what a line has to be, and what to do without the file.

    Raises:
        DataError: the file cannot be read or is empty, or a line is malformed.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{file} cannot be read ({reason}); {way_out}") from None
    # Not str.splitlines: a text may hold a line separator that JSON need not escape.
    lines = [pair for pair in enumerate(text.split("\n"), start=1) if pair[1].strip()]
    if not lines:
        raise DataError(f"{file} is empty, but takes at least one line, {takes}; {way_out}")
    return [parsed(f"{file}, line {number}", line, parse, takes) for number, line in lines]


def parsed(where: str, line: str, parse: Callable[[str], T], takes: str) -> T:
    """Return what is made of a line; the DataError of a malformed one says where it is."""
    try:
        return parse(line)
    except (ValueError, SyntaxError, RecursionError) as error:
        raise DataError(
            f"{where} is {line.strip()[:80]!r}, but takes {takes} ({faults(error)}); correct it"
        ) from None


def prompt_rows(
    suite: str,
    kind: type[Row],
    hub: Mapping[str, HubPrompts] | None,
    path: str | Path | None,
    suites: str | Path | None,
) -> dict[str, list[Row]]:
    """Return the rows of a suite by their source: one file, or the data sets of the hub.

    The file is ``path``, or else ``SUITE/prompts.jsonl`` in ``suites``; without both it is the hub.

    Raises:
        ConfigurationError: there is no source.
        DataError: rows are missing or malformed.
    """
    option = f"suite.{suite}"
    if path is None and suites is not None:
        path = Path(suites) / suite / "prompts.jsonl"
    if path is not None:
        way_out = f"correct {option}.path or paths.suites, or set both to null to read the hub"
        takes = f"a JSON object with {', '.join(kind.model_fields)}"
        return {"file": json_lines(Path(path), kind.model_validate_json, takes, way_out)}
    if not hub:
        raise ConfigurationError(
            f"{option} has neither a file nor a place on the hub; set paths.suites=DIR to a "
            f"folder that holds {suite}/prompts.jsonl, or {option}.path to such a file"
        )
    return {
        name: list(_hub_rows(source, kind, f"{option}.hub.{name}")) for name, source in hub.items()
    }


def _hub_rows(source: HubPrompts, kind: type[Row], option: str) -> Iterator[Row]:
    what = f"the data set {source.hub_id} ({source.config or 'default'}, split {source.split})"
    way_out = (
        "if there is no network, or the data set asks to be signed in for, set paths.suites=DIR "
        "to a folder that holds safety/prompts.jsonl and creativity/prompts.jsonl"
    )
    with from_hub(what, way_out):
        import datasets

        loaded = datasets.load_dataset(
            source.hub_id, source.config, split=source.split, revision=source.revision
        )
    for number, row in enumerate(loaded):
        try:
            fields = source.fields(row)
            if fields is not None:
                yield kind.model_validate(fields)
        except (KeyError, ValidationError) as error:
            reason = faults(error) if isinstance(error, ValueError) else f"no column {error}"
            raise DataError(
                f"row {number} of {what} is no prompt ({reason}); correct {option}"
            ) from None


@contextmanager
def from_hub(what: str, way_out: str) -> Iterator[None]:
    """Turn what goes wrong while data is loaded into a message of what, why and the way out."""
    import datasets  # here, because it takes a second and only this source needs it

    try:
        yield
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(
            f"{what} could not be loaded from the Hugging Face hub: {reason}; {way_out}"
        ) from error


def drawn(queues: Mapping[str, Sequence[Row]], count: int, seed: str) -> list[Row]:
    """Draw so many rows, if there are, from all queues in turn.

    No prompt is drawn twice, compared by letters and digits in lower case. With one seed a
    smaller draw is the beginning of a larger one.
    """
    # random.Random hashes a string by SHA-512: the same on every machine.
    left = [
        iter(random.Random(f"{seed} {name}").sample(list(rows), len(rows)))
        for name, rows in queues.items()
    ]
    seen: set[str] = set()
    found: list[Row] = []
    while left and len(found) < count:
        queue = left.pop(0)
        row = next((row for row in queue if _letters(row) not in seen), None)
        if row is not None:
            seen.add(_letters(row))
            found.append(row)
            left.append(queue)
    return found


def _letters(row: PromptRow) -> str:
    return "".join(filter(str.isalnum, row.prompt.lower())) or row.prompt


# --- How a model is asked -------------------------------------------------------------------------


@dataclass(frozen=True)
class PromptForm:
    """How a model is asked and answers: in its own chat template, or in a plain frame."""

    chat: str = "auto"  # see Chat
    # The frame without one, with {prompt} once. A plain answer ends where a line begins like a line
    # of the frame: base models go on with questions of their own.
    plain_prompt: str = PLAIN_PROMPT
    max_new_tokens: int = 96  # tokens an answer at most
    batch_rows: int = 64  # prompts that go through the model together, at most

    def uses_template(self, base: BaseModel) -> bool:
        """Return whether the model is asked in its chat template."""
        return self.chat == "template" or (
            self.chat == "auto" and bool(base.tokenizer.chat_template)
        )

    def tokens(self, base: BaseModel, prompts: Sequence[str]) -> list[list[int]]:
        """Return each prompt's tokens, with what the tokenizer or the template puts in front.

        Raises:
            ModelError: no chat template takes a single turn of a user.
        """
        tokenizer: Any = base.tokenizer
        if not prompts:
            return []
        if not self.uses_template(base):
            framed = [self.plain_prompt.replace("{prompt}", prompt) for prompt in prompts]
            return tokenizer(framed)["input_ids"]
        try:
            turns = [
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}],
                    tokenize=False,
                    add_generation_prompt=True,
                    **_FIXED,
                )
                for prompt in prompts
            ]
        except (TemplateError, ValueError) as error:  # it refuses, or there is none
            raise ModelError(
                f"{base.name} has no chat template that takes a single turn of a user ({error}); "
                "take chat=plain"
            ) from error
        # The template has the leading tokens in it already.
        return tokenizer(turns, add_special_tokens=False)["input_ids"]

    def answers(
        self, base: BaseModel, prompts: Sequence[str], choice: "Choice | None" = None
    ) -> tuple[str, ...]:
        """Return the model's answers; ``choice`` as in :func:`write_answers`."""
        written = write_answers(
            base,
            self.tokens(base, prompts),
            max_new_tokens=self.max_new_tokens,
            choice=choice or greedy,
            batch_rows=self.batch_rows,
        )
        return tuple(self.cut(base, answer) for answer in written)

    def cut(self, base: BaseModel, answer: str) -> str:
        """Return an answer up to where the model goes on with a question of its own."""
        if self.uses_template(base):
            return answer
        begins = (line.partition("{prompt}")[0].strip() for line in self.plain_prompt.splitlines())
        marks = tuple(begin for begin in begins if begin)
        lines = answer.split("\n")
        # The first line stands behind the frame's last one and begins nothing.
        ends = (n for n, line in enumerate(lines) if n and line.strip().startswith(marks))
        return "\n".join(lines[: next(ends, len(lines))])


# --- What it writes -------------------------------------------------------------------------------

# What chooses the tokens of the batch of the prompts at these indices.
Choice = Callable[[Sequence[int]], NextToken]


def greedy(_indices: Sequence[int]) -> NextToken:
    """Choose the most likely token, whatever the batch."""
    return MostLikely()


def sampled(seed: int, *, temperature: float, top_p: float) -> Choice:
    """Return seeded nucleus sampling: with one seed, two models are asked with the same draws.

    Every batch starts a generator of its own from the seed.
    """

    def choice(indices: Sequence[int]) -> NextToken:
        # random.Random hashes a string by SHA-512: the same on every machine.
        state = random.Random(f"answers {seed} {indices[0]}").getrandbits(63)
        generator = torch.Generator().manual_seed(state)
        return NucleusSampling(generator, temperature=temperature, top_p=top_p)

    return choice


def write_answers(
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    choice: Choice = greedy,
    batch_rows: int = 64,
    batch_tokens: int = 8192,
) -> list[str]:
    """Return what the model writes behind each prompt, in their order.

    An answer ends with the tokenizer's end-of-text token or any other that the model's generation
    settings call an end, such as an end of turn. A character that was cut off at the last token
    allowed is left out.

    ``batch_tokens`` bounds the tokens of a batch's prompts, padding included, and so the memory.
    """
    known = getattr(base.network.generation_config, "eos_token_id", None)
    more = [known] if isinstance(known, int) else list(known or [])
    ends = {base.tokenizer.eos_token_id, *more}
    answers = [""] * len(prompts)
    for indices in length_batches([len(row) for row in prompts], batch_tokens, batch_rows):
        rows = [list(prompts[index]) for index in indices]
        written = generate(base, rows, max_new_tokens=max_new_tokens, choice=choice(indices))
        for index, row, tokens in zip(indices, rows, written, strict=True):
            stop = next((n for n, token in enumerate(tokens) if token in ends), None)
            text = text_behind(base, row, tokens[:stop])
            answers[index] = text.rstrip("\ufffd") if stop is None else text
    return answers
