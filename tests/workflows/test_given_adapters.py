from pathlib import Path
from unittest.mock import Mock

import pytest
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
from omegaconf import OmegaConf

from loraport.adapters import read_adapter
from loraport.exceptions import AdapterError
from loraport.workflows import given_adapters as module
from loraport.workflows.building import Workbench
from loraport.workflows.given_adapters import given_adapter

from .conftest import TASKS, Workspace


def bench_of(workspace: Workspace, **paths: str | None) -> Workbench:
    given = {"zoo": str(workspace.zoo), "zoo_source": None, "zoo_target": None} | paths
    return Workbench(OmegaConf.create({"paths": given, "pair": {"name": "local"}}))


def hash_of(folder: Path) -> str:
    return read_adapter(folder).content_hash()


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch, workspace: Workspace) -> list[str]:
    """The ids that were asked of the hub, which has every adapter."""
    asked: list[str] = []

    def download(name: str, **options: object) -> str:
        asked.append(name)
        assert options["allow_patterns"] == ["adapter_config.json", "adapter_model.safetensors"]
        return str(workspace.zoo / "source" / "plays")

    monkeypatch.setattr(module, "snapshot_download", download)
    return asked


def test_a_folder_is_read(workspace: Workspace, fetched: list[str]) -> None:
    folder = workspace.zoo / "source" / "books"
    assert given_adapter(bench_of(workspace), str(folder)).content_hash() == hash_of(folder)
    assert fetched == []


def test_a_home_folder_is_found(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, fetched: list[str]
) -> None:
    monkeypatch.setenv("HOME", str(workspace.zoo))
    given = given_adapter(bench_of(workspace), "~/source/books")
    assert given.content_hash() == hash_of(workspace.zoo / "source" / "books")
    assert fetched == []


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_task_is_looked_up_among_the_sources_adapters(workspace: Workspace, side: str) -> None:
    """Also where paths.zoo_source names them, whatever paths.zoo has."""
    place = workspace.zoo / side
    bench = bench_of(workspace, zoo_source=None if side == "source" else str(place))
    assert given_adapter(bench, "songs").content_hash() == hash_of(place / "songs")


def test_a_folder_goes_before_a_task(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace.root / "here").mkdir()
    monkeypatch.chdir(workspace.root / "here")
    Path("songs").symlink_to(workspace.zoo / "source" / "games")
    assert given_adapter(bench_of(workspace), "songs").content_hash() == hash_of(
        workspace.zoo / "source" / "games"
    )


@pytest.mark.parametrize("given", ["songs", "bookz"])
def test_a_pair_that_brings_its_tasks_trains_its_zoo_for_a_task_of_them(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    cache = workspace.root / "cache"
    bench = bench_of(workspace, zoo=None, cache=str(cache))
    source = {"_target_": "loraport.data.TaskFolder", "path": str(workspace.root / "tasks")}
    bench.config.merge_with(
        {
            "pair": {"name": "own", "build_zoo": True, "source": {}, "target": {}},
            "tasks": {"source": source},
            "recipe": {},
            "prompt": {"template": "{text}", "completion": " {label}", "text_chars": None},
        }
    )
    bench.config.paths.tasks = None
    trained: list[list[str]] = []

    def train(of: Workbench, sides: tuple[str, ...], names: list[str], *_: object) -> None:
        trained.append(sorted(names))
        assert sides == ("source", "target")
        of.zoo_folder().parent.mkdir(parents=True)
        of.zoo_folder().symlink_to(workspace.zoo)

    monkeypatch.setattr(module, "train_zoo", train)
    if given == "songs":
        made = given_adapter(bench, given)
        assert made.content_hash() == hash_of(workspace.zoo / "source" / "songs")
        assert trained == [sorted(TASKS)]
    else:
        with pytest.raises(AdapterError, match="adapter=bookz is no folder"):
            given_adapter(bench, given)
        assert trained == []


def test_an_id_is_fetched_from_the_hub(workspace: Workspace, fetched: list[str]) -> None:
    given = given_adapter(bench_of(workspace), "some-one/lora_v1.0")
    assert given.content_hash() == hash_of(workspace.zoo / "source" / "plays")
    assert fetched == ["some-one/lora_v1.0"]


@pytest.mark.parametrize("given", ["bookz", "/no/where", "a/b/c", "./books/", "~/a", ""])
def test_anything_else_is_refused_with_what_there_is(
    workspace: Workspace, fetched: list[str], monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.chdir(workspace.root)
    with pytest.raises(AdapterError) as error:
        given_adapter(bench_of(workspace), given)
    assert f"adapter={given} is no" in str(error.value)
    assert ", ".join(sorted(TASKS)) in str(error.value)
    assert fetched == []


def test_without_a_zoo_no_task_is_offered(workspace: Workspace) -> None:
    with pytest.raises(AdapterError) as error:
        given_adapter(bench_of(workspace, zoo=str(workspace.root / "none")), "books")
    assert "owner/name" in str(error.value)
    assert "zoo" not in str(error.value).replace("adapter=", "")


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("no network\nand more"),
        OfflineModeIsEnabled("offline"),
        HfHubHTTPError("401", response=Mock()),
        OSError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_hub_that_cannot_be_reached_is_told_in_one_message(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(module, "snapshot_download", fail)
    with pytest.raises(AdapterError, match=r"owner/name is no folder here.*hf auth login") as told:
        given_adapter(bench_of(workspace), "owner/name")
    assert "\n" not in str(told.value)
