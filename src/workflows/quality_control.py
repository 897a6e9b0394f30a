"""What is measured of a refined adapter without task data, and what that lets one expect."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..exceptions import ConfigurationError
from ..refinement.anchor_calibration import AnchorCalibration
from ..refinement.base import Report
from ..refinement.expected_recovery import LEAST_POINTS, ExpectedRecovery
from ..reporting.refinement_record import DriftRecord, ExpectedRecord, RefinementRecord
from .building import Workbench
from .options import optional
from .refining import Refining


def numbers(report: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """Give every number of a report by the dotted names that lead to it.

    >>> dict(numbers({"agreement": {"after": 0.9}, "notes": ["few texts"], "texts": 3}))
    {'agreement.after': 0.9, 'texts': 3.0}
    """
    for name, value in report.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{above}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{above}{name}", float(value)


def given_calibration(bench: Workbench) -> AnchorCalibration | None:
    """Return the anchors of ``calibration=FILE``, or those that come with loraport for the pair.

    Raises:
        DataError: the file cannot be used.
        ConfigurationError: it is of another pair.
    """
    file, pair = optional(bench.config, "calibration", str), bench.config.pair.name
    if file is None:
        return AnchorCalibration.packaged(pair)
    found = AnchorCalibration.read(Path(file).expanduser())
    if found.pair != pair:
        raise ConfigurationError(
            f"calibration={file} was measured on pair={found.pair}, but this is pair={pair}, of "
            "which it says nothing; leave it out, or give one of this pair"
        )
    return found


def expected(
    calibration: AnchorCalibration | None, refinement: str, tasks: tuple[str, ...], measured: Report
) -> ExpectedRecord:
    """Return what to expect of an adapter.

    Args:
        calibration: The anchors, if there are any.
        refinement: Name of the refinement.
        tasks: What is ported: of these tasks nothing may be known.
        measured: What was measured of the adapter.
    """
    if calibration is None:
        return ExpectedRecord(why_not="no anchors of this pair were measured")
    if calibration.refinement != refinement:
        return ExpectedRecord(
            why_not=f"the anchors of this pair were measured with refine={calibration.refinement}"
        )
    anchors = calibration.without(tasks).points
    found = dict(numbers(measured))
    missing = [name for name in calibration.features if name not in found]
    if missing:
        return ExpectedRecord(why_not=f"{', '.join(missing)} was not measured of this adapter")
    if len(anchors) < LEAST_POINTS:
        return ExpectedRecord(
            why_not=f"only {len(anchors)} other anchors of this pair were measured"
        )
    fit = ExpectedRecovery.fit(anchors, calibration.features)
    value = fit.expect(found)
    return ExpectedRecord(
        value=value.value,
        low=value.low,
        high=value.high,
        go=value.go,
        level=fit.level,
        loo_error=fit.loo_error,
        anchors=fit.anchors,
        features={name: found[name] for name in calibration.features},
    )


def refinement_record(
    refining: Refining,
    places: tuple[str, ...],
    reports: Sequence[Report],
    drift: DriftRecord,
    calibration: AnchorCalibration | None,
) -> RefinementRecord:
    """Return what reports hold of a refinement.

    Args:
        refining: The refinement.
        places: The adapters that it was done for, as they were given.
        reports: What it reports of each.
        drift: Of the finished adapter.
        calibration: What to expect by, if there is anything.
    """
    tasks = tuple(Path(place).name for place in places)
    measured = {**reports[0], "drift": drift.model_dump()}
    return RefinementRecord(
        name=refining.name,
        information_class=refining.information_class,
        question=refining.question(),
        data=refining.data,
        measured=tuple(reports),
        drift=drift,
        expected=expected(calibration, refining.name, tasks, measured),
    )
