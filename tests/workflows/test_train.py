import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from loraport.adapters import read_adapter, relative_error
from loraport.data import Zoo
from loraport.mappers import load_mapper
from loraport.models import LocalModel
from loraport.reporting import read_results

from .conftest import HELD_OUT, TASKS, Command, Workspace


def run_folder(work: Path) -> Path:
    (folder,) = work.glob("outputs/train/*")
    return folder


@pytest.mark.parametrize("mapper", ["mean", "global_ridge", "pertensor_ridge"])
@pytest.mark.parametrize("space", ["delta", "factors"])
def test_a_run_leaves_results_chart_adapters_and_checkpoint(
    workspace: Workspace, command: Command, mapper: str, space: str
):
    end = command("train", *workspace.training(), f"mapper={mapper}", f"mapper.space={space}")
    assert end.code == 0, end.err
    folder = run_folder(workspace.root / "work")
    results = read_results(folder / "results.json")
    assert (results.mapper, results.space, set(results.tasks)) == (mapper, space, set(HELD_OUT))
    assert results.controls == ("mean", "random", "swapped")
    for name, task in results.tasks.items():
        assert task.n == 6
        assert None not in task.scores.values()
        assert name in end.out
    assert (folder / "scores.png").stat().st_size > 1000
    mapped = load_mapper(folder / "mapper.ckpt").map(read_adapter(workspace.zoo / "source/books"))
    assert relative_error(mapped, read_adapter(folder / "adapters/books")) == 0.0


def test_predicted_adapters_load_with_peft_and_change_the_logits(
    workspace: Workspace, command: Command
):
    command("train", *workspace.training(), "mapper=global_ridge")
    folder = run_folder(workspace.root / "work")
    source = LocalModel(str(workspace.root / "models/target"), "pico/target")
    ids = torch.tensor([[1, 5, 6, 7]])
    plain = source.load(workspace.root).network(ids).logits
    for name in HELD_OUT:
        base = source.load(workspace.root)
        model = PeftModel.from_pretrained(base.network, str(folder / "adapters" / name))
        assert not torch.allclose(model(input_ids=ids).logits, plain, atol=1e-3)
        assert "gap recovered" in (folder / "adapters" / name / "README.md").read_text()


def test_the_mean_mapper_is_the_mean_control(workspace: Workspace, command: Command):
    command("train", *workspace.training(), "mapper=mean")
    results = read_results(run_folder(workspace.root / "work") / "results.json")
    for task in results.tasks.values():
        assert task.scores["predicted"] == task.scores["mean"]
        assert task.nll["predicted"] == task.nll["mean"]


def test_pca_mlp_keeps_its_best_weights(workspace: Workspace, command: Command):
    end = command(
        "train",
        *workspace.training(),
        "mapper=pca_mlp",
        "mapper.components=1",
        "data.validation=0.34",
        "trainer.max_epochs=4",
    )
    assert end.code == 0, end.err
    folder = run_folder(workspace.root / "work")
    mapper = load_mapper(folder / "mapper.ckpt")
    assert len(mapper.report()["anchors"]) == 2  # three anchors, one left out for validation


def test_the_same_seed_gives_the_same_bits(workspace: Workspace, command: Command):
    hashes = []
    for number in (1, 2):
        end = command(
            "train",
            *workspace.training(),
            "mapper=pca_mlp",
            "mapper.components=1",
            "data.validation=0.34",
            "trainer.max_epochs=3",
            f"hydra.run.dir=run{number}",
        )
        assert end.code == 0, end.err
        folder = workspace.root / "work" / f"run{number}"
        hashes.append(
            {name: read_adapter(folder / "adapters" / name).content_hash() for name in HELD_OUT}
        )
    assert hashes[0] == hashes[1]


def test_generate_scoring_has_no_likelihood(workspace: Workspace, command: Command):
    end = command("train", *workspace.training(), "mapper=mean", "evaluation.scoring=generate")
    assert end.code == 0, end.err
    results = read_results(run_folder(workspace.root / "work") / "results.json")
    assert all(value is None for task in results.tasks.values() for value in task.nll.values())


def test_folds_hold_out_a_part_of_all_tasks(workspace: Workspace, command: Command):
    end = command("train", *workspace.training(), "mapper=mean", "data.folds=2", "data.fold=1")
    assert end.code == 0, end.err
    results = read_results(run_folder(workspace.root / "work") / "results.json")
    assert len(results.tasks) == 2
    assert set(results.mapper_report["anchors"]) == set(TASKS) - set(results.tasks)


