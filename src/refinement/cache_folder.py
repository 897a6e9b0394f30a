"""Where work is kept in the cache: under a hash of all that it depends on."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def cache_folder(cache: Path | None, kind: str, made_of: Sequence[Any]) -> Path | None:
    """Return the folder of one piece of work; None where nothing is kept.

    Args:
        cache: The cache.
        kind: Of the work: the folder above.
        made_of: All that the work depends on, as JSON can hold it.
    """
    if cache is None:
        return None
    key = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:32]
    return cache / kind / key
