import io
import re

import pytest

from loraport.reporting import print_results, verdict
from loraport.reporting.tables import (
    Column,
    Estimated,
    ReportTable,
    cell_text,
    csv_text,
    latex_table,
    latex_text,
)

from .conftest import conditions, results_of

NASTY = "50 % of {x}_1 & $y$ # ~ ^ \\ <b>"


def table_of(*rows, columns=("name", "gap", "count")):
    made = tuple(Column(name, name) for name in columns)
    return ReportTable("some_table", "Some table", "it shows 10 %", made, tuple(rows))


def test_a_row_has_a_cell_for_every_column():
    with pytest.raises(ValueError, match="has 3 columns, but a row"):
        table_of(("a", 1.0))


def test_cells_as_people_read_them():
    assert cell_text(Estimated(0.123, (-0.2, 0.456)), 2) == "0.12 [-0.20, 0.46]"
    assert cell_text(Estimated(0.123, None), 1) == "0.1"
    assert cell_text(Estimated(None, (0.1, 0.2)), 2) == "-"
    assert cell_text(-0.001, 2) == "0.00"
    assert cell_text(7, 2) == "7"


def test_columns_in_which_nothing_stands_are_left_out():
    table = table_of(("a", Estimated(None, None), None), ("b", None, 0)).filled()
    assert [column.key for column in table.columns] == ["name", "count"]
    assert table.rows == (("a", None), ("b", 0))


def test_csv_has_plain_numbers_and_both_ends():
    table = table_of(
        ("a,b", Estimated(0.25, (0.1, None)), 3), ("c", None, None), ("d", "not usable", 1)
    )
    assert csv_text(table).splitlines() == [
        "name,gap,gap_low,gap_high,count",
        '"a,b",0.25,0.1,,3',
        "c,,,,",
        "d,not usable,,,1",
    ]


def test_latex_escapes_whatever_is_in_a_name():
    assert latex_text(NASTY) == (
        r"50 \% of \{x\}\_1 \& \$y\$ \# \textasciitilde{} \textasciicircum{} "
        r"\textbackslash{} \textless{}b\textgreater{}"
    )
    assert latex_text("two\n\nlines") == "two lines"


def test_latex_is_a_table_of_booktabs():
    text = latex_table(table_of(("a_b", Estimated(-0.5, (-0.75, None)), 3), ("[c]", None, -1)))
    assert "\\begin{tabular}{lrr}" in text
    assert "\\caption{Some table. it shows 10 \\%}" in text
    assert "\\label{tab:some-table}" in text
    for rule in ("toprule", "midrule", "bottomrule"):
        assert text.count(f"\\{rule}") == 1
    assert "{}a\\_b & $-0.50$ {\\scriptsize [$-$0.75, $\\infty$]} & 3 \\\\" in text
    assert "{}[c] & - & $-1$ \\\\" in text


def test_a_long_latex_table_breaks_over_pages():
    text = latex_table(table_of(*[(f"n{n}", 0.5, n) for n in range(100)]))
    assert "\\begin{longtable}{lrr}" in text
    assert "\\begin{table}" not in text
    assert text.count("\\\\\n") == 102


def tasks(base: int, predicted: int, oracle: int, **others: int):
    return {name: conditions(base, predicted, oracle, **others) for name in "abcdefgh"}


def test_a_clear_gain_over_everything():
    text = verdict(results_of(tasks(30, 60, 80)))
    assert "recovers 60% of what the oracle gains" in text
    assert "8 usable of 8" in text
    assert "better than no adapter" in text
    assert "It beats the anchors' mean adapter: +25.0 points" in text
    assert "strongest control" not in text


def test_no_gain_is_no_gain():
    text = verdict(results_of(tasks(30, 30, 80, mean=30)))
    assert "the interval contains 0, so a gain over no adapter is not shown" in text
    assert "right and wrong on the same rows as the anchors' mean adapter" in text


def test_harm_is_said():
    text = verdict(results_of(tasks(50, 20, 80, mean=60)))
    assert "worse than no adapter at all" in text
    assert "It is worse than the anchors' mean adapter: -40.0 points" in text


def test_what_does_not_separate_is_not_told_apart():
    text = verdict(results_of(tasks(30, 51, 80, mean=50) | {"z": conditions(30, 40, 80, mean=55)}))
    assert "It is not told apart from the anchors' mean adapter" in text


