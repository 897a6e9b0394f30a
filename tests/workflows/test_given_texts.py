from pathlib import Path

import pytest

from loraport.data.tasks import Example
from loraport.exceptions import DataError
from loraport.workflows.given_texts import given_examples, given_inputs


def written(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_a_text_a_line_each_once(tmp_path: Path) -> None:
    file = written(tmp_path, "inputs.txt", "one two\n\n  three  \none two\n{'a': 1}\n")
    assert given_inputs(file) == ("one two", "three", "{'a': 1}")


def test_rows_of_json(tmp_path: Path) -> None:
    # A line separator of Unicode may stand in a row of JSON as it is.
    file = written(tmp_path, "rows.jsonl", '{"text": "one\u2028two", "more": 1}\n{"text": "three"}')
    assert given_inputs(str(file)) == ("one\u2028two", "three")


def test_examples(tmp_path: Path) -> None:
    file = written(
        tmp_path, "rows.jsonl", '{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}'
    )
    assert given_examples(file, ("x", "y")) == (Example("a", "x"), Example("b", "y"))
    assert given_examples(file, ()) == (Example("a", "x"), Example("b", "y"))
    with pytest.raises(DataError, match=r"line 2, has the label 'y', but the labels are x, z"):
        given_examples(file, ("x", "z"))


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("inputs.txt", "", "is empty"),
        ("inputs.txt", "\n \n", "is empty"),
        ("inputs.txt", b"\xff\xfe\x00", "cannot be read"),
        ("rows.jsonl", "{", "line 1, is not JSON"),
        ("rows.jsonl", '{"text": "a"}\n[]', 'line 2, has no "text" with text'),
        ("rows.jsonl", '{"text": 3}', 'line 1, has no "text" with text'),
        ("rows.jsonl", '{"text": " "}', 'line 1, has no "text" with text'),
    ],
)
def test_files_that_cannot_be_used(
    tmp_path: Path, name: str, content: str | bytes, named: str
) -> None:
    with pytest.raises(DataError, match=r"inputs= takes a file with a text a line") as caught:
        given_inputs(written(tmp_path, name, content))
    assert named in str(caught.value)


def test_a_row_without_a_label(tmp_path: Path) -> None:
    file = written(tmp_path, "rows.jsonl", '{"text": "a"}')
    with pytest.raises(DataError, match=r'has no "label" with text; examples= takes'):
        given_examples(file, ())


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        given_inputs(tmp_path)
