"""The dashboard asks for nothing that is not logged."""

import json
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from loraport.exceptions import ConfigurationError
from loraport.reporting.dashboard import CHARTS, SWEPT, build_dashboard, save_dashboard
from loraport.reporting.loggers import (
    benchmark_metrics,
    logged_tables,
    method_label,
    plain_summary,
)

from .benchmark_sample import full_benchmark

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


# A task without a gap to recover has none that could be logged.
TASKS = [
    name
    for name, task in full_benchmark().methods[0].tasks.items()
    if task.gap_recovered is not None
]


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    results = full_benchmark()
    used = [method for method in results.methods if method.summary is not None]
    labels = list(dict.fromkeys(method_label(m, results.pairs) for m in used))
    workspace = build_dashboard("me", "proj", labels, TASKS)
    # As it would be sent.
    made = workspace._to_model().model_dump(by_alias=True, mode="json")
    return json.loads(json.dumps(made))


def panels(content: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    sections = content["spec"]["section"]["panelBankConfig"]["sections"]
    return {section["name"]: section["panels"] for section in sections}


def texts(value: Any) -> set[str]:
    if isinstance(value, str):
        return {value}
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*(texts(part) for part in parts)) if parts else set()


def asked(content: dict[str, Any]) -> set[str]:
    """Every name of a metric, a table, an image or a page that a panel has."""
    kinds = r"(?:summary:)?((?:gap|summary|cost|drift|suites|benchmark|charts|pages)/.+)"
    found = (re.fullmatch(kinds, text) for text in texts(panels(content)))
    return {match[1] for match in found if match}


def test_every_name_it_asks_for_is_logged(spec, results):
    benchmark = full_benchmark()
    known = {name for found in benchmark_metrics(benchmark).values() for name in found}
    known |= set(plain_summary(results)) | {"summary/objective", "pages/report"}
    known |= {f"benchmark/{table.name}" for table in logged_tables(benchmark)}
    known |= {f"charts/{stem}" for stem in CHARTS}
    names = asked(spec)
    assert len(names) > 50
    # Drift is measured for chosen methods only, and a port's seconds are not known of all.
    optional = re.compile(r"summary/[^/]+/drift|cost/[^/]+/(fit|port)")
    assert {name for name in names - known if not optional.fullmatch(name)} == set()


def test_its_panels_are_those_that_were_asked_for(spec):
    found = panels(spec)
    kinds = {name: [panel["viewType"] for panel in made] for name, made in found.items()}
    assert kinds["Gap recovered"].count("Bar Chart") == 1 + len(TASKS)
    assert "Parallel Coordinates Plot" in kinds["Sweeps"]
    assert set(kinds["Drift against retention"]) == {"Scatter Plot"}
    assert kinds["Cost"] == ["Bar Chart", "Bar Chart"]
    assert set(kinds["Maps and charts"]) == {"Media Browser"}
    columns = texts(found["Sweeps"])
    assert all(any(option in text for text in columns) for option in SWEPT)


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.reports.v2", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'loraport\[dashboards\]'"):
        build_dashboard("me", "proj", ["mean"], ["sst2"])


def test_the_address_is_returned_and_what_cannot_be_saved_is_explained(monkeypatch):
    import wandb_workspaces.workspaces as ws

    saved = SimpleNamespace(url="https://wandb.ai/me/proj?nw=x")
    monkeypatch.setattr(ws.Workspace, "save", lambda workspace: saved)
    assert save_dashboard("me", "proj", ["mean"], ["sst2"]) == saved.url

    def unreachable(workspace):
        raise ConnectionError("no network")

    monkeypatch.setattr(ws.Workspace, "save", unreachable)
    with pytest.raises(
        ConfigurationError, match=r"me/proj \(no network\); log in by `wandb login`"
    ):
        save_dashboard("me", "proj", ["mean"], ["sst2"])
