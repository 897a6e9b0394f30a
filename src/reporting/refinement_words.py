"""A refinement in words: what was asked and measured, and what is to be expected."""

from collections.abc import Iterator

from ..refinement.expected_recovery import LEAST_RECOVERED
from .refinement_record import DriftRecord, ExpectedRecord, RefinementRecord
from .results import Free

LEAST_EXPECTED = f"a go takes at least {LEAST_RECOVERED:g} of the gap, and an interval above 0"


def refinement_remarks(record: RefinementRecord) -> Iterator[str]:
    """Give what a user should know of a refinement, the verdict last."""
    yield asked(record)
    for measured in record.measured:
        yield from filter(None, (data_used(record, measured), agreement(measured)))
        yield from (f"{record.name}: {note}" for note in measured.get("notes", ()))
    yield drifted(record.drift)
    yield verdict(record.expected, record.measured)


def asked(record: RefinementRecord) -> str:
    """Return how the adapter was asked."""
    labels = record.question.get("labels")
    answers = f"answers {', '.join(map(str, labels))}" if labels else "answers written freely"
    return f"{record.name}: asked {record.question['prompt']!r}, {answers}"


def data_used(record: RefinementRecord, measured: Free) -> str:
    """Return what was learned from; nothing where nothing was."""
    counts = [
        f"{measured[name]} {called}"
        for name, called in (
            ("generic_texts", "generic texts"),
            ("inputs", "unlabelled inputs"),
            ("examples", "labelled examples"),
        )
        if measured.get(name)
    ]
    if not counts and "steps" in measured:
        counts = [f"{measured.get('texts', 0)} texts"]
    if not counts:
        return ""
    pool = f", chosen from {measured['pool']}" if measured.get("pool") else ""
    return f"data used: {' and '.join(counts)}{pool}; information class: {record.information_class}"


def agreement(measured: Free) -> str:
    """Return how far the target now answers as the teacher does; nothing where it is unknown."""
    before, after = (measured.get(f"agreement_{when}") for when in ("before", "after"))
    held_out = measured.get("held_out")
    if isinstance(before, dict) and isinstance(after, dict):
        return (
            f"agreement with the source on {held_out} held-out prompts: the likelihood of what it "
            f"writes differs by {after['gap']:.2f} nats a chunk ({before['gap']:.2f} before)"
        )
    if before is None or after is None:
        return ""
    return (
        f"agreement with the source on {held_out} held-out prompts: {after:.0%} the same answer "
        f"({before:.0%} before), KL {measured['kl_after']:.3f} nats "
        f"({measured['kl_before']:.3f} before)"
    )


def drifted(drift: DriftRecord) -> str:
    """Return how far the adapter moves the target on generic text."""
    within = drift.mean <= drift.budget
    told = "within" if within else "ABOVE"
    # For a small multiple s of an adapter, drift goes with its square.
    scale = "" if within else f"; scale={(drift.budget / drift.mean) ** 0.5:.2g} would meet it"
    return (
        f"drift on {drift.texts} generic texts: {drift.mean:.3g} nats a token (95th percentile "
        f"{drift.p95:.3g}), {told} the budget of {drift.budget:g}; the source's own adapter moves "
        f"the source by {drift.source_mean:.3g} ({drift.source_p95:.3g}){scale}"
    )


def verdict(expected: ExpectedRecord, measured: tuple[Free, ...] = ()) -> str:
    """Return go or no-go in one line, and what it rests on."""
    if expected.go is None or expected.level is None:
        known = next(filter(None, map(agreement, measured)), "")
        return f"NO PREDICTION: {expected.why_not}, so that nothing is predicted" + (
            f"; all there is, is the {known}" if known else ""
        )
    return (
        f"{'GO' if expected.go else 'NO-GO'}: expect {expected.value:.2f} of the gap "
        f"[{expected.low:.2f}, {expected.high:.2f}] (leave-one-out over {expected.anchors} anchors "
        f"of this pair, mean error {expected.loo_error:.2f}, level {expected.level:.0%}; "
        f"{LEAST_EXPECTED})"
    )
