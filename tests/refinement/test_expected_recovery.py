import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut

from loraport.exceptions import DataError
from loraport.refinement.expected_recovery import (
    AnchorCalibration,
    AnchorPoint,
    Expectation,
    ExpectedRecovery,
    hit_rate,
    left_out,
)


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


def test_what_is_written_is_read(tmp_path):
    file = tmp_path / "local.json"
    file.write_text(json.dumps(content()))
    found = AnchorCalibration.read(file)
    assert (found.pair, found.refinement) == ("local", "corpus_distill")
    assert [point.task for point in found.points] == ["sst2", "subj"]
    assert found.points[1].features == {"agreement_after": 0.7}
    assert found.points[1].gap_recovered == 0.4


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"features": []}, "features are []"),
        ({"features": ["kl"]}, "'kl'"),
        ({"features": ["gap_recovered_nll"]}, "gap_recovered_nll"),
        (
            {"points": [{"task": "a", "gap_recovered": 1e999, "agreement_after": 1}]},
            "a: gap_recovered is not finite",
        ),
        ({"points": [{"task": "a", "gap_recovered": 1, "agreement_after": "x"}]}, "'x'"),
        ({"points": content()["points"] * 2}, "twice: sst2, sst2, subj"),
    ],
    ids=str,
)
def test_a_file_that_cannot_be_used(fields, named):
    with pytest.raises(DataError, match=r"(?s)local\.json .*it takes a calibration") as caught:
        AnchorCalibration.parse(json.dumps(content(**fields)), "local.json")
    assert named in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]"], ids=repr)
def test_a_file_that_is_none(text):
    with pytest.raises(DataError, match="it takes a calibration"):
        AnchorCalibration.parse(text, "local.json")


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.json cannot be read"):
        AnchorCalibration.read(tmp_path / "nowhere.json")
    assert AnchorCalibration.packaged("local") is None


AGREEMENTS = (0.55, 0.6, 0.72, 0.75, 0.8, 0.83, 0.9, 0.91, 0.95, 0.97)
NOISE = (0.05, -0.1, 0.02, 0.08, -0.03, 0.0, 0.04, -0.06, 0.1, -0.02)


def points(count: int = 10, slope: float = 2.0) -> list[AnchorPoint]:
    rows = zip(AGREEMENTS[:count], NOISE, strict=False)
    return [
        AnchorPoint(f"task {place}", {"agreement": one, "same": 0.5}, slope * (one - 0.5) + noise)
        for place, (one, noise) in enumerate(rows)
    ]