def test_a_sweep_is_one_group_of_runs(workspace: Workspace, command: Command):
    end = command(
        "train",
        "-m",
        *workspace.training(),
        "logger=csv_wandb",
        "mapper=mean,global_ridge",
        "seed=0,1",
    )
    assert end.code == 0, end.err
    (sweep,) = (workspace.root / "work" / "multirun/train").iterdir()
    found = [json.loads(path.read_text()) for path in sorted(sweep.glob("*/results.json"))]
    assert {(run["mapper"], run["seed"]) for run in found} == {
        (mapper, seed) for mapper in ("mean", "global_ridge") for seed in (0, 1)
    }
    assert len(list(sweep.glob("*/wandb/offline-run-*"))) == 4


def damaged(workspace: Workspace, kind: str) -> None:
    folder = workspace.zoo / "target" / "films"
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    options = json.loads(config.read_text())
    tensors = load_file(weights)
    if kind == "partner":
        shutil.rmtree(folder)
    elif kind == "rank":
        halved = {k: v[:1] if "lora_A" in k else v[:, :1] for k, v in tensors.items()}
        save_file({k: v.contiguous() for k, v in halved.items()}, weights)
        config.write_text(json.dumps(options | {"r": 1}))
    elif kind == "nan":
        next(iter(tensors.values()))[0, 0] = torch.nan
        save_file(tensors, weights)
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "pickle":
        weights.unlink()
        torch.save(tensors, folder / "adapter_model.bin")
    elif kind == "dora":
        config.write_text(json.dumps(options | {"use_dora": True}))
    elif kind == "base":
        config.write_text(json.dumps(options | {"base_model_name_or_path": "another/model"}))


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("partner", "films has no partner"),
        ("rank", "has rank 1"),
        ("nan", "NaN"),
        ("truncated", "truncated"),
        ("pickle", "adapter_model.bin"),
        ("dora", "use_dora"),
        ("base", "another/model"),
    ],
)
def test_a_bad_zoo_is_refused_in_one_message(
    workspace: Workspace, command: Command, kind: str, named: str
):
    damaged(workspace, kind)
    end = command("train", *workspace.training(), "mapper=global_ridge")
    assert end.code == 2
    assert named in end.err
    assert "films" in end.err
    assert "Traceback" not in end.err
    assert not list((workspace.root / "work").iterdir())


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("mapper=nonsense", ["nonsense", "global_ridge", "pca_mlp"]),
        ("mapper.spaec=delta", ["mapper.spaec", "did you mean space?"]),
        ("trainer.max_epoch=3", ["trainer.max_epoch", "max_epochs"]),
        ("mapper.space=wide", ["wide", "delta", "factors"]),
        ("+mapper.nothing=1", ["nothing"]),
        ("evaluation.scoring=guess", ["guess", "likelihood", "generate"]),
        ("evaluation.controls=[magic]", ["magic", "random", "swapped"]),
        ("tasks.held_out=[bookz]", ["bookz", "books"]),
        ("tasks.names=[films,plays]", ["held_out", "films, plays"]),
        ("data.folds=9", ["data.folds=9", "5"]),
        ("paths.zoo=nowhere", ["nowhere"]),
        ("paths.tasks=nowhere", ["nowhere"]),
        ("paths.zoo_source=elsewhere", ["paths.zoo_target"]),
        ("tasks.limit=0", ["test row"]),
    ],
)
def test_a_wrong_option_is_refused_in_one_message(
    workspace: Workspace, command: Command, option: str, named: list[str]
):
    end = command("train", *workspace.training(), "mapper=global_ridge", option)
    assert end.code == 2, end.err
    for part in named:
        assert part in end.err
    assert "Traceback" not in end.err
    assert not list((workspace.root / "work").iterdir())


def test_adapters_of_another_model_are_refused(workspace: Workspace, command: Command):
    shutil.rmtree(workspace.zoo / "target")
    shutil.copytree(workspace.zoo / "source", workspace.zoo / "target")
    end = command("train", *workspace.training(), "mapper=mean")
    assert end.code == 2
    assert "pico/source" in end.err
    assert "pico/target" in end.err


def test_too_many_components_name_the_way_out(workspace: Workspace, command: Command):
    end = command("train", *workspace.training(), "mapper=pca_ridge")
    assert end.code == 2
    assert "set mapper.components=2" in end.err


def test_two_folders_of_same_named_adapters_are_a_zoo(workspace: Workspace, command: Command):
    options = [o for o in workspace.training() if not o.startswith("paths.zoo=")]
    end = command(
        "train",
        *options,
        "mapper=mean",
        f"paths.zoo_source={workspace.zoo / 'source'}",
        f"paths.zoo_target={workspace.zoo / 'target'}",
    )
    assert end.code == 0, end.err
    assert Zoo.open(workspace.zoo).names() == tuple(sorted(TASKS))
