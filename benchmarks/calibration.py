"""From ports that were scored to what the next one may expect.

``python -m benchmarks.calibration --numbers DIR --pair NAME --tasks A B C D --output FILE`` reads
what benchmarks/refinements.py has written of some anchors, and writes the calibration that
``transfer.py`` gives its go or no-go by. Both go on where they were stopped. Tasks whose oracle is
less than 3 points above the base are left out, as everywhere. Held-out tasks are none of its
business; ``--check`` names some on which the expectation is compared with what was recovered.

Of the features, which see the teacher (``pool_balance``, ``teacher_balance``) and the student, one
or two are chosen by the least error of leaving a task out. How often go and no-go are right is told
of tasks that were left out of that choice as well. ``--features`` fixes them instead.
"""

import argparse
import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from loraport.evaluation.statistics import is_usable
from loraport.exceptions import DataError
from loraport.files import write_whole
from loraport.refinement.expected_recovery import (
    LEAST_POINTS,
    AnchorCalibration,
    AnchorPoint,
    ExpectedRecovery,
    hit_rate,
)

CANDIDATES = (
    *("pool_balance", "teacher_balance", "student_balance"),
    *("agreement_after", "agreement_over_constant", "kl_before", "kl_after"),
)
MOST = 2  # features at a time: more fit ten anchors whatever they are


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--numbers", required=True, type=Path, help="folder of NAME.json")
    parser.add_argument("--pair", required=True, help="name of the pair")
    parser.add_argument("--models", nargs=2, default=[], help="names of source and target")
    parser.add_argument("--tasks", required=True, nargs="+", help="anchors")
    parser.add_argument("--check", nargs="*", default=[], help="tasks to compare with")
    parser.add_argument("--condition", default="corpus_distill", help="as in the table")
    parser.add_argument("--refinement", default="corpus_distill", help="name of its YAML")
    parser.add_argument("--features", nargs="+", help="by default they are chosen")
    parser.add_argument("--output", required=True, type=Path, help="the file to write")
    return parser.parse_args()


def numbers(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Return what was measured of one task, condition by condition."""
    known: dict[str, Any] = json.loads((options.numbers / f"{name}.json").read_text("utf-8"))
    return known


def point(options: argparse.Namespace, name: str) -> dict[str, Any] | None:
    """Return what is known of one task.

    None where the oracle is hardly better than the base, or the teacher taught nothing.
    """
    known = numbers(options, name)
    base, oracle, ported = (known[c] for c in ("base", "oracle", options.condition))
    report = ported["report"]
    features = {one: round(report[one], 4) for one in CANDIDATES if report.get(one) is not None}
    if not is_usable(base["accuracy"], oracle["accuracy"]) or not features:
        return None

    def recovered(score: str) -> float:
        return round((ported[score] - base[score]) / (oracle[score] - base[score]), 4)

    found = {"task": name, **features, "gap_recovered": recovered("accuracy")}
    return {**found, "gap_recovered_nll": recovered("nll")}


def setting(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Return what the anchors were ported with.

    Raises:
        DataError: they were not ported alike, or by a release that did not write it down.
    """
    found = [numbers(options, name)[options.condition].get("setting") for name in names]
    if not found[0] or any(one != found[0] for one in found):
        raise DataError(
            f"the anchors in {options.numbers} were not ported alike, or by a release that did not "
            "write down how; run `python -m benchmarks.refinements` over them again, which reads "
            "what there is"
        )
    return dict(found[0])


def chosen(points: Sequence[AnchorPoint], among: Sequence[str]) -> tuple[str, ...]:
    """Return the features, one or two, with the least mean absolute leave-one-out error."""
    sets = [names for count in range(1, MOST + 1) for names in combinations(among, count)]
    return min(sets, key=lambda names: ExpectedRecovery.fit(points, names).loo_error)


def chosen_hit_rate(points: Sequence[AnchorPoint], among: Sequence[str]) -> float | None:
    """Return how often go and no-go are right of tasks that were left out of choice and fit."""
    if len(points) <= LEAST_POINTS:
        return None
    told = []
    for place, one in enumerate(points):
        others = [*points[:place], *points[place + 1 :]]
        told.append(ExpectedRecovery.fit(others, chosen(others, among)).expect(one.features))
    return hit_rate(points, told)


def main() -> None:
    """Write the calibration, and say how far it can be trusted."""
    options = arguments()
    rows = [made for name in options.tasks if (made := point(options, name))]
    among = options.features or [name for name in CANDIDATES if all(name in row for row in rows)]
    points = [
        AnchorPoint(row["task"], {name: row[name] for name in among}, row["gap_recovered"])
        for row in rows
    ]
    features = tuple(options.features or chosen(points, among))
    content = {
        "pair": options.pair,
        "models": options.models,
        "refinement": options.refinement,
        "setting": setting(options, [row["task"] for row in rows]),
        "features": features,
        "points": rows,
        "command": "python -m benchmarks.refinements, python -m benchmarks.calibration",
    }
    write_whole(options.output, json.dumps(content, indent=1) + "\n")
    fit = ExpectedRecovery.fit(AnchorCalibration.read(options.output).points, features)
    print(
        f"{fit.anchors} anchors, {', '.join(features)}: mean absolute leave-one-out error "
        f"{fit.loo_error:.2f}"
    )
    for name in among:
        error = ExpectedRecovery.fit(points, [name]).loo_error
        print(f"{name} alone: error {error:.2f}, hit rate {chosen_hit_rate(points, [name])}")
    print(f"hit rate, features chosen without the task: {chosen_hit_rate(points, among)}")
    for made in (point(options, name) for name in options.check):
        if made is not None:
            value = fit.expect(made)
            print(
                f"{made['task']}: expected {value.value:.2f} [{value.low:.2f}, {value.high:.2f}], "
                f"found {made['gap_recovered']:.2f}"
            )


if __name__ == "__main__":
    main()
