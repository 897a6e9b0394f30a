"""What is kept comes back or is made again: never half, never under another key."""

import hashlib
import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
import xxhash
from safetensors.torch import load_file

from loraport import store as module
from loraport.exceptions import ModelError, OutputError
from loraport.store import Key, Store, tensor_hash

KEY = Key.of("scores", x=1)
OTHER = Key.of("scores", x=2)
TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(0.5, dtype=torch.bfloat16)}
Patch = pytest.MonkeyPatch


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


@pytest.fixture(autouse=True)
def new_process(monkeypatch: Patch) -> Callable[[], None]:
    """Forget what a process remembers, as a new one does."""

    def forget() -> None:
        monkeypatch.setattr(module, "_hashes", {})
        monkeypatch.setattr(module, "_swept", set())
        monkeypatch.setattr(module, "_said", set())

    forget()
    return forget


def root(store: Store) -> Path:
    assert store.root is not None
    return store.root


def nothing(store: Store, key: Key) -> bool:
    """Whether nothing is kept in any form."""
    forms: list[Callable[[Key], object]] = [store.get, store.get_tensors, store.get_folder]
    return all(get(key) is None for get in forms)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def only_file(store: Store, suffix: str) -> Path:
    (path,) = (path for path in files(root(store)) if path.suffix == suffix)
    return path


def never(*_: Any) -> NoReturn:
    raise AssertionError("made although it is kept")


def fill(folder: Path) -> None:
    (folder / "part").mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "part" / "weights").write_bytes(b"w" * 1000)


# Keys.


class Colour(Enum):
    RED = 1
    BLUE = 2


@dataclass(frozen=True)
class Options:
    rate: float
    steps: int


@dataclass(frozen=True)
class OtherOptions:
    rate: float
    steps: int


class Hashed:
    def __init__(self, content: str) -> None:
        self.content = content

    def content_hash(self) -> str:
        return self.content


PARTS: list[Any] = [
    *(None, True, 1, 1.0, 1.5, "1", "", [], {}, [1], [[1]], {"a": 1}, {"a": {"b": 1}}),
    *(Colour.RED, Colour.BLUE, Options(0.1, 3), Options(0.1, 4), OtherOptions(0.1, 3)),
    *(Hashed("a"), Hashed("b"), torch.float32, torch.bfloat16),
    *(torch.device("cpu"), torch.device("meta"), torch.ones(2), torch.ones(2).double()),
    *(torch.ones(2, 1), torch.tensor([1.0, 2.0])),
]


def test_whatever_differs_has_another_key(monkeypatch):
    assert len({Key.of("scores", part=part) for part in PARTS}) == len(PARTS)
    assert len({Key.of("scores", **{name: 1}) for name in ("a", "b")}) == 2
    assert Key.of("scores", a=1).name != Key.of("suites", a=1).name
    monkeypatch.setitem(module.FORMATS, "scores", module.FORMATS["scores"] + 1)
    assert Key.of("scores", x=1) != KEY


def test_what_is_the_same_has_the_same_key():
    key = partial(Key.of, "scores")
    assert key(a=1, b={"x": 1, "y": 2}) == key(b={"y": 2, "x": 1}, a=1)
    assert key(a=(1, 2)) == key(a=[1, 2])
    assert key(a=TENSORS["a"]) == key(a=TENSORS["a"].mT.clone().mT)
    # Another card of the same kind computes the same.
    assert key(a=torch.device("cuda", 0)) == key(a=torch.device("cuda", 1))


def test_a_key_is_the_hash_of_canonical_json():
    """So that the next version of the package, or another machine, finds what is kept."""
    text = json.dumps(["unheard_of", 1, {"a": [1, "é"], "b": None}])
    expected = hashlib.sha256(text.encode()).hexdigest()
    assert Key.of("unheard_of", b=None, a=(1, "é")).name == expected
    weight = torch.arange(6, dtype=torch.int16).reshape(2, 3)
    expected = xxhash.xxh3_128(b"torch.int16 (2, 3) " + weight.numpy().tobytes()).hexdigest()
    assert tensor_hash(weight) == tensor_hash(weight.mT.contiguous().mT) == expected


@pytest.mark.parametrize("part", [object(), {1: 2}, {1, 2}, Path("here"), Options, b"x"])
def test_what_cannot_be_told_apart_is_refused(part):
    with pytest.raises(TypeError, match=r"scores\.a\.b\[1\] of a key is a .*content_hash"):
        Key.of("scores", a={"b": [0, part]})


