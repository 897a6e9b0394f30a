"""What an adapter is asked: by the options, by its task, or else by the text itself."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from omegaconf import open_dict

from loraport.data.question import Question
from loraport.exceptions import ConfigurationError, DataError
from loraport.workflows.asked_question import asked_question
from loraport.workflows.building import Workbench
from loraport.workflows.chosen_refinement import settled
from loraport.workflows.refining_texts import anchor_texts

Bench = Callable[..., Workbench]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A workbench with three tasks and a zoo, as options of transfer.py make it."""
    for name in ("books", "games", "songs"):
        folder = tmp_path / "tasks" / name
        folder.mkdir(parents=True)
        facts = {"name": name, "instruction": f"What of {name}?", "labels": ["yes", "no"]}
        (folder / "task.json").write_text(json.dumps(facts))
        rows = [{"text": f"{name} {place}", "label": "yes"} for place in range(30)]
        (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (folder / "test.jsonl").write_text(json.dumps({"text": f"test of {name}", "label": "no"}))
        (tmp_path / "zoo" / "source" / name).mkdir(parents=True)
    (tmp_path / "elsewhere" / "books").mkdir(parents=True)

    def make(*options: str) -> Workbench:
        where = [f"paths.tasks={tmp_path}/tasks", f"paths.zoo={tmp_path}/zoo", "adapter=books"]
        with initialize_config_module("loraport.conf", version_base="1.3"):
            config = compose("transfer", [*where, *options], return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        return Workbench(config)

    kept = HydraConfig.instance().cfg
    yield make
    HydraConfig.instance().cfg = kept


def test_a_task_of_the_zoo_brings_its_instruction_and_its_labels(
    bench: Bench, tmp_path: Path
) -> None:
    asked = Question("{text}\nWhat of books?\nAnswer:", ("yes", "no"), " {label}", 200)
    assert asked_question(bench(), "books") == asked
    assert asked_question(bench(), str(tmp_path / "zoo" / "source" / "books")) == asked


def test_what_is_given_goes_first(bench: Bench) -> None:
    options = ["prompt.instruction='Good, or bad?'", "prompt.labels=[bad,very good]"]
    found = asked_question(bench(*options, "prompt.text_chars=null"), "books")
    assert found.prompt == "{text}\nGood, or bad?\nAnswer:"
    assert found.labels == ("bad", "very good")
    assert found.text_chars is None


def test_an_empty_list_of_labels_means_that_it_writes_freely(bench: Bench) -> None:
    assert asked_question(bench("prompt.labels=[]"), "books").labels == ()


@pytest.mark.parametrize("place", ["elsewhere/books", "owner/books"])
def test_of_another_adapter_of_that_name_nothing_is_known(
    bench: Bench, tmp_path: Path, place: str
) -> None:
    given = str(tmp_path / place) if place.startswith("else") else place
    found = asked_question(bench(), given)
    assert (found.prompt, found.labels) == ("{text}", ())
    named = asked_question(bench("prompt.labels=[a,b]"), given)
    assert (named.prompt, named.labels) == ("{text}", ("a", "b"))


def test_a_backslash_and_an_n_is_a_new_line(bench: Bench) -> None:
    found = asked_question(bench(r"prompt.template='{text}\nSo: good, or bad?'"), "owner/books")
    assert found.prompt == "{text}\nSo: good, or bad?"


def test_a_template_that_takes_what_nobody_gives(bench: Bench) -> None:
    with pytest.raises(ConfigurationError, match=r"prompt\.instruction=TEXT"):
        asked_question(bench("prompt.template='{text} {instruction}'"), "owner/books")
    with pytest.raises(DataError, match=r"has no \{text\}"):
        asked_question(bench("prompt.template='{instruction}'"), "books")


def test_options_of_another_kind(bench: Bench) -> None:
    with pytest.raises(ConfigurationError, match=r"prompt\.template is 3; it takes text"):
        asked_question(bench("prompt.template=3"), "books")
    with pytest.raises(ConfigurationError, match=r"prompt\.labels is 1; it takes text"):
        asked_question(bench("prompt.labels=[1,2]"), "books")


def test_tasks_of_the_hub_are_described_without_a_row(bench: Bench) -> None:
    """The task's definition says it; nothing is fetched."""
    found = asked_question(bench("paths.tasks=null", "tasks=seed30"), "sst2")
    assert found.labels == ("negative", "positive")
    assert "Classify the sentiment" in found.prompt


def test_texts_of_anchors_are_training_texts_of_neither_held_out_nor_ported_tasks(
    bench: Bench,
) -> None:
    asked = bench("refine_texts.anchors=true", "tasks.held_out=[games]")
    source = anchor_texts(asked, "books")
    assert source is not None
    texts = [text for split in ("train", "validation") for text in source.texts(split)]
    assert sorted(texts) == sorted(f"songs {place}" for place in range(30))
    assert anchor_texts(bench("refine_texts.anchors=false"), "books") is None
    nobody = bench("refine_texts.anchors=true", "tasks.held_out=[games,songs]")
    with pytest.raises(ConfigurationError, match="none is left"):
        anchor_texts(nobody, "books")


def test_texts_of_anchors_are_taken_where_a_folder_of_tasks_is_given(bench: Bench) -> None:
    assert anchor_texts(bench("tasks.held_out=[games]"), "books") is not None
    assert anchor_texts(bench("tasks.held_out=[games,songs]"), "books") is None
    assert anchor_texts(bench("paths.tasks=null", "tasks=seed30"), "books") is None


@pytest.mark.parametrize(
    ("options", "refined"),
    [
        ([], True),
        (["prompt.labels=[a,b]"], True),
        (["mapper=copy"], False),
        (["ckpt=mapper.ckpt"], False),
        (["mapper=noop"], False),
        (["mapper=copy", "refine=corpus_distill"], True),
        (["mapper=copy", "refine.texts=32"], True),
        (["mapper=copy", "refine_texts.written=8"], True),
        (["refine=none"], False),
    ],
    ids=str,
)
def test_a_mapper_that_is_named_is_not_refined_unless_that_is_said(
    bench: Bench, options: list[str], refined: bool
) -> None:
    config = bench(*options).config
    assert ("_target_" in settled(config).refine) == refined
