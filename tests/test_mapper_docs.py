"""docs/mappers.md is complete, and the mapper of docs/extending.md works."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "mappers.md").read_text(encoding="utf-8")
HEADINGS = ("Idea", "Needs", "Formula", "Options", "Cost", "Limits", "Source")


def files(group: str) -> list[Path]:
    return sorted((ROOT / "conf" / group).glob("*.yaml"))


def options(node: dict[str, Any]) -> set[str]:
    return {key for key in node if not key.startswith("_")}


def cards() -> dict[str, str]:
    """The text below each heading of the third level, by the heading."""
    parts = re.split(r"^#{2,3} (.+)$", TEXT, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def told_options(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", text))


def test_every_mapper_and_no_other_has_a_card_with_all_headings_and_options():
    about = {title: text for title, text in cards().items() if "**Idea.**" in text}
    assert set(about) == {file.stem for file in files("mapper")}
    table = section("Choosing").split("| mapper | needs |")[1]
    for file in files("mapper"):
        parts = re.findall(r"^\*\*(\w+)\.\*\* (\S.*)$", about[file.stem], flags=re.MULTILINE)
        assert tuple(heading for heading, _ in parts) == HEADINGS, file.stem
        mapper = yaml.safe_load(file.read_text(encoding="utf-8"))["mapper"]
        assert options(mapper) <= told_options(dict(parts)["Options"]), file.stem
        assert f"`{file.stem}`" in table


@pytest.mark.parametrize(("group", "title"), [("merge", "Merging"), ("sparsify", "Sparsifying")])
def test_every_combiner_and_sparsifier_and_its_options_are_told(group, title):
    for file in files(group):
        node = yaml.safe_load(file.read_text(encoding="utf-8"))
        row = re.search(rf"^\| `{file.stem}` \|.+$", section(title), flags=re.MULTILINE)
        assert row is not None, file.stem
        assert options(node.get("method", node)) <= told_options(row[0]), file.stem


def test_links_lead_somewhere():
    titles = {title.lower().replace(" ", "-") for title in cards()}
    for link in re.findall(r"\]\(([^)]+)\)", TEXT):
        file, _, anchor = link.partition("#")
        assert not file or (ROOT / "docs" / file).is_file(), link
        assert not anchor or anchor in titles, link


# The mapper outside the package, in docs/extending.md and README.md.


def example() -> dict[str, str]:
    """The files of docs/extending.md, by their paths."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    found = re.findall(r"`(my_mappers/[\w/.]+)`:\n\n```\w+\n(.*?)```", text, flags=re.DOTALL)
    return dict(found)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example's files in a folder that Python imports from."""
    for name, content in example().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "my_mappers")
    monkeypatch.delitem(sys.modules, "nearest", raising=False)
    return tmp_path / "my_mappers"


def test_the_example_keeps_the_contract_of_every_mapper(folder):
    contract = importlib.import_module("test_nearest").TestNearest()
    asked = [name for name in dir(contract) if name.startswith("test_")]
    assert len(asked) >= 8
    for name in asked:
        getattr(contract, name)()


def test_the_example_is_clean(folder):
    options = ["--config", str(ROOT / "pyproject.toml"), str(folder)]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *options], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout


def test_readme_has_the_same_class():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    docstring, _, rest = example()["my_mappers/nearest.py"].partition("\n\n")
    assert docstring.startswith('"""')
    assert f"```python\n{rest}```" in readme