def test_a_stronger_control_than_the_mean_is_named():
    text = verdict(results_of(tasks(30, 50, 80, mean=35, swapped=70)))
    assert "The strongest control is the swapped control: -20.0 points" in text
    text = verdict(results_of(tasks(40, 50, 80, mean=30, random=30, swapped=30)))
    assert "The strongest control is the base without adapter: +10.0 points" in text


def test_without_usable_tasks_nothing_is_claimed():
    text = verdict(results_of(tasks(50, 60, 52)))
    assert text.startswith("Nothing can be said")
    assert "none of the 8 held-out tasks" in text


def test_the_mean_is_not_compared_with_itself():
    text = verdict(results_of(tasks(30, 40, 80, mean=40), mapper="mean"))
    assert "It is itself the anchors' mean adapter" in text


def test_an_empty_run_has_a_verdict():
    text = verdict(results_of({}))
    assert "Nothing can be said" in text
    assert "no comparison" in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(results, monkeypatch, width=None):
    """What is printed into a pipe, or in a terminal of so many columns."""
    out = io.StringIO() if width is None else Terminal()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    if width is not None:
        monkeypatch.setenv("COLUMNS", str(width))
    print_results(results)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    return "\n".join(line.rstrip() for line in plain.splitlines())


def test_every_number_of_a_task_stands_in_its_row(results, monkeypatch):
    row = next(
        line for line in printed(results, monkeypatch).splitlines() if line.startswith("bbc_news")
    )
    assert row.split()[1:9] == ["0.62", "0.40", "0.85", "0.94", "0.67", "0.61", "0.64", "0.80"]
    assert row.split()[9] == "0.56"
    assert row.split()[-1] == "0.61"


def test_the_columns_are_in_the_order_of_the_protocol(results, monkeypatch):
    text = printed(results, monkeypatch)
    heading = next(line for line in text.splitlines() if line.startswith("task"))
    assert heading.split()[:9] == [
        *("task", "base", "base", "source", "oracle", "mean", "random", "swapped", "predicted"),
    ]


def test_the_last_row_is_the_mean_over_usable_tasks(results, monkeypatch):
    row = next(
        line for line in printed(results, monkeypatch).splitlines() if line.startswith("mean of")
    )
    base = (0.30 + 0.45 + 0.62 + 0.51) / 4
    assert row.split()[:4] == ["mean", "of", "4", f"{base:.2f}"]
    assert f"{results.summary.gap_recovered:.2f} [" in row


def test_tasks_without_headroom_are_said(results, monkeypatch):
    text = printed(results, monkeypatch)
    row = next(line for line in text.splitlines() if line.startswith("trec"))
    assert "not usable" in row
    assert "left out of the mean: trec" in text


def test_it_fits_a_terminal_of_100_columns(results, monkeypatch):
    assert max(map(len, printed(results, monkeypatch, 100).splitlines())) <= 100


def test_numbers_are_never_cut_for_width(results, monkeypatch):
    narrow = printed(results, monkeypatch, 60)
    assert "0.62   0.40   0.85   0.94 0.67   0.61    0.64      0.80" in narrow
    assert "…" not in narrow


def test_a_pipe_gets_no_colours_and_a_terminal_does(results, monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    pipe, terminal = io.StringIO(), Terminal()
    for stdout in (pipe, terminal):
        monkeypatch.setattr("sys.stdout", stdout)
        print_results(results)
    assert "\x1b" not in pipe.getvalue()
    assert "\x1b[1m" in terminal.getvalue()


def test_brackets_in_names_are_no_markup(monkeypatch):
    text = printed(results_of({"[bold]odd[/x]": conditions(30, 50, 60)}), monkeypatch)
    assert "[bold]odd[/x]" in text


def test_a_cartridge_stands_beside_the_prediction_where_there_is_one(results, monkeypatch):
    assert "cartridge" not in printed(results, monkeypatch)
    text = printed(results_of({"task": conditions(30, 50, 60, cartridge=54)}), monkeypatch)
    heading = next(line for line in text.splitlines() if line.startswith("task"))
    assert heading.split()[-6:][:2] == ["cartridge", "predicted"] or "cartridge predicted" in (
        " ".join(heading.split())
    )
    row = next(line for line in text.splitlines() if line.startswith("task ") and "0.54" in line)
    assert row.split()[8:10] == ["0.54", "0.50"]
    assert "As a cartridge, before it is made linear, it recovers 0.80 of the gap." in text
