import pytest

from loraport.evaluation.assembly import control_lines
from loraport.evaluation.records import DATA_ACCESS, ModuleFit
from loraport.reporting.tables import (
    Column,
    Estimated,
    ReportTable,
    cell_text,
    confidence_table,
    estimated,
    fits_table,
    latex_text,
    layers_table,
    markdown_text,
    measures_table,
    methods_table,
    results_table,
    sites_table,
    transfer_table,
)

from .benchmark_sample import (
    METHODS,
    PAIR,
    full_benchmark,
    many_tasks,
    method_of,
    one_mapper,
    results_of,
    two_pairs,
)
from .conftest import conditions
from .conftest import results_of as training_of
from .test_records import content_of, record, report_of, site


def table_of(*rows):
    columns = [Column(name, name) for name in ("name", "gap", "count", "nothing")]
    cells = [dict(zip(("name", "gap", "count"), row, strict=True)) for row in rows]
    return ReportTable.of("some_table", "Some table", "it shows 10 %", columns, cells)


def keys_of(table):
    return [column.key for column in table.columns]


def value_of(cell):
    assert isinstance(cell, Estimated)
    return cell.value


def there(number: float | None) -> float:
    """A number that has to be there."""
    assert number is not None
    return number


class TestForms:
    def test_cells_as_people_read_them(self):
        assert cell_text(Estimated(0.123, (-0.2, 0.456))) == "0.12 [-0.20, 0.46]"
        assert cell_text(Estimated(0.123, None), ".1f") == "0.1 –"
        assert estimated(None, (0.1, 0.2)) is None
        assert cell_text(-0.001) == "0.00"
        assert (cell_text(7), cell_text(None), cell_text(1e-5, ".3g")) == ("7", "-", "1e-05")

    def test_columns_in_which_nothing_stands_are_left_out(self):
        table = table_of(("a", None, None), ("b", None, 0))
        assert keys_of(table) == ["name", "count"]
        assert table.texts().to_numpy().tolist() == [["a", "-"], ["b", "0"]]
        assert table.numeric == [False, True]

    def test_csv_has_plain_numbers_and_both_ends(self):
        table = table_of(
            *(("a,b", Estimated(0.25, (0.1, 0.5)), 3), ("e", Estimated(0.25, None), 3)),
            *(("c", None, None), ("d", "not usable", 1)),
        )
        assert table.csv().splitlines() == [
            "name,gap,gap_low,gap_high,count",
            '"a,b",0.25,0.1,0.5,3',
            "e,0.25,,,3",
            "c,,,,",
            "d,,,,1",
        ]
        assert table.numbers()["count"].tolist()[::3] == [3, 1]

    def test_latex_is_a_table_of_booktabs(self):
        text = table_of(("a_b", Estimated(-0.5, (-0.75, -0.25)), 3), ("[c]", 0.25, -1)).latex()
        assert "\\begin{tabular}{lrr}" in text
        assert "\\caption{Some table. it shows 10 \\%}" in text
        assert "\\label{tab:some-table}" in text
        for rule in ("toprule", "midrule", "bottomrule"):
            assert text.count(f"\\{rule}") == 1
        assert "a\\_b & $-$0.50 [$-$0.75, $-$0.25] & 3 \\\\" in text
        assert "{}[c] & 0.25 & $-$1 \\\\" in text

    def test_a_long_latex_table_breaks_over_pages_and_its_headings_may_hold_anything(self):
        column = Column("x", "50 % {1} [x]")
        text = ReportTable.of("t", "T", "c", [column], [{"x": 0.5}] * 100).latex()
        assert "50 \\% \\{1\\} [x] \\\\" in text
        assert "\\begin{longtable}{r}" in text
        assert "\\begin{table}" not in text
        assert text.count("\n0.50 ") == 100

    def test_what_means_something_to_latex_and_markdown_is_escaped(self):
        assert latex_text("50 % of {x}_1 & $y$ # ~ ^ \\ <b>") == (
            r"50 \% of \{x\}\_1 \& \$y\$ \# \textasciitilde{} \textasciicircum{} "
            r"\textbackslash{} \textless{}b\textgreater{}"
        )
        assert latex_text("two\n\nlines of few-shot 8") == "two lines of few-shot 8"
        assert markdown_text("[a](b) *c* `d`\n# e") == "\\[a\\](b) \\*c\\* \\`d\\` \\# e"

    def test_markdown_sets_numbers_to_the_right(self):
        lines = table_of(("a|b", Estimated(0.5, (0.0, 1.0)), 3)).markdown().splitlines()
        assert lines[1:] == ["| --- | ---: | ---: |", "| a\\|b | 0.50 \\[0.00, 1.00\\] | 3 |"]


