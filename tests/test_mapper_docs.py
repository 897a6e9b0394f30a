"""docs/mappers.md is complete."""

import re
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
