import json
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from loraport.exceptions import DataError
from loraport.reporting import Results, TaskResult, read_results, write_results
from loraport.reporting.results import plain


def rewritten(path: Path, **changes: object) -> Path:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (content | changes).items() if v is not ...}))
    return path


@pytest.fixture
def path(results, tmp_path):
    return write_results(results, tmp_path / "results.json")


def test_what_is_written_is_read(results, path):
    assert read_results(path) == results


def test_the_file_has_the_fields_of_the_format(path):
    content = json.loads(path.read_text())
    assert content["schema"] == 1
    assert set(content) == {
        *("schema", "command", "config", "pair", "mapper", "information_class", "space", "seed"),
        *("controls", "tasks", "summary", "mapper_report", "timing", "provenance"),
    }
    task = content["tasks"]["emotion"]
    assert task["scores"]["predicted"] == 0.5
    assert task["gap_recovered"] == pytest.approx(2 / 3)
    assert len(task["ci95"]) == 2
    assert content["tasks"]["trec"]["gap_recovered"] is None
    assert content["tasks"]["trec"]["ci95"] is None


def test_nothing_is_left_beside_the_file(path):
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


def test_a_failed_write_leaves_the_old_file(results, path, monkeypatch):
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        write_results(results.model_copy(update={"seed": 9}), path)
    assert path.read_bytes() == before


def test_undefined_numbers_become_null(results, tmp_path):
    task = results.tasks["emotion"].model_dump()
    task |= {"retention": math.nan, "ci95": (0.1, math.inf)}
    task["nll"] |= {"random": -math.inf}
    odd = TaskResult(**task)
    changed = Results(
        **(results.model_dump(exclude={"schema_version"}) | {"tasks": {"emotion": odd}})
        | {"mapper_report": {"strengths": [math.inf, 0.5]}, "timing": {"fit": math.nan}}
    )
    text = write_results(changed, tmp_path / "results.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    read = read_results(tmp_path / "results.json")
    assert read.tasks["emotion"].retention is None
    assert read.tasks["emotion"].ci95 == (0.1, None)
    assert read.tasks["emotion"].nll["random"] is None
    assert read.mapper_report == {"strengths": [None, 0.5]}
    assert read.timing == {"fit": None}


def test_an_unknown_schema_version_is_refused(path):
    with pytest.raises(DataError, match=r"schema version 2, but this release reads version 1"):
        read_results(rewritten(path, schema=2))
    with pytest.raises(DataError, match=r"schema version None"):
        read_results(rewritten(path, schema=...))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": ...}, r"seed: Field required"),
        ({"sed": 0}, r"sed: Extra inputs"),
        ({"pair": {"name": "tiny"}}, r"pair\.source: Field required"),
        ({"seed": "zero"}, r"seed: Input should be a valid integer"),
    ],
)
def test_a_malformed_file_names_the_field(path, changes, message):
    with pytest.raises(DataError, match=message):
        read_results(rewritten(path, **changes))


def test_what_is_no_json_is_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"schema": 1')
    with pytest.raises(DataError, match=r"results\.json cannot be read"):
        read_results(tmp_path / "results.json")
    with pytest.raises(DataError, match=r"none\.json cannot be read"):
        read_results(tmp_path / "none.json")


def test_a_task_without_a_condition_is_refused(results):
    task = results.tasks["emotion"].model_dump()
    del task["scores"]["oracle"]
    with pytest.raises(ValidationError, match="lacks oracle"):
        TaskResult(**task)


def test_only_plain_data_is_plain():
    assert plain({"a": (1, Path("x"), None, True)}) == {"a": [1, "x", None, True]}
    with pytest.raises(ValueError, match="not Tensor"):
        plain({"a": torch.zeros(1)})


def test_a_file_from_before_there_were_cartridges_is_read(results, tmp_path):
    path = write_results(results, tmp_path / "results.json")
    content = json.loads(path.read_text())
    for field in ("cartridge_gap", "cartridge_gap_nll"):
        del content["summary"][field]
    path.write_text(json.dumps(content))
    assert read_results(path).summary.cartridge_gap is None
