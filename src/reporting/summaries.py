"""What was found, in sentences: each is a template with its numbers, and says how sure it is.

A difference counts only where its 95 % interval lies on one side of 0.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ..data.zoo import SIDES
from ..evaluation.records import (
    AdapterRecord,
    BenchmarkResults,
    DriftRecord,
    Ends,
    ExpectedRecord,
    Free,
    IntersectionMap,
    Margin,
    MethodResult,
    RefinementRecord,
    Results,
    TaskResult,
    TransferReport,
    cost_rank,
    interval_text,
)
from ..evaluation.statistics import UNTOLD, coverage_over
from ..refinement.expected_recovery import LEAST_RECOVERED
from .tables import cell_text

# What stands in place of the verdicts where there are none.
NO_VERDICT = "No hypothesis was tested in this run."

# Of the weights' energy in the leading singular vectors. Source: Cross-LoRA, arXiv 2508.05232.
_CLAIMED_ENERGY = 0.99
_NO_HEADROOM = "the oracle is less than 3 points above the base"


def outcome(intervals: Sequence[Ends]) -> str:
    """Return whether differences, one a seed, are shown: better, worse, or neither.

    >>> outcome([(0.1, 0.2)]), outcome([(-0.1, 0.2)]), outcome([(0.1, 0.2), None])
    ('better', 'no difference shown', 'better with 1 of 2 seeds')
    """
    known = [ends for ends in intervals if ends is not None]
    better = sum(low > 0 for low, _ in known)
    worse = sum(high < 0 for _, high in known)
    if better == len(intervals) > 0:
        return "better"
    if worse == len(intervals) > 0:
        return "worse"
    return f"better with {better} of {len(intervals)} seeds" if better else "no difference shown"


def points_text(margins: Sequence[Margin]) -> str:
    """Return margins, one a seed, in points with their intervals."""
    known = [
        f"{value:+.1f} {interval_text(ends, 1)}"
        for value, ends in (margin.points for margin in margins)
        if value is not None
    ]
    return f"{', '.join(known)} points of accuracy" if known else "unknown"


def against(name: str, margins: Sequence[Margin]) -> str:
    """Return how a method compares with a control, with one margin a seed."""
    return f"Against {name}: {points_text(margins)}, {outcome([m.ci95 for m in margins])}."


# A run of train.py.


def training_summary(results: Results) -> str:
    """Return how well the mapper works and how sure that is."""
    summary, mapper = results.summary, results.mapper
    if summary.gap_recovered is None:
        gap = (
            f"Nothing can be said about the gap that {mapper} recovers: on none of the "
            f"{summary.tasks} held-out tasks is the oracle 3 points above the base."
        )
    else:
        gap = (
            f"{mapper} recovers {summary.gap_recovered:.0%} of what the oracle gains over the "
            f"base, mean over {summary.usable} usable of {summary.tasks} held-out tasks, 95 % "
            f"interval {interval_text(summary.ci95)}; against no adapter: "
            f"{outcome([summary.ci95])}.{_coverage_note(summary.usable)}"
        )
    if mapper == "mean":
        return f"{gap} It is itself the anchors' mean adapter, which every mapper has to beat."
    margins = [against("the anchors' mean adapter", [summary.margin_over_mean])]
    if summary.margin.control != summary.margin_over_mean.control:
        margins.append(
            against(f"the strongest control, {summary.margin.control}", [summary.margin])
        )
    return " ".join([gap, *margins])


def _coverage_note(tasks: int) -> str:
    """Say how far an interval over few tasks is to be trusted; nothing of a single task."""
    if tasks < 2:
        return ""
    return (
        f" Over {tasks} tasks such an interval holds the true mean in about "
        f"{coverage_over(tasks):.0%} of cases rather than 95%: read it as too narrow."
    )


def training_remarks(results: Results) -> Iterator[str]:
    """Give the summary, what the cartridges recover, and which tasks were left out."""
    yield training_summary(results)
    if results.summary.cartridge_gap is not None:
        yield (
            "As a cartridge, before it is made linear, it recovers "
            f"{results.summary.cartridge_gap:.2f} of the gap."
        )
    unusable = [name for name, task in results.tasks.items() if not task.usable]
    if unusable:
        yield f"Not usable, and left out of the mean: {', '.join(unusable)} ({_NO_HEADROOM})."
    yield from _without_interval([results.tasks])


def _without_interval(tasks: Sequence[Mapping[str, TaskResult]]) -> Iterator[str]:
    """Say of which tasks the gap has no interval for any method, and why."""
    found: dict[str, dict[str, None]] = {}
    for of in tasks:
        for name, task in of.items():
            if task.gap_recovered is not None and task.ci95 is None:
                found.setdefault(_why(task.why_no_ci95), {})[name] = None
            if task.gap_recovered_nll is not None and task.ci95_nll is None:
                found.setdefault(_why(task.why_no_ci95_nll), {})[f"{name} (NLL)"] = None
    for reason, names in found.items():
        yield f"No interval (–) of {', '.join(names)}: {reason}."


def _why(reason: str) -> str:
    # Files of earlier releases do not say it.
    return reason or UNTOLD


def task_summary(result: TaskResult) -> str:
    """Return how well one predicted adapter works on its task."""
    if not result.usable or result.gap_recovered is None:
        return f"On this task {_NO_HEADROOM}, so nothing can be said about the prediction."
    margin = 100 * (result.margin or 0.0)
    why = "" if result.ci95 is not None else f" ({_why(result.why_no_ci95)})"
    return (
        f"It recovers {result.gap_recovered:.0%} of what training on the target gains over the "
        f"base, 95 % interval {interval_text(result.ci95)}{why}; against no adapter: "
        f"{outcome([result.ci95])}. Its accuracy lies {margin:+.1f} points from the best of the "
        "base and the controls."
    )


# A benchmark.


class BestMethod(NamedTuple):
    """The best method with one data access on one pair, in sentences.

    What it recovers, seed by seed; whether it beats the controls; how it compares with the best of
    cheaper access, of which there is none for the cheapest.
    """

    pair: str
    data_access: str
    method: str
    gap: str
    controls: str
    cheaper: str

    @property
    def text(self) -> str:
        """All of it but pair and data access."""
        return " ".join(filter(None, (f"{self.method}.", self.gap, self.controls, self.cheaper)))


def best_methods(results: BenchmarkResults) -> list[BestMethod]:
    """Return for each pair the best method of every data access, the cheapest first.

    Best is the highest mean over the seeds of the gap recovered; controls do not take part.
    """
    found = []
    for pair in results.pairs:
        runs: dict[str, dict[str, list[MethodResult]]] = {}
        for method in results.ranked():
            known = method.pair == pair and method.gap_recovered is not None
            if known and not method.is_control:
                of_access = runs.setdefault(method.data_access, {})
                of_access.setdefault(method.label, []).append(method)
        cheaper: list[list[MethodResult]] = []
        for data_access in sorted(runs, key=cost_rank):
            best = max(runs[data_access].values(), key=lambda s: sum(m.merit for m in s) / len(s))
            seeds = sorted(best, key=lambda method: method.seed)
            gaps = "; ".join(
                f"{m.merit:.2f} {interval_text(m.ci95)} (seed {m.seed})" for m in seeds
            )
            gap = f"Gap recovered: {gaps}; against no adapter: {outcome([m.ci95 for m in seeds])}."
            controls, others = _controls(seeds), _against_cheaper(seeds, cheaper)
            found.append(BestMethod(pair, data_access, seeds[0].label, gap, controls, others))
            cheaper.append(seeds)
    return found


def _controls(seeds: Sequence[MethodResult]) -> str:
    summaries = [method.summary for method in seeds if method.summary is not None]
    names = dict.fromkeys(summary.margin.control for summary in summaries)
    best = against(f"the best control ({', '.join(names)})", [s.margin for s in summaries])
    if list(names) == ["mean"]:
        return best
    mean = against("the mean of the anchors", [s.margin_over_mean for s in summaries])
    return f"{best} {mean}"


def _against_cheaper(
    seeds: Sequence[MethodResult], cheaper: Sequence[Sequence[MethodResult]]
) -> str:
    """Compare methods by their intervals alone: a weak test, so that it errs to caution."""

    def span(methods: Sequence[MethodResult]) -> tuple[float, float]:
        ends = [method.ci95 or (-math.inf, math.inf) for method in methods]
        return min(low for low, _ in ends), max(high for _, high in ends)

    low, high = span(seeds)
    parts = []
    for others in cheaper:
        below, above = span(others)
        relation = "above" if low > above else "below" if high < below else "overlapping"
        parts.append(f"{relation} {others[0].label} ({others[0].data_access})")
    return f"Its intervals against the best of cheaper access: {', '.join(parts)}." if parts else ""


def benchmark_remarks(results: BenchmarkResults) -> Iterator[str]:
    """Give what limits the numbers: choice on the same rows, tasks and methods left out."""
    used, several = results.ranked(), len(results.pairs) > 1
    if used and all(method.gap_recovered is None for method in used):
        yield "No method has a gap recovered, so nothing can be said about any of them."
    if len({m.label for m in used if not m.is_control}) > len(best_methods(results)) > 0:
        yield (
            "The best of a class was picked on the same test rows as it is judged on, so it looks "
            "somewhat better here than on new ones."
        )
    tasks = results.task_names()
    for pair, names in results.unusable_tasks().items():
        on = f" on {pair}" if several else ""
        if len(names) == len(tasks):
            yield f"No task is usable{on}: on all of them the oracle is too near to the base."
        shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        yield f"Not usable{on}, and left out of the means: {shown} ({_NO_HEADROOM})."
    counts = {method.summary.usable for method in used if method.summary is not None}
    if max(counts, default=0) > 1:
        yield f"Intervals of means:{_coverage_note(min(c for c in counts if c > 1))}"
    yield from _without_interval([method.tasks for method in used])
    refused = results.refused()
    if refused and len(refused) == len(results.methods):
        yield "Every method was refused, so nothing was measured."
    seeds: dict[tuple[str, str | None], list[int]] = {}
    for method in refused:
        on = f" on {method.pair}" if several else ""
        seeds.setdefault((f"{method.label}{on}", method.refused), []).append(method.seed)
    for (name, reason), found in seeds.items():
        yield f"Refused: {name}, seed {', '.join(map(str, sorted(found)))}: {reason}"


def benchmark_lines(results: BenchmarkResults) -> Iterator[str]:
    """Give verdicts, the best methods and what limits the numbers as lines of text."""
    yield from (verdict.words for verdict in results.verdicts)
    if not results.verdicts:
        yield NO_VERDICT
    for best in best_methods(results):
        on = f" on {best.pair}" if len(results.pairs) > 1 else ""
        yield f"Best with {best.data_access}{on}: {best.text}"
    yield from benchmark_remarks(results)


# A port.


def transfer_remarks(report: TransferReport) -> Iterator[str]:
    """Give what was lost, what a refinement learned, and what the adapter does on the target."""
    for record, mapping in zip(report.adapters, report.mapping, strict=True):
        for remark in () if report.from_zero else _mapping_remarks(record, mapping):
            yield f"{record.place}: {remark}"
    if report.refinement is not None:
        yield from refinement_remarks(report.refinement)
    for step in report.steps:
        yield f"{step.name}: cutting back to the rank lost {step.lost_energy:.1%} of the energy"
    found = report.verification
    yield (
        f"verified: PEFT reads {found['sites']} sites; logits change by up to "
        f"{found['logit_change']:.3g}, the most likely token at "
        f"{found['changed_top_token']:.0%} of the probe's positions"
    )
    if report.compatibility is None:
        yield "diagnosis: left out, so nothing is known of how alike the two models are"
    else:
        yield report.compatibility.words
    yield from report.warnings
    if report.refinement is not None:
        taken = {name: float(seconds or 0) for name, seconds in report.timing.items()}
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in taken.items())
        yield f"took {sum(taken.values()):.1f} s: {parts}"


def _mapping_remarks(record: AdapterRecord, mapping: Free) -> Iterator[str]:
    """Give what the mapper left out of an adapter, and where text predicts nothing."""
    if mapping.get("dropped_sites"):
        yield (
            f"{len(mapping['dropped_sites'])} of {record.sites} source sites feed no target layer; "
            f"they hold {mapping['dropped_energy']:.0%} of its squared norm, which is not carried "
            "over"
        )
    if mapping.get("repeated_sites"):
        yield (
            f"{mapping['repeated_sites']} target sites share the source site that feeds them with "
            "another target layer"
        )
    if mapping.get("left_out"):
        yield (
            "left out, since text predicts too little there (mapper.min_r2): "
            f"{_first(mapping['left_out'])}"
        )
    sites = mapping.get("sites", {})
    for name, what in (("restricted_r2", "the adapter reads"), ("output_r2", "it writes")):
        bad = [label for label, facts in sites.items() if facts.get(name, 1) <= 0]
        if bad:
            yield (
                f"text predicts nothing of what {what} at {len(bad)} of {len(sites)} target sites "
                f"(R² at most 0: {_first(bad)}); what is written there is noise"
            )
    for side in SIDES:
        held = [f[f"{side}_energy_kept"] for f in sites.values() if f"{side}_energy_kept" in f]
        short = [share for share in held if share < _CLAIMED_ENERGY]
        if short:
            yield (
                f"the {side}'s leading singular vectors hold less than {_CLAIMED_ENERGY:.0%} of "
                f"the weights' energy, as Cross-LoRA claims, at {len(short)} of {len(held)} sites "
                f"({min(short):.0%} at the least); what the adapter does outside of them is lost: "
                "raise mapper.rank"
            )


def _first(labels: Sequence[str]) -> str:
    return ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else "")


def refinement_remarks(record: RefinementRecord) -> Iterator[str]:
    """Give what a user should know of a refinement, the verdict last."""
    labels = record.question.get("labels")
    answers = f"answers {', '.join(map(str, labels))}" if labels else "answers written freely"
    yield f"{record.name}: asked {record.question['prompt']!r}, {answers}"
    for measured in record.measured:
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
        if counts:
            pool = f", chosen from {measured['pool']}" if measured.get("pool") else ""
            used = " and ".join(counts)
            yield f"data used: {used}{pool}; information class: {record.data_access}"
        agreement = agreement_text(measured)
        if agreement:
            yield agreement
        yield from (f"{record.name}: {note}" for note in measured.get("notes", ()))
    yield drift_text(record.drift)
    yield recovery_verdict(record.expected, record.measured)


def agreement_text(measured: Free) -> str:
    """Return how far the target now answers as the teacher does; nothing where it is unknown."""
    before, after = (measured.get(f"agreement_{when}") for when in ("before", "after"))
    start = f"agreement with the source on {measured.get('held_out')} held-out prompts: "
    if isinstance(before, dict) and isinstance(after, dict):
        return (
            f"{start}the likelihood of what it writes differs by {after['gap']:.2f} nats a chunk "
            f"({before['gap']:.2f} before)"
        )
    if before is None or after is None:
        return ""
    return (
        f"{start}{after:.0%} the same answer ({before:.0%} before), KL {measured['kl_after']:.3f} "
        f"nats ({measured['kl_before']:.3f} before)"
    )


def drift_text(drift: DriftRecord) -> str:
    """Return how far the adapter moves the target on generic text."""
    within = drift.mean <= drift.budget
    # For a small multiple s of an adapter, the KL to the base goes with its square.
    scale = "" if within else f"; scale={(drift.budget / drift.mean) ** 0.5:.2g} would meet it"
    return (
        f"drift on {drift.texts} generic texts: {drift.mean:.3g} nats a token (95th percentile "
        f"{drift.p95:.3g}), {'within' if within else 'ABOVE'} the budget of {drift.budget:g}; the "
        f"source's own adapter moves the source by {drift.source_mean:.3g} "
        f"({drift.source_p95:.3g}){scale}"
    )


def recovery_verdict(expected: ExpectedRecord, measured: Sequence[Free] = ()) -> str:
    """Return go or no-go in one line, and what it rests on."""
    if expected.go is None or expected.level is None:
        agreement = next(filter(None, map(agreement_text, measured)), "")
        rest = f"; all that is known is the {agreement}" if agreement else ""
        return f"NO PREDICTION: {expected.why_not}, so nothing is predicted{rest}"
    hits = ""
    if expected.hit_rate is not None:
        hits = f", go or no-go right for {expected.hit_rate:.0%} of them"
    return (
        f"{'GO' if expected.go else 'NO-GO'}: expect {expected.value:.2f} of the gap "
        f"[{expected.low:.2f}, {expected.high:.2f}] (leave-one-out over {expected.anchors} anchors "
        f"of this pair, mean error {expected.loo_error:.2f}{hits}, level {expected.level:.0%}; "
        f"a go takes at least {LEAST_RECOVERED:g} of the gap, and an interval above 0)"
    )


# A diagnosis.


def diagnosis_remarks(content: IntersectionMap) -> list[str]:
    """Return what was compared, and the numbers of the rotations."""
    probes, geometry = content.probes, content.geometry
    return [
        f"compared: {probes.rows} rows with {probes.tokens} distinct tokens, of {probes.aligned} "
        f"aligned word ends in {probes.texts} texts",
        f"rotations: relative error on held-out rows {cell_text(geometry.mean_error)} on average, "
        f"{cell_text(geometry.max_error)} at most; roughness {cell_text(geometry.roughness)}; "
        "anchors determine directions with "
        f"{cell_text(geometry.anchor_coverage)} of the variance",
    ]