def test_numbers_that_are_not_finite_and_odd_kinds_are_refused():
    with pytest.raises(ValueError, match="not JSON compliant"):
        Key.of("scores", a=math.nan)
    with pytest.raises(ValueError, match=r"'\.\./up'.*takes letters"):
        Key.of("../up")


# Entries.


def test_json_and_bytes_come_back(store):
    assert store.get(KEY) is None
    store.put(KEY, {"a": [1, 0.1, "é", None], "b": [math.inf, math.nan]})
    kept: Any = store.get(KEY)
    assert kept["a"] == [1, 0.1, "é", None]
    assert kept["b"][0] == math.inf
    assert math.isnan(kept["b"][1])
    for content in (b"", b"\n", b"a\nb\x00\xff"):
        store.put_bytes(KEY, content)
        assert store.get_bytes(KEY) == content
    assert store.get(OTHER) is None
    assert [path.name for path in files(root(store))] == [f"{KEY.name}.entry"]


def test_tensors_come_back_with_their_bits_and_facts(store):
    tensors = TENSORS | {"none": torch.zeros(0, 2), "turned": TENSORS["a"].mT}
    assert store.get_tensors(KEY) is None
    store.put_tensors(KEY, tensors, {"energy": 0.1})
    kept = store.get_tensors(KEY)
    assert kept is not None
    assert kept[1] == {"energy": 0.1}
    assert set(kept[0]) == set(tensors)
    for name, tensor in tensors.items():
        assert kept[0][name].dtype == tensor.dtype
        assert torch.equal(kept[0][name], tensor)
    # Others may read the file too.
    path = only_file(store, ".safetensors")
    assert set(load_file(path)) == set(tensors)
    (path.parent / "usual").touch()
    assert path.stat().st_mode == (path.parent / "usual").stat().st_mode


def test_a_thing_is_made_once_and_after_a_failure_the_next_time(store):
    def interrupted() -> NoReturn:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.made(KEY, interrupted)
    assert files(root(store)) == []
    first = store.made(KEY, lambda: {"a": (1, 2)})
    assert first == {"a": [1, 2]}  # as a second run finds it
    assert store.made(KEY, never) == first


def test_a_store_without_a_root_keeps_nothing():
    store = Store(None)
    assert [store.made(KEY, lambda: (1,)) for _ in range(2)] == [[1], [1]]
    store.put_tensors(KEY, TENSORS)
    assert nothing(store, KEY)
    assert store.working_folder(KEY) is None
    store.drop(KEY)
    with pytest.raises(ValueError, match="without a root"):
        store.made_folder(KEY, never)


def test_dropping_removes_every_form(store):
    store.put(KEY, 1)
    store.put_tensors(KEY, TENSORS)
    store.made_shards(KEY, [1, 2], str)
    store.put(OTHER, 2)
    third = Key.of("scores", x=3)
    store.made_folder(third, fill)
    for key in (third, KEY, KEY):
        store.drop(key)
    assert [path.stem for path in files(root(store))] == [OTHER.name]


def test_a_run_that_is_stopped_between_shards_goes_on(store):
    worked: list[str] = []
    stopped: list[str] = []
    told: list[tuple[int, int]] = []

    def work(part: str) -> str:
        if part == "c" and not stopped:
            stopped.append(part)
            raise KeyboardInterrupt
        worked.append(part)
        return part.upper()

    with pytest.raises(KeyboardInterrupt):
        store.made_shards(KEY, "abcd", work)
    made = store.made_shards(KEY, "abcd", work, lambda *done: told.append(done))
    assert made == ["A", "B", "C", "D"]
    assert worked == ["a", "b", "c", "d"]
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert store.made_shards(KEY, "abcd", never) == made


# Damage.


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1 - len(content) // 8] ^= 16
    path.write_bytes(content)


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a bit": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "foreign": lambda path: path.write_bytes(b'{"kept": [1, 2]}\n'),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00\n"),
    "a folder": to_folder,
}
damaged = pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
Damage = Callable[[Path], object]


@damaged
def test_a_damaged_entry_is_said_once_and_made_again(store, damage, caplog):
    store.put(KEY, {"predictions": ["good", "bad"] * 20})
    path = only_file(store, ".entry")
    damage(path)
    assert store.get(KEY) is store.get(KEY) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"{path} is damaged" in caplog.text
    assert "made again" in caplog.text
    if path.is_dir():
        path.rmdir()
    assert store.made(KEY, lambda: [3]) == store.made(KEY, never) == [3]