class TestTraining:
    def test_every_number_of_a_task_stands_in_its_row(self, results):
        table = results_table(results)
        assert keys_of(table)[:9] == [
            *("task", "base", "source_base", "source", "oracle"),
            *("mean", "random", "swapped", "predicted"),
        ]
        rows = {row["task"]: row for row in table.rows}
        news = [rows["bbc_news"][key] for key in keys_of(table)[1:9]]
        assert news == pytest.approx([0.62, 0.40, 0.85, 0.94, 0.67, 0.61, 0.64, 0.80])
        assert value_of(rows["bbc_news"]["gap_recovered"]) == pytest.approx(18 / 32)
        assert rows["trec"]["gap_recovered"] == "not usable"
        assert rows["mean of 4"]["base"] == pytest.approx((0.30 + 0.45 + 0.62 + 0.51) / 4)
        assert value_of(rows["mean of 4"]["gap_recovered"]) == results.summary.gap_recovered
        assert results_table(training_of({})).rows == ()

    def test_a_cartridge_stands_before_the_prediction_where_there_is_one(self, results):
        assert "cartridge" not in keys_of(results_table(results))
        table = results_table(training_of({"task": conditions(30, 50, 60, cartridge=54)}))
        assert keys_of(table)[8:10] == ["cartridge", "predicted"]
        assert table.rows[0]["cartridge"] == 0.54


class TestPort:
    def test_each_role_has_the_means_over_the_sites_of_all_adapters(self):
        rows = sites_table(report_of()).rows
        assert [row["role"] for row in rows] == ["q", "v"]
        kept = {"sites": 2, "kept_norm": 0.5, "source_energy_kept": 0.8}
        assert {key: rows[0][key] for key in kept} == pytest.approx(kept)
        assert rows[1] == {"role": "v", "sites": 1, "kept_norm": 0.5}
        mapping = ({"sites": {"0.q": site(0.2)}}, {"sites": {"0.q": site(0.6)}})
        table = sites_table(report_of(mapping=mapping, adapters=(record(), record("b"))))
        assert table.rows[0]["kept_norm"] == pytest.approx(0.4)

    def test_the_caption_says_what_the_columns_are(self):
        sites = {"0.q": site(0.5, input_r2=0.75, input_strength=1e-4, restricted_r2=0.25)}
        table = sites_table(report_of(mapping=({"sites": sites},)))
        assert [column.heading for column in table.columns][2:] == [
            *("norm kept", "R² in", "R² adapter"),
        ]
        assert "1 exact and 0 no better than the mean: in, of what" in table.caption
        assert "held-out" not in sites_table(report_of()).caption


class TestDiagnosis:
    def test_layers_show_what_feeds_them(self):
        texts = layers_table(content_of()).texts()
        assert texts[["target", "fed_by", "source", "covered"]].to_numpy().tolist() == [
            ["0", "0", "0", "yes"],
            ["1", "1 (0.25), 2 (0.75)", "1", "no"],
        ]

    def test_measures_show_the_mean_of_the_best_and_fits_that_of_a_role(self):
        row = measures_table(content_of()).texts().iloc[0].tolist()
        assert row == ["mutual k-NN", "0.60", "0.50", "300"]
        fits = [("0.q", 0.2, 0.4), ("1.q", 0.4, 0.6), ("0.v", 1.0, 1.0)]
        modules = tuple(
            ModuleFit(target=name, source=name, inputs=i, outputs=o) for name, i, o in fits
        )
        table = fits_table(content_of(modules=modules))
        assert keys_of(table) == ["role", "inputs", "outputs"]
        assert table.texts().to_numpy().tolist() == [["q", "0.30", "0.50"], ["v", "1.00", "1.00"]]


