import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from loraport.evaluation.records import BenchmarkResults, Example
from loraport.evaluation.verdict import verdicts as verdicts_of
from loraport.reporting.figures import benchmark_charts, write_heat_maps
from loraport.reporting.pages import (
    benchmark_markdown,
    benchmark_page,
    diagnosis_page,
    report_tables,
    write_diagnosis_page,
    write_report,
)

from .benchmark_sample import (
    all_refused,
    full_benchmark,
    method_of,
    no_usable_task,
    nothing_known,
    one_mapper,
    pair_of,
    refused,
    results_of,
    similarities,
    two_pairs,
    verdicts,
)
from .test_records import content_of

VOID = {"meta", "img", "br", "link"}
ATTACK = "</script><img src=x onerror=\"alert('1')\">&amp;$x$|`"


class Balanced(HTMLParser):
    """Fails where a tag is not closed, and collects the tags and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(page: str) -> Balanced:
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


def page_of(results) -> str:
    return benchmark_page(results, benchmark_charts(results))


def attacked():
    """The full page's parts with an attack in every name and text."""
    method = method_of(ATTACK, tasks=(ATTACK, "sst2"), variant={ATTACK: ATTACK}, pair=ATTACK)
    fields: dict[str, Any] = {
        "config": {ATTACK: ATTACK},
        "pairs": {ATTACK: pair_of(ATTACK).model_copy(update={"source": ATTACK})},
        "examples": {ATTACK: (Example(text=ATTACK, label=ATTACK, answers={ATTACK: ATTACK}),)},
        "verdicts": (verdicts()[0].model_copy(update={"words": ATTACK}),),
        "similarities": {ATTACK: similarities(3, 3)},
    }
    return results_of([method, refused(ATTACK, pair=ATTACK)], **fields)


@pytest.fixture
def full(full_report) -> str:
    return full_report[0].read_text()


def assert_needs_no_other_file(page: str) -> None:
    for tag, attributes in parsed(page).tags:
        for name in ("src", "href", "data", "poster", "srcset", "action"):
            address = attributes.get(name) or "#"
            assert address.startswith(("#", "data:image/png;base64,")), (tag, address)
        assert tag not in {"link", "iframe", "object", "embed", "base", "form"}
    assert "http" not in page
    assert "@import" not in page
    assert re.findall(r"url\((?!#)", page) == []


def test_the_page_needs_no_other_file(full):
    assert_needs_no_other_file(full)


def test_references_within_the_charts_are_unique_and_resolve(full):
    tags = parsed(full).tags
    names = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(names) == len(set(names))
    used = [a["href"] for _, a in tags if a.get("href")] + re.findall(r"url\((#[^)]+)\)", full)
    assert used
    missing = {place for place in used if place.startswith("#")} - {f"#{name}" for name in names}
    assert missing == set()


def test_the_page_holds_every_part(full):
    for part in ("methods", "gap", "cost", "suites", "drift", "calibration", "map", "examples"):
        assert f'id="{part}"' in full
        assert f'href="#{part}"' in full
    text = parsed(full).text
    places = [text.index(verdict.words[:40]) for verdict in verdicts()]
    assert max(places) < text.index("The best of each class") < text.index("Press a heading")
    assert full.count("<svg") == 6
    assert json.dumps(full_benchmark().config, indent=1) in text
    assert "ab" * 32 in full
    assert "None" not in full


def test_everything_from_outside_is_escaped():
    page = page_of(attacked())
    parser = parsed(page)
    assert "img" not in {tag for tag, _ in parser.tags}
    assert not any(name.startswith("on") for _, attributes in parser.tags for name in attributes)
    assert page.count("<script>") == page.count("</script>") == 1
    assert parser.text.count(ATTACK) > 10


@pytest.mark.parametrize(
    "made",
    [no_usable_task, all_refused, nothing_known, one_mapper, two_pairs, lambda: results_of([])],
)
def test_odd_results_render(made):
    page = benchmark_page(made(), {})
    parser = parsed(page)
    assert re.findall(r"\b(?:None|nan|Undefined)\b", parser.text) == []
    for _, attributes in parser.tags:
        if (attributes.get("href") or "").startswith("#"):
            assert f'id="{(attributes["href"] or "")[1:]}"' in page


def test_what_is_not_there_leaves_no_heading():
    page = benchmark_page(one_mapper(), {})
    for part in ("suites", "drift", "calibration", "map", "examples"):
        assert f'id="{part}"' not in page
    assert "No hypothesis was tested" in benchmark_page(no_usable_task(), {})


