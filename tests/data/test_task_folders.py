import json
from pathlib import Path

import pytest

from loraport.data import Example, TaskFolder
from loraport.exceptions import DataError

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
