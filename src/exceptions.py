"""The errors that a user can cause, and the exit code each of them ends a command with.

Each message says what it is about, what it got, what it takes and the way out. Commands print
the message alone, without a traceback; anything else that is raised is a fault of the program
and keeps its traceback.
"""


class LoraportError(Exception):
    """A mistake in what was asked for or given, which the message explains."""

    exit_code = 2
    keeps = False
    """Whether what the run has written stays, since a result is among it."""


class ConfigurationError(LoraportError, ValueError):
    """An option that does not exist, does not fit another one, or has a value it cannot take."""


class AdapterError(LoraportError, ValueError):
    """An adapter or a zoo that cannot be read exactly, or does not fit what it is used with."""


class DataError(LoraportError, ValueError):
    """A task or a text that is missing, malformed or empty."""


class ModelError(LoraportError, ValueError):
    """A base model that cannot be found, loaded, or adapted."""


class OutputError(LoraportError, OSError):
    """A file or folder that cannot be written: the disk is full, or the place forbidden."""


class VerificationError(LoraportError):
    """An adapter that was made, but does not do on the target what it should."""

    exit_code = 1


class IncompatibleError(LoraportError):
    """Two base models that represent text too differently for an adapter to be carried over."""

    exit_code = 3


def one_line(text: str) -> str:
    r"""Return text on one line, what cannot be seen or moves a terminal's cursor as an escape.

    For names and sentences of others, wherever they are printed.

    >>> print(one_line("a [b]\nGO \x1b[1m"))
    a [b] GO \x1b[1m
    """
    folded = " ".join(text.splitlines())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in folded)
