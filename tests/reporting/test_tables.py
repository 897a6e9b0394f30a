import io
import re

from loraport.reporting import print_results

from .conftest import conditions, results_of


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
