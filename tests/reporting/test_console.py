import io
from typing import Any

import pytest
from rich.console import Console

from loraport.evaluation.records import CompatibilityRecord, StepRecord
from loraport.reporting.console import (
    diagnostics,
    fit_rows,
    layer_rows,
    measure_rows,
    number,
    print_diagnosis,
    print_transfer,
)
from loraport.reporting.console import transfer_remarks as remarks

from .test_records import content_of, record, report_of, site


def printed(**fields: object) -> str:
    console = Console(file=io.StringIO(), width=120)
    print_transfer(report_of(**fields), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_each_role_has_the_means_over_its_sites() -> None:
    found = diagnostics(report_of())
    assert list(found) == ["q", "v"]
    assert found["q"] == pytest.approx({"sites": 2, "kept_norm": 0.5, "source_energy_kept": 0.8})
    assert found["v"] == {"sites": 1, "kept_norm": 0.5}


def test_several_adapters_are_taken_together() -> None:
    mapping = ({"sites": {"0.q": site(0.2)}}, {"sites": {"0.q": site(0.6)}})
    found = diagnostics(report_of(mapping=mapping, adapters=(record(), record("b"))))
    assert found["q"] == pytest.approx({"sites": 2, "kept_norm": 0.4})


def test_a_mapper_without_sites_has_no_table() -> None:
    text = printed(mapping=({"anchors": ["films"], "strength": 0.1},))
    assert "role" not in text
    assert text.splitlines()[1].startswith("verified: PEFT reads 3 sites")


def test_the_table_names_mapper_and_models_on_one_line() -> None:
    text = printed(mapper="noop", mapping=({"sites": {"0.q": site(0.5)}},))
    assert text.splitlines()[0].strip() == "noop: pico/source -> pico/target"


def test_what_a_role_lacks_is_a_dash() -> None:
    lines = [line.split() for line in printed().splitlines()]
    assert ["q", "2", "0.5", "0.8"] in lines
    assert ["v", "1", "0.5", "-"] in lines
    assert ["role", "sites", "norm", "kept", "source", "energy", "kept"] in lines


def test_names_with_brackets_are_printed_as_they_are() -> None:
    text = printed(warnings=("a[bold]b is odd",), adapters=(record("x[red]y"),))
    assert "a[bold]b is odd" in text


def test_what_was_lost_and_repeated_is_said() -> None:
    mapping = {"dropped_sites": ["1.q"], "dropped_energy": 0.25, "repeated_sites": 2, "sites": {}}
    steps = (StepRecord(name="merge", lost_energy=0.125),)
    told = list(remarks(report_of(mapping=(mapping,), steps=steps, warnings=("mind this",))))
    assert told == [
        "adapters/books: 1 of 4 source sites feed no target layer; they hold 25% of its squared "
        "norm, which is not carried over",
        "adapters/books: 2 target sites share the source site that feeds them with another target "
        "layer",
        "merge: cutting back to the rank lost 12.5% of the energy",
        "verified: PEFT reads 3 sites; logits change by up to 0.125, the most likely token at 25% "
        "of the probe's positions",
        "diagnosis: left out, so that nothing is known of how alike the two models are",
        "mind this",
    ]


def test_nothing_is_said_of_what_did_not_happen() -> None:
    assert [line.partition(":")[0] for line in remarks(report_of())] == [
        "verified",
        "diagnosis",
    ]


def test_a_diagnosis_is_told_and_that_it_was_overridden() -> None:
    record = CompatibilityRecord(
        coverage=0.25, minimum=0.5, identification=0.5, rows=300, forced=True
    )
    text = printed(compatibility=record)
    assert "diagnosis: 25% of the target's layers have a counterpart in the source" in text
    assert "at least 50% are needed, which force=true overrode" in text
    calm = record.model_copy(update={"coverage": 0.75, "forced": False})
    assert "force=true" not in printed(compatibility=calm)


def test_piped_output_is_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    long = "word " * 60
    print_transfer(report_of(warnings=(long.strip(),)))
    assert long.strip() in capsys.readouterr().out.splitlines()


class TestMappersOfText:
    def test_where_text_predicts_nothing_is_said(self) -> None:
        sites = {
            "0.q": site(0.5, input_r2=0.9, output_r2=-0.25, restricted_r2=0.0),
            "1.q": site(0.5, input_r2=0.7, output_r2=0.5, restricted_r2=0.125),
            "0.v": site(0.5, input_r2=0.8, output_r2=-1.0, restricted_r2=0.5),
        }
        told = list(remarks(report_of(mapping=({"sites": sites, "left_out": ["1.v > 2.v"]},))))
        assert told[:3] == [
            "adapters/books: left out, since text predicts too little there (mapper.min_r2): "
            "1.v > 2.v",
            "adapters/books: text predicts nothing of what the adapter reads at 1 of 3 target "
            "sites (R² at most 0: 0.q); what is written there is noise",
            "adapters/books: text predicts nothing of what it writes at 2 of 3 target sites (R² at "
            "most 0: 0.q, 0.v); what is written there is noise",
        ]

    def test_the_table_says_what_its_columns_are(self) -> None:
        sites = {"0.q": site(0.5, input_r2=0.75, input_strength=1e-4, restricted_r2=0.25)}
        text = printed(mapping=({"sites": sites},))
        assert "role   sites   norm kept   R² in   R² adapter" in text
        assert "1 exact and 0 no better than the mean" in " ".join(text.split())
        assert "R² is on held-out text" not in printed()
        assert "0.0001" not in text

    def test_a_long_list_is_cut_short(self) -> None:
        sites = {f"{layer}.q": site(0.5, output_r2=-1.0) for layer in range(9)}
        text = next(remarks(report_of(mapping=({"sites": sites},))))
        assert "0.q, 1.q, 2.q, 3.q, 4.q, 5.q, ...)" in text


def printed_diagnosis_table(**fields: Any) -> str:
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
    text = printed_diagnosis_table(warnings=("an [odd] warning",))
    for part in ("pico/source -> pico/<target>", "Compatible: all layers.", "an [odd] warning"):
        assert part in text
    assert "300 rows with 120 distinct tokens, of 4000 aligned word ends in 90 texts" in text


def test_a_missing_number_is_a_dash() -> None:
    assert (number(None), number(0.125), number(0.125, 3)) == ("-", "0.12", "0.125")
