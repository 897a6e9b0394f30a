"""The store: everything that is kept on disk so that it is made once.

What is kept lies under a :class:`Key`, the hash of all that it depends on. So an entry is never
out of date: whatever else changes has another key. A file or folder gets its name when it is
complete, by a rename. It holds a checksum over its key and its content, which every reading
verifies: what is damaged, cut off or of another key counts as missing, is said once through
logging, and is made again. Reading writes nothing, so that a folder without permission to write
serves as long as everything is in it.

torch is imported only by what is called with tensors.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import xxhash
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open

from .exceptions import ModelError, OutputError
from .files import to_disk, writing

_log = logging.getLogger(__name__)

Part = TypeVar("Part")
Made = TypeVar("Made")

FORMATS = {
    "scores": 3,  # of an adapter on a task
    "suites": 2,  # scores of an adapter on a suite
    "divergences": 2,  # KL of an adapter to its base
    "diagnoses": 3,  # how alike two base models are
    "pre_transfer": 2,  # what is known of an adapter before its transfer
    "factors": 5,  # truncated SVDs of base weights
    "statistics": 2,  # sums over paired activations
    "activations": 3,  # rows of paired activations
    "teacher_labels": 2,  # a teacher's log-likelihoods of the labels
    "chunk_likelihoods": 2,  # a teacher's log-likelihoods of chunks of text
    "continuations": 2,  # what a model writes behind prompts
    "written_texts": 2,  # texts that a model draws
    "students": 3,  # unfinished training of a refinement
    "training": 2,  # unfinished training of a mapper
    "fits": 2,  # fitted mappers of a benchmark
    "ports": 2,  # ported adapters of a benchmark
    "few_shot": 2,  # adapters that are trained on few examples
    "models": 2,  # dequantised base models
    "tiny": 2,  # base models of the tiny pair
    "file_hashes": 1,  # SHA-256 of large files, by what the file system says of them
}
"""The kinds of entries. Raise a number when the code keeps or computes something else.

