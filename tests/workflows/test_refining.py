"""The default port, and every refinement after a mapper, on pico models."""

import json
from pathlib import Path
from typing import Any

import pytest

from loraport.adapters import read_adapter
from loraport.models import BaseModel
from loraport.refinement.label_distillation import LabelStudent
from loraport.reporting.transfer_report import TransferReport

from .conftest import (
    QUICK_REFINEMENT,
    Command,
    Outcome,
    Workspace,
    new_workspace,
    run_command,
    write_inputs,
    write_texts,
)
from .test_transfer_refused import contents

QUICK = QUICK_REFINEMENT["corpus_distill"]
BUDGET = ("refine=drift_budget", *QUICK_REFINEMENT["drift_budget"])
# The workspace has tasks, whose texts are taken as well unless this says otherwise.
CORPUS_ALONE = "refine_texts.anchors=false"


class Ports:
    """Runs ``transfer.py`` on the adapter ``books`` of a workspace with a corpus."""

    def __init__(self, workspace: Workspace, command: Command) -> None:
        self.workspace, self.command = workspace, command
        self.output = workspace.root / "out" / "ported"
        self.texts = workspace.root / "texts"
        write_texts(self.texts)
        (workspace.root / "work").mkdir()

    def call(self, *options: str, adapter: object = "books", corpus: bool = True) -> Outcome:
        return self.command(
            "transfer",
            *self.workspace.options(),
            *([f"paths.corpus={self.texts}"] if corpus else []),
            f"adapter={adapter}",
            f"output={self.output}",
            *options,
        )

    def ported(self, *options: str, adapter: object = "books") -> TransferReport:
        end = self.call(*options, adapter=adapter)
        assert end.code == 0, end.err
        self.out = end.out
        return TransferReport.model_validate_json((self.output / "report.json").read_bytes())

    def refused(self, *options: str, corpus: bool = True, adapter: object = "books") -> str:
        """Return the message, on one line."""
        before = contents(self.workspace.root)
        end = self.call(*options, corpus=corpus, adapter=adapter)
        assert end.code == 2, end.err
        assert "Traceback" not in end.err
        assert end.out == ""
        assert contents(self.workspace.root) == before
        return " ".join(end.err.split())

    def file(self, name: str, *rows: Any) -> Path:
        place = self.workspace.root / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        place.write_text("\n".join(lines), encoding="utf-8")
        return place


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory,
    models_and_tasks: Path,
    pico_source: BaseModel,
    pico_target: BaseModel,
) -> TransferReport:
    """The default port of ``books``, made once, in a workspace of its own."""
    folder, sides = tmp_path_factory.mktemp("plain"), {"source": pico_source, "target": pico_target}
    workspace = new_workspace(folder, models_and_tasks, sides)
    write_texts(folder / "texts")
    words = (f"paths.corpus={folder / 'texts'}", "adapter=books", f"output={folder / 'ported'}")
    assert run_command(folder, "transfer", *workspace.options(), *words, *QUICK) == 0
    return TransferReport.model_validate_json((folder / "ported" / "report.json").read_bytes())


@pytest.fixture
def ports(workspace: Workspace, command: Command) -> Ports:
    return Ports(workspace, command)


def test_without_a_mapper_an_adapter_is_distilled_on_the_corpus(ports: Ports) -> None:
    report = ports.ported(*QUICK, CORPUS_ALONE)
    refined = report.refinement
    assert refined is not None
    assert (report.mapper, refined.name) == ("noop", "corpus_distill")
    assert report.information_class == refined.information_class == "generic text"
    assert refined.question["prompt"] == "Which feeling ? {text}"
    assert refined.question["labels"] == ["good", "bad"]
    assert refined.data == {"texts": ["corpus"]}
    assert refined.measured[0]["texts"] == 16
    assert 0 <= refined.measured[0]["agreement_after"] <= 1
    assert refined.drift.mean > 0
    assert refined.drift.source_mean > 0
    assert refined.drift.texts == 6
    assert refined.expected.go is None
    assert {"diagnose", "port", "refine", "drift", "verify"} <= set(report.timing)
    written = read_adapter(ports.output)
    assert written.base_model == "pico/target"
    assert written.norm() > 0
    assert written.content_hash() == report.output.sha256
    for told in (
        "noop, corpus_distill: pico/source -> pico/target",
        "data used: 16 generic texts, chosen from 24; information class: generic text",
        "agreement with the source on 8 held-out prompts",
        "drift on 6 generic texts",
        "NO PREDICTION: no anchors of this pair were measured",
        "verified: PEFT reads 6 sites",
        "took ",
    ):
        assert told in ports.out
    # That sites of the source feed no target layer matters to no student that began from zero.
    assert "feed no target layer" not in ports.out
    card = (ports.output / "README.md").read_text()
    assert "was not trained on its task's data" in card
    assert "the refinement `corpus_distill`" in card
    assert "**NO PREDICTION: no anchors" in card


