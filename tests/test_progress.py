"""Where nobody sees bars, a line a minute tells how far the work is."""

import pytest
from rich.console import Console
from rich.progress import Progress

from loraport.progress import ProgressLines, shown_progress, shown_steps


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("loraport.progress.time.monotonic", lambda: now[0])
    return now


def test_a_line_a_minute_where_output_is_piped(clock, capsys):
    with shown_progress("texts") as lines:
        assert isinstance(lines, ProgressLines)
        one = lines.add_task("labelling", total=640)
        other = lines.add_task("training [of x]", total=None)
        for second in range(1, 151):
            clock[0] = float(second)
            lines.update(one, completed=4 * second)
        lines.update(one, completed=640)
        clock[0] = 240.0
        lines.advance(other)
    out, err = capsys.readouterr()
    assert out == ""
    first, second, third = err.splitlines()
    assert first.startswith("labelling: 240/640 texts")
    assert second.startswith("labelling: 480/640 texts")
    assert first.endswith("; training [of x]")
    assert third == "training [of x]", "what is finished is not told again"


def test_the_remaining_time_is_told(clock, capsys):
    lines = ProgressLines(Console(stderr=True))
    lines.get_time = lambda: clock[0]
    task = lines.add_task("scoring", total=100)
    for second in range(61):
        clock[0] = float(second)
        lines.update(task, completed=second)
    assert capsys.readouterr().err == "scoring: 60/100, 0:00:40 remaining\n"


def test_a_terminal_shows_bars_and_another_process_nothing(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # for rich a terminal
    assert type(shown_progress()) is Progress
    monkeypatch.delenv("FORCE_COLOR")
    with shown_progress(hidden=True) as hidden:
        hidden.update(hidden.add_task("labelling", total=2), completed=1)
    assert capsys.readouterr().err == ""


def test_a_step_that_begins_again_is_told_again(clock, capsys):
    with shown_steps() as tell:
        for _ in range(2):
            for step, total in (("labelling", 2), ("distilling", 70)):
                for done in range(total + 1):
                    clock[0] += 1.0
                    tell(step, done, total)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == ["distilling: 56/70", "distilling: 42/70"]