@damaged
def test_damaged_tensors_and_folders_count_as_missing(store, damage, caplog):
    store.put_tensors(KEY, {"a": torch.arange(64.0)}, "fact")
    path = only_file(store, ".safetensors")
    damage(path)
    assert store.get_tensors(KEY) is None
    assert f"{path} is damaged" in caplog.text
    for name in ("config.json", "part/weights"):
        folder = store.made_folder(KEY, fill)
        damage(folder / name)
        assert store.get_folder(KEY) is None
        assert f"{folder} is damaged" in caplog.text
        assert store.made_folder(KEY, fill) == store.made_folder(KEY, never) == folder
        assert (folder / "part" / "weights").read_bytes() == b"w" * 1000


def test_every_byte_of_an_entry_counts_and_none_of_tensors_changes_unnoticed(store):
    store.put(KEY, [1, 2])
    store.put_tensors(KEY, TENSORS, {"steps": 7})
    for suffix in (".entry", ".safetensors"):
        path = only_file(store, suffix)
        whole = path.read_bytes()
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            if suffix == ".entry":
                assert store.get(KEY) is None, place
            elif (kept := store.get_tensors(KEY)) is not None:
                # Not all of the header has a meaning.
                assert kept[1] == {"steps": 7}
                assert all(torch.equal(kept[0][name], TENSORS[name]) for name in TENSORS)
        path.write_bytes(whole)
    assert store.get(KEY) == [1, 2]


def test_a_shard_that_is_damaged_or_changes_place_is_made_again(store):
    store.made_shards(KEY, [1, 2, 3], lambda part: part)
    flip(next(path for path in files(root(store)) if path.stem == "00001"))
    assert store.made_shards(KEY, [1, 2, 3], lambda part: -part) == [1, -2, 3]
    swap(*files(root(store))[:2])
    assert store.made_shards(KEY, [1, 2, 3], lambda part: part) == [1, 2, 3]


def test_what_lies_under_the_name_of_another_key_is_noticed(store):
    keys = (KEY, OTHER)
    for number, key in enumerate(keys):
        store.put(key, number)
        store.put_tensors(key, {"a": torch.full((2,), float(number))})
        store.made_folder(key, lambda folder, told=str(number): (folder / "x").write_text(told))
    for suffix in (".entry", ".safetensors"):
        swap(*(next(root(store).rglob(f"{key.name}{suffix}")) for key in keys))
    folders = [store.get_folder(key) for key in keys]
    swap(*(folder / "x" for folder in folders if folder is not None))
    assert all(nothing(store, key) for key in keys)


# Folders.


def test_a_folder_is_made_once_and_whole(store):
    def fail(folder: Path) -> None:
        fill(folder)
        (folder / "missing").read_text()

    assert store.get_folder(KEY) is None
    with pytest.raises(FileNotFoundError, match="missing"):
        store.made_folder(KEY, fail)
    assert files(root(store)) == []
    folder = store.made_folder(KEY, fill)
    assert store.made_folder(KEY, never) == store.get_folder(KEY) == folder
    assert [path.name for path in files(folder)] == ["config.json", "weights"]
    beside = sorted(path.name for path in folder.parent.iterdir())
    assert beside == [KEY.name, f"{KEY.name}.files.entry"]
    (folder / "notes").write_text("mine")  # a further file does not matter
    assert store.get_folder(KEY) == folder
    (folder / "part" / "weights").unlink()
    assert store.get_folder(KEY) is None


def test_a_working_folder_lasts_until_it_is_dropped(store):
    folder = store.working_folder(KEY)
    assert folder is not None
    (folder / "last.ckpt").write_text("state")
    assert store.working_folder(KEY) == folder
    assert files(folder) == [folder / "last.ckpt"]
    store.drop(KEY)
    assert not folder.exists()


# Other processes.

