import io
import re

import pytest

from loraport.evaluation.records import MethodResult
from loraport.reporting.benchmark_tables import (
    benchmark_table,
    changes_table,
    divergence_table,
    print_benchmark,
    retention_table,
    suite_table,
)
from loraport.reporting.tables import (
    INFORMATION_CLASSES,
    Estimated,
    calibration_table,
    confidence_table,
    control_lines,
    points_table,
    sorted_methods,
    task_table,
    transfer_table,
    unusable_tasks,
)

from .benchmark_sample import (
    METHODS,
    PAIR,
    all_refused,
    full_benchmark,
    method_of,
    no_usable_task,
    nothing_known,
    one_mapper,
    results_of,
    thousand_rows,
    two_pairs,
)


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
    print_benchmark(results)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue())
    return "\n".join(line.rstrip() for line in plain.splitlines())


def columns_of(table):
    return [column.key for column in table.columns]


def lines_of(table):
    return [dict(zip(columns_of(table), row, strict=True)) for row in table.rows]


def there(number: float | None) -> float:
    """A number that has to be there."""
    assert number is not None
    return number


def gap_of(method: MethodResult) -> float:
    assert method.summary is not None
    return there(method.summary.gap_recovered)


def test_methods_are_sorted_by_cost_and_then_by_gap():
    methods = sorted_methods(full_benchmark())
    ranks = [INFORMATION_CLASSES.index(method.data_access) for method in methods]
    assert ranks == sorted(ranks)
    for kind in INFORMATION_CLASSES:
        gaps = [gap_of(m) for m in methods if m.data_access == kind]
        assert gaps == sorted(gaps, reverse=True)
    assert len(methods) == 2 * len(METHODS)


def test_a_method_without_a_gap_stands_behind_the_others_of_its_class():
    known, unknown = method_of("cast", recovered=-0.5), method_of("transport", usable=False)
    assert [m.name for m in sorted_methods(results_of([unknown, known]))] == ["cast", "transport"]


def test_a_line_holds_what_the_records_hold():
    method = method_of("cast", "generic text", 0.4, seconds=10.0, seed=3)
    line = lines_of(benchmark_table(results_of([method])))[0]
    assert method.summary is not None
    assert line["gap_recovered"] == Estimated(method.summary.gap_recovered, method.summary.ci95)
    assert line["margin"].value == pytest.approx(100 * there(method.summary.margin.value))
    assert line["margin"].ends[0] == pytest.approx(line["margin"].value - 3)
    usable = [task for task in method.tasks.values() if task.usable]
    accuracy = sum(there(task.scores["predicted"]) for task in usable) / 4
    assert line["accuracy"] == pytest.approx(accuracy)
    assert (line["seed"], line["seconds"], line["swapped"]) == (3, 10.0, 0.1)


def test_controls_are_lines_of_their_own_with_their_own_gap():
    lines = {line.condition: line for line in control_lines(one_mapper())}
    assert list(lines) == [
        *("base", "random", "copy", "mean", "few_shot_8", "few_shot_32", "oracle"),
    ]
    gaps = {name: line.gap for name, line in lines.items()}
    assert gaps == pytest.approx(
        {"base": 0, "random": -0.02, "copy": -0.05, "mean": 0.22}
        | {"few_shot_8": 0.2, "few_shot_32": 0.5, "oracle": 1},
    )
    assert lines["mean"].gap_nll == pytest.approx(0.22)


def test_a_control_that_is_a_method_stands_there_only():
    conditions = {line.condition for line in control_lines(full_benchmark())}
    assert conditions == {"base", "few_shot_8", "few_shot_32", "oracle"}


def test_seeds_that_agree_are_one_line_and_those_that_differ_are_two():
    first, second = method_of("cast", seed=0), method_of("cast", seed=1)
    worse = {
        name: task.model_copy(update={"scores": task.scores | {"random": 0.1}})
        for name, task in second.tasks.items()
    }
    second = second.model_copy(update={"tasks": worse})
    seeds: dict[str, list[int | None]] = {}
    for line in control_lines(results_of([first, second])):
        seeds.setdefault(line.condition, []).append(line.seed)
    assert seeds["base"] == [None]
    assert seeds["random"] == [0, 1]


def test_a_control_that_one_usable_task_lacks_has_no_mean():
    method = method_of("cast")
    task = method.tasks["sst2"].model_copy(
        update={"scores": method.tasks["sst2"].scores | {"few_shot_8": None}}
    )
    changed = method.model_copy(update={"tasks": method.tasks | {"sst2": task}})
    gaps = {line.condition: line.gap for line in control_lines(results_of([changed]))}
    assert gaps["few_shot_8"] is None
    assert gaps["few_shot_32"] == pytest.approx(0.5)


def test_the_pair_is_a_column_only_where_there_are_several():
    assert "pair" not in columns_of(benchmark_table(one_mapper()))
    assert columns_of(benchmark_table(two_pairs()))[0] == "pair"


