"""Examples in docstrings give what they show; generated pages and figures are up to date."""

import doctest
import importlib
import pkgutil
import re
import runpy
from pathlib import Path

import pytest

import loraport

DOCS = Path(__file__).parent.parent / "docs"
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(loraport.__path__, prefix="loraport.")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    modules = [importlib.import_module(name) for name in MODULES]
    assert sum(bool(test.examples) for module in modules for test in finder.find(module)) >= 5


def test_the_page_of_options_is_that_of_the_configuration():
    written = runpy.run_path(str(DOCS / "options.py"))
    assert written["PAGE"].read_text(encoding="utf-8") == written["page"](), (
        "write it again by `python docs/options.py`"
    )


def test_every_figure_in_the_readme_is_that_of_a_committed_result():
    readme = runpy.run_path(str(DOCS / "readme.py"))
    text = readme["README"].read_text(encoding="utf-8")
    assert readme["written"](text) == text, "write it again by `python docs/readme.py`"
    blocks = r"<!-- (?P<name>[^\n]*) -->\n.*?<!-- end -->|^```.*?^```"
    prose = re.sub(blocks, "", text, flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"(?<!Python )\b\d\.\d\d|\d points", prose) == []