class TestBenchmark:
    def test_methods_are_sorted_by_cost_and_then_by_gap(self):
        methods = full_benchmark().ranked()
        assert len(methods) == 2 * len(METHODS)
        order = [(DATA_ACCESS.index(m.data_access), -there(m.gap_recovered)) for m in methods]
        assert order == sorted(order)
        known, unknown = method_of("cast", recovered=-0.5), method_of("transport", usable=False)
        assert [m.name for m in results_of([unknown, known]).ranked()] == ["cast", "transport"]
        assert "pair" not in keys_of(methods_table(one_mapper()))
        assert keys_of(methods_table(two_pairs()))[0] == "pair"

    def test_controls_that_use_labels_are_told_apart(self):
        facts = {"mapper": "mean", "refine": "few_shot", "data_access": "few-shot"}
        plain = method_of("mean").model_copy(update={"refine": "drift_budget"})
        shot = method_of("mean").model_copy(update=facts | {"name": "mean+few_shot"})
        rows = [row["method"] for row in methods_table(results_of([plain, shot])).rows]
        assert {"mean (control)", "mean+few_shot (control that uses labels)"} <= set(rows)

    def test_controls_have_lines_with_their_own_gap(self):
        lines = {line.condition: line for line in control_lines(one_mapper())}
        gaps = {name: line.gap for name, line in lines.items()}
        assert gaps == pytest.approx(
            {"base": 0, "random": -0.02, "copy": -0.05, "mean": 0.22}
            | {"few_shot_8": 0.2, "few_shot_32": 0.5, "oracle": 1},
        )
        assert lines["mean"].gap_nll == pytest.approx(0.22)
        # One that is a method stands there only.
        conditions = {line.condition for line in control_lines(full_benchmark())}
        assert conditions == {"base", "few_shot_8", "few_shot_32", "oracle"}

    def test_seeds_that_agree_are_one_line_and_those_that_differ_are_two(self):
        first, second = method_of("cast", seed=0), method_of("cast", seed=1)
        worse = {
            name: task.model_copy(update={"scores": task.scores | {"random": 0.1}})
            for name, task in second.tasks.items()
        }
        lacking = worse["sst2"].scores | {"few_shot_8": None}
        worse["sst2"] = worse["sst2"].model_copy(update={"scores": lacking})
        second = second.model_copy(update={"tasks": worse})
        gaps: dict[str, dict[int | None, float | None]] = {}
        for line in control_lines(results_of([first, second])):
            gaps.setdefault(line.condition, {})[line.seed] = line.gap
        assert list(gaps["base"]) == [None]
        assert list(gaps["random"]) == [0, 1]
        # One that a usable task lacks has no mean.
        assert gaps["few_shot_8"] == {0: pytest.approx(0.2), 1: None}

    def test_transfer_has_tasks_as_columns_and_many_tasks_as_rows(self):
        wide = transfer_table(full_benchmark())
        assert keys_of(wide)[:4] == ["method", "data_access", "seed", "sst2"]
        assert wide.rows[0]["trec"] == "not usable"
        tall = transfer_table(many_tasks())
        assert (len(tall.rows), len(tall.columns)) == (30, 4)
        assert keys_of(tall)[0] == "task"
        named = transfer_table(results_of([method_of("cast", tasks=("seed", "sst2"))]))
        assert named.rows[0]["seed"] == 0
        assert isinstance(named.rows[0]["task seed"], Estimated)

    def test_confidence_is_the_best_layer_and_its_lead(self):
        grid = [[0.2, 0.9, 0.5], [None, None, 0.3], [0.4] * 3]
        rows = confidence_table(results_of([], similarities={PAIR: grid})).rows
        assert (rows[0]["source_layer"], rows[0]["second_layer"]) == (1, 2)
        assert rows[0]["margin"] == pytest.approx(0.4)
        assert rows[1] == {"pair": PAIR, "target_layer": 1, "similarity": 0.3, "source_layer": 2}
        assert (rows[2]["source_layer"], rows[2]["second_layer"]) == (0, 1)
