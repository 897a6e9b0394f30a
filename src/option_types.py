"""Types of options, and what is said of a value that is none of them.

A type is written ``Annotated[..., Takes("words")]``. The words stand in every message about the
option, and in the list of all options.
"""

import difflib
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import CoreSchema, ErrorDetails, PydanticCustomError, core_schema

from .exceptions import ConfigurationError

Kind = TypeVar("Kind")
Read = TypeVar("Read", bound="Options")
_MISSING = "???"

CONTROL_MAPPERS = ("noop", "copy", "random", "mean", "nearest")
"""Mappers that are columns beside every method rather than methods."""


@dataclass(frozen=True)
class Takes:
    """What an option takes, in words, for messages and for :func:`options`.

    It stands last in an ``Annotated`` type; whatever is wrong with a value, these words are said.
    """

    words: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def checked(value: Any, check: Callable[[Any], Any]) -> Any:
            try:
                return check(value)
            except ValidationError:
                raise PydanticCustomError("takes", "{takes}", {"takes": self.words}) from None

        return core_schema.no_info_wrap_validator_function(checked, handler(source))


def _home(value: Any) -> Any:
    """Replace a leading ``~`` or ``~user`` by the home folder."""
    return os.path.expanduser(value) if isinstance(value, str) else value


def _path(value: Any) -> Any:
    return Path(_home(value)) if isinstance(value, str) and value else value


def _several(value: Any) -> Any:
    """Take one value for a list of one."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _newlines(value: Any) -> Any:
    """Read a backslash and an n, which is what a shell and Hydra hand on, as a new line."""
    return value.replace("\\n", "\n") if isinstance(value, str) else value


def _none(value: Any) -> Any:
    """Read an empty text or an empty node as null."""
    return None if value in ("", {}) else value


def _not_zero(value: float) -> float:
    if value == 0:
        raise ValueError("it is 0")
    return value


Several = Annotated[tuple[Kind, ...], BeforeValidator(_several)]
"""A list, for which one value may stand."""

SeveralOrNone = Annotated[
    tuple[Kind, ...] | None,
    BeforeValidator(lambda value: None if value is None else _several(value)),
]

UserPath = Annotated[Path, BeforeValidator(_path), Takes("the path of a file or folder")]
"""A path, in which ``~`` is the home folder."""

OptionalPath = Annotated[
    Annotated[Path, BeforeValidator(_path)] | None,
    BeforeValidator(_none),
    Takes("the path of a file or folder, or null"),
]
AdapterPlace = Annotated[str, BeforeValidator(_home), Field(min_length=1)]
"""An adapter's folder, where ``~`` is the home folder; or a hub id, or a task of the zoo."""

Flag = Annotated[bool, Takes("true or false")]
Text = Annotated[str, Takes("text")]
PromptText = Annotated[str, BeforeValidator(_newlines)]
"""Text of a prompt, in which a backslash and an n are a new line."""

Count = Annotated[int, Field(ge=1), Takes("a whole number of at least 1")]
NaturalNumber = Annotated[int, Field(ge=0), Takes("a whole number of at least 0")]
OptionalCount = Annotated[
    Annotated[int, Field(ge=1)] | None, Takes("a whole number of at least 1, or null")
]
Seed = Annotated[int, Field(ge=0, lt=2**32), Takes("a whole number from 0 to 4294967295")]
NonZero = Annotated[float, AfterValidator(_not_zero)]
Positive = Annotated[float, Field(gt=0), Takes("a positive number")]
Names = Annotated[Several[str], Takes("names, such as [A,B]")]
OptionalNames = Annotated[SeveralOrNone[str], Takes("names, such as [A,B], or null")]
Role = Literal["q", "k", "v", "o", "gate", "up", "down"]
Roles = Annotated[
    Several[Role],
    Field(min_length=1),
    Takes("one or more of q, k, v, o, gate, up, down, such as [q,v]"),
]
Dtype = Annotated[
    Literal["float32", "bfloat16", "float16"], Takes("one of float32, bfloat16, float16")
]
DtypeOrAuto = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    Takes("auto or one of float32, bfloat16, float16"),
]
Device = Annotated[
    str,
    Field(pattern=r"^(auto|cpu|mps|(cuda|xpu)(:\d+)?)$"),
    Takes("auto, cpu, cuda, or the name of a GPU such as cuda:0"),
]


