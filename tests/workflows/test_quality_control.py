"""What is to be expected of an adapter, by the anchors of its pair."""

import json
from typing import Any

import pytest

from loraport.refinement.anchor_calibration import AnchorCalibration
from loraport.workflows.quality_control import expected

AGREEMENTS = {"plays": 0.2, "films": 0.4, "songs": 0.6, "games": 0.8, "books": 1.0}
MEASURED = {"agreement": {"after": 0.5}, "drift": {"mean": 0.1}, "notes": ["few texts"]}


def calibration(**fields: Any) -> AnchorCalibration:
    points = [
        {"task": task, "agreement.after": value, "gap_recovered": 0.7 + 0.01 * value}
        for task, value in AGREEMENTS.items()
    ]
    given = {"pair": "local", "refinement": "corpus_distill", "features": ["agreement.after"]}
    return AnchorCalibration.parse(json.dumps(given | {"points": points} | fields), "anchors.json")


def test_the_task_that_is_ported_is_no_anchor() -> None:
    found = expected(calibration(), "corpus_distill", ("books",), MEASURED)
    assert (found.anchors, found.go, found.why_not) == (4, True, "")
    assert found.value == pytest.approx(0.7, abs=0.03)
    assert found.features == {"agreement.after": 0.5}
    assert expected(calibration(), "corpus_distill", ("other",), MEASURED).anchors == 5


@pytest.mark.parametrize(
    ("anchors", "tasks", "why"),
    [
        (None, (), "no anchors of this pair were measured"),
        (calibration(refinement="few_shot"), (), "were measured with refine=few_shot"),
        (calibration(), ("books", "games"), "only 3 other anchors"),
    ],
)
def test_where_nothing_can_be_said_it_is_told_why(
    anchors: AnchorCalibration | None, tasks: tuple[str, ...], why: str
) -> None:
    found = expected(anchors, "corpus_distill", tasks, MEASURED)
    assert why in found.why_not
    assert (found.value, found.go) == (None, None)


def test_a_feature_that_was_not_measured() -> None:
    found = expected(calibration(), "corpus_distill", (), {"drift": {"mean": 0.1}})
    assert found.why_not == "agreement.after was not measured of this adapter"
