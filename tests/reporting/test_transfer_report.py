import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from loraport.reporting.results import PairRecord, Provenance
from loraport.reporting.transfer_report import (
    AdapterRecord,
    StepRecord,
    TransferReport,
)


def record(place: str | None = "adapters/books", **fields: Any) -> AdapterRecord:
    given: dict[str, Any] = {
        "place": place,
        "base_model": "pico/source",
        "sites": 4,
        "roles": ("q", "v"),
        "ranks": (2, 8),
        "norm": 1.5,
        "sha256": "ab" * 32,
    }
    return AdapterRecord(**(given | fields))


def site(kept: float, **facts: Any) -> dict[str, Any]:
    return {"source": "0.q", "norm": 2.0, "kept_norm": kept, **facts}


def report_of(**fields: Any) -> TransferReport:
    given: dict[str, Any] = {
        "config": {
            "mapper": {"_target_": "loraport.mappers.cross_lora.CrossLoraMapper", "rank": 320},
            "ckpt": None,
            "sparsify": {},
            "scale": 1.0,
            "output_rank": None,
            "dtype": "float32",
            "seed": 0,
            "paths": {"cache": "somewhere/private"},
        },
        "pair": PairRecord(name="local", source="pico/source", target="pico/target"),
        "mapper": "cross_lora",
        "information_class": "weights only",
        "adapters": (record(),),
        "mapping": (
            {
                "dropped_sites": [],
                "dropped_energy": 0.0,
                "repeated_sites": 0,
                "sites": {
                    "0.q": site(0.25, source_energy_kept=0.9),
                    "1.q": site(0.75, source_energy_kept=0.7),
                    "0.v": site(0.5),
                },
            },
        ),
        "output": record(None, base_model="pico/target", sites=3, ranks=(2, 2)),
        "dtype": "float32",
        "scale": 1.0,
        "verification": {
            "sites": 3,
            "smallest_norm": 0.5,
            "largest_norm": 2.0,
            "logit_change": 0.125,
            "changed_top_token": 0.25,
        },
        "timing": {"port": 1.25},
        "provenance": Provenance(
            versions={"torch": "2.13.0"},
            hashes={"source model": "cd" * 32},
            revisions={"checkout": None},
        ),
    }
    return TransferReport(**(given | fields))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    report = report_of(
        steps=(StepRecord(name="merge", lost_energy=0.1, sites={"0.q": {"lost_energy": 0.1}}),),
        merged_with=(record("films", base_model="pico/target"),),
        anchor_scores={"mean_nll_gain": 0.5},
        warnings=("mind this",),
    )
    (tmp_path / "report.json").write_text(report.json_text(), encoding="utf-8")
    assert TransferReport.model_validate_json((tmp_path / "report.json").read_bytes()) == report
    content = json.loads((tmp_path / "report.json").read_text())
    assert (content["schema"], content["command"]) == (2, "transfer")
    assert content["output"]["place"] is None


def test_numbers_that_are_undefined_become_null() -> None:
    """JSON has no NaN, and a strict reader refuses it."""
    report = report_of(
        mapping=({"sites": {"0.q": {"x": float("nan"), "y": float("inf")}}},),
        steps=(StepRecord(name="merge", lost_energy=0.0, sites={"0.q": {"z": float("nan")}}),),
        config={"strengths": [float("inf")]},
    )
    content = json.loads(report.json_text(), parse_constant=pytest.fail)
    assert content["mapping"][0]["sites"]["0.q"] == {"x": None, "y": None}
    assert content["steps"][0]["sites"]["0.q"] == {"z": None}
    assert content["config"] == {"strengths": [None]}


def test_a_report_holds_plain_data_only() -> None:
    with pytest.raises(ValidationError, match="plain data"):
        report_of(verification={"sites": {1, 2}})
