"""Files: written whole or not at all; those of others are read behind one boundary.

It lies below every layer, like the exceptions.
"""

import json
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .exceptions import LoraportError, OutputError

_LARGEST_JSON = 2**26  # bytes; configs and indices of the largest models have some megabytes


@contextmanager
def reading(place: Path | str, takes: str, kind: type[LoraportError]) -> Iterator[None]:
    """Turn whatever goes wrong while something of somebody else is read into one message.

    What is foreign can make a parser raise anything: errors of its own, a RecursionError, an
    overflow, a panic of Rust. All of them mean that the place holds something else than it takes.

    Args:
        place: What is read, as the message calls it.
        takes: What it should hold, and the way out.
        kind: The error that is raised.
    """
    try:
        yield
    except LoraportError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise kind(f"{place} cannot be read ({in_short(error)}); it takes {takes}") from error


def in_short(error: BaseException) -> str:
    """Return what an error says in at most 200 characters of one line, and of which kind it is."""
    said = " ".join(str(error).split())
    said = said if len(said) <= 200 else f"{said[:197]}..."
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def read_json(path: Path, takes: str, kind: type[LoraportError]) -> dict[str, Any]:
    """Return the JSON object in a file of somebody else; see :func:`reading` for the arguments."""
    with reading(path, takes, kind):
        if path.stat().st_size > _LARGEST_JSON:
            raise ValueError(f"it is larger than {_LARGEST_JSON} bytes")
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}, and no object")
        return content


@contextmanager
def writing(
    place: Path | str, instead: str = "name a place that you may write to"
) -> Iterator[None]:
    """Turn what goes wrong while something is written into a message that names the place.

    Args:
        place: What is written, as the message calls it.
        instead: The way out, beside more space.

    Raises:
        OutputError: the disk is full, or the place cannot be written.
    """
    try:
        yield
    except OutputError:
        raise
    # safetensors wraps what the operating system says into an error of its own.
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"{place} cannot be written ({why}); free some space, or {instead}"
        ) from error


def write_whole(path: Path, content: str | bytes | memoryview) -> Path:
    """Write a file, whole or not at all, and return its path; text goes in as UTF-8.

    Raises:
        OutputError: the disk is full, or the place cannot be written.
    """
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name beside a file; what is written there gets the file's name when the block ends.

    By then it lies on the disk. When the block raises nothing of it is left.

    Raises:
        OutputError: the disk is full, or the place cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield unfinished
            to_disk(unfinished)
            unfinished.replace(path)
        except BaseException:
            with suppress(OSError):
                unfinished.unlink()
            raise


def to_disk(file: Path) -> None:
    """Wait until a file's content lies on the disk, which may be full only then."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


@contextmanager
def staged_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give an empty folder that takes the place of ``folder`` when the block ends well.

    When the block raises nothing of it is left, and what was at ``folder`` before stays.

    Args:
        folder: What is made.
        overwrite: Replace a folder that is there already; not a file, nor a folder of folders,
            which no folder that is written here ever is.

    Raises:
        OutputError: the folder exists and is not to be replaced, or cannot be written.
    """
    with writing(folder):
        _check_free(folder, overwrite)
    with _parents_of(folder):
        with writing(folder):
            # A sibling folder, so that the rename stays within one file system.
            scratch = tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent)
        with scratch as name:
            whole = Path(name) / "whole"
            with writing(folder):
                whole.mkdir()
            yield whole
            with writing(folder):
                for file in filter(Path.is_file, whole.rglob("*")):
                    to_disk(file)
                _put(whole, folder, Path(name) / "replaced")


def _check_free(folder: Path, overwrite: bool) -> None:
    if not folder.exists():
        return
    if not overwrite:
        raise OutputError(f"{folder} exists already; name another folder or set overwrite=true")
    if not folder.is_dir() or any(path.is_dir() for path in folder.iterdir()):
        what = "holds folders of its own" if folder.is_dir() else "is a file"
        raise OutputError(
            f"{folder} {what}, which overwrite=true does not remove; name another folder"
        )


@contextmanager
def _parents_of(folder: Path) -> Iterator[None]:
    """Make the folders above; when the block raises, those that were not there before go again."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    try:
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for parent in missing:
            with suppress(OSError):  # another process has put something there
                parent.rmdir()
        raise


def _put(whole: Path, folder: Path, replaced: Path) -> None:
    """Move a folder to its place; what was there comes back if that fails."""
    if folder.exists():
        os.replace(folder, replaced)
    try:
        os.replace(whole, folder)
    except BaseException:
        if replaced.exists():
            os.replace(replaced, folder)
        raise
