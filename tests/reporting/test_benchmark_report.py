import csv
import re

import pytest

from loraport.reporting import benchmark_report
from loraport.reporting.benchmark_report import write_report

from .benchmark_sample import all_refused, full_benchmark, nothing_known, one_mapper, thousand_rows


def test_everything_is_written_the_page_first(tmp_path):
    written = write_report(full_benchmark(), tmp_path)
    names = [str(path.relative_to(tmp_path)) for path in written]
    assert names[:2] == ["report.html", "report.md"]
    for table in (
        *("methods", "cross_family_transfer", "retention_tradeoff", "intersection_map", "suites"),
        *("tasks", "divergences", "calibration", "calibration_points", "suite_safety"),
    ):
        assert f"tables/{table}.csv" in names
        assert f"tables/{table}.tex" in names
    assert "charts/gap_by_task.png" in names
    assert sorted(written) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert sum(path.stat().st_size for path in written) < 3_000_000


def test_csv_files_hold_plain_numbers(tmp_path):
    write_report(one_mapper(), tmp_path)
    with (tmp_path / "tables" / "tasks.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    task = one_mapper().methods[0].tasks["sst2"]
    assert [row["task"] for row in rows] == ["sst2", "ag_news", "trec", "emotion", "subj"]
    assert float(rows[0]["gap_recovered"]) == pytest.approx(task.gap_recovered, rel=1e-5)
    assert task.ci95 is not None
    assert float(rows[0]["gap_recovered_low"]) == pytest.approx(task.ci95[0], rel=1e-5)
    assert rows[2]["gap_recovered"] == "not usable"


def test_the_same_results_give_the_same_files(tmp_path):
    first = write_report(one_mapper(), tmp_path / "a")
    second = write_report(one_mapper(), tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_refused_methods_leave_words_only(tmp_path):
    written = write_report(all_refused(), tmp_path)
    assert [path.name for path in written] == ["report.html", "report.md"]
    assert "Every method was refused" in written[1].read_text()


def test_unknown_numbers_are_empty(tmp_path):
    for path in write_report(nothing_known(), tmp_path):
        if path.suffix in {".csv", ".tex", ".md"}:
            assert "None" not in path.read_text()
            assert not re.search(r"\bnan\b", path.read_text(), flags=re.IGNORECASE)


def test_a_thousand_rows_are_shown(tmp_path):
    page = write_report(thousand_rows(), tmp_path)[0]
    assert page.read_text().count("<tr>") > 1000


def test_a_report_replaces_the_one_before(tmp_path):
    write_report(full_benchmark(), tmp_path)
    write_report(one_mapper(), tmp_path)
    assert "18 methods" not in (tmp_path / benchmark_report.PAGE).read_text()
