import json
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
from omegaconf import OmegaConf

from loraport.data import Example, HubTasks, TaskFolder
from loraport.data.tasks import tidied
from loraport.exceptions import ConfigurationError, DataError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "tasks"


def write_task(folder: Path, name: str, **description: object) -> Path:
    task = folder / name
    task.mkdir(parents=True)
    given = {"name": name, "instruction": f"What is {name}?", "labels": ["yes", "no"]}
    (task / "task.json").write_text(json.dumps(given | description))
    rows = [{"text": f"{name} {label}", "label": label} for label in ("yes", "no")]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (task / "train.jsonl").write_text(lines)
    (task / "test.jsonl").write_text(
        lines.upper()
        .replace("TEXT", "text")
        .replace("LABEL", "label")
        .replace('"YES"', '"yes"')
        .replace('"NO"', '"no"')
    )
    return task


@pytest.fixture
def folder(tmp_path):
    for name in ("colour", "animal"):
        write_task(tmp_path, name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "index.json").write_text("[]")
    return tmp_path


def test_names_are_those_of_the_folders_with_a_description(folder):
    assert TaskFolder(folder).names() == ("animal", "colour")


def test_loads_what_the_files_hold(folder):
    task = TaskFolder(str(folder)).load(["colour"])["colour"]
    assert task.name == "colour"
    assert task.instruction == "What is colour?"
    assert task.labels == ("yes", "no")
    assert task.train == (Example("colour yes", "yes"), Example("colour no", "no"))
    assert task.test == (Example("COLOUR YES", "yes"), Example("COLOUR NO", "no"))


def test_none_loads_all_and_names_decide_the_order(folder):
    assert list(TaskFolder(folder).load()) == ["animal", "colour"]
    assert list(TaskFolder(folder).load(("colour", "animal"))) == ["colour", "animal"]


def test_a_text_may_hold_a_line_separator(folder):
    row = json.dumps({"text": "one\u2028two", "label": "no"}, ensure_ascii=False)
    (folder / "colour" / "test.jsonl").write_text(row + "\r\n\n", encoding="utf-8")
    assert TaskFolder(folder).load(["colour"])["colour"].test == (Example("one\u2028two", "no"),)


def test_unknown_names_are_listed_beside_the_known_ones(folder):
    with pytest.raises(DataError, match=r"unknown tasks colur, planet: .* has animal, colour"):
        TaskFolder(folder).load(["colour", "colur", "planet"])


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist; set paths\.tasks"):
        TaskFolder(tmp_path / "nowhere")


def test_a_folder_without_tasks_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no task.*set paths\.tasks"):
        TaskFolder(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("test.jsonl", None, r"test\.jsonl is missing"),
        ("test.jsonl", "\n", r"test\.jsonl is empty"),
        ("train.jsonl", '{"text": "a", "label": "yes"}\n{"text": "b"', r"line 2 is not JSON"),
        ("train.jsonl", '{"text": "a"}', r"line 1 is .*two strings"),
        ("train.jsonl", '{"text": "a", "label": 1}', r"line 1 is .*two strings"),
        ("train.jsonl", '["a", "yes"]', r"line 1 is .*two strings"),
        ("train.jsonl", '{"text": "a", "label": "maybe"}', r"rows labelled \['maybe'\]"),
        ("task.json", "{", r"task\.json is not JSON"),
        ("task.json", "[]", r"holds a list"),
        ("task.json", '{"labels": ["yes", "no"]}', r"instruction None"),
        ("task.json", '{"instruction": "?", "labels": "yes"}', r"labels 'yes'"),
        ("task.json", '{"instruction": "?", "labels": ["yes"]}', r"at least two"),
        ("task.json", '{"name": "color"}', r"describes the task 'color'.*folder 'colour'"),
    ],
)
def test_what_is_malformed_is_named(folder, file, content, message):
    target = folder / "colour" / file
    target.unlink()
    if content is not None:
        target.write_text(content)
    with pytest.raises(DataError, match=message):
        TaskFolder(folder).load(["colour"])
    assert list(TaskFolder(folder).load(["animal"])) == ["animal"]


def test_text_in_another_encoding_is_refused(folder):
    (folder / "colour" / "test.jsonl").write_bytes(b'{"text": "caf\xe9", "label": "no"}')
    with pytest.raises(DataError, match=r"test\.jsonl cannot be read.*UTF-8"):
        TaskFolder(folder).load(["colour"])


@pytest.mark.real
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared tasks are not beside the checkout")
def test_the_real_tasks_have_the_rows_that_they_count():
    source = TaskFolder(SHARED)
    tasks = source.load()
    assert len(tasks) >= 30
    for name, task in tasks.items():
        described = json.loads((SHARED / name / "task.json").read_text())
        assert (len(task.train), len(task.test)) == (described["n_train"], described["n_test"])
        for label, count in described["label_counts"]["test"].items():
            assert sum(row.label == label for row in task.test) == count


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


def test_unknown_names_are_listed_beside_the_defined_ones(definition):
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
