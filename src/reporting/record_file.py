"""Reading files that hold one record."""

import json
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from ..exceptions import DataError
from .results import Record

Read = TypeVar("Read", bound=Record)


def read_record(kind: type[Read], path: str | Path, wanted: str) -> Read:
    """Read and validate a file that holds one record.

    Args:
        kind: Of the record.
        path: The file.
        wanted: What it should be, for the message.

    Raises:
        DataError: the file is missing, is no JSON, has another schema version, or lacks a field.
    """
    try:
        return kind.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
    except (OSError, ValidationError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); it takes the {wanted}") from None
