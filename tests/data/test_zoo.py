import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from loraport.adapters import LoraAdapter, read_adapter, write_adapter
from loraport.data import Zoo, write_manifest
from loraport.exceptions import AdapterError
from loraport.models import BaseModel

MakeAdapter = Callable[..., LoraAdapter]
TASKS = ("b_task", "a_task", "c_task")


@pytest.fixture
def folder(
    pico_source: BaseModel, pico_target: BaseModel, random_adapter: MakeAdapter, tmp_path: Path
) -> Path:
    """A zoo of three tasks for the pico models."""
    for side, base in (("source", pico_source), ("target", pico_target)):
        for seed, name in enumerate(TASKS):
            write_adapter(random_adapter(base, seed), tmp_path / "zoo" / side / name)
    return tmp_path / "zoo"


def test_both_sides_are_read_by_task(folder: Path) -> None:
    zoo = Zoo.open(folder)
    assert zoo.names() == ("a_task", "b_task", "c_task")
    pairs = zoo.read()
    assert tuple(pairs.source) == tuple(pairs.target) == ("a_task", "b_task", "c_task")
    for side, adapters in (("source", pairs.source), ("target", pairs.target)):
        for name, adapter in adapters.items():
            assert adapter.base_model == f"pico/{side}"
            expected = read_adapter(folder / side / name)
            assert adapter.content_hash() == expected.content_hash()


def test_named_tasks_are_read_in_the_order_that_is_asked_for(folder: Path) -> None:
    assert list(Zoo.open(folder).read(["c_task", "a_task"]).target) == ["c_task", "a_task"]


def test_any_two_folders_are_a_zoo(folder: Path, tmp_path: Path) -> None:
    (folder / "source").rename(tmp_path / "X")
    (folder / "target").rename(tmp_path / "Y")
    assert len(Zoo(tmp_path / "X", tmp_path / "Y").read().source) == 3


def test_what_is_no_adapter_is_no_task(folder: Path) -> None:
    (folder / "source" / "notes").mkdir()
    (folder / "source" / "readme.txt").write_text("notes")
    (folder / "source" / ".half-written").mkdir()
    assert len(Zoo.open(folder).read().source) == 3


@pytest.mark.parametrize("missing", [["source"], ["target"], ["source", "target"]])
def test_folder_of_another_layout_is_refused(missing: list[str], folder: Path) -> None:
    for side in missing:
        (folder / side).rename(folder / f"not_{side}")
    expected = " and no folder ".join(missing)
    with pytest.raises(AdapterError, match=rf"zoo is no zoo: .* no folder {expected}; it takes"):
        Zoo.open(folder)


def test_folder_that_does_not_exist_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"nowhere does not exist"):
        Zoo(folder / "source", tmp_path / "nowhere").read()


@pytest.mark.parametrize("side", ["source", "target"])
def test_missing_partner_is_named_with_the_way_out(side: str, folder: Path) -> None:
    other = "target" if side == "source" else "source"
    (folder / side / "b_task").rename(folder / "elsewhere")
    zoo = Zoo.open(folder)
    message = (
        rf"the {other} adapter b_task has no partner: .*{side} .*side={side} tasks\.names=\[b_"
    )
    for names in (None, ["b_task"]):
        with pytest.raises(AdapterError, match=message):
            zoo.read(names)
    assert zoo.names() == ("a_task", "c_task")
    assert list(zoo.read(["a_task"]).source) == ["a_task"]


def test_unknown_task_is_named_with_those_that_there_are(folder: Path) -> None:
    with pytest.raises(AdapterError, match=r"no adapter d_task; it has a_task, b_task, c_task"):
        Zoo.open(folder).read(["a_task", "d_task"])


def test_adapter_of_another_base_is_named(folder: Path) -> None:
    stranger = replace(read_adapter(folder / "target" / "c_task"), base_model="other/base")
    write_adapter(stranger, folder / "target" / "c_task", overwrite=True)
    with pytest.raises(
        AdapterError, match=r"target adapter c_task was trained on other/base, but a_task on pico/t"
    ):
        Zoo.open(folder).read()
    assert len(Zoo.open(folder).read(["a_task", "b_task"]).target) == 2


def test_adapter_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "source" / "b_task" / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(AdapterError, match=r"source/b_task/adapter_model\.safetensors .*truncated"):
        Zoo.open(folder).read()


def test_manifest_holds_the_facts_and_the_hash_of_every_adapter(folder: Path) -> None:
    write_manifest(folder, {"pair": "pico", "seed": 3})
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["pair"], manifest["seed"]) == ("pico", 3)
    expected = {
        f"{side}/{name}": hashlib.sha256(
            (folder / side / name / "adapter_model.safetensors").read_bytes()
        ).hexdigest()
        for side in ("source", "target")
        for name in TASKS
    }
    assert {key: value["sha256"] for key, value in manifest["adapters"].items()} == expected
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "source", "target"]


def test_manifest_follows_the_folder_and_serves_one_side_alone(folder: Path) -> None:
    write_manifest(folder, {})
    before = (folder / "manifest.json").read_bytes()
    write_manifest(folder, {})
    assert (folder / "manifest.json").read_bytes() == before
    (folder / "target").rename(folder.parent / "elsewhere")
    write_manifest(folder, {})
    assert set(json.loads((folder / "manifest.json").read_text())["adapters"]) == {
        f"source/{name}" for name in TASKS
    }


def test_manifest_that_cannot_be_written_leaves_the_old_one(folder: Path) -> None:
    write_manifest(folder, {"seed": 1})
    with pytest.raises(TypeError, match="set"):
        write_manifest(folder, {"seed": {2}})
    assert json.loads((folder / "manifest.json").read_text())["seed"] == 1
