"""Work in portions, each of which is kept in a file, so that a stopped run goes on."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..files import write_whole
from .base import Progress

Part = TypeVar("Part")


def in_portions(
    folder: Path | None,
    parts: Sequence[Part],
    work: Callable[[Part], Any],
    *,
    step: str,
    progress: Progress,
) -> list[Any]:
    """Return what ``work`` makes of each part; what an earlier run has made is read.

    Args:
        folder: Where the portions lie, a file each; its name must say all that they depend on.
            None keeps nothing.
        parts: The parts, always the same ones in the same order.
        work: Makes plain data, as JSON can hold it, of one part.
        step: What ``progress`` is told that is being done.
        progress: Is told how many parts are done.

    Raises:
        OutputError: a portion cannot be written.
    """
    made = []
    for place, part in enumerate(parts):
        progress(step, place, len(parts))
        file = None if folder is None else folder / f"{place:05}.json"
        kept = None if file is None else _read(file)
        if kept is None:
            kept = {"portion": work(part)}
            if file is not None:
                write_whole(file, json.dumps(kept))
        made.append(kept["portion"])
    progress(step, len(parts), len(parts))
    return made


def _read(file: Path) -> dict[str, Any] | None:
    """Return what the file holds; None where it is missing or damaged."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and "portion" in kept else None
