from typing import Any

from rich.console import Console

from loraport.reporting.diagnosis_table import (
    fit_rows,
    layer_rows,
    measure_rows,
    number,
    print_diagnosis,
)

from .test_intersection_map import content_of


def printed(**fields: Any) -> str:
    console = Console(width=150, color_system=None)
    with console.capture() as capture:
        print_diagnosis(content_of(**fields), console)
    return capture.get()


def test_layers_show_what_feeds_them() -> None:
    headings, rows = layer_rows(content_of())
    assert len(headings) == len(rows[0])
    assert [row[:3] for row in rows] == [("0", "0", "0"), ("1", "1 (0.25), 2 (0.75)", "1")]
    assert [row[4] for row in rows] == ["yes", "no"]
    assert rows[0][-1] == "-"


def test_measures_show_the_mean_of_the_best() -> None:
    assert measure_rows(content_of())[1][0] == ("mutual k-NN", "0.60", "0.50", "300")


def test_fits_are_means_over_layers_without_empty_columns() -> None:
    headings, rows = fit_rows(content_of())
    assert headings == ("role", "R² of inputs", "R² of outputs")
    assert rows == [("q", "0.60", "0.00")]
    assert fit_rows(content_of(modules=()))[1] == []


def test_everything_is_printed_verbatim() -> None:
    text = printed(warnings=("an [odd] warning",))
    for part in ("pico/source -> pico/<target>", "Compatible: all layers.", "an [odd] warning"):
        assert part in text
    assert "300 rows with 120 distinct tokens, of 4000 aligned word ends in 90 texts" in text


def test_a_missing_number_is_a_dash() -> None:
    assert (number(None), number(0.125), number(0.125, 3)) == ("-", "0.12", "0.125")