BEGIN = """
import logging, os, signal, sys, time
from pathlib import Path
from loraport.store import Key, Store
from loraport import store as module
store, KEY = Store(Path(sys.argv[1])), Key.of("scores", x=1)
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
def fill(folder):
    (folder / "config.json").write_text("{}")
    (folder / "weights").write_bytes(b"w" * 1000)
"""
Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def start(store: Store) -> Iterator[Start]:
    """Start a process that has the same store, and run lines in it."""
    processes: list[subprocess.Popen[str]] = []

    def begin(lines: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", BEGIN + lines, str(store.root)]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, text=True, stdout=pipe, stdin=pipe))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate(timeout=60)


KILLED = {
    "while it is written": "Path.write_bytes = lambda p, c: (open(p, 'wb').write(c[:40]), die())\n"
    "store.put(KEY, 'x' * 100)",
    "before the rename": "os.replace = die\nstore.made(KEY, lambda: 'x' * 100)",
    "while a folder is made": "store.made_folder(KEY, lambda folder: (fill(folder), die()))",
    "before a folder's hashes": "store.__class__.put = die\nstore.made_folder(KEY, fill)",
    "while a damaged folder is removed": "folder = store.made_folder(KEY, fill)\n"
    "(folder / 'weights').write_bytes(b'w')\nmodule._remove = die\n"
    "store.made_folder(KEY, fill)",
}


@pytest.mark.parametrize("moment", KILLED)
def test_a_killed_writer_leaves_nothing_that_counts(moment, store, start):
    assert start(KILLED[moment]).wait(60) == -signal.SIGKILL
    (parent,) = root(store).glob("scores/*")
    named = [path for path in parent.iterdir() if path.name[0] != "." and path.suffix != ".lock"]
    if moment not in ("before a folder's hashes", "while a damaged folder is removed"):
        assert named == []
    assert store.get_folder(KEY) is None
    if "folder" not in moment:
        assert store.get(KEY) is None
        assert store.made(KEY, lambda: 7) == store.get(KEY) == 7
    store.drop(KEY)
    folder = store.made_folder(KEY, fill)  # the lock of the dead is free
    assert store.made_folder(KEY, never) == folder


def test_of_two_processes_one_makes_and_the_other_waits(store, start):
    first = start(
        "def make():\n    print('making', flush=True); sys.stdin.readline(); return 'first'\n"
        "print(store.made(KEY, make), 'torch' in sys.modules, flush=True)"
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "making\n"
    second = start(
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout, format='%(message)s')\n"
        "print(store.made(KEY, lambda: 'second'), flush=True)"
    )
    assert second.stdout is not None
    assert "another process is making" in second.stdout.readline()
    assert first.communicate("go on\n", timeout=60)[0] == "first False\n", "torch is not imported"
    assert second.communicate(timeout=60)[0] == "first\n"
    assert [path.suffix for path in files(root(store))] == [".entry"]


def test_left_overs_of_yesterday_go_by_their_name_alone(store):
    store.put(KEY, 1)
    folder = only_file(store, ".entry").parent
    names = [f".{KEY.name}.entry.{'0a' * 16}.unfinished", f".{KEY.name}.{'1b' * 16}.unfinished"]
    mine = [".unfinished", ".notes.unfinished", f"x.{'0a' * 16}.unfinished", "old.entry"]
    for name in (names[0], *mine):
        (folder / name).write_text("half")
    (folder / names[1]).mkdir()
    (folder / names[1] / "weights").write_text("half")
    yesterday = time.time() - 25 * 3600
    for path in [*folder.iterdir(), folder / names[1] / "weights"]:
        os.utime(path, (yesterday, yesterday))
    fresh = f".{KEY.name}.entry.{'2c' * 16}.unfinished"
    (folder / fresh).write_text("half")
    written_to = f".{KEY.name}.{'3d' * 16}.unfinished"
    (folder / written_to).mkdir()
    (folder / written_to / "log").write_text("new")
    os.utime(folder / written_to, (0, 0))
    module._swept.clear()
    store.put(KEY, 2)
    left = {path.name for path in folder.iterdir()}
    assert left == {f"{KEY.name}.entry", fresh, written_to, *mine}


# Where nothing can be written.


def forbid_writing(monkeypatch: Patch) -> None:
    """Answer every attempt to make something as a read-only file system does, to root as well."""
    real = os.open

    def refuse(path: Any, *_: Any, **__: Any) -> NoReturn:
        raise OSError(30, os.strerror(30), str(path))

    def only_reading(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        return refuse(path) if flags & os.O_CREAT else real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", only_reading)
    for place, name in ((os, "mkdir"), (Path, "write_bytes"), (os, "replace")):
        monkeypatch.setattr(place, name, refuse)


def test_what_is_kept_is_read_and_what_is_not_names_the_way_out(store, monkeypatch, new_process):
    store.put(KEY, 1)
    store.put_tensors(KEY, TENSORS)
    store.made_folder(OTHER, fill)
    large = root(store) / "large"
    large.write_bytes(b"x" * (1 << 20))
    new_process()
    forbid_writing(monkeypatch)
    assert store.made(KEY, never) == 1
    assert store.get_tensors(KEY) is not None
    assert store.made_folder(OTHER, never).is_dir()
    assert store.file_hash(large) == hashlib.sha256(b"x" * (1 << 20)).hexdigest()
    missing = Key.of("scores", x=3)
    way_out = rf"{missing.name}.*\(Read-only.*paths\.cache=DIR.*LORAPORT_CACHE"
    for write in (
        lambda: store.made(missing, never),  # before the work is done in vain
        lambda: store.made_folder(missing, never),
        lambda: store.put(missing, 1),
        lambda: store.put_tensors(missing, TENSORS),
        lambda: store.working_folder(missing),
    ):
        with pytest.raises(OutputError, match=way_out):
            write()


@pytest.mark.parametrize("root", ["file/deeper", "long" * 100])
def test_an_impossible_root_is_named(root, tmp_path):
    (tmp_path / "file").write_text("mine")
    store = Store(tmp_path / root)
    assert nothing(store, KEY)
    with pytest.raises(OutputError, match=rf"{root}.* cannot be written \(.+\); free some"):
        store.made(KEY, never)
    assert files(tmp_path) == [tmp_path / "file"]


def test_a_full_disk_leaves_nothing_and_the_old_entry(store, monkeypatch):
    def half(path: Path, content: bytes) -> NoReturn:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, os.strerror(28))

    store.put(KEY, "old")
    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OutputError, match="No space left"):
        store.put(KEY, "new")
    assert store.get(KEY) == "old"
    assert len(files(root(store))) == 1