def test_stopped_and_started_again_it_ends_in_the_same_bits(
    ports: Ports, plain: TransferReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    loss = LabelStudent.loss

    def stop(self: LabelStudent, batch: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return loss(self, batch)

    monkeypatch.setattr(LabelStudent, "loss", stop)
    end = ports.call(*QUICK)
    assert end.code == 130
    assert "Traceback" not in end.err
    assert "the same command goes on from here" in " ".join(end.err.split())
    assert not ports.output.parent.exists()
    assert ports.ported(*QUICK).output.sha256 == plain.output.sha256
    assert len(calls) == 3 + 2, "of four steps two were left"


def test_a_mapper_that_is_named_is_the_whole_port(ports: Ports) -> None:
    report = ports.ported("mapper=copy", "scale=2")
    assert report.refinement is None
    assert report.config["refine"] == {}
    assert report.information_class == "weights only"
    assert "data used" not in ports.out


def test_a_mapper_and_a_refinement(ports: Ports) -> None:
    report = ports.ported("mapper=copy", "refine=corpus_distill", *QUICK)
    assert report.refinement is not None
    assert (report.mapper, report.refinement.name) == ("copy", "corpus_distill")
    assert "the mapper `copy` and the refinement" in (ports.output / "README.md").read_text()
    assert "copy, corpus_distill: pico/source" in ports.out


def test_a_drift_budget(ports: Ports) -> None:
    tight = ports.ported("mapper=copy", *BUDGET, "refine.budget=0.001")
    assert tight.refinement is not None
    assert 0 < tight.refinement.drift.mean <= 0.0011
    assert tight.refinement.measured[0]["drift_before"]["mean"] > 0.0011
    assert tight.refinement.drift.budget == 0.001
    nothing = ports.ported("mapper=copy", *BUDGET, "refine.budget=0.0", "overwrite=true")
    assert nothing.output.norm == 0
    assert "the refined adapter is zero at every site" in ports.out


def test_several_adapters_are_kept_within_a_budget_each(ports: Ports) -> None:
    report = ports.ported("mapper=copy", *BUDGET, adapter="[books,games]")
    assert report.refinement is not None
    assert len(report.refinement.measured) == 2


def test_scale_and_dtype_come_after_the_refinement(ports: Ports, plain: TransferReport) -> None:
    halved = ports.ported(*QUICK, "scale=0.5", "dtype=bfloat16")
    assert halved.output.norm == pytest.approx(plain.output.norm / 2, rel=1e-2)
    assert halved.dtype == "bfloat16"


def test_unlabelled_inputs(ports: Ports) -> None:
    inputs, _ = write_inputs(ports.workspace.root)
    quick = QUICK_REFINEMENT["prompt_distill"]
    report = ports.ported("refine=prompt_distill", f"inputs={inputs}", *quick)
    assert report.information_class == "unlabelled prompts"
    assert report.refinement is not None
    assert report.refinement.data == {"texts": ["corpus", "anchors"], "inputs": 3}
    assert "3 unlabelled inputs" in ports.out
    assert "but for a few unlabelled inputs" in (ports.output / "README.md").read_text()


def test_labelled_examples(ports: Ports) -> None:
    _, examples = write_inputs(ports.workspace.root)
    quick = QUICK_REFINEMENT["few_shot"]
    report = ports.ported("refine=few_shot", f"examples={examples}", *quick)
    assert report.information_class == "few-shot"
    assert "4 labelled examples" in ports.out


def test_texts_of_anchor_tasks_are_another_class(ports: Ports) -> None:
    report = ports.ported(*QUICK, "tasks.held_out=[games]")
    assert report.information_class == "anchors"
    assert report.refinement is not None
    assert report.refinement.data == {"texts": ["corpus", "anchors"]}


def calibration(ports: Ports, **fields: Any) -> Path:
    agreements = {"plays": 0.2, "films": 0.4, "songs": 0.6, "games": 0.8, "books": 1.0}
    points = [
        {"task": task, "agreement_after": value, "gap_recovered": 0.7 + 0.01 * value}
        for task, value in agreements.items()
    ]
    given = {"pair": "local", "refinement": "corpus_distill", "features": ["agreement_after"]}
    return ports.file("anchors.json", json.dumps(given | {"points": points} | fields))


def test_what_to_expect_is_fitted_on_other_anchors(ports: Ports) -> None:
    report = ports.ported(*QUICK, f"calibration={calibration(ports)}")
    assert report.refinement is not None
    expected = report.refinement.expected
    assert (expected.anchors, expected.go) == (4, True)
    assert expected.value == pytest.approx(0.7, abs=0.03)
    assert set(expected.features) == {"agreement_after"}
    assert "GO: expect 0.7" in ports.out
    assert "leave-one-out over 4 anchors of this pair" in ports.out


class TestRefused:
    def test_there_is_no_corpus(self, ports: Ports) -> None:
        message = ports.refused(corpus=False)
        for part in ("refine=corpus_distill", "paths.corpus=DIR", "mapper=cross_lora"):
            assert part in message

    def test_the_corpus_is_empty(self, ports: Ports) -> None:
        (ports.texts / "all.txt").write_text("\n")
        assert "0 training texts" in ports.refused(*QUICK, CORPUS_ALONE)

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            (["prompt.labels=[good]"], "at least two different words"),
            (["adapter=[books,games]"], "refine=corpus_distill refines one adapter"),
            (["choose.anchors=[songs]"], "choose.anchors ports every anchor as well"),
            (["inputs=FILE"], "refine=corpus_distill does not use inputs="),
            (["examples=FILE"], "refine=corpus_distill does not use examples="),
            (["refine=prompt_distill"], "give inputs=FILE"),
            (["refine=few_shot"], "give examples=FILE"),
            (["refine=prompt_distill", "inputs=nowhere.txt"], "nowhere.txt cannot be read"),
            (["refine=none", "inputs=FILE"], "refine=none does not use inputs="),
            (["refine_texts.written=-1"], "refine_texts.written is -1"),
            (["refine_texts.anchors=yes_please"], "refine_texts.anchors is 'yes_please'"),
            (["calibration=nowhere.json"], "nowhere.json cannot be read"),
            (["refine=all"], "corpus_distill drift_budget few_shot none prompt_distill"),
            (["refine.text=3"], "did you mean texts?"),
            (["refine.texts=0"], "refine.texts=0"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_wrong_options(self, ports: Ports, options: list[str], named: str) -> None:
        assert named in ports.refused(*options)

    def test_an_unknown_label(self, ports: Ports) -> None:
        file = ports.file("examples.jsonl", {"text": "a film", "label": "superb"})
        message = ports.refused("refine=few_shot", f"examples={file}")
        assert "line 1, has the label 'superb', but the labels are very good, bad" in message

    def test_a_calibration_of_another_pair(self, ports: Ports) -> None:
        file = calibration(ports, pair="elsewhere")
        assert "was measured on pair=elsewhere" in ports.refused(f"calibration={file}")

    def test_an_adapter_that_does_nothing(self, ports: Ports) -> None:
        from .test_transfer_refused import damage

        damage(ports.workspace.zoo / "source" / "books", "untrained")
        assert "books is zero at every site" in ports.refused(*QUICK)
