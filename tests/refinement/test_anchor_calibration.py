import json
from pathlib import Path
from typing import Any

import pytest

from loraport.exceptions import DataError
from loraport.refinement.anchor_calibration import AnchorCalibration


def content(**fields: Any) -> dict[str, Any]:
    points = [
        {"task": name, "gap_recovered": gap, "gap_recovered_nll": 0.5, "agreement_after": agreement}
        for name, gap, agreement in (("sst2", 0.8, 0.9), ("subj", 0.4, 0.7))
    ]
    given = {
        "pair": "local",
        "refinement": "corpus_distill",
        "features": ["agreement_after"],
        "points": points,
        "command": "measured by hand",
    }
    return given | fields


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "local.json"
    file.write_text(json.dumps(content()))
    found = AnchorCalibration.read(file)
    assert (found.pair, found.refinement, found.command) == (
        *("local", "corpus_distill"),
        "measured by hand",
    )
    assert [point.task for point in found.points] == ["sst2", "subj"]
    assert found.points[1].features == {"agreement_after": 0.7}
    assert found.points[1].gap_recovered == 0.4
    assert [point.task for point in found.without(["sst2"]).points] == ["subj"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"points": None}, "NoneType"),
        ({"features": []}, "no features"),
        ({"features": ["kl"]}, "lacks 'kl'"),
        ({"features": ["gap_recovered_nll"]}, "gap_recovered_nll"),
        ({"points": [{"task": "a", "gap_recovered": 1e999, "agreement_after": 1}]}, "a: gap_rec"),
        ({"points": [{"task": "a", "gap_recovered": 1, "agreement_after": "x"}]}, "'x'"),
        ({"points": content()["points"] * 2}, "sst2, subj twice"),
    ],
    ids=str,
)
def test_a_file_that_cannot_be_used(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(DataError, match=r"(?s)local\.json .*a calibration takes") as caught:
        AnchorCalibration.parse(json.dumps(content(**fields)), "local.json")
    assert named in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"], ids=repr)
def test_a_file_that_is_none(text: str) -> None:
    with pytest.raises(DataError, match="a calibration takes"):
        AnchorCalibration.parse(text, "local.json")


def test_a_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.json cannot be read"):
        AnchorCalibration.read(tmp_path / "nowhere.json")


def test_of_a_pair_that_nobody_measured_there_is_none() -> None:
    assert AnchorCalibration.packaged("local") is None