def test_the_console_shows_every_method_control_and_word(monkeypatch):
    text = printed(full_benchmark(), monkeypatch)
    for name in (*METHODS, "few-shot 32 (control)", "oracle (trained on the target)", "head_copy"):
        assert name in text
    assert "…" not in text
    assert "H1, transfer is possible, is supported" in text
    assert "Not usable, and left out of the means: trec" in text
    assert "<width> 576 and 640" in text


def test_narrow_consoles_wrap_instead_of_cutting(monkeypatch):
    row = next(
        line for line in printed(full_benchmark(), monkeypatch, 40).splitlines() if "cast" in line
    )
    assert row.split()[:3] == ["cast", "generic", "text"]
    assert "0.10" in row
    assert "200.0" in row


def test_a_pipe_gets_no_colours_and_a_terminal_does(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    pipe, terminal = io.StringIO(), Terminal()
    for stdout in (pipe, terminal):
        monkeypatch.setattr("sys.stdout", stdout)
        print_benchmark(one_mapper())
    assert "\x1b" not in pipe.getvalue()
    assert "\x1b[1m" in terminal.getvalue()
    assert max(map(len, pipe.getvalue().splitlines())) > 120


def test_brackets_in_names_are_no_markup(monkeypatch):
    text = printed(results_of([method_of("[bold]odd[/x]")]), monkeypatch)
    assert "[bold]odd[/x]" in text


@pytest.mark.parametrize("made", [no_usable_task, all_refused, nothing_known, thousand_rows])
def test_odd_results_print(made, monkeypatch):
    text = printed(made(), monkeypatch)
    assert "None" not in text
    assert "nan" not in text


def test_transfer_has_tasks_as_columns_and_many_tasks_as_rows():
    wide = transfer_table(full_benchmark())
    assert columns_of(wide)[:4] == ["method", "data_access", "seed", "sst2"]
    assert lines_of(wide)[0]["trec"] == "not usable"
    tall = transfer_table(thousand_rows())
    assert (len(tall.rows), len(tall.columns)) == (200, 6)
    assert columns_of(tall)[0] == "task"


def test_every_task_has_every_condition():
    results = one_mapper()
    line = lines_of(task_table(results))[0]
    task = results.methods[0].tasks["sst2"]
    for condition, score in task.scores.items():
        assert line[condition] == score
    assert line["gap_recovered"] == Estimated(task.gap_recovered, task.ci95)
    assert line["rows"] == 300
    assert "cartridge" not in line


def test_unusable_tasks_are_told_by_pair():
    assert unusable_tasks(full_benchmark()) == {PAIR: ["trec"]}
    assert len(unusable_tasks(no_usable_task())[PAIR]) == 5


def test_a_suite_shows_scores_and_the_change_of_its_main_metric():
    results = full_benchmark()
    safety = results.suites[0]
    lines = lines_of(suite_table(safety, results))
    assert lines[0]["method"] == "base"
    assert lines[0]["change"] is None
    assert lines[1]["change"] == Estimated(safety.changes[0].value, safety.changes[0].ci95)
    assert lines[1]["p"] == safety.changes[0].p
    assert "change" not in columns_of(suite_table(results.suites[1], results))
    assert len(changes_table(results).rows) == len(safety.changes)


def test_the_trade_off_takes_drift_on_generic_text_over_the_tasks():
    results = full_benchmark()
    lines = {(line["method"], line["seed"]): line for line in lines_of(retention_table(results))}
    own = [
        there(d.kl)
        for d in results.divergences
        if (d.condition.method, d.condition.seed, d.texts) == ("cast", 1, "generic")
    ]
    assert len(own) == 5
    assert lines["cast", 1]["kl"] == pytest.approx(sum(own) / 5)
    assert lines["procrustes", 0]["kl"] is None
    assert lines["oracle (trained on the target)", None]["kl"] > 0
    assert len(divergence_table(results).rows) == len(results.divergences)


def test_confidence_is_the_best_layer_and_its_lead():
    results = results_of([], similarities={PAIR: [[0.2, 0.9, 0.5], [None, None, 0.3], [0.4] * 3]})
    rows = confidence_table(results).rows
    assert rows[0][:5] == (0, 1, 0.9, 2, 0.5)
    assert rows[0][5] == pytest.approx(0.4)
    assert rows[1] == (1, 2, 0.3, None, None, None)
    assert rows[2][1:4] == (0, 0.4, 1)


def test_calibration_tells_the_rule():
    results = full_benchmark()
    lines = lines_of(calibration_table(results))
    assert lines[0]["threshold"] == "≥ 0.41"
    assert lines[1]["threshold"] is None
    assert results.calibration is not None
    assert len(points_table(results).rows) == len(results.calibration.points)
    assert calibration_table(one_mapper()).rows == ()
