import json
from typing import Any

import pytest

from loraport.commands.benchmark import MethodPorts
from loraport.commands.train import Fitting
from loraport.evaluation.records import BenchmarkResults
from loraport.exceptions import OutputError

from .conftest import HELD_OUT, QUICK_REFINEMENT, Command, Workspace, write_texts

METHODS = "methods=[global_ridge,cross_lora]"


def evaluation(workspace: Workspace, *options: str) -> list[str]:
    """Options of a small benchmark; but for one test it has neither few-shot nor other controls."""
    few = "few_shot=[4]" if METHODS in options else "few_shot=[]"
    return [*workspace.training(), "logger=none", few, "drift.texts=0", *options]


def evaluated(workspace: Workspace, run: int = -1) -> BenchmarkResults:
    folders = sorted((workspace.root / "work").glob("outputs/evaluate/*"))
    return BenchmarkResults.read(folders[run] / "results.json")


def numbers(results: BenchmarkResults) -> dict[str, Any]:
    """All that is measured: without times and folders."""
    plain = json.loads(results.model_dump_json())
    for method in plain["methods"]:
        method.pop("seconds")
    return {key: plain[key] for key in ("methods", "suites", "divergences", "examples", "verdicts")}


def noted_ports(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Note by which method which adapter is ported from now on."""
    noted: list[tuple[str, str]] = []
    known = MethodPorts._ported

    def ported(self: Any, name: str, *rest: Any) -> Any:
        noted.append((self.method.name, name))
        return known(self, name, *rest)

    monkeypatch.setattr(MethodPorts, "_ported", ported)
    return noted


def test_runs_have_every_column_and_are_made_once(
    workspace: Workspace, command: Command, monkeypatch: pytest.MonkeyPatch
):
    """A second run makes nothing, a further method only its own, another option all anew."""
    options = evaluation(workspace, METHODS, "seeds=[0,1]")
    end = command("evaluate", *options)
    assert end.code == 0, end.err
    first = evaluated(workspace)
    assert [(m.name, m.seed) for m in first.methods] == [
        *(("global_ridge", 0), ("cross_lora", 0)),
        *(("global_ridge", 1), ("cross_lora", 1)),
    ]
    columns = {"base", "source_base", "source", "oracle", "copy", "mean", "nearest"}
    columns |= {"random", "swapped"}
    for method in first.methods:
        assert method.refused is None
        assert set(method.tasks) == set(HELD_OUT)
        for task in method.tasks.values():
            assert set(task.scores) == columns | {"few_shot_4", "predicted"}
            assert None not in task.scores.values()
    classes = {method.name: method.data_access for method in first.methods}
    assert classes == {"global_ridge": "anchors", "cross_lora": "weights only"}

    ported = noted_ports(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(Fitting, "fit", lambda *_: pytest.fail("a mapper was fitted again"))
        end = command("evaluate", *options)
    assert end.code == 0, end.err
    assert ported == []
    assert numbers(evaluated(workspace)) == numbers(first)

    command("evaluate", *evaluation(workspace, "methods=[mean,global_ridge]"))
    assert ported == [("mean", name) for name in HELD_OUT]
    # The swapped control is the port of another task.
    mean, ridge = evaluated(workspace).methods
    for task in mean.tasks.values():
        assert task.scores["swapped"] == task.scores["predicted"] == task.scores["mean"]
    assert any(task.nll["swapped"] != task.nll["predicted"] for task in ridge.tasks.values())

    for other in ("method_options={global_ridge: ['mapper.space=factors']}", "output_rank=1"):
        ported.clear()
        end = command("evaluate", *evaluation(workspace, "methods=[global_ridge]", other))
        assert end.code == 0, end.err
        assert [name for method, name in ported if method == "global_ridge"] == list(HELD_OUT)


def test_a_refinement_is_given_what_its_class_allows(workspace: Workspace, command: Command):
    write_texts(workspace.root / "texts")
    quick = QUICK_REFINEMENT["corpus_distill"]
    given = (f"paths.corpus={workspace.root / 'texts'}", quick[0], "refine_texts.anchors=false")
    last = "'refine.checks=0','refine.held_out=8'"  # the last weights are kept
    own = f"{{default: [{last},'refine.texts=16','refine.pool=24'],"
    own += f"noop+prompt_distill: [{last},'refine.pool=12','refine.generic=8']}}"
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


def test_a_full_disk_is_no_refusal_of_a_method(
    workspace: Workspace, command: Command, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: Any) -> Any:
        raise OutputError("the cache cannot be written")

    monkeypatch.setattr(MethodPorts, "_ported", full)
    end = command("evaluate", *evaluation(workspace, "methods=[global_ridge]"))
    assert end.code == 2
    assert "the cache cannot be written" in end.err
    assert "refused" not in end.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mapper=global_ridge"], "methods=[MAPPER"),  # by the settings; tests/test_settings.py
        (["tasks.held_out=[nowhere]"], "nowhere"),
        (["suite=[nothing]"], "nothing"),
        (["collect=nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_refused_with_a_message(
    workspace: Workspace, command: Command, words: list[str], message: str
):
    end = command("evaluate", *evaluation(workspace, *words))
    assert end.code == 2
    assert message in end.err
    assert "Traceback" not in end.err
    assert not list((workspace.root / "work").glob("outputs/evaluate/*/results.json"))


def test_suites_divergences_and_calibration_are_of_base_oracle_and_ports(
    workspace: Workspace, command: Command
):
    prompts = workspace.root / "prompts.jsonl"
    rows = [{"id": str(n), "prompt": text} for n, text in enumerate(("the film", "a plot"))]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    suite = (f"path={prompts}", "samples=2", "max_new_tokens=3")
    own = ("suite_methods=null", "suite_tasks=[books]", "calibration=true", "drift.texts=4")
    words = ("methods=[global_ridge]", "suite=[creativity]", *own)
    end = command(
        "evaluate", *evaluation(workspace, *words, *(f"suite.creativity.{word}" for word in suite))
    )
    assert end.code == 0, end.err
    results = evaluated(workspace)
    [asked] = results.suites
    assert [(s.condition.method, s.condition.task) for s in asked.scores] == [
        *(("base", None), ("oracle", "books"), ("global_ridge", "books"))
    ]
    assert {(d.condition.method, d.texts) for d in results.divergences} == {
        (method, texts)
        for method in ("oracle", "global_ridge")
        for texts in ("generic", asked.name)
    }
    calibration = results.calibration
    assert calibration is not None
    assert [point.condition.task for point in calibration.points] == list(HELD_OUT)
    for point, result in zip(calibration.points, results.methods[0].tasks.values(), strict=True):
        assert point.diagnostics.keys() >= {"relative_norm", "effective_rank", "anchor_span"}
        assert point.gap_recovered == result.gap_recovered


OUTSIDE_CLASS = """
from loraport.mappers.controls import CopyMapper


class ScaledCopy(CopyMapper):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def map_site(self, source, target, update):
        return super().map_site(source, target, update).scaled(self.factor)
"""
OUTSIDE_YAML = """
# @package _global_
mapper:
  _target_: scaled_copy.ScaledCopy
  factor: 0.5
"""


def test_a_mapper_from_outside_the_package_is_a_method(
    workspace: Workspace, command: Command, monkeypatch: pytest.MonkeyPatch
):
    outside = workspace.root / "outside"
    (outside / "mapper").mkdir(parents=True)
    (outside / "scaled_copy.py").write_text(OUTSIDE_CLASS)
    (outside / "mapper" / "outside.yaml").write_text(OUTSIDE_YAML)
    monkeypatch.syspath_prepend(outside)
    words = ("methods=[copy,outside]", "method_options={outside: ['mapper.factor=2.0']}")
    end = command(
        "evaluate", f"hydra.searchpath=[file://{outside}]", *evaluation(workspace, *words)
    )
    assert end.code == 0, end.err
    copied, doubled = evaluated(workspace).methods
    assert (doubled.name, doubled.refused) == ("outside", None)
    for name in HELD_OUT:
        one, two = copied.tasks[name], doubled.tasks[name]
        assert two.weight_cosine == pytest.approx(one.weight_cosine)
        assert two.relative_error != pytest.approx(one.relative_error)
