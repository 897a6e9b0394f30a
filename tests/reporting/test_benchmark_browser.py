"""The page in a headless browser: nothing is asked of a network, and it can be read and used."""

import io
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from loraport.reporting.pages import write_report

from .benchmark_sample import many_tasks, verdicts
from .test_pages import attacked

playwright = pytest.importorskip("playwright.sync_api")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def report(full_report) -> Path:
    return full_report[0]


@pytest.fixture
def opened(browser) -> Iterator[Any]:
    """Open a page without a network and fail where it asks for one or complains."""
    contexts, asked, complaints = [], [], []

    def of(page: Path, width: int = 1280, height: int = 900, scheme: str = "light") -> Any:
        size = {"width": width, "height": height}
        context = browser.new_context(viewport=size, color_scheme=scheme, offline=True)
        contexts.append(context)

        def meet(route: Any) -> None:
            asked.append(route.request.url)
            if route.request.url == page.as_uri():
                route.continue_()
            else:
                route.abort()

        context.route("**/*", meet)
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("dialog", lambda dialog: complaints.append(dialog.message))
        tab.goto(page.as_uri())
        return tab

    yield of
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in asked if not url.startswith("file:")] == []


def picture_of(tab) -> Image.Image:
    return Image.open(io.BytesIO(tab.screenshot())).convert("RGB")


def column_of(tab, heading: str) -> list[str]:
    """The cells of a column of the main table, from top to bottom."""
    return tab.evaluate(
        """heading => {
            const table = document.querySelector("#methods ~ .scroll table");
            const place = [...table.tHead.rows[0].cells]
                .findIndex(cell => cell.textContent.trim() === heading);
            return [...table.tBodies[0].rows].map(row => {
                const cell = row.cells[place];
                return cell.dataset.v ?? cell.textContent.trim();
            });
        }""",
        heading,
    )


def test_it_opens_without_a_network_and_shows_the_verdict(opened, report):
    tab = opened(report)
    for verdict in verdicts():
        box = tab.get_by_text(verdict.words.split(". ")[0][:40]).bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= 900
    pictures = tab.evaluate(
        "[...document.images, ...document.querySelectorAll('svg')].map(e => "
        "e.tagName === 'IMG' ? e.naturalWidth : e.getBoundingClientRect().width)"
    )
    assert len(pictures) == 6
    assert min(pictures) > 300


def test_a_press_on_a_heading_sorts_and_a_second_one_turns_it_round(opened, report):
    tab = opened(report)
    before = column_of(tab, "gap recovered")
    heading = tab.locator("#methods ~ .scroll th", has_text="gap recovered").first
    heading.get_by_role("button").click()
    falling = [float(value) for value in column_of(tab, "gap recovered")]
    assert falling == sorted(map(float, before), reverse=True)
    assert falling != [float(value) for value in before]
    assert heading.get_attribute("aria-sort") == "descending"
    heading.get_by_role("button").click()
    assert [float(value) for value in column_of(tab, "gap recovered")] == sorted(falling)
    assert heading.get_attribute("aria-sort") == "ascending"
    assert tab.locator("#methods ~ .scroll").first.locator("[aria-sort]").count() == 1


def test_the_keyboard_sorts_names_upwards(opened, report):
    tab = opened(report)
    heading = tab.locator("#methods ~ .scroll th", has_text="method").first
    heading.get_by_role("button").focus()
    tab.keyboard.press("Enter")
    names = column_of(tab, "method")
    assert names[0] == "base (no adapter)"
    # Numbers within names count as numbers: 8 comes before 32.
    shots = [name for name in names if name.startswith("few-shot")]
    assert shots == ["few-shot 8 (control)", "few-shot 32 (control)"]
    others = [name for name in names if name not in shots]
    assert others == sorted(others, key=lambda name: name.replace("_", " "))
    assert heading.get_attribute("aria-sort") == "ascending"


def test_missing_values_stay_last(opened, report):
    tab = opened(report)
    button = tab.locator("#methods ~ .scroll th", has_text="seconds").first.get_by_role("button")
    for _ in range(2):
        button.click()
        values = column_of(tab, "seconds")
        assert values[-4:] == ["-"] * 4
        assert "-" not in values[:-4]


def test_without_scripts_the_tables_are_still_there(browser, report):
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(report.as_uri())
    assert tab.locator("#methods ~ .scroll table").first.locator("tbody tr").count() == 26
    assert tab.locator("th button").count() == 0
    context.close()


def pixels(picture: Image.Image) -> Counter[tuple[int, ...]]:
    """How often each colour is there."""
    data: Any = picture.convert("RGB").get_flattened_data()
    return Counter(data)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_drawn_in_the_scheme_that_is_asked_for(opened, report, scheme):
    tab = opened(report, scheme=scheme)
    picture = picture_of(tab)
    assert picture.size == (1280, 900)
    colours = pixels(picture)
    ground, _ = colours.most_common(1)[0]
    assert (sum(ground) > 600) == (scheme == "light")
    assert len(colours) > 100
    tab.locator("#gap").scroll_into_view_if_needed()
    tab.evaluate("document.querySelector('#gap').scrollIntoView()")
    chart = picture_of(tab)
    shown = pixels(chart)
    # Letters and axes of a chart stand out from its ground in both schemes.
    far = sum(n for colour, n in shown.items() if abs(sum(colour) - sum(ground)) > 450)
    assert far > 2000


@pytest.mark.parametrize("made", [None, many_tasks, attacked])
def test_a_phone_never_scrolls_sideways(opened, report, tmp_path, made):
    page = report if made is None else write_report(made(), tmp_path)[0]
    tab = opened(page, 360, 740)
    tab.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    assert tab.evaluate("document.scrollingElement.scrollWidth") <= 360
    picture = picture_of(tab)
    assert picture.size == (360, 740)
    assert len(set(picture.get_flattened_data())) > 50
    first = tab.locator(".verdict p").first.bounding_box()
    assert first["y"] + first["height"] <= 740
    if made is attacked:  # the attack does nothing, and is there to be read
        assert tab.locator("img").count() == 0
        assert "onerror" in tab.locator("body").inner_text()
