"""How often what a model writes keeps to a format."""

import re
from collections.abc import Sequence

from ..exceptions import ConfigurationError, DataError


def format_rate(texts: Sequence[str], pattern: str) -> float:
    r"""Return the share of texts that a regular expression matches whole.

    White space at either end of a text counts for nothing; ``.`` matches a line break too.

    Args:
        texts: What was written.
        pattern: The format.

    Raises:
        ConfigurationError: the pattern is no regular expression.
        DataError: there is no text.

    >>> format_rate([" <<A B>>", "A B"], r"<<[A-Z ]+>>")
    0.5
    """
    try:
        whole = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ConfigurationError(
            f"the format {pattern!r} is no regular expression ({error}); correct it"
        ) from error
    if not texts:
        raise DataError("the format rate of no texts at all is not defined; give at least one")
    return sum(whole.fullmatch(text.strip()) is not None for text in texts) / len(texts)
