"""What mappers that learn from text are given: questions behind texts, paired layers."""

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module

from loraport.alignment.pairings import Monotone
from loraport.exceptions import ConfigurationError
from loraport.mappers.corpus_mapper import ModelPair
from loraport.models import BaseModel
from loraport.reporting.compatibility_record import CompatibilityRecord
from loraport.workflows.building import Workbench, build
from loraport.workflows.compatibility import Compatibility
from loraport.workflows.compatibility_check import check_compatibility, kept_at
from loraport.workflows.text_fitting import anchor_questions, layer_pairing, text_corpus

from .conftest import Workspace

LABELS = {
    "films": ["good", "bad"],
    "topics": ["film", "plot", "scene"],
    "secret": ["sealed", "open"],
}


def bench_of(*options: str) -> Workbench:
    with initialize_config_module("loraport.conf", version_base="1.3"):
        return Workbench(compose("train", overrides=list(options)))


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
    return anchor_questions(bench_of(*words, *options))


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
    def bench(self, workspace: Workspace, *options: str) -> Workbench:
        return bench_of(*workspace.text_training("transport"), *options)

    def test_questions_are_behind_texts_only_where_asked_for(
        self, workspace: Workspace, pico_source: BaseModel, pico_target: BaseModel
    ) -> None:
        pair = ModelPair(pico_source, pico_target)
        plain, asked = (
            text_corpus(self.bench(workspace, f"anchor_questions={word}"), pair)
            for word in ("false", "true")
        )
        assert plain.content_hash() != asked.content_hash()
        # In this workspace every task asks the same, with one of two labels.
        assert set(anchor_questions(self.bench(workspace))) == {
            "\nWhich feeling ?\nAnswer: very good",
            "\nWhich feeling ?\nAnswer: bad",
        }

    def test_by_depth_no_diagnosis_is_needed(
        self, workspace: Workspace, pico_source: BaseModel, pico_target: BaseModel
    ) -> None:
        bench = self.bench(workspace, "diagnosis=none")
        found = layer_pairing(bench, ModelPair(pico_source, pico_target))
        assert [[layer for layer, _ in feeds] for feeds in found.feeds] == [[0], [1], [1]]

    @pytest.mark.parametrize("name", ["monotone", "many_to_one"])
    def test_by_similarity_it_is(
        self, workspace: Workspace, pico_source: BaseModel, pico_target: BaseModel, name: str
    ) -> None:
        bench = self.bench(workspace, "diagnosis=none", f"pairing={name}")
        with pytest.raises(ConfigurationError, match="diagnosis=cheap, or pairing=relative_depth"):
            layer_pairing(bench, ModelPair(pico_source, pico_target))

    def test_layers_are_paired_by_what_was_diagnosed(
        self, workspace: Workspace, pico_source: BaseModel, pico_target: BaseModel
    ) -> None:
        quick = ("diagnosis.rows=120", "diagnosis.permutations=20", "force=true")
        bench = self.bench(workspace, "pairing=monotone", *quick)
        record = check_compatibility(bench)
        assert isinstance(record, CompatibilityRecord)
        config = bench.config
        kept = Compatibility.read(kept_at(bench, build(config.diagnosis), build(config.probes)))
        assert kept is not None
        pairing = build(config.pairing)
        assert isinstance(pairing, Monotone)
        expected = pairing.pair(torch.tensor(kept.similarity))
        found = layer_pairing(bench, ModelPair(pico_source, pico_target))
        assert found.feeds == expected.feeds