# Hashes of files and of models.


@pytest.fixture
def read(monkeypatch: Patch) -> list[str]:
    """The names of the files that were hashed."""
    names: list[str] = []
    real = hashlib.file_digest

    def noting(file: Any, name: str) -> Any:
        names.append(Path(file.name).name)
        return real(file, name)

    monkeypatch.setattr(hashlib, "file_digest", noting)
    return names


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"w" * (1 << 20))
    (folder / "config.json").write_text("{}")
    (folder / "merges.txt").write_text("a b")
    (folder / "README.md").write_text("read me")
    return folder


def test_a_models_hash_is_that_of_names_and_contents(store, model):
    """Zoos hold it: another formula would make them those of another model."""
    lines = "".join(
        f"{name} {hashlib.sha256((model / name).read_bytes()).hexdigest()}\n"
        for name in ("config.json", "merges.txt", "model.safetensors")
    )
    expected = hashlib.sha256(lines.encode()).hexdigest()
    assert store.folder_hash(model) == Store(None).folder_hash(model) == expected


def test_a_file_is_read_once_unless_what_is_remembered_is_damaged(store, model, read, new_process):
    first = store.folder_hash(model)
    assert sorted(read) == ["config.json", "merges.txt", "model.safetensors"]
    assert store.folder_hash(model) == first
    assert len(read) == 3
    new_process()
    assert store.folder_hash(model) == first
    assert sorted(read[3:]) == ["config.json", "merges.txt"]  # what is small
    path = only_file(store, ".entry")
    path.write_bytes(path.read_bytes().replace(b'"', b'"0', 1))
    new_process()
    assert store.folder_hash(model) == first


@pytest.mark.parametrize("change", ["size", "time", "inode", "content alone"])
def test_a_changed_file_is_read_again(change, store, model, read, new_process):
    first, weights = store.folder_hash(model), model / "model.safetensors"
    seen = weights.stat()
    read.clear()
    new_process()
    if change == "size":
        weights.write_bytes(b"w" * (1 << 20) + b"w")
    elif change == "time":
        os.utime(weights, ns=(seen.st_atime_ns, seen.st_mtime_ns + 1))
    else:
        place = model / "other" if change == "inode" else weights
        place.write_bytes(b"v" * (1 << 20))
        os.utime(place, ns=(seen.st_atime_ns, seen.st_mtime_ns))
        place.rename(weights)
    assert (store.folder_hash(model) == first) == (change == "time")
    assert "model.safetensors" in read


def test_the_hash_of_a_file_that_is_written_to_meanwhile_is_not_remembered(
    store, model, monkeypatch
):
    weights, real = model / "model.safetensors", hashlib.file_digest

    def before_it_grows(file: Any, name: str) -> Any:
        digest = real(file, name)
        weights.write_bytes(b"v" * (1 << 20) + b"v")
        return digest

    monkeypatch.setattr(hashlib, "file_digest", before_it_grows)
    store.file_hash(weights)
    assert module._hashes == {}
    assert not root(store).exists()


def test_other_weights_count_where_transformers_reads_them(store, model):
    first, other = store.folder_hash(model), model / "pytorch_model.bin"
    other.write_bytes(b"1")
    assert store.folder_hash(model) == first
    (model / "model.safetensors").unlink()
    second = store.folder_hash(model)
    other.write_bytes(b"2")
    assert store.folder_hash(model) != second


def test_a_file_that_cannot_be_read_is_named(store, model, monkeypatch):
    def refuse(*_: Any) -> NoReturn:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(hashlib, "file_digest", refuse)
    with pytest.raises(ModelError, match=r"config\.json cannot be read \(Permission"):
        store.folder_hash(model)
