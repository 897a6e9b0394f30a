import base64
import re
from html.parser import HTMLParser
from pathlib import Path

from loraport.reporting.diagnosis_page import diagnosis_page, write_diagnosis_page
from loraport.reporting.heat_maps import write_heat_maps

from .test_intersection_map import content_of

VOID = {"meta", "img", "br", "link"}


class Balanced(HTMLParser):
    """Fails where a tag is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_no_other_file(tmp_path: Path) -> None:
    content = content_of()
    pictures = write_heat_maps(content, tmp_path)
    page = write_diagnosis_page(content, pictures, tmp_path / "diagnosis.html").read_text()
    places = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(places) == 2
    prefix = "data:image/png;base64,"
    assert [base64.b64decode(place.removeprefix(prefix)) for place in places] == [
        path.read_bytes() for path in pictures.values()
    ]
    assert "http" not in page
    assert "@import" not in page
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []


def test_it_says_everything_and_nothing_private() -> None:
    page = diagnosis_page(content_of(), {})
    for part in ("Compatible: all layers.", "many_to_one", "mutual k-NN", "cd" * 32):
        assert part in page
    assert page.index("Compatible: all layers.") < page.index("<table>")
    assert "pico/&lt;target&gt;" in page
    assert "mind &lt;this&gt;" in page
    assert "<this>" not in page
    assert "somewhere/private" not in page
    assert "None" not in page


def test_what_is_not_there_leaves_no_heading() -> None:
    page = diagnosis_page(content_of(modules=(), transport=()), {})
    assert "Gromov" not in page
    assert "Linear maps" not in page


def test_an_incompatible_pair_looks_so_and_says_when_it_is_forced() -> None:
    verdict = content_of().verdict.model_copy(update={"compatible": False})
    page = diagnosis_page(content_of(verdict=verdict), {})
    assert 'class="verdict bad"' in page
    assert "force=true" not in page
    forced = verdict.model_copy(update={"forced": True})
    assert "force=true overrides" in diagnosis_page(content_of(verdict=forced), {})
