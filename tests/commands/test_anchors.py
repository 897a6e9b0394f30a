import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from loraport.adapters import read_adapter, write_adapter
from loraport.commands import anchors as zoo_training
from loraport.data import PromptTemplate, Task, Zoo
from loraport.exceptions import DataError
from loraport.models import BaseModel
from loraport.option_types import read_as
from loraport.settings import Recipe

from .conftest import Command, Workspace


def contents(folder: Path) -> dict[str, str]:
    """Every file of a zoo, by its hash."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".locks" not in path.parts
    }


@pytest.fixture
def empty(workspace: Workspace) -> Workspace:
    shutil.rmtree(workspace.zoo)
    return workspace


def test_stopped_and_started_again_it_ends_with_the_same_files(
    empty: Workspace, command: Command, monkeypatch: pytest.MonkeyPatch
):
    options = (*empty.options(), "tasks.names=[films,plays]")
    end = command("anchors", *options)
    assert end.code == 0, end.err
    assert Zoo.open(empty.zoo).names() == ("films", "plays")
    adapter = read_adapter(empty.zoo / "target/films")
    assert adapter.base_model == "pico/target"
    assert adapter.norm() > 0
    manifest = json.loads((empty.zoo / "manifest.json").read_text())
    assert manifest["recipe"]["rank"] == 2
    assert len(manifest["adapters"]) == 4
    whole = contents(empty.zoo)
    shutil.rmtree(empty.zoo)
    writes = 0

    def stop_at_the_fourth(*arguments: object, **options: object) -> None:
        nonlocal writes
        writes += 1
        if writes == 4:
            raise KeyboardInterrupt
        write_adapter(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(zoo_training, "write_adapter", stop_at_the_fourth)
        end = command("anchors", *options)
    assert end.code == 130
    assert "goes on" in end.err
    assert len(list(empty.zoo.glob("*/*/adapter_config.json"))) == 3
    assert command("anchors", *options).code == 0
    assert contents(empty.zoo) == whole


def test_another_recipe_does_not_mix_into_a_zoo(empty: Workspace, command: Command):
    options = (*empty.options(), "side=source", "tasks.names=[films]")
    command("anchors", *options)
    assert not (empty.zoo / "target").exists()
    end = command("anchors", *options, "recipe.lr=1")
    assert end.code == 2
    assert "another recipe" in end.err
    assert "films" in end.err


def test_another_precision_or_device_does_not_mix_into_a_zoo(
    empty: Workspace, command: Command, monkeypatch: pytest.MonkeyPatch
):
    options = (*empty.options(), "side=source", "tasks.names=[films]")
    assert command("anchors", *options, "trainer.precision=bf16-mixed").code == 0
    end = command("anchors", *options)
    assert end.code == 2
    assert "another precision than" in end.err
    assert command("anchors", *options, "trainer.precision=bf16-mixed").code == 0
    monkeypatch.setattr(zoo_training, "trainer_device", lambda _: "cuda")
    end = command("anchors", *options, "trainer.precision=bf16-mixed")
    assert end.code == 2
    assert "another device than" in end.err
    # One of an earlier version, which did not note them, is taken as it is.
    noted = empty.zoo / "source/films/metrics.json"
    content = json.loads(noted.read_text())
    del content["settings"]["precision"], content["settings"]["device"]
    noted.write_text(json.dumps(content))
    assert command("anchors", *options).code == 0


@pytest.mark.parametrize("named", [True, False])
def test_an_adapter_that_has_changed_since_it_was_trained_is_noticed(
    empty: Workspace, command: Command, named: bool
):
    """Made again in the zoo that the cache keeps; one of the user's own is named."""
    options = [word for word in empty.options() if named or not word.startswith("paths.zoo")]
    options += ["side=source", "tasks.names=[films,plays]"]
    assert command("anchors", *options).code == 0
    (kept,) = empty.root.rglob("source/films/adapter_model.safetensors")
    whole = contents(kept.parents[2])
    content = kept.read_bytes()
    for name, changed in (
        ("adapter_model.safetensors", content[:-500] + bytes(b ^ 1 for b in content[-500:])),
        ("adapter_config.json", (kept.parent / "adapter_config.json").read_bytes() + b" "),
    ):
        file = kept.parent / name
        before = file.read_bytes()
        file.write_bytes(changed)
        end = command("anchors", *options)
        if named:
            assert end.code == 2
            assert f"{file} has changed since anchors.py trained it" in " ".join(end.err.split())
            file.write_bytes(before)
        else:
            assert end.code == 0, end.err
            assert contents(kept.parents[2]) == whole


def test_a_sweep_trains_one_task_a_job(empty: Workspace, command: Command):
    end = command("anchors", "-m", *empty.options(), "side=source", "tasks.names=[films],[plays]")
    assert end.code == 0, end.err
    assert {path.name for path in (empty.zoo / "source").iterdir()} == {"films", "plays"}
    manifest = json.loads((empty.zoo / "manifest.json").read_text())
    assert set(manifest["adapters"]) == {"source/films", "source/plays"}


def test_scores_are_printed_where_rows_are_given(empty: Workspace, command: Command):
    end = command(
        "anchors", *empty.options(), "side=target", "tasks.names=[films]", "evaluation.rows=4"
    )
    assert "target films: accuracy" in end.out


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("tasks.names=[filmz]", ["filmz", "films"]),
        ("recipe.rnak=3", ["recipe.rnak", "did you mean rank?"]),
        ("recipe.batch_size=8", ["at zero", "recipe.warmup_steps=4", "recipe.epochs"]),
    ],
)
def test_a_wrong_option_is_refused(
    empty: Workspace, command: Command, option: str, named: list[str]
):
    end = command("anchors", *empty.options(), option)
    assert end.code == 2, end.err
    for part in named:
        assert part in end.err
    assert "Traceback" not in end.err


def test_rows_of_one_label_are_no_training(
    pico_source: BaseModel, pico_task: Task, template: PromptTemplate
) -> None:
    """The adapter would answer so whatever it is asked."""
    rows = tuple(row for row in pico_task.train if row.label == "very good")
    options = {"rank": 2, "alpha": 2, "roles": ["q"], "init_seed": 0, "lr": 0.1, "warmup_steps": 0}
    options |= {"epochs": 1, "batch_size": 4, "examples": 8, "balanced": True, "clip_norm": 1.0}
    recipe = read_as(Recipe, options | {"seed": 0})
    with pytest.raises(DataError, match=r"all 8 training rows of the task feeling have one label"):
        zoo_training.train_adapter(
            recipe, pico_source, replace(pico_task, train=rows), template, {}
        )
