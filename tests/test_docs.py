"""The examples in docstrings run and give what they show."""

import doctest
import importlib
import pkgutil

import pytest

import loraport

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
