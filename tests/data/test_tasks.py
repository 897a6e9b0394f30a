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


def write_task(folder: Path, name: str) -> None:
    task = folder / name
    task.mkdir(parents=True)
    about = {"name": name, "instruction": f"What is {name}?", "labels": ["yes", "no"], "n": 2}
    (task / "task.json").write_text(json.dumps(about))
    for split in ("train", "test"):
        rows = [{"text": f"{split} {name} {label}", "label": label} for label in ("yes", "no")]
        (task / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def folder(tmp_path):
    for name in ("colour", "animal"):
        write_task(tmp_path, name)
    (tmp_path / "notes").mkdir()
    (tmp_path / "index.json").write_text("[]")
    return tmp_path


def test_loads_what_the_files_hold_in_the_order_asked_for(folder):
    source = TaskFolder(str(folder))
    assert source.names() == tuple(source.load()) == ("animal", "colour")
    assert list(source.load(("colour", "animal"))) == ["colour", "animal"]
    task = source.load(["colour"])["colour"]
    assert (task.name, task.instruction) == ("colour", "What is colour?")
    assert task.labels == ("yes", "no")
    assert task.train == (Example("train colour yes", "yes"), Example("train colour no", "no"))
    assert task.test == (Example("test colour yes", "yes"), Example("test colour no", "no"))


def test_a_text_may_hold_a_line_separator(folder):
    row = json.dumps({"text": "one\u2028two", "label": "no"}, ensure_ascii=False)
    (folder / "colour" / "test.jsonl").write_text(row + "\r\n\n", encoding="utf-8")
    assert TaskFolder(folder).load(["colour"])["colour"].test == (Example("one\u2028two", "no"),)


def test_unknown_names_are_listed_beside_the_known_ones(folder):
    with pytest.raises(DataError, match=r"unknown tasks colur, planet: .* has animal, colour"):
        TaskFolder(folder).load(["colour", "colur", "planet"])


def test_a_folder_without_tasks_is_refused(tmp_path):
    for path, why in ((tmp_path / "nowhere", "does not exist"), (tmp_path, "holds no task")):
        with pytest.raises(DataError, match=rf"{why}; set paths\.tasks"):
            TaskFolder(path)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("test.jsonl", None, r"test\.jsonl cannot be read.*No such file"),
        ("test.jsonl", b'{"text": "caf\xe9", "label": "no"}', r"test\.jsonl cannot be read.*utf-8"),
        ("test.jsonl", b"\n", r"test\.jsonl is empty"),
        ("train.jsonl", b'{"text": "a", "label": "yes"}\n{"text": "b"', r"line 2, cannot be used"),
        ("train.jsonl", b'{"text": "a"}', r"line 1, cannot be used \(label: Field required"),
        ("train.jsonl", b'{"text": "a", "label": 1}', r"label: .*valid string.*NAME/task\.json"),
        ("train.jsonl", b'["a", "yes"]', r"line 1, cannot be used"),
        ("train.jsonl", b'{"text": "a", "label": "maybe"}', r"rows labelled \['maybe'\]"),
        ("task.json", b"[]", r"task\.json cannot be used"),
        ("task.json", b'{"labels": ["yes", "no"]}', r"instruction: Field required"),
        ("task.json", b'{"instruction": "?", "labels": "yes"}', r"labels: .*array"),
        ("task.json", b'{"instruction": "?", "labels": ["yes"]}', r"two or more"),
        ("task.json", b'{"instruction": "?", "labels": ["yes", "no", "yes"]}', r"each once"),
        ("task.json", b'{"instruction": "?", "labels": ["yes", " "]}', r"two or more words"),
        ("task.json", b'{"instruction": "?", "labels": ["yes", " yes"]}', r"each once, white"),
        (
            "train.jsonl",
            b'{"text": "a", "label": "no"}\n\n{"text": " ", "label": "no"}',
            r"1 rows without a text, the first in line 3",
        ),
        (
            "task.json",
            b'{"name": "color", "instruction": "?", "labels": ["yes", "no"]}',
            r"describes the task 'color'.*folder 'colour'",
        ),
    ],
)
def test_what_is_malformed_is_named(folder, file, content, message):
    target = folder / "colour" / file
    target.unlink()
    if content is not None:
        target.write_bytes(content)
    with pytest.raises(DataError, match=message):
        TaskFolder(folder).load(["colour"])
    assert list(TaskFolder(folder).load(["animal"])) == ["animal"]


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


def test_rows_are_balanced_tidied_seeded_and_never_repeated(definition):
    def things(**options):
        return HubTasks({"things": definition}, **options).load(["things"])["things"]

    task = things(rows_train=10)
    assert task.instruction == "Good or bad?"
    assert task.labels == ("bad", "good")
    assert Counter(row.label for row in task.test) == {"bad": 2, "good": 2}
    # Two of the six bad rows are test rows, one more has no letters: four are left.
    assert Counter(row.label for row in task.train) == {"bad": 4, "good": 6}
    assert len({row.text for row in (*task.train, *task.test)}) == 14
    assert all("\n" not in row.text and "  " not in row.text for row in task.train)
    assert Counter(row.label for row in things().train) == {"bad": 4, "good": 30}
    assert things(rows_train=10) == task != things(rows_train=10, seed=1)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_split": "validation"}, r"could not be read .* set paths\.tasks=DIR"),
        ({"text_column": "text"}, r"no column text, but \['body', 'target'\]"),
        ({"label_map": {"0": "bad"}}, r"has the label 1, but .* maps \['0'\]"),
    ],
)
def test_a_data_set_that_does_not_fit_its_definition_is_refused(definition, change, message):
    with pytest.raises(DataError, match=message):
        HubTasks({"things": definition | change}).load()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_colum": "x"}, r"task things is not valid \(text_colum: Extra.*it takes role"),
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


def test_texts_that_repeat_are_told_by_what_they_do(tmp_path: Path, caplog: Any) -> None:
    folder = tmp_path / "mood"
    folder.mkdir()
    (folder / "task.json").write_text(json.dumps({"instruction": "?", "labels": ["yes", "no"]}))
    for split, rows in {
        "train": [("a", "yes"), ("a", "yes"), ("b", "no"), ("c", "no")],
        "test": [("b", "no"), ("c", "yes"), ("d", "no"), ("d", "no"), ("d", "no")],
    }.items():
        lines = (json.dumps({"text": text, "label": label}) for text, label in rows)
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
    TaskFolder(tmp_path).load()
    told = [record.getMessage().removeprefix(f"{folder}: ") for record in caplog.records]
    assert told == [
        "1 of 4 training rows repeat the text of another",
        "2 of 5 test rows repeat the text of another",
        "2 of 5 test rows are training rows too, so that scores on them look better than on new "
        "ones",
        "1 texts have several labels, such as 'c'",
    ]
    TaskFolder(tmp_path).load()
    assert len(caplog.records) == 4, "once"