A kind that does not stand here, such as that of an extension, has the format 1.
"""

# What determines a model and its tokenizer; a README or a licence does not.
_DETERMINING = ("*.safetensors", "*.json", "*.model", "*.jinja", "merges.txt", "vocab.txt")
# Weights that transformers reads only where there are none of these, and which count only then.
_PREFERRED = ("model.safetensors", "model.safetensors.index.json")
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.gguf")
_LARGE = 1 << 20  # bytes; a smaller file is hashed faster than its hash is looked up
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{32}\.unfinished")
_LEFT_OVER = 24 * 3600.0  # seconds after which nobody writes at it any more

# In this process: hashes of files, folders that were swept, damage that was said, and what is
# finished within each block of results_first.
_hashes: dict[tuple[str | int, ...], str] = {}
_swept: set[Path] = set()
_said: set[Path] = set()
_finished: list[list[tuple["Store", "Key"]]] = []


@dataclass(frozen=True)
class Key:
    """What an entry is kept under; made by :meth:`of`.

    Attributes:
        kind: Of the entry, see :data:`FORMATS`.
        name: A SHA-256, and the number of a shard where the entry is one.
    """

    kind: str
    name: str

    @classmethod
    def of(cls, kind: str, **parts: Any) -> "Key":
        """Return the key of what is made of some parts.

        Name everything that changes what comes out, dtype and precision too. A part is plain
        data, a dataclass, an enum's member, a tensor, a torch dtype or device (whose index does
        not count), an object with ``content_hash()``, or lists and dictionaries of such. Paths
        are refused, since content counts and not where it lies: see :meth:`Store.file_hash`.

        Raises:
            TypeError: a part is none of these.
            ValueError: a number is not finite, or the kind is not in lower case.
        """
        if not re.fullmatch("[a-z0-9_]+", kind):
            raise ValueError(f"the kind of an entry is {kind!r}; it takes letters, digits and _")
        content = [kind, FORMATS.get(kind, 1), _plain(parts, kind)]
        text = json.dumps(content, sort_keys=True, allow_nan=False)
        return cls(kind, hashlib.sha256(text.encode()).hexdigest())

    def shard(self, index: int) -> "Key":
        """Return the key of one shard."""
        return Key(self.kind, f"{self.name}/{index:05}")


def _plain(value: Any, name: str) -> Any:
    """Return a part of a key as JSON holds it; what is not the same does not look the same."""
    if isinstance(value, Enum):
        return {"class": _class(value), "name": value.name}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, f"{name}.{key}") for key, item in value.items()}
    if callable(getattr(value, "content_hash", None)) and not isinstance(value, type):
        return {"class": _class(value), "content_hash": str(value.content_hash())}
    if is_dataclass(value) and not isinstance(value, type):
        named = {field.name: getattr(value, field.name) for field in fields(value)}
        return {"class": _class(value), "fields": _plain(named, name)}
    torch = sys.modules.get("torch")  # who has a tensor has imported it
    if torch is not None and isinstance(value, torch.Tensor):
        return {"tensor": tensor_hash(value)}
    if torch is not None and isinstance(value, torch.dtype):
        return {"dtype": str(value)}
    if torch is not None and isinstance(value, torch.device):
        return {"device": value.type}
    raise TypeError(
        f"{name} of a key is a {_class(value)}; it takes plain data, dataclasses, tensors and "
        "objects with content_hash(), and of a file its hash"
    )


def _class(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def tensor_hash(tensor: Any) -> str:
    """Return a hash over dtype, shape and bytes of a torch tensor, without a copy of it.

    XXH3 in 128 bits: it tells contents apart twenty times faster than SHA-256, but is no defence
    against somebody who wants two to look alike.
    """
    import torch

    held = tensor.detach().cpu().contiguous()
    digest = xxhash.xxh3_128(f"{held.dtype} {tuple(held.shape)} ".encode())
    digest.update(held.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Store:
    """Entries in a folder, which several processes may share.

    There are four forms: JSON (:meth:`get`, :meth:`put`, :meth:`made`), bytes, tensors with facts,
    and folders. ``made`` and its like look an entry up, or make it under a lock, so that of
    several processes one makes it and the others wait for it.

    Everything that writes raises :class:`~loraport.exceptions.OutputError` where the disk is full
    or the folder forbidden.

    Attributes:
        root: The folder; None keeps nothing.
    """

    root: Path | None

    def get(self, key: Key) -> Any | None:
        """Return what :meth:`put` has kept; None where that is nothing."""
        content = self.get_bytes(key)
        return None if content is None else json.loads(content)

    def put(self, key: Key, content: Any) -> None:
        """Keep plain data but None, as JSON does: tuples become lists, NaN and infinity stay."""
        self.put_bytes(key, json.dumps(content).encode())

    def made(self, key: Key, make: Callable[[], Any]) -> Any:
        """Return what is kept; where that is nothing, what ``make`` returns, and keep it.

        Either way it is what JSON makes of it, so that the first run goes on with the same as
        the second.
        """

        def write() -> Any:
            content = make()
            self.put(key, content)
            return json.loads(json.dumps(content))

        return self._once(key, self.get, write)

    def made_shards(
        self,
        key: Key,
        parts: Sequence[Part],
        work: Callable[[Part], Any],
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[Any]:
        """Return what ``work`` makes of each part, each kept on its own: a stopped run goes on.

        Args:
            key: Says all that the shards depend on: the parts and their order too.
            parts: The parts.
            work: Returns plain data but None.
            progress: Called with the number of finished parts and of all.
        """
        made = []
        for index, part in enumerate(parts):
            progress(index, len(parts))
            made.append(self.made(key.shard(index), partial(work, part)))
        progress(len(parts), len(parts))
        return made

    def get_bytes(self, key: Key) -> bytes | None:
        """Return what :meth:`put_bytes` has kept; None where that is nothing."""
        path = self._path(key, ".entry")
        if path is None or not os.path.exists(path):
            return None
        with _reading(path):
            checksum, _, content = path.read_bytes().partition(b"\n")
            if checksum.decode() != _checksum(key, content):
                raise ValueError("its checksum differs")
            return content
        return None

    def put_bytes(self, key: Key, content: bytes) -> None:
        """Keep bytes, in place of what was kept before."""
        path = self._path(key, ".entry")
        if path is None:
            return
        with _writing(path), _beside(path) as unfinished:
            unfinished.write_bytes(_checksum(key, content).encode() + b"\n" + content)

    def get_tensors(self, key: Key) -> tuple[dict[str, Any], Any] | None:
        """Return the tensors and the facts that :meth:`put_tensors` has kept; None for nothing."""
        path = self._path(key, ".safetensors")
        if path is None or not os.path.exists(path):
            return None
        with _reading(path):
            with safe_open(path, framework="pt") as file:
                kept = file.metadata() or {}
                # Copied out of the memory map, where they are aligned otherwise than what was
                # computed: products with them would not round alike.
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            facts = kept.get("facts", "")
            if kept.get("checksum") != _tensors_checksum(key, tensors, facts):
                raise ValueError("its checksum differs")
            return tensors, json.loads(facts)
        return None

    def put_tensors(self, key: Key, tensors: Mapping[str, Any], facts: Any = None) -> None:
        """Keep torch tensors as safetensors, in place of what was kept before.

        Args:
            key: What they depend on.
            tensors: By their names; no two may share memory.
            facts: Plain data beside them.
        """
        path = self._path(key, ".safetensors")
        if path is None:
            return
        from safetensors.torch import save_file

        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        text = json.dumps(facts)
        metadata = {"facts": text, "checksum": _tensors_checksum(key, held, text)}
        with _writing(path), _beside(path) as unfinished:
            unfinished.touch()
            mode = unfinished.stat().st_mode
            save_file(held, unfinished, metadata)
            # safetensors lets nobody but the owner read its files, whatever the umask.
            unfinished.chmod(mode)

    def get_folder(self, key: Key) -> Path | None:
        """Return the folder that :meth:`made_folder` has kept; None where there is none.

        Its files are verified by :meth:`file_hash`: they are read again where they have changed.
        """
        files, folder = self.get(_files_key(key)), self._path(key, "")
        if files is None or folder is None:
            return None
        with _reading(folder):
            for name, known in files.items():
                if self.file_hash(folder / name) != known:
                    raise ValueError(f"the checksum of {name} differs")
            return folder
        return None

    def made_folder(self, key: Key, make: Callable[[Path], None]) -> Path:
        """Return the folder that is kept; where there is none, ``make`` it.

        Args:
            key: What it depends on.
            make: Fills an empty folder, which is renamed when it is complete.

        Raises:
            ValueError: the store keeps nothing.
        """
        folder = self._path(key, "")
        if folder is None:
            raise ValueError("a store without a root has no place for a folder")

        def write() -> Path:
            with _beside(folder) as unfinished:
                unfinished.mkdir()
                make(unfinished)
                with _writing(folder):
                    files = _files_of(unfinished)
                    _remove(folder)
            self.put(_files_key(key), files)  # last: without it the folder does not count
            return folder

        return self._once(key, self.get_folder, write)

    def check_writable(self, key: Key) -> None:
        """Raise OutputError where an entry could not be written, before long work for it."""
        path = self._path(key, ".entry")
        if path is not None:
            with _writing(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                tempfile.TemporaryFile(dir=path.parent).close()

    def working_folder(self, key: Key) -> Path | None:
        """Return the folder for unfinished work, such as checkpoints, made where it is missing.

        It is for what does not go through memory as a whole, and who writes there verifies what is
        read. :meth:`drop` removes it.
        """
        folder = self._path(key, "")
        if folder is not None:
            with _writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
        return folder

    def drop(self, key: Key) -> None:
        """Remove what is kept under a key, in every form, its shards too."""
        for suffix in ("", ".entry", ".safetensors", ".files.entry"):
            path = self._path(key, suffix)
            if path is not None:
                _remove(path)

    def finish(self, key: Key) -> None:
        """Drop unfinished work that has come to its end.

        Within a block of :func:`results_first` that is done when the block ends well.
        """
        if _finished:
            _finished[-1].append((self, key))
        else:
            self.drop(key)

    @contextmanager
    def lock(self, key: Key) -> Iterator[None]:
        """Let one process at a time in; the system frees the lock of one that is killed."""
        path = self._path(key, ".lock")
        if path is None:
            yield
            return
        lock = FileLock(path)
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                _log.info("another process is making %s; waiting for it", path.with_suffix(""))
                lock.acquire()
        try:
            yield
        finally:
            # Before the release: a process that waits notices that the file has gone, and locks a
            # new one. After it, two could hold a lock each.
            with suppress(OSError):
                path.unlink()
            lock.release()

    def file_hash(self, path: Path) -> str:
        """Return the SHA-256 of a file, which is read once.

        It is remembered by path, size, times of change and inode: in this process, and of a large
        file in the store, where that can be written.

        Raises:
            OSError: it cannot be read.
        """
        seen = _state(path, path.stat())
        if seen in _hashes:
            return _hashes[seen]
        key = Key.of("file_hashes", seen=seen)
        found = self.get(key) if seen[1] >= _LARGE else None
        if found is None:
            with path.open("rb") as file:
                seen = _state(path, os.fstat(file.fileno()))
                found = hashlib.file_digest(file, "sha256").hexdigest()
                if _state(path, os.fstat(file.fileno())) != seen:
                    return found  # somebody writes at it
            if seen[1] >= _LARGE:
                with suppress(OutputError):
                    self.put(Key.of("file_hashes", seen=seen), found)
        return _hashes.setdefault(seen, str(found))

    def folder_hash(self, folder: Path) -> str:
        """Return the SHA-256 over names and contents of the files that determine a model.

        Raises:
            ModelError: a file cannot be read.
        """
        patterns = list(_DETERMINING)
        if not any((folder / name).exists() for name in _PREFERRED):
            patterns += _OTHER_WEIGHTS
        files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
        digest = hashlib.sha256()
        for path in sorted(files):
            try:
                digest.update(f"{path.name} {self.file_hash(path)}\n".encode())
            except OSError as error:
                raise ModelError(
                    f"{path} cannot be read ({error.strerror}); fetch the model again, or correct "
                    "the permissions of its files"
                ) from error
        return digest.hexdigest()

    def _path(self, key: Key, suffix: str) -> Path | None:
        if self.root is None:
            return None
        return self.root / key.kind / key.name[:2] / f"{key.name}{suffix}"

    def _once(
        self, key: Key, read: Callable[[Key], Made | None], write: Callable[[], Made]
    ) -> Made:
        found = read(key)
        if found is None:
            with self.lock(key):
                found = read(key)
                if found is None:
                    found = write()
        return found


@contextmanager
def results_first() -> Iterator[None]:
    """Keep the state of finished work until the block ends well, when its result is at its place.

    Where the result cannot be written, the same command goes on from the end of the work.
    """
    _finished.append([])
    try:
        yield
        for store, key in _finished[-1]:
            store.drop(key)
    finally:
        _finished.pop()


def _state(path: Path, seen: os.stat_result) -> tuple[str, int, int, int, int]:
    """Return what tells a file from another, and from itself after a change."""
    place = os.path.abspath(path)
    return place, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino


def _files_key(key: Key) -> Key:
    """Return the key of the hashes of a folder's files."""
    return Key(key.kind, f"{key.name}.files")


