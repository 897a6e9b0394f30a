"""Reading single options, each of the kind that it has to be."""

from typing import Any, TypeVar

from omegaconf import DictConfig, ListConfig, OmegaConf

from ..exceptions import ConfigurationError

Kind = TypeVar("Kind", bool, int, float, str)
_CALLED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
}


def option(config: DictConfig, key: str, kind: type[Kind]) -> Kind:
    """Return the option ``key``, such as ``merge.weights``; a whole number is a number too.

    Raises:
        ConfigurationError: it is of another kind.
    """
    return _of_kind(OmegaConf.select(config, key), key, kind)


def optional(config: DictConfig, key: str, kind: type[Kind]) -> Kind | None:
    """Return the option ``key``, which may be null.

    Raises:
        ConfigurationError: it is of another kind.
    """
    value = OmegaConf.select(config, key)
    return None if value is None else _of_kind(value, key, kind)


def listed(config: DictConfig, key: str, kind: type[Kind]) -> list[Kind]:
    """Return the option ``key``, one value or several, as a list.

    Raises:
        ConfigurationError: a value is of another kind, or there is null in its place.
    """
    given = OmegaConf.select(config, key)
    values = list(given) if isinstance(given, ListConfig) else [given]
    return [_of_kind(value, key, kind) for value in values]


def _of_kind(value: Any, key: str, kind: type[Kind]) -> Kind:
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not fits or (kind is not bool and isinstance(value, bool)):
        shown = "null" if value is None else repr(value)
        raise ConfigurationError(f"{key} is {shown}; it takes {_CALLED[kind]}")
    return kind(value)
