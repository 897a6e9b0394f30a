import io

import pytest
from rich.console import Console

from loraport.reporting.transfer_report import StepRecord
from loraport.reporting.transfer_table import diagnostics, print_transfer, remarks

from .test_transfer_report import record, report_of, site


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
        "adapters/books: 2 target sites get an update that another target layer gets as well, "
        "since the target has more layers",
        "merge: cutting back to the rank lost 12.5% of the energy",
        "verified: PEFT reads 3 sites; logits change by up to 0.125, the most likely token at 25% "
        "of the probe's positions",
        "mind this",
    ]


def test_nothing_is_said_of_what_did_not_happen() -> None:
    assert [line.partition(":")[0] for line in remarks(report_of())] == ["verified"]


def test_piped_output_is_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    long = "word " * 60
    print_transfer(report_of(warnings=(long.strip(),)))
    assert long.strip() in capsys.readouterr().out.splitlines()