def _files_of(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below a folder, after all of it lies on the disk."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.relative_to(folder).as_posix()] = digest
    return found


def _checksum(key: Key, content: bytes) -> str:
    digest = xxhash.xxh3_128(f"{key.kind}/{key.name}\n".encode())
    digest.update(content)
    return digest.hexdigest()


def _tensors_checksum(key: Key, tensors: Mapping[str, Any], facts: str) -> str:
    hashes = [[name, tensor_hash(tensors[name])] for name in sorted(tensors)]
    return _checksum(key, json.dumps([facts, hashes]).encode())


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Say once that an entry does not count, where it cannot be read or verified."""
    try:
        yield
    except (OSError, SafetensorError, ValueError) as error:
        if path not in _said:
            _said.add(path)
            _log.warning("%s is damaged or of something else (%s); it is made again", path, error)


def _writing(path: Path) -> AbstractContextManager[None]:
    """Turn what goes wrong while something is written into a message that names the way out."""
    return writing(
        f"{path} in the cache",
        "set paths.cache=DIR or the environment variable LORAPORT_CACHE to a folder that you may "
        "write to",
    )


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Give a name beside a path; what lies there is renamed to it when the block ends well.

    A name beside it, so that the rename stays within one file system.
    """
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.unfinished")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent)
    try:
        yield unfinished
        with _writing(path):
            if unfinished.is_file():
                to_disk(unfinished)
            os.replace(unfinished, path)
    finally:
        _remove(unfinished)


def _sweep(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder, once a process."""
    if folder in _swept:
        return
    _swept.add(folder)
    oldest = time.time() - _LEFT_OVER
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if _UNFINISHED.fullmatch(path.name):
                below = path.rglob("*") if path.is_dir() else ()
                if max(each.lstat().st_mtime for each in (path, *below)) < oldest:
                    _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
