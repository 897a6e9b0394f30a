import json
from pathlib import Path
from typing import Any

import pytest

from loraport.evaluation.format_suite import (
    CONSTRAINTS,
    PACKAGED,
    FormatSuite,
    met,
    read_prompt_file,
)
from loraport.evaluation.suite import Suite
from loraport.exceptions import ConfigurationError, DataError
from loraport.models import BaseModel

PROMPT: dict[str, Any] = {
    "id": "sea",
    "prompt": "about the sea",
    "constraints": [{"kind": "lines", "count": 2}, {"kind": "lower_case"}],
}
OTHER = {**PROMPT, "id": "sky", "prompt": "about the sky"}


def written(folder: Path, **fields: object) -> Path:
    content = {"name": "mine", "about": "a test", "prompts": [PROMPT, OTHER], **fields}
    file = folder / "mine.json"
    file.write_text(json.dumps(content))
    return file


def test_planned_answers_are_checked(tmp_path, pico_target, plan_answers):
    suite = FormatSuite(written(tmp_path))
    assert isinstance(suite, Suite)
    assert suite.name == "mine"
    plan_answers(pico_target, {"about the sea": " one\ntwo ", "about the sky": "One\ntwo"})
    score = suite.score(pico_target)
    assert score.rows["followed"].tolist() == [1.0, 0.5]
    assert score.rows["all_followed"].tolist() == [1.0, 0.0]
    assert score.whole["distinct_1"] == 0.5
    assert score.whole["self_bleu"] > 0
    assert set(suite.metrics) | {"chat_template"} == {*score.rows, *score.whole}


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_suites(name: str, pico_target: BaseModel):
    suite = FormatSuite(name, max_new_tokens=2)
    assert suite.name == name
    assert len(suite.prompts()) == 20
    score = suite.score(pico_target)
    assert len(score.answers) == 20
    assert score.rows["all_followed"].sum() <= 2  # noise follows hardly anything


def test_the_hash_knows_content_and_settings(tmp_path: Path):
    first = FormatSuite(written(tmp_path)).content_hash()
    assert FormatSuite(written(tmp_path)).content_hash() == first
    assert FormatSuite(written(tmp_path), max_new_tokens=9).content_hash() != first
    assert FormatSuite(written(tmp_path, prompts=[PROMPT])).content_hash() != first


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompts": []}, "prompts: .*at least 1 item"),
        ({"name": "a b/c"}, "name: .*pattern"),
        ({"prompts": [{**PROMPT, "prompt": " \n"}]}, "prompts.0.prompt: .*empty"),
        (
            {"prompts": [PROMPT, {**OTHER, "constraints": [{"kind": "rhymes"}]}]},
            "prompts.1.constraints: .*'rhymes'.*max_words",
        ),
        (
            {"prompts": [{**PROMPT, "constraints": [{"kind": "lines", "count": "two"}]}]},
            "prompts.0.constraints.count: ",
        ),
    ],
)
def test_malformed_files_are_told_by_field(tmp_path: Path, fields: dict[str, object], message: str):
    with pytest.raises(DataError, match=f"mine.json is .*, but takes .*{message}"):
        read_prompt_file(written(tmp_path, **fields))


def test_bad_files_and_options(tmp_path: Path):
    with pytest.raises(DataError, match=r"none.json cannot be read.*coding_suite"):
        FormatSuite(tmp_path / "none.json")
    with pytest.raises(ConfigurationError, match=r"max_new_tokens is 0, but takes a whole number"):
        FormatSuite(written(tmp_path), max_new_tokens=0)


FENCED = "Here it is:\n```python\ndef add(a, b):\n    return a + b\n```\nThat is all."

CASES = [
    ("max_words", {"words": 3}, ["one two three", "one"], ["one two three four", ""]),
    ("min_words", {"words": 2}, ["one two", "a b c"], ["one", ""]),
    ("sentences", {"count": 2}, ["One. Two!", 'He said "no." Then left', "A? B."],
     ["One.", "One. Two. Three.", ""]),
    ("lines", {"count": 2}, ["a\nb", "a\n\n b"], ["a", "a\nb\nc", ""]),
    ("starts_with", {"text": "Dear"}, ["Dear you"], ["dear you", " Dear", ""]),
    ("ends_with", {"text": "!"}, ["Hey!"], ["Hey! ", ""]),
    ("contains", {"texts": ["Cat", "dog"]}, ["the CAT and the dog"], ["the cat", ""]),
    ("excludes", {"texts": ["blue"]}, ["red"], ["Blue sky", ""]),
    ("regex", {"pattern": r"^\d{4}$"}, ["2024"], ["20245", ""]),
    ("json", {}, ["[1, 2]", '```json\n{"a": 1}\n```'], ["{a: 1}", "", "[" * 100_000]),
    ("json", {"keys": ["a"]}, ['{"a": 1, "b": 2}'], ['{"b": 1}', '["a"]', '"a"']),
    ("python", {}, ["x = 1", "print('hi')", FENCED, "import os"],
     ["x = ", "hello", "", "1 + 1", "(" * 5000, "a\0b"]),
    ("python", {"function": "add"}, [FENCED, "async def add(): ...", "x = '\\d'\ndef add(): 0"],
     ["def sub(a): ...", "add(1, 2)", "class A:\n    def add(self): ..."]),
    ("bullets", {"count": 2}, ["- a\n- b", "1. a\n2) b", "Look:\n* a\n\u2022 b"],
     ["- a", "-a\n-b", "- a\n- b\n- c"]),
    ("no_repeats", {"words": 2}, ["a b c a c b", "one"], ["a b, A B", "", "..."]),
    ("lower_case", {}, ["all small.", "é 3"], ["One", "123", ""]),
    ("upper_case", {}, ["ALL BIG!"], ["Big", "123", ""]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "fields", "good", "bad"), CASES)
def test_what_meets_a_constraint(kind, fields, good, bad):
    constraint = {"kind": kind, **fields}
    assert [answer for answer in good if not met(answer, constraint)] == []
    assert [answer for answer in bad if met(answer, constraint)] == []


def test_every_kind_has_a_case():
    assert {kind for kind, *_ in CASES} == set(CONSTRAINTS)


def test_python_is_never_executed(tmp_path):
    trace = tmp_path / "trace"
    assert met(f"open({str(trace)!r}, 'w').close()", {"kind": "python"})
    assert not trace.exists()
