import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from omegaconf import OmegaConf

from loraport.data import HubTasks
from loraport.data.task_hub import tidied
from loraport.exceptions import ConfigurationError, DataError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "tasks"
CONFIG = Path(__file__).resolve().parents[2] / "conf" / "tasks" / "seed30.yaml"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def definition(tmp_path):
    """A data set as a local folder: 30 rows of one label, 6 of the other, and some oddities."""
    repository = tmp_path / "hub"
    repository.mkdir()
    train = [{"body": f"good\n\n  thing {i}", "target": 1} for i in range(30)]
    train += [{"body": f"bad thing {i}", "target": 0} for i in range(6)]
    train += [{"body": "Good, thing 3!", "target": 1}, {"body": " \x07", "target": 0}]
    test = [{"body": f"bad thing {i}", "target": 0} for i in range(2)]
    test += [{"body": f"new thing {i}", "target": 1} for i in range(2)]
    for split, rows in (("train", train), ("test", test)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (repository / f"{split}.jsonl").write_text(lines)
    return {
        "instruction": "Good or bad?",
        "labels": ["bad", "good"],
        "hub_id": str(repository),
        "text_column": "body",
        "label_column": "target",
        "label_map": {"0": "bad", "1": "good"},
    }


def test_rows_are_balanced_tidied_and_never_repeated(definition):
    task = HubTasks({"things": definition}, rows_train=10).load(["things"])["things"]
    assert task.instruction == "Good or bad?"
    assert task.labels == ("bad", "good")
    assert Counter(row.label for row in task.test) == {"bad": 2, "good": 2}
    # Two of the six bad rows are test rows, one more has no letters: four are left.
    assert Counter(row.label for row in task.train) == {"bad": 4, "good": 6}
    assert len({row.text for row in (*task.train, *task.test)}) == 14
    assert all("\n" not in row.text and "  " not in row.text for row in task.train)


def test_all_rows_are_taken_where_there_are_fewer_than_asked_for(definition):
    task = HubTasks({"things": definition}).load()["things"]
    assert Counter(row.label for row in task.train) == {"bad": 4, "good": 30}


def test_the_seed_decides_the_rows(definition):
    def rows(seed):
        return HubTasks({"things": definition}, rows_train=8, seed=seed).load()["things"].train

    assert rows(0) == rows(0)
    assert rows(0) != rows(1)


def test_unknown_names_are_listed_beside_the_known_ones(definition):
    source = HubTasks({"things": definition, "others": definition})
    assert source.names() == ("things", "others")
    with pytest.raises(DataError, match=r"unknown task thing: .* has things, others"):
        source.load(["thing"])


def test_an_unreachable_data_set_says_to_set_a_folder(definition, monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"Couldn't reach the Hub; .* set paths\.tasks=DIR"):
        HubTasks({"things": definition}).load()


def test_an_empty_repository_says_to_set_a_folder(definition, tmp_path):
    (tmp_path / "empty").mkdir()
    fields = definition | {"hub_id": str(tmp_path / "empty")}
    with pytest.raises(DataError, match=r"could not be loaded .* set paths\.tasks=DIR"):
        HubTasks({"things": fields}).load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_split": "validation"}, r"could not be loaded"),
        ({"text_column": "text"}, r"no column text, but \['body', 'target'\]"),
        ({"label_map": {"0": "bad"}}, r"has the label 1, but .* maps \['0'\]"),
        ({"label_map": {"0": "bad", "1": "fine"}}, r"has the label 1"),
    ],
)
def test_a_data_set_that_does_not_fit_its_definition_is_refused(definition, change, message):
    with pytest.raises(DataError, match=message):
        HubTasks({"things": definition | change}).load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_colum": "x"}, r"task things is not valid \(text_colum: Extra.*it takes role"),
        ({"labels": "bad"}, r"labels: Input should be a valid tuple"),
        ({"label_map": None}, r"label_map: .*correct tasks\.definitions\.things"),
    ],
)
def test_a_wrong_definition_names_the_field(definition, change, message):
    with pytest.raises(ConfigurationError, match=message):
        HubTasks({"things": definition | change})


@pytest.mark.parametrize(
    ("text", "chars", "expected"),
    [
        ("  a \t b\r\nc ", 400, "a b c"),
        ("bell\x07 and\x00nul", 400, "bell andnul"),
        ("one two three", 7, "one two"),
        ("one two three", 8, "one two"),
        ("one two three", 6, "one"),
        ("unbroken", 3, "unb"),
    ],
)
def test_tidied(text, chars, expected):
    assert tidied(text, chars) == expected


@pytest.mark.real
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared tasks are not beside the checkout")
def test_the_shipped_definitions_are_those_of_the_task_files():
    config: Any = OmegaConf.to_container(OmegaConf.load(CONFIG), resolve=True)
    files = sorted(SHARED.glob("*/task.json"))
    described = {file.parent.name: json.loads(file.read_text()) for file in files}
    assert list(config["definitions"]) == list(described)
    defined = HubTasks(config["source"]["definitions"]).definitions
    for name, task in described.items():
        hub = dict(task["hub"])
        scripted = "refs/convert/parquet" in hub.pop("note", "")
        expected = hub | {
            "role": task["role"],
            "instruction": task["instruction"],
            "labels": tuple(task["labels"]),
            "hub_id": task["hub_id"],
            "revision": "refs/convert/parquet" if scripted else None,
        }
        assert defined[name].model_dump() == expected, name
    held_out = [name for name, task in described.items() if task["role"] == "held_out"]
    assert sorted(config["held_out"]) == sorted(held_out)