def test_the_report_in_the_documentation_is_what_is_written_today():
    """Where words or columns change: ``write_report(BenchmarkResults.read(FILE), FOLDER)``."""
    folder = Path(__file__).parents[2] / "docs" / "benchmark"
    results = BenchmarkResults.read(folder / "results.json")
    again = verdicts_of(results.methods, results.suites)
    assert [one.state for one in again] == [one.state for one in results.verdicts]
    documented = (folder / "report.md").read_text().splitlines()
    written = benchmark_markdown(results, {}).splitlines()
    assert [line for line in written if line not in documented] == []
    for file in (folder / "tables").glob("*.csv"):
        (table,) = (table for table in report_tables(results) if table.name == file.stem)
        assert table.csv() == file.read_text(), file.stem


def test_every_row_of_a_markdown_table_has_its_cells():
    text = benchmark_markdown(attacked(), {})
    blocks = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) >= 4
    assert re.findall(r"(?<!\\)<", text) == [], "names hold no markup"
    for block in blocks:
        bars = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(bars) == 1, block


def test_everything_is_written_the_page_first(full_report):
    folder = full_report[0].parent
    names = [str(path.relative_to(folder)) for path in full_report]
    assert names[:2] == ["report.html", "report.md"]
    for table in (
        *("methods", "cross_family_transfer", "retention_tradeoff", "intersection_map", "suites"),
        *("tasks", "divergences", "calibration", "calibration_points", "suite_safety"),
    ):
        assert f"tables/{table}.csv" in names
        assert f"tables/{table}.tex" in names
    assert {name.removeprefix("charts/") for name in names if name.startswith("charts/")} == {
        *("gap_by_task.png", "recovery_against_cost.png", "drift_against_retention.png"),
        *("intersection_map.png", "suite_safety.png", "calibration.png"),
    }
    assert sorted(full_report) == sorted(path for path in folder.rglob("*") if path.is_file())
    assert full_report[0].stat().st_size < 1_000_000


def test_the_same_results_give_the_same_files(tmp_path):
    results = results_of([method_of("cast", tasks=("sst2",))])
    written, again = (write_report(results, tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in written] == [path.read_bytes() for path in again]


def test_unknown_numbers_are_empty_and_refused_methods_leave_words_only(tmp_path):
    written = write_report(all_refused(), tmp_path / "refused")
    assert [path.name for path in written] == ["report.html", "report.md"]
    assert "Every method was refused" in written[1].read_text()
    for path in write_report(nothing_known(), tmp_path):
        if path.suffix in {".csv", ".tex", ".md"}:
            assert "None" not in path.read_text()
            assert not re.search(r"\bnan\b", path.read_text(), flags=re.IGNORECASE)


def test_the_page_needs_no_other_file_of_a_diagnosis(tmp_path: Path) -> None:
    content = content_of()
    pictures = write_heat_maps(content, tmp_path)
    page = write_diagnosis_page(content, pictures, tmp_path / "diagnosis.html").read_text()
    assert_needs_no_other_file(page)
    prefix = "data:image/png;base64,"
    sources = [attributes["src"] or "" for tag, attributes in parsed(page).tags if tag == "img"]
    assert [base64.b64decode(source.removeprefix(prefix)) for source in sources] == [
        path.read_bytes() for path in pictures.values()
    ]


def test_it_says_everything_and_nothing_private() -> None:
    page = diagnosis_page(content_of(), {})
    for part in ("Compatible: all layers.", "many_to_one", "Gromov", "mutual k-NN", "cd" * 32):
        assert part in page
    assert page.index("Compatible: all layers.") < page.index("<table")
    assert "pico/&lt;target&gt;" in page
    assert "mind &lt;this&gt;" in page
    assert "<this>" not in page
    assert "somewhere/private" not in page
    assert "None" not in page


def test_an_incompatible_pair_looks_so_and_says_when_it_is_forced() -> None:
    verdict = content_of().verdict.model_copy(update={"compatible": False})
    page = diagnosis_page(content_of(verdict=verdict, modules=(), transport=()), {})
    assert "Gromov" not in page
    assert "Linear maps" not in page
    assert 'class="verdict falsified"' in page
    assert "force=true" not in page
    forced = verdict.model_copy(update={"forced": True})
    assert "force=true overrides" in diagnosis_page(content_of(verdict=forced), {})