class Options(BaseModel):
    """Options, none of them unknown, none to be changed."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, ser_json_inf_nan="constants"
    )

    @model_validator(mode="after")
    def _check_together(self) -> "Options":
        wrong = list(self._problems())
        if wrong:
            raise PydanticCustomError("together", "{wrong}", {"wrong": "\n".join(wrong)})
        return self

    def _problems(self) -> Iterator[str]:
        """Say what is wrong with options that are right one by one."""
        yield from ()


def read_as(kind: type[Read], given: Any) -> Read:
    """Read plain data as options.

    Raises:
        ConfigurationError: options are unknown, missing, of the wrong kind, out of their range, or
            do not go with each other; the message tells all of them.
    """
    wrong = [_not_given(key) for key in _missing(given)]
    try:
        read = kind.model_validate(given)
    except ValidationError as error:
        found = (_message(kind, one) for one in error.errors() if one["input"] != _MISSING)
        wrong += [line for text in found for line in text.splitlines()]
    if wrong:
        raise ConfigurationError(_together(wrong))
    return read


def faults(error: Exception) -> str:
    """Return what is wrong, and in which field, in one line."""
    if not isinstance(error, ValidationError):
        return str(error)
    return "; ".join(
        f"{'.'.join(map(str, fault['loc'])) or 'the whole'}: {fault['msg']}"
        for fault in error.errors()
    )


def _missing(node: Any, above: str = "") -> Iterator[str]:
    """Give the options that have to be given and are not."""
    if node == _MISSING:
        yield above
    elif isinstance(node, Mapping):
        for key, value in node.items():
            yield from _missing(value, f"{above}.{key}".lstrip("."))


def _not_given(key: str) -> str:
    return f"{key} is not given, and there is no default; set {key}=..."


def _message(kind: type[Options], error: ErrorDetails) -> str:
    """Say what an error of pydantic is about, what was given and what is taken."""
    parts, wrong = error["loc"], error["type"]
    key = ".".join(map(str, parts))
    if wrong == "together":
        return error["msg"]
    if wrong == "extra_forbidden":
        known = sorted(_names(kind, parts[:-1]))
        near = difflib.get_close_matches(str(parts[-1]), known, n=1)
        guess = f" (did you mean {near[0]}?)" if near else ""
        above = ".".join(map(str, parts[:-1])) or "the command"
        return f"there is no option {key}{guess}; {above} takes {', '.join(known)}"
    if wrong == "missing":
        return _not_given(key)
    if wrong == "model_type":
        node = sorted(_names(kind, parts))
        return f"{key} is {_shown(error['input'])}; it takes the options {', '.join(node)}"
    takes = error["msg"] if wrong == "takes" else f"a value such that {error['msg']}"
    value = error["input"]
    several = isinstance(value, list | tuple)
    words = [*value] if several else [value]
    texts = wrong == "string_type" or takes.startswith(("text", "names", "at least two"))
    if texts and any(isinstance(word, int | float) for word in words):
        plain = ",".join(str(w).lower() if isinstance(w, bool) else str(w) for w in words)
        word = f"{key}=[{plain}]" if several else f"{key}={plain}"
        takes += f"; as text it is written {in_quotes(word)}"
    return f"{key} is {_shown(value)}; it takes {takes}"


def in_quotes(word: str, escaped: bool = False) -> str:
    """Return an override as a shell takes it, whose value Hydra reads as text, or as texts in [].

    Args:
        word: Such as ``paths.zoo=a=b``.
        escaped: What looks like an interpolation, ``${...}``, is text as well.
    """

    def quoted(text: str) -> str:
        text = text.replace("${", "\\${") if escaped else text
        # Before a quote, and at the end, a backslash stands for the sign behind it.
        before = re.compile(r"(\\*)('|\Z)")
        return "'" + before.sub(lambda m: 2 * m[1] + m[2].replace("'", r"\'"), text) + "'"

    def bare(text: str) -> str:
        text = text.strip()
        return text[1:-1] if len(text) > 1 and text[0] == text[-1] in ("'", '"') else text

    key, _, value = word.partition("=")
    if value.startswith("[") and value.endswith("]"):
        text = f"[{','.join(quoted(bare(part)) for part in value[1:-1].split(','))}]"
    else:
        text = quoted(value)
    whole = f"{key}={text}"
    if set(whole) & set("$`!\n"):
        return shlex.quote(whole)
    return '"' + re.sub(r'\\(?=[\\"])|"', r"\\\g<0>", whole) + '"'


def _names(kind: type[BaseModel], parts: Sequence[int | str]) -> set[str]:
    """Return the options of a node."""
    node: Any = kind
    for part in parts:
        fields = {field.alias or name: field for name, field in node.model_fields.items()}
        node = fields[str(part)].annotation
    return {field.alias or name for name, field in node.model_fields.items()}


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _together(wrong: Sequence[str]) -> str:
    """Return one message of several."""
    if len(wrong) == 1:
        return wrong[0]
    lines = "".join(f"\n  {line}" for line in dict.fromkeys(wrong))
    return f"{len(dict.fromkeys(wrong))} options cannot be used:{lines}"


class Option(NamedTuple):
    """An option of a command, for documentation.

    Attributes:
        name: Its dotted name.
        takes: What it takes.
        meaning: What it does.
    """

    name: str
    takes: str
    meaning: str


def listed(node: type[BaseModel], above: str = "") -> Iterator[Option]:
    """Give every option of a node and of those below it, in their order."""
    for name, field in node.model_fields.items():
        key, kind = f"{above}{field.alias or name}", field.annotation
        if isinstance(kind, type) and issubclass(kind, Options):
            yield from listed(kind, f"{key}.")
            continue
        said = [one.words for one in field.metadata if isinstance(one, Takes)]
        built = "what is built: a choice of its group, or a node with a _target_"
        yield Option(key, said[-1] if said else built, field.description or "")
