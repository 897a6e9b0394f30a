"""What the configuration describes and a command builds: mappers, corpora, base models, suites."""

import os
import re
import traceback
from collections.abc import Mapping
from typing import Annotated, Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf
from pydantic import BaseModel, BeforeValidator, ConfigDict, model_serializer, model_validator
from pydantic_core import PydanticCustomError

from .exceptions import ConfigurationError, LoraportError


class Component(BaseModel):
    """Something that the configuration describes and a command builds: a mapper, a corpus, ...

    Attributes:
        target: The class or function, by its dotted name; of any package.
        options: What it is called with, plain data; nodes with a ``_target_`` are built first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    target: str
    options: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _read(cls, node: Any) -> Any:
        if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
            raise PydanticCustomError(
                "takes", "{takes}", {"takes": "a choice of its group, or a node with a _target_"}
            )
        options = {str(key): _expanded(value) for key, value in node.items() if key != "_target_"}
        return {"target": node["_target_"], "options": options}

    @model_serializer
    def _written(self) -> dict[str, Any]:
        return {"_target_": self.target, **self.options}

    @property
    def type(self) -> Any:
        """The class or function; its module is imported.

        Raises:
            ConfigurationError: there is none, or its module cannot be imported; the message has
                the file and the line.
        """
        try:
            return get_object(self.target)
        except Exception as error:
            cause = error.__cause__ or error
            raise ConfigurationError(
                f"{self.target} cannot be imported: {type(cause).__name__}: {cause}"
                f"{_where(cause)}; correct the _target_ or that module"
            ) from error

    @property
    def name(self) -> str:
        """What users call it: the class's ``name``, or the last part of the target."""
        return str(getattr(self.type, "name", self.target.rpartition(".")[2]))

    def with_options(self, **changed: Any) -> "Component":
        """Return the same with some options changed."""
        return self.model_copy(update={"options": {**self.options, **changed}})

    def is_called(self, name: str) -> bool:
        """Return whether the target's last part is ``name``; nothing is imported."""
        return self.target.rpartition(".")[2] == name

    def build(self, **more: Any) -> Any:
        """Build it.

        Args:
            more: Arguments beside the options, which win over them.

        Raises:
            ConfigurationError: it cannot be imported, or refuses its options.
        """
        made = self.type  # imported here, so that an error in it is told as one
        node = OmegaConf.create({"_target_": self.target, **self.options})
        try:
            # Not instantiate(node, **more): Hydra would turn dataclasses into configurations.
            return instantiate(node, _partial_=True)(**more) if more else instantiate(node)
        except LoraportError:
            raise
        except InstantiationException as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
                if isinstance(cause, LoraportError):
                    raise cause from None
            told = f"{cause}" if isinstance(cause, TypeError) else f"{cause}{_where(cause)}"
            raise ConfigurationError(
                f"{made.__module__}.{made.__qualname__} cannot be built from its options: {told}"
            ) from error


OptionalComponent = Annotated[
    Component | None, BeforeValidator(lambda node: None if node == {} else node)
]
"""One that may be left out: ``none`` in its group is an empty node."""

Components = dict[str, Component]


def _expanded(value: Any) -> Any:
    """Replace ``~/`` at the beginning of each text of an object's options by the home folder."""
    if isinstance(value, str):
        return os.path.expanduser(value) if re.match(r"~[\w.-]*(/|$)", value) else value
    if isinstance(value, Mapping):
        return {str(key): _expanded(item) for key, item in value.items()}
    return [_expanded(item) for item in value] if isinstance(value, list | tuple) else value


def _where(error: BaseException) -> str:
    """Return the place in a file where an error was raised, as far as it is known."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not re.search(r"<frozen |importlib|[\\/]hydra[\\/]", f.filename)]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