def reference(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> float:
    """Ridge of strength 1 on the standardised feature, by scikit-learn."""
    centre, spread = x.mean(), x.std()
    model = Ridge(alpha=1.0).fit((x[:, None] - centre) / spread, y)
    return float(model.predict((at[:, None] - centre) / spread)[0])


def test_it_is_ridge_regression_with_leave_one_out_residuals():
    x = np.array([point.features["agreement"] for point in points()])
    y = np.array([point.gap_recovered for point in points()])
    fit = ExpectedRecovery.fit(points(), ["agreement"])
    found = fit.expect({"agreement": 0.85, "not fitted": 3.0})
    assert found.value == pytest.approx(reference(x, y, np.array([0.85])), abs=1e-9)
    residuals = [
        abs(float(y[out][0]) - reference(x[kept], y[kept], x[out]))
        for kept, out in LeaveOneOut().split(x)
    ]
    assert fit.loo_error == pytest.approx(np.mean(residuals), abs=1e-9)
    # Of ten anchors the tenth smallest: ceil(11 * 0.9).
    assert fit.half_width == pytest.approx(max(residuals), abs=1e-9)
    assert found.high - found.value == pytest.approx(found.value - found.low)
    assert (fit.anchors, fit.level) == (10, 0.9)


def test_the_interval_covers_as_often_as_it_says():
    draw = np.random.default_rng(0)

    def drawn() -> AnchorPoint:
        x = float(draw.uniform(0.5, 1.0))
        return AnchorPoint("x", {"agreement": x}, 2 * (x - 0.5) + float(draw.normal(0, 0.15)))

    inside = 0
    for _ in range(100):
        fit = ExpectedRecovery.fit([drawn() for _ in range(10)], ["agreement"])
        new = drawn()
        found = fit.expect(new.features)
        inside += found.low <= new.gap_recovered <= found.high
    assert 0.83 < inside / 100 < 0.99


def test_hits_are_counted_by_anchors_that_are_left_out():
    features = ["agreement"]
    found = left_out(points(), features)
    for place, told in enumerate(found):
        others = [point for point in points() if point.task != f"task {place}"]
        given = points()[place].features
        assert told == ExpectedRecovery.fit(others, features).expect(given)
    # Two recover less than 0.3, and are told apart.
    assert hit_rate(points(), found) == 1.0
    assert hit_rate(points(), [Expectation(0.6, 0.3, 0.9)] * 10) == 0.8
    assert hit_rate(points(), [Expectation(0.6, -0.1, 1.3)] * 10) == 0.2
    assert (left_out(points(4), features), hit_rate(points(4), [])) == ([], None)


def test_few_anchors_stand_for_a_lower_level():
    assert ExpectedRecovery.fit(points(4), ["agreement"]).level == 4 / 5


def test_a_feature_that_is_always_the_same_changes_nothing():
    plain = ExpectedRecovery.fit(points(), ["agreement"])
    both = ExpectedRecovery.fit(points(), ["agreement", "same"])
    given = {"agreement": 0.7, "same": 0.5}
    assert both.expect(given).value == pytest.approx(plain.expect(given).value)
    mean = sum(point.gap_recovered for point in points()) / 10
    assert ExpectedRecovery.fit(points(), ["same"]).expect(given).value == pytest.approx(mean)


@pytest.mark.parametrize(
    ("expectation", "go"),
    [
        (Expectation(0.6, 0.3, 0.9), True),
        (Expectation(0.3, 0.01, 0.6), True),
        (Expectation(0.29, 0.2, 0.4), False),
        (Expectation(0.6, 0.0, 1.2), False),
        (Expectation(float("nan"), float("nan"), float("nan")), False),
    ],
    ids=str,
)
def test_a_go_takes_enough_and_surely_more_than_nothing(expectation, go):
    assert expectation.go is go


# What the documentation says of what comes with loraport.

DOCS = Path(__file__).parents[2] / "docs"
SUCCESS = 0.3


def test_the_documented_expectations_are_those_of_ports_that_are_left_out():
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    table = page.split("| task, left out |")[1].split("\n\n")[0]
    documented = {
        cells[1].strip(): cells[2:4] for row in table.split("\n")[2:] if (cells := row.split("|"))
    }
    right = {}
    for place, pair in enumerate(("smollm2_gemma3", "gemma3_smollm2")):
        anchors = AnchorCalibration.packaged(pair)
        assert anchors is not None
        told = left_out(anchors.points, anchors.features)
        for point, one in zip(anchors.points, told, strict=True):
            said = f"{one.value:.2f} [{one.low:.2f}, {one.high:.2f}], {'GO' if one.go else 'NO-GO'}"
            assert documented[point.task][place].strip() == f"{said}, {point.gap_recovered:.2f}"
        hits = [
            one.go == (p.gap_recovered >= SUCCESS)
            for p, one in zip(anchors.points, told, strict=True)
        ]
        right[pair] = f"{sum(hits)} of {len(hits)}"
    forwards, backwards = right.values()
    assert f"right for {forwards} ports forwards and {backwards} backwards" in page


FEATURES = {
    "`pool_balance`": lambda r: r["pool_balance"],
    "`agreement_after`": lambda r: r["agreement_after"],
    "agreement gained": lambda r: r["agreement_after"] - r["agreement_before"],
    "agreement over the most frequent label of the pool": lambda r: (
        r["agreement_after"] - max(r["pool_shares"].values())
    ),
    "`kl_after`": lambda r: r["kl_after"],
    "share of the KL that is gone": lambda r: 1 - r["kl_after"] / r["kl_before"],
}


@pytest.mark.parametrize("called", FEATURES)
def test_the_documented_features_of_the_student_are_those_of_the_benchmark(called):
    content = json.loads((DOCS / "benchmark" / "results.json").read_text(encoding="utf-8"))
    errors, hits = [], []
    for method in content["methods"]:
        if method["name"] == "default":
            points = [
                AnchorPoint(
                    task, {"x": FEATURES[called](report)}, method["tasks"][task]["gap_recovered"]
                )
                for task, report in method["report"]["tasks"].items()
            ]
            errors.append(f"{ExpectedRecovery.fit(points, ['x']).loo_error:.2f}")
            told = left_out(points, ["x"])
            hits.append(str(round(5 * (hit_rate(points, told) or 0))))
    row = f"| {called} | {', '.join(errors)} | {', '.join(hits)} |"
    assert row in (DOCS / "results.md").read_text(encoding="utf-8"), row
