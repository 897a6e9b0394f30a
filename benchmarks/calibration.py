"""From ports that were scored to what the next one may expect.

``python -m benchmarks.calibration --numbers DIR --pair NAME --tasks A B C D --output FILE`` reads
what benchmarks/refinements.py has written of some anchors, and writes the calibration that
``transfer.py`` gives its go or no-go by. Tasks whose oracle is less than 3 points above the base
are left out, as everywhere. Held-out tasks are none of its business; ``--check`` names some on
which the expectation is compared with what was recovered.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from loraport.evaluation.statistics import HEADROOM
from loraport.files import write_whole
from loraport.refinement.expected_recovery import AnchorCalibration, ExpectedRecovery

FEATURES = ("pool_balance",)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--numbers", required=True, type=Path, help="folder of NAME.json")
    parser.add_argument("--pair", required=True, help="name of the pair")
    parser.add_argument("--tasks", required=True, nargs="+", help="anchors")
    parser.add_argument("--check", nargs="*", default=[], help="tasks to compare with")
    parser.add_argument("--condition", default="corpus_distill", help="as in the table")
    parser.add_argument("--refinement", default="corpus_distill", help="name of its YAML")
    parser.add_argument("--features", nargs="+", default=list(FEATURES))
    parser.add_argument("--output", required=True, type=Path, help="the file to write")
    return parser.parse_args()


def point(options: argparse.Namespace, name: str) -> dict[str, Any] | None:
    """Return what is known of one task; None where the oracle is hardly better than the base."""
    known = json.loads((options.numbers / f"{name}.json").read_text(encoding="utf-8"))
    base, oracle, ported = (known[c] for c in ("base", "oracle", options.condition))
    if oracle["accuracy"] - base["accuracy"] < HEADROOM:
        return None

    def recovered(score: str) -> float:
        return round((ported[score] - base[score]) / (oracle[score] - base[score]), 4)

    features = {feature: round(ported["report"][feature], 4) for feature in options.features}
    found = {"task": name, **features, "gap_recovered": recovered("accuracy")}
    return {**found, "gap_recovered_nll": recovered("nll")}


def main() -> None:
    """Write the calibration, and say how far it can be trusted."""
    options = arguments()
    points = [made for name in options.tasks if (made := point(options, name))]
    content = {
        "pair": options.pair,
        "refinement": options.refinement,
        "features": options.features,
        "points": points,
        "command": "python -m benchmarks.refinements, python -m benchmarks.calibration",
    }
    write_whole(options.output, json.dumps(content, indent=1) + "\n")
    read = AnchorCalibration.read(options.output)
    fit = ExpectedRecovery.fit(read.points, read.features)
    print(f"{fit.anchors} anchors, mean absolute leave-one-out error {fit.loo_error:.2f}")
    for made in (point(options, name) for name in options.check):
        if made is not None:
            value = fit.expect(made)
            print(
                f"{made['task']}: expected {value.value:.2f} [{value.low:.2f}, {value.high:.2f}], "
                f"found {made['gap_recovered']:.2f}"
            )


if __name__ == "__main__":
    main()
