"""What mappers that learn from text are given: questions behind texts, paired layers."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from loraport.adapters import read_adapter, relative_error
from loraport.alignment.layer_matching import Monotone
from loraport.commands.compatibility import check_compatibility, known_compatibility
from loraport.commands.context import RunContext
from loraport.commands.train import (
    LeaveOneOutError,
    ValidationNLL,
    anchor_questions,
    check_objective,
    layer_pairing,
    text_corpus,
)
from loraport.evaluation.records import CompatibilityRecord, Results
from loraport.evaluation.scoring import TaskScore
from loraport.exceptions import ConfigurationError
from loraport.mappers import load_mapper
from loraport.mappers.controls import CopyMapper
from loraport.mappers.from_text import CorpusMapper, ModelPair
from loraport.models import BaseModel, LocalModel

from .conftest import HELD_OUT, TASKS, Command, Workspace, context_of

LABELS = {
    "films": ["good", "bad"],
    "topics": ["film", "plot", "scene"],
    "secret": ["sealed", "open"],
}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    for name, labels in LABELS.items():
        folder = tmp_path / "asked" / name
        folder.mkdir(parents=True)
        facts = {"name": name, "instruction": f"Which {name} ?", "labels": labels}
        (folder / "task.json").write_text(json.dumps(facts))
        for split in ("train", "test"):
            row = json.dumps({"text": f"a text of {name} rows", "label": labels[0]})
            (folder / f"{split}.jsonl").write_text(row + "\n")
    return tmp_path / "asked"


def questions(tasks: Path, *options: str) -> list[str]:
    words = ("pair=local", "pair.source.path=a", "pair.target.path=b", f"paths.tasks={tasks}")
    return anchor_questions(context_of("train", *words, *options))


class TestAnchorQuestions:
    def test_each_task_asks_in_turn_once_with_each_label(self, tasks: Path) -> None:
        found = questions(tasks, "tasks.held_out=[secret]")
        assert found == [
            "\nWhich films ?\nAnswer: good",
            "\nWhich topics ?\nAnswer: film",
            "\nWhich films ?\nAnswer: bad",
            "\nWhich topics ?\nAnswer: plot",
            "\nWhich topics ?\nAnswer: scene",
        ]

    @pytest.mark.parametrize("held_out", ["secret", "films"])
    def test_nothing_of_a_held_out_task_is_asked(self, tasks: Path, held_out: str) -> None:
        text = " ".join(questions(tasks, f"tasks.held_out=[{held_out}]"))
        assert held_out not in text
        own = set(LABELS[held_out]) - {x for n, ls in LABELS.items() if n != held_out for x in ls}
        assert not any(f" {label}" in text for label in own)
        assert "rows" not in text

    def test_only_the_tasks_that_are_named(self, tasks: Path) -> None:
        found = questions(tasks, "tasks.held_out=[secret]", "tasks.names=[topics,secret]")
        assert all("topics" in question for question in found)
        assert len(found) == 3


class TestOnModels:
    def context(self, workspace: Workspace, *options: str) -> RunContext:
        return context_of("train", *workspace.text_training("transport"), *options)

    def test_questions_are_behind_texts_only_where_asked_for(
        self, workspace: Workspace, pico_source: BaseModel, pico_target: BaseModel
    ) -> None:
        pair = ModelPair(pico_source, pico_target)
        plain, asked = (
            text_corpus(self.context(workspace, f"anchor_questions={word}"), pair)
            for word in ("false", "true")
        )
        assert plain.content_hash() != asked.content_hash()
        # In this workspace every task asks the same, with one of two labels.
        assert set(anchor_questions(self.context(workspace))) == {
            "\nWhich feeling ?\nAnswer: very good",
            "\nWhich feeling ?\nAnswer: bad",
        }

    def test_by_depth_no_diagnosis_is_needed(
        self, workspace: Workspace, pico_source: BaseModel, pico_target: BaseModel
    ) -> None:
        context = self.context(workspace, "diagnosis=none")
        found = layer_pairing(context, ModelPair(pico_source, pico_target))
        assert [[layer for layer, _ in feeds] for feeds in found.feeds] == [[0], [1], [1]]

    @pytest.mark.parametrize("name", ["monotone", "many_to_one"])
    def test_by_similarity_it_is(
        self, workspace: Workspace, pico_source: BaseModel, pico_target: BaseModel, name: str
    ) -> None:
        context = self.context(workspace, "diagnosis=none", f"pairing={name}")
        with pytest.raises(ConfigurationError, match="diagnosis=cheap, or pairing=relative_depth"):
            layer_pairing(context, ModelPair(pico_source, pico_target))

    def test_layers_are_paired_by_what_was_diagnosed(
        self, workspace: Workspace, pico_source: BaseModel, pico_target: BaseModel
    ) -> None:
        quick = ("diagnosis.rows=120", "diagnosis.permutations=20", "force=true")
        context = self.context(workspace, "pairing=monotone", *quick)
        record = check_compatibility(context, [CopyMapper])
        assert isinstance(record, CompatibilityRecord)
        settings = context.settings
        kept = known_compatibility(context)
        assert kept is not None
        pairing = settings.pairing.build()
        assert isinstance(pairing, Monotone)
        expected = pairing.pair(torch.tensor(kept.similarity))
        found = layer_pairing(context, ModelPair(pico_source, pico_target))
        assert found.feeds == expected.feeds


# What a sweep chooses by: anchors, never the held-out tasks.

ANCHORS = [name for name in TASKS if name not in HELD_OUT]


def pairs(validation: tuple[str, ...] | None, anchors: tuple[str, ...] = ("a", "b", "c")) -> Any:
    left_out = None if validation is None else SimpleNamespace(names=validation)
    return SimpleNamespace(anchors=SimpleNamespace(names=anchors), validation_anchors=left_out)


class Bench:
    """Scores a task by what its adapter, a number, says."""

    def zoo(self) -> Any:
        def read(names: list[str]) -> Any:
            return SimpleNamespace(source={name: ord(name) for name in names})

        return SimpleNamespace(read=read)

    def task_source(self) -> Any:
        def load(names: list[str]) -> Any:
            return {name: SimpleNamespace(limited=lambda rows, n=name: (n, rows)) for name in names}

        return SimpleNamespace(load=load)

    def model(self, side: str) -> str:
        return side

    @property
    def scores(self) -> Any:
        def score(model: str, adapter: int, task: tuple[str, int]) -> TaskScore:
            assert model == "target"
            name, rows = task
            assert adapter == 2 * ord(name), "the mapped adapter of the same task"
            nll = torch.full((rows,), float(ord(name) - ord("a")))
            return TaskScore(("yes",) * rows, torch.ones(rows, dtype=torch.bool), nll)

        return SimpleNamespace(score=score)


class Doubling:
    learns_from: ClassVar[Any] = "anchors"

    def map(self, adapter: int) -> int:
        return 2 * adapter

    def report(self) -> dict[str, Any]:
        return {"anchors": []}


class TextDoubling(Doubling, CorpusMapper):  # type: ignore[misc]
    learns_from: ClassVar[Any] = "text"

    def __init__(self) -> None:
        """Nothing of a real mapper is needed."""


TextDoubling.__abstractmethods__ = frozenset()


def unchecked(method: Any) -> Any:
    """Return a function without its run-time check of types, for stand-ins of its arguments."""
    function = getattr(method, "__func__", method)
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def test_validation_goes_by_the_anchors_that_were_left_out() -> None:
    names = unchecked(ValidationNLL.names)
    objective = SimpleNamespace(rows=5, tasks=8, seed=0)
    objective.names = lambda mapper, data: names(objective, mapper, data)
    found = unchecked(ValidationNLL.facts)(objective, Bench(), Doubling(), pairs(("b", "d")))
    assert found["nll"] == {"b": 1.0, "d": 3.0}
    assert (found["name"], found["value"]) == ("validation_nll", 2.0)


def test_a_mapper_of_text_has_seen_no_anchor() -> None:
    objective: Any = ValidationNLL()
    text: Any = TextDoubling
    names = unchecked(objective.names)(objective, text(), pairs(None))
    assert names == ["a", "b", "c"]


def test_so_many_tasks_are_drawn_by_the_seed() -> None:
    data = pairs(tuple("abcdefgh"))
    drawn = set()
    for seed in range(10):
        objective: Any = ValidationNLL(tasks=3, seed=seed)
        names = unchecked(objective.names)(objective, Doubling(), data)
        assert len(names) == 3
        drawn.add(tuple(names))
    assert len(drawn) > 4


def test_anchors_that_the_mapper_was_fitted_on_are_refused() -> None:
    objective: Any = ValidationNLL()
    with pytest.raises(ConfigurationError, match=r"data\.validation leaves none out"):
        unchecked(objective.names)(objective, Doubling(), pairs(None))


@pytest.mark.parametrize("given", [{"tasks": 0}, {"rows": 0}])
def test_numbers_below_one_are_refused(given: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=r"takes a whole number of at least 1"):
        ValidationNLL(**given)


def test_without_a_zoo_there_is_nothing_to_choose_by() -> None:
    with pytest.raises(ConfigurationError, match=r"there is no zoo"):
        unchecked(check_objective)(LeaveOneOutError(), Doubling(), None)


def only_run(work: Path) -> Path:
    [folder] = work.glob("outputs/train/*")
    return folder


def test_a_mapper_without_leave_one_out_is_refused(workspace: Workspace, command: Command) -> None:
    end = command("train", *workspace.training(), "mapper=mean", "objective=leave_one_out")
    assert end.code == 2
    assert "choose objective=validation_nll" in end.err


# Optuna's import warns of what it uses itself.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_optimiser_chooses_by_anchors_and_its_best_is_told(
    workspace: Workspace, command: Command
) -> None:
    end = command(
        "train",
        *workspace.training(),
        *("sweep=optuna_pca_mlp", "mapper.components=1", "data.validation=0.34"),
        *("trainer.max_epochs=2", "hydra.sweeper.n_trials=2", "hydra.sweep.dir=sweep"),
    )
    assert end.code == 0, end.err
    sweep = workspace.root / "work" / "sweep"
    found = {path.parent.name: Results.read(path) for path in sweep.glob("*/results.json")}
    assert len(found) == 2
    told = [run.mapper_report["objective"] for run in found.values()]
    for objective in told:
        assert set(objective["nll"]) < set(ANCHORS)
        assert objective["value"] == pytest.approx(sum(objective["nll"].values()))
    best = (sweep / "optimization_results.yaml").read_text()
    assert json.dumps(min(objective["value"] for objective in told))[:8] in best
    assert "objective" in (sweep / "sweep.csv").read_text()


@pytest.mark.filterwarnings("ignore")
def test_an_optimiser_without_an_objective_is_refused(
    workspace: Workspace, command: Command
) -> None:
    end = command(
        "train",
        *workspace.training(),
        *("sweep=optuna_pca_mlp", "objective=none", "mapper.components=1", "data.validation=0.34"),
        *("hydra.sweeper.n_trials=1", "hydra.sweep.dir=sweep"),
    )
    assert end.code != 0
    assert "may not do so by the held-out tasks" in end.err


@pytest.mark.parametrize(
    ("mapper", "space"), [("global_ridge", "delta"), ("pertensor_ridge", "factors")]
)
def test_a_run_leaves_results_chart_adapters_and_checkpoint(
    workspace: Workspace, command: Command, mapper: str, space: str
):
    options = (f"mapper={mapper}", f"mapper.space={space}", "objective=leave_one_out")
    end = command("train", *workspace.training(), *options)
    assert end.code == 0, end.err
    folder = only_run(workspace.root / "work")
    results = Results.read(folder / "results.json")
    assert (results.mapper, results.space, set(results.tasks)) == (mapper, space, set(HELD_OUT))
    assert results.controls == ("mean", "nearest", "random", "swapped")
    for name, task in results.tasks.items():
        assert task.n == 6
        assert None not in task.scores.values()
        assert name in end.out
    report = results.mapper_report
    chosen_by = {"name": "leave_one_out", "value": report["loo_error_relative_to_mean"]}
    assert report["objective"] == chosen_by
    assert (folder / "scores.png").stat().st_size > 1000
    mapped = load_mapper(folder / "mapper.ckpt").map(read_adapter(workspace.zoo / "source/books"))
    assert relative_error(mapped, read_adapter(folder / "adapters/books")) == 0.0

    base = LocalModel(str(workspace.root / "models/target"), "pico/target").load(workspace.root)
    ids = torch.tensor([[1, 5, 6, 7]])
    plain = base.network(ids).logits
    model = PeftModel.from_pretrained(base.network, str(folder / "adapters" / "books"))
    assert not torch.allclose(model(input_ids=ids).logits, plain, atol=1e-3)
    assert "gap recovered" in (folder / "adapters" / "books" / "README.md").read_text()


def test_the_mean_mapper_is_the_mean_control(workspace: Workspace, command: Command):
    """Of two folders of same-named adapters, of which every fold holds out a part."""
    options = [o for o in workspace.training() if not o.startswith("paths.zoo=")]
    end = command(
        "train",
        *options,
        *("mapper=mean", "data.folds=2", "data.fold=1", "evaluation.scoring=generate"),
        *(f"paths.zoo_{side}={workspace.zoo / side}" for side in ("source", "target")),
    )
    assert end.code == 0, end.err
    results = Results.read(only_run(workspace.root / "work") / "results.json")
    assert len(results.tasks) == 2
    assert set(results.mapper_report["anchors"]) == set(TASKS) - set(results.tasks)
    for task in results.tasks.values():
        assert task.scores["predicted"] == task.scores["mean"]
        assert all(value is None for value in task.nll.values())  # answers are written


def test_pca_mlp_keeps_its_best_weights_and_the_same_seed_gives_the_same_bits(
    workspace: Workspace, command: Command
):
    hashes = []
    for number in (1, 2):
        end = command(
            "train",
            *workspace.training(),
            *("mapper=pca_mlp", "mapper.components=1", "data.validation=0.34"),
            *("trainer.max_epochs=3", f"hydra.run.dir=run{number}"),
        )
        assert end.code == 0, end.err
        folder = workspace.root / "work" / f"run{number}"
        hashes.append(
            {name: read_adapter(folder / "adapters" / name).content_hash() for name in HELD_OUT}
        )
    assert hashes[0] == hashes[1]
    # Of three anchors one is left out for validation.
    assert len(load_mapper(folder / "mapper.ckpt").report()["anchors"]) == 2


@pytest.mark.slow
def test_a_sweep_is_one_group_of_runs(workspace: Workspace, command: Command):
    end = command(
        "train",
        "-m",
        *workspace.training(),
        "logger=csv_wandb",
        "mapper=mean",
        "seed=0,1",
    )
    assert end.code == 0, end.err
    (sweep,) = (workspace.root / "work" / "multirun/train").iterdir()
    found = [json.loads(path.read_text()) for path in sorted(sweep.glob("*/results.json"))]
    assert [(run["mapper"], run["seed"]) for run in found] == [("mean", 0), ("mean", 1)]
    assert len(list(sweep.glob("*/wandb/offline-run-*"))) == 2


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
    elif kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "base":
        config.write_text(json.dumps(options | {"base_model_name_or_path": "another/model"}))


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("partner", "no target adapter films"),
        ("rank", "has rank 1"),
        ("truncated", "truncated"),
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
        ("+mapper.nothing=1", ["nothing"]),
        ("tasks.held_out=[bookz]", ["bookz", "books"]),
        ("tasks.names=[films,plays]", ["held_out", "films, plays"]),
        ("data.folds=9", ["data.folds=9", "5"]),
        ("paths.zoo=nowhere", ["nowhere"]),
        ("paths.tasks=nowhere", ["nowhere"]),
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
