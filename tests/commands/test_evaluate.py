import json
from pathlib import Path
from typing import Any

import pytest

from loraport.commands import benchmark as method_ports
from loraport.commands.train import Fitting
from loraport.evaluation.records import BenchmarkResults

from .conftest import HELD_OUT, QUICK_REFINEMENT, Command, Workspace, write_texts

METHODS = "methods=[global_ridge,cross_lora]"


def evaluation(workspace: Workspace, *options: str) -> list[str]:
    return [*workspace.training(), "logger=none", "few_shot=[4]", "drift.texts=0", *options]


def evaluated(workspace: Workspace, place: int = -1) -> BenchmarkResults:
    folders = sorted((workspace.root / "work").glob("outputs/evaluate/*"))
    return BenchmarkResults.read(folders[place] / "results.json")


def numbers(results: BenchmarkResults) -> dict[str, Any]:
    """All that is measured: without times and folders."""
    plain = json.loads(results.model_dump_json())
    for method in plain["methods"]:
        method.pop("seconds")
    return {key: plain[key] for key in ("methods", "suites", "divergences", "examples", "verdicts")}


def noted_ports(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Note by which method which adapter is ported from now on."""
    noted: list[tuple[str, str]] = []
    known = method_ports.MethodPorts._ported

    def ported(self: Any, name: str, *rest: Any) -> Any:
        noted.append((self.method.name, name))
        return known(self, name, *rest)

    monkeypatch.setattr(method_ports.MethodPorts, "_ported", ported)
    return noted


def test_every_method_has_every_column_of_the_protocol(workspace: Workspace, command: Command):
    end = command("evaluate", *evaluation(workspace, METHODS, "seeds=[0,1]"))
    assert end.code == 0, end.err
    results = evaluated(workspace)
    assert [(m.name, m.seed) for m in results.methods] == [
        *(("global_ridge", 0), ("cross_lora", 0)),
        *(("global_ridge", 1), ("cross_lora", 1)),
    ]
    columns = {"base", "source_base", "source", "oracle", "copy", "mean", "random", "swapped"}
    for method in results.methods:
        assert method.refused is None
        assert set(method.tasks) == set(HELD_OUT)
        for task in method.tasks.values():
            assert set(task.scores) == columns | {"few_shot_4", "predicted"}
            assert None not in task.scores.values()
    classes = {method.name: method.data_access for method in results.methods}
    assert classes == {"global_ridge": "anchors", "cross_lora": "weights only"}


def test_swapped_is_the_port_of_another_task(workspace: Workspace, command: Command):
    command("evaluate", *evaluation(workspace, "methods=[mean,global_ridge]"))
    mean, ridge = evaluated(workspace).methods
    for task in mean.tasks.values():
        assert task.scores["swapped"] == task.scores["predicted"] == task.scores["mean"]
    assert any(task.nll["swapped"] != task.nll["predicted"] for task in ridge.tasks.values())


def test_a_second_run_makes_nothing_and_ends_with_the_same(
    workspace: Workspace, command: Command, monkeypatch: pytest.MonkeyPatch
):
    options = evaluation(workspace, METHODS)
    command("evaluate", *options)

    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a cell that is known was made again")

    monkeypatch.setattr(Fitting, "fit", refuse)
    monkeypatch.setattr(method_ports.MethodPorts, "_ported", refuse)
    end = command("evaluate", *options)
    assert end.code == 0, end.err
    assert numbers(evaluated(workspace, 0)) == numbers(evaluated(workspace, 1))


def test_a_further_method_computes_only_its_own_cells(
    workspace: Workspace, command: Command, monkeypatch: pytest.MonkeyPatch
):
    command("evaluate", *evaluation(workspace, "methods=[global_ridge]"))
    ported = noted_ports(monkeypatch)
    command("evaluate", *evaluation(workspace, "methods=[global_ridge,cross_lora]"))
    assert ported == [("cross_lora", name) for name in HELD_OUT]


def ridged(ported: list[tuple[str, str]]) -> list[str]:
    """Which tasks global_ridge has ported, the control copy apart."""
    return [name for method, name in ported if method == "global_ridge"]


def test_what_a_port_depends_on_makes_it_anew(
    workspace: Workspace, command: Command, monkeypatch: pytest.MonkeyPatch
):
    command("evaluate", *evaluation(workspace, "methods=[global_ridge]"))
    ported = noted_ports(monkeypatch)
    options = "method_options={global_ridge: ['mapper.space=factors']}"
    end = command("evaluate", *evaluation(workspace, "methods=[global_ridge]", options))
    assert end.code == 0, end.err
    assert ridged(ported) == list(HELD_OUT)
    command("evaluate", *evaluation(workspace, "methods=[global_ridge]", "output_rank=1"))
    assert ridged(ported) == [*HELD_OUT, *HELD_OUT]


def test_a_refinement_is_given_what_its_class_allows(workspace: Workspace, command: Command):
    write_texts(workspace.root / "texts")
    quick = QUICK_REFINEMENT["corpus_distill"]
    given = (f"paths.corpus={workspace.root / 'texts'}", quick[0], "refine_texts.anchors=false")
    own = "{default: ['refine.texts=16','refine.pool=24','refine.held_out=8'],"
    own += "noop+prompt_distill: ['refine.pool=12','refine.generic=8','refine.held_out=8']}"
    end = command(
        "evaluate",
        *evaluation(workspace, "methods=[default,noop+prompt_distill]", "unlabelled=3", *given),
        f"method_options={own}",
    )
    assert end.code == 0, end.err
    default, prompted = evaluated(workspace).methods
    assert (default.refused, prompted.refused) == (None, None)
    assert default.data_access == "generic text"
    assert prompted.data_access == "unlabelled prompts"
    assert set(default.report["tasks"]) == set(HELD_OUT)


def test_a_method_that_refuses_is_named_and_the_others_go_on(
    workspace: Workspace, command: Command
):
    own = "method_options={cross_lora: ['mapper.variant=lora_x']}"
    end = command("evaluate", *evaluation(workspace, "methods=[cross_lora,global_ridge]", own))
    assert end.code == 0, end.err
    refused, ridge = evaluated(workspace).methods
    assert refused.summary is None
    assert refused.refused is not None
    assert "equal shapes" in refused.refused
    assert ridge.refused is None
    assert "equal shapes" in end.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["methods=[nothing]"], "no mapper=nothing"),
        (["mapper=global_ridge"], "methods=[MAPPER"),
        (["evaluation.controls=[luck]"], "it takes any of copy, random"),
        (["few_shot=[0]"], "few_shot"),
        (["seeds=[zero]"], "seeds is ['zero']"),
        (["tasks.held_out=[nowhere]"], "nowhere"),
        (["suite=[nothing]"], "nothing"),
        (["dashboard=mine"], "ENTITY/PROJECT"),
        (["collect=nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_refused_with_a_message(
    workspace: Workspace, command: Command, words: list[str], told: str
):
    end = command("evaluate", *evaluation(workspace, *words))
    assert end.code == 2
    assert told in end.err
    assert "Traceback" not in end.err
    assert not list((workspace.root / "work").glob("outputs/evaluate/*/results.json"))


def test_a_score_that_is_known_needs_no_model(workspace: Workspace, command: Command):
    end = command("evaluate", *evaluation(workspace, "methods=[mean]"))
    assert end.code == 0, end.err
    assert Path(workspace.root / "cache" / "benchmark" / "fits").is_dir()
