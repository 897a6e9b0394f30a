import io
import re
from pathlib import Path

import pytest

from loraport.evaluation.records import CompatibilityRecord
from loraport.reporting.console import (
    print_benchmark,
    print_diagnosis,
    print_line,
    print_results,
    print_transfer,
)
from loraport.reporting.tables import methods_table

from .benchmark_sample import (
    METHODS,
    all_refused,
    full_benchmark,
    many_tasks,
    no_usable_task,
    nothing_known,
    one_mapper,
)
from .conftest import conditions
from .conftest import results_of as training_of
from .test_records import content_of, report_of


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def printed(monkeypatch):
    """What is printed into a pipe, or in a terminal of so many columns."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")

    def of(show, content, width=None, *, plain=True) -> str:
        out = io.StringIO() if width is None else Terminal()
        monkeypatch.setattr("sys.stdout", out)
        if width is not None:
            monkeypatch.setenv("COLUMNS", str(width))
        show(content)
        text = out.getvalue()
        if plain:
            text = re.sub(r"\x1b\[[0-9;]*m", "", text)
        return "\n".join(line.rstrip() for line in text.splitlines())

    return of


def row_of(text: str, name: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith(name)).split()


def test_a_training_run_shows_every_task_and_the_mean(results, printed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    text = printed(print_results, results)
    assert text.splitlines()[0] == "pca_mlp, space delta, seed 0: tiny-source -> tiny-target"
    assert row_of(text, "task")[:9] == [
        *("task", "base", "base", "source", "oracle", "mean", "random", "swapped", "predicted"),
    ]
    assert row_of(text, "bbc_news")[1:10] == [
        *("0.62", "0.40", "0.85", "0.94", "0.67", "0.61", "0.64", "0.80", "0.56"),
    ]
    assert f"{results.summary.gap_recovered:.2f}" in row_of(text, "mean of 4")
    assert "left out of the mean: trec" in text


def test_a_benchmark_shows_every_method_control_and_sentence(printed):
    text = printed(print_benchmark, full_benchmark())
    for name in (*METHODS, "few-shot 32 (control)", "oracle (trained on the target)", "head_copy"):
        assert name in text
    assert "…" not in text
    assert "H1, transfer is possible, is supported" in text
    assert "Not usable, and left out of the means: trec" in text
    assert "<width> 576 and 640" in text


@pytest.mark.parametrize("made", [no_usable_task, all_refused, nothing_known, many_tasks])
def test_odd_results_print(made, printed):
    assert not re.search(r"None|nan|NaN", printed(print_benchmark, made()))


@pytest.mark.parametrize("width", [None, 40, 60, 80, 100])
@pytest.mark.parametrize("made", [full_benchmark, many_tasks, one_mapper])
def test_tables_fit_the_width_and_lose_nothing(made, width, printed, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    text = printed(print_benchmark, made(), width)
    wide = printed(print_benchmark, made(), 1000)
    rules = [line for line in text.splitlines() if line and set(line) <= set(" ─")]
    assert rules
    assert max(map(len, rules)) <= (width or 80)
    table = methods_table(made())
    for column in table.columns:
        for word in column.heading.split():
            assert word in text
    for row in table.texts().itertuples(index=False):
        for number in row[1:]:
            assert all(part in text for part in str(number).split(" ["))
    assert "…" not in text
    assert len(wide.splitlines()) < len(text.splitlines())


def test_every_part_of_a_table_names_its_rows(results, printed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    text = printed(print_results, results)
    rows = [line.split() for line in text.splitlines() if line.startswith("bbc_news")]
    assert len(rows) > 1
    shown = [number for row in rows for number in row[1:]]
    assert shown[:9] == ["0.62", "0.40", "0.85", "0.94", "0.67", "0.61", "0.64", "0.80", "0.56"]
    assert max(len(line) for line in text.splitlines() if line.startswith("bbc_news")) <= 50


def test_a_pipe_gets_no_colours_and_no_line_breaks_in_sentences(printed):
    pipe = printed(print_benchmark, one_mapper(), plain=False)
    assert "\x1b" not in pipe
    assert max(map(len, pipe.splitlines())) > 120
    assert "\x1b[1m" in printed(print_benchmark, one_mapper(), 120, plain=False)


def test_a_port_shows_a_row_a_role_and_what_it_lacks(printed):
    text = printed(print_transfer, report_of())
    assert text.splitlines()[0] == "cross_lora: pico/source -> pico/target"
    assert row_of(text, "q ") == ["q", "2", "0.5", "0.8"]
    assert row_of(text, "v ") == ["v", "1", "0.5", "-"]
    forced = CompatibilityRecord(
        coverage=0.25, minimum=0.5, identification=0.5, rows=300, forced=True
    )
    bare = report_of(mapping=({"anchors": ["films"]},), compatibility=forced)
    without = printed(print_transfer, bare)
    assert "role" not in without
    assert without.splitlines()[1].startswith("verified: PEFT reads 3 sites")
    assert "25% of the target's layers have a counterpart in the source" in without
    assert "at least 50% are needed, which force=true overrode" in without


def test_a_diagnosis_shows_layers_verdict_and_warnings(printed):
    text = printed(print_diagnosis, content_of())
    assert text.splitlines()[0] == "pico/source -> pico/<target>, sentences"
    assert row_of(text, "mutual k-NN")[2:] == ["0.60", "0.50", "300"]
    assert "Compatible: all layers." in text
    assert "300 rows with 120 distinct tokens, of 4000 aligned word ends in 90 texts" in text


@pytest.mark.parametrize(
    ("show", "content"),
    [
        (print_results, training_of({"[bold]odd[/x]": conditions(30, 50, 60)})),
        (print_transfer, report_of(warnings=("[bold]odd[/x] name",))),
    ],
)
def test_brackets_in_names_are_no_markup(show, content, printed):
    assert "[bold]odd[/x]" in printed(show, content)


@pytest.mark.parametrize("text", ["adapter  out[/a]", "[red]x", ":smile: [link=x]", "out[/a\\]"])
def test_what_looks_like_markup_is_printed_as_it_is(text, printed):
    assert printed(print_line, text) == text


def test_a_name_moves_no_cursor_and_begins_no_line(printed):
    forged = "x\n\nGO: expect 1.00\x1b[2J\x07\u202e"
    line = "x  GO: expect 1.00\\x1b[2J\\x07\\u202e"
    assert printed(print_line, forged) == line
    text = printed(print_transfer, report_of(warnings=(forged,)))
    assert line in text.splitlines()
    rows = printed(print_results, training_of({forged: conditions(30, 50, 60)}))
    assert any(row.startswith(line) for row in rows.splitlines())


def test_every_line_is_printed_by_the_one_function():
    """Rich reads markup and emoji in whatever it prints, unless it is told not to."""
    source = Path(__file__).parents[2] / "src"
    free = {source / "reporting" / "console.py", source / "progress.py"}
    found = {path for path in source.rglob("*.py") if re.search(r"\.print\(", path.read_text())}
    assert found == free
