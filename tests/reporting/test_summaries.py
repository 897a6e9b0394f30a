from dataclasses import replace
from typing import Any

import pytest

from loraport.evaluation.records import (
    DriftRecord,
    ExpectedRecord,
    Margin,
    RefinementRecord,
    StepRecord,
)
from loraport.reporting.cards import adapter_card
from loraport.reporting.summaries import (
    benchmark_lines,
    benchmark_remarks,
    best_methods,
    outcome,
    recovery_verdict,
    refinement_remarks,
    task_summary,
    training_remarks,
    training_summary,
    transfer_remarks,
)
from loraport.reporting.tables import results_table, tasks_table, transfer_table

from .benchmark_sample import (
    all_refused,
    method_of,
    no_usable_task,
    nothing_known,
    results_of,
    two_pairs,
)
from .conftest import conditions
from .conftest import results_of as training_of
from .test_records import report_of, site


@pytest.mark.parametrize(
    ("intervals", "said"),
    [
        ([(0.1, 0.2)], "better"),
        ([(-0.2, -0.1)], "worse"),
        ([(-0.1, 0.2)], "no difference shown"),
        ([(0.0, 0.2)], "no difference shown"),
        ([None], "no difference shown"),
        ([], "no difference shown"),
        ([(0.1, 0.2), (-0.1, 0.2)], "better with 1 of 2 seeds"),
        ([(-0.2, -0.1), (-0.1, 0.2)], "no difference shown"),
    ],
)
def test_a_difference_counts_only_where_its_interval_says_so(intervals, said):
    assert outcome(intervals) == said


def tasks(base: int, predicted: int, oracle: int, **others: int):
    return {name: conditions(base, predicted, oracle, **others) for name in "abcd"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            tasks(30, 60, 80),
            ("recovers 60% of what the oracle gains", "4 usable of 4", "no adapter: better",
             "Over 4 tasks such an interval holds the true mean in about 79% of cases",
             "the anchors' mean adapter: +25.0", "points of accuracy, better"),
        ),
        (
            tasks(30, 30, 80, mean=30),
            ("against no adapter: no difference", "mean adapter: +0.0", "no difference shown"),
        ),
        (tasks(50, 20, 80, mean=60), ("no adapter: worse", "adapter: -40.0", "accuracy, worse")),
        (tasks(30, 50, 80, mean=35, swapped=70), ("strongest control, swapped: -20.0",)),
        (
            tasks(40, 50, 80, mean=30, random=30, swapped=30),
            ("strongest control, base: +10.0", "accuracy, better"),
        ),
        (tasks(50, 60, 52), ("Nothing can be said", "none of the 4 held-out tasks")),
        ({}, ("Nothing can be said", "the anchors' mean adapter: unknown")),
    ],
)  # fmt: skip
def test_a_training_run_is_summed_up(given, said):
    text = training_summary(training_of(given))
    assert [part for part in said if part not in text] == []


def test_neither_the_mean_nor_the_strongest_control_is_compared_twice():
    assert "strongest" not in training_summary(training_of(tasks(30, 60, 80)))
    text = training_summary(training_of(tasks(30, 40, 80, mean=40), mapper="mean"))
    assert "Against" not in text


def test_cartridges_and_tasks_without_headroom_are_told():
    given = {
        "task": conditions(30, 50, 60, cartridge=54),
        "trec": conditions(46, 47, 47, cartridge=47),
    }
    lines = list(training_remarks(training_of(given)))
    assert "0.80 of the gap" in lines[1]
    assert "left out of the mean: trec" in lines[2]
    assert len(list(training_remarks(training_of({"task": conditions(30, 50, 60)})))) == 1


def test_one_task_is_summed_up_and_without_headroom_nothing_is_claimed():
    results = training_of({"t": conditions(50, 50, 56, mean=50), "u": conditions(46, 47, 47)})
    text = task_summary(results.tasks["t"])
    assert "recovers 0% of what training on the target gains" in text
    assert "no adapter: no difference shown" in text
    assert "-2.0 points from the best of the base and the controls" in text
    assert "nothing can be said" in task_summary(results.tasks["u"])


def test_a_task_that_is_not_told_from_unusable_has_a_dash_and_a_reason():
    """The oracle is right on 49 rows and the base on 45 others: its gain may as well be none."""
    given = conditions(45, 47, 49)
    right = given["oracle"].correct.flip(0)
    given["oracle"] = replace(given["oracle"], correct=right)
    results = training_of({"vague": given, "clear": conditions(30, 50, 60)})
    why = "the test rows do not tell the oracle from the base"
    task = results.tasks["vague"]
    assert (task.usable, task.ci95, task.why_no_ci95) == (True, None, why)
    assert results.tasks["clear"].why_no_ci95 == ""
    assert list(training_remarks(results))[-1] == f"No interval (–) of vague: {why}."
    assert f"95 % interval – ({why})" in task_summary(task)
    assert "| 0.50 – |" in results_table(results).markdown()
    assert "| 0.500 – |" in adapter_card(results, "vague")
    assert why in adapter_card(results, "vague")
    benchmark = results.as_benchmark()
    assert f"No interval (–) of vague: {why}." in list(benchmark_remarks(benchmark))
    for table in (tasks_table(benchmark), transfer_table(benchmark)):
        assert "0.50 –" in table.markdown()
        assert "inf" not in table.markdown() + table.latex() + table.csv()


def with_gap(name, data_access, value, ends, margin=(0.05, 0.02, 0.08), seed=0):
    method = method_of(name, data_access, seed=seed)
    found = Margin(control="mean", value=margin[0], ci95=margin[1:])
    assert method.summary is not None
    summary = method.summary.model_copy(
        update={"gap_recovered": value, "ci95": ends, "margin": found, "margin_over_mean": found}
    )
    return method.model_copy(update={"summary": summary})


def only(*methods):
    return best_methods(results_of(methods))[-1]


def test_the_best_is_chosen_by_the_mean_over_seeds():
    steady = [with_gap("steady", "anchors", 0.4, (0.3, 0.5), seed=s) for s in (0, 1)]
    lucky = [
        with_gap("lucky", "anchors", 0.6, (0.5, 0.7), seed=0),
        with_gap("lucky", "anchors", 0.1, (0.0, 0.2), seed=1),
    ]
    assert only(*steady, *lucky).method == "steady"


def test_seeds_stand_beside_each_other():
    best = only(
        with_gap("cast", "anchors", 0.1, (-0.1, 0.3), margin=(0.0, -0.02, 0.02)),
        with_gap("cast", "anchors", 0.3, (0.1, 0.5), seed=1),
    )
    assert "0.10 [-0.10, 0.30] (seed 0); 0.30 [0.10, 0.50] (seed 1)" in best.gap
    assert "better with 1 of 2 seeds" in best.gap
    assert "the best control (mean): +0.0 [-2.0, 2.0], +5.0 [2.0, 8.0]" in best.controls
    assert "better with 1 of 2 seeds" in best.controls


def test_dearer_data_access_is_compared_with_the_cheaper_one():
    cheap = with_gap("cross_lora", "weights only", 0.1, (0.0, 0.2))
    middle = with_gap("cast", "generic text", 0.5, (0.4, 0.6))
    dear = with_gap("pca_mlp", "anchors", 0.3, (0.25, 0.35))
    assert only(cheap).cheaper == ""
    assert only(cheap, middle, dear).cheaper.endswith(
        "above cross_lora (weights only), below cast (generic text)."
    )
    near = with_gap("pca_mlp", "anchors", 0.3, (0.15, 0.45))
    assert "overlapping cross_lora" in only(cheap, near).cheaper


def test_nothing_is_claimed_where_nothing_is_known():
    assert best_methods(no_usable_task()) == []
    # Controls are never the best.
    assert best_methods(results_of([with_gap("mean", "anchors", 0.9, (0.8, 1.0))])) == []
    assert any(" on b/../odd pair" in line for line in benchmark_lines(two_pairs()))
    for made, said in (
        (no_usable_task, "No task is usable"),
        (all_refused, "Every method was refused"),
        (nothing_known, "No method has a gap recovered"),
    ):
        assert said in " ".join(benchmark_remarks(made()))
    assert "No hypothesis was tested" in next(benchmark_lines(no_usable_task()))


MEASURED: dict[str, Any] = {
    "texts": 256,
    "generic_texts": 256,
    "pool": 768,
    "steps": 32,
    "held_out": 64,
    "agreement_before": 0.5,
    "agreement_after": 0.875,
    "kl_before": 0.6,
    "kl_after": 0.05,
    "notes": ["The corpus is small."],
}
GO: dict[str, Any] = {
    "value": 0.6,
    "low": 0.3,
    "high": 0.9,
    "go": True,
    "level": 0.9,
    "loo_error": 0.125,
    "anchors": 10,
    "features": {"agreement_after": 0.875},
}


def refined(mean: float = 0.05, **fields: Any) -> RefinementRecord:
    drift: dict[str, Any] = {"mean": mean, "p95": 0.4, "source_mean": 0.08, "source_p95": 0.5}
    given: dict[str, Any] = {
        "name": "corpus_distill",
        "data_access": "generic text",
        "question": {"prompt": "{text}\nGood?", "labels": ["yes", "no"]},
        "data": {"texts": ["corpus"]},
        "measured": (MEASURED,),
        "drift": DriftRecord(**drift, budget=0.1, texts=64),
        "expected": ExpectedRecord(**GO),
    }
    return RefinementRecord(**(given | fields))


def test_everything_that_a_refinement_measured_is_told_and_the_verdict_last():
    lines = list(refinement_remarks(refined()))
    for line, parts in zip(
        lines,
        [
            ("'{text}\\nGood?'", "answers yes, no"),
            ("256 generic texts, chosen from 768", "information class: generic text"),
            (
                "64 held-out prompts",
                "88% the same answer (50% before)",
                "0.050 nats (0.600 before)",
            ),
            ("The corpus is small.",),
            ("64 generic texts", "0.05 nats", "0.4)", "within the budget of 0.1", "0.08 (0.5)"),
            ("GO: expect 0.60 of the gap [0.30, 0.90]", "10 anchors", "error 0.12", "90%", "0.3"),
        ],
        strict=True,
    ):
        assert [part for part in parts if part not in line] == []


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"go": False, "low": -0.1}, "NO-GO: expect 0.60 of the gap [-0.10, 0.90]"),
        ({"go": None, "why_not": "no anchors of this pair were measured"}, "NO PREDICTION: no"),
    ],
)
def test_go_and_no_go(fields: dict[str, Any], said: str):
    assert recovery_verdict(ExpectedRecord(**(GO | fields)), (MEASURED,)).startswith(said)


def test_how_often_the_line_was_right_is_told():
    said = recovery_verdict(ExpectedRecord(**GO, hit_rate=0.7))
    assert "error 0.12, go or no-go right for 70% of them, level 90%" in said


def test_without_a_prediction_there_is_the_agreement():
    text = recovery_verdict(ExpectedRecord(why_not="nobody looked"), (MEASURED,))
    assert "nobody looked, so nothing is predicted" in text
    drift = "\n".join(refinement_remarks(refined(mean=0.4)))
    assert "ABOVE the budget of 0.1" in drift
    assert "scale=0.5 would meet it" in drift
    assert "88% the same answer" in text
    unknown = MEASURED | {"agreement_before": None, "agreement_after": None, "notes": []}
    lines = list(refinement_remarks(refined(measured=(unknown,))))
    assert not [line for line in lines if line.startswith("agreement")]
    # An adapter that writes freely is compared by likelihood.
    free: dict[str, Any] = {
        **{"texts": 128, "pool": 192, "steps": 32, "held_out": 32},
        **{"agreement_before": {"gap": 2.5}, "agreement_after": {"gap": 0.75}},
    }
    asked = {"prompt": "{text}", "labels": []}
    first, used, agreed, *_ = refinement_remarks(refined(measured=(free,), question=asked))
    assert "answers written freely" in first
    assert "128 texts, chosen from 192" in used
    assert "differs by 0.75 nats a chunk (2.50 before)" in agreed


def test_singular_vectors_that_hold_less_energy_than_claimed_are_told():
    kept = {"0.q": (0.995, 0.5), "1.q": (0.98, 0.99), "1.v": (0.93, 1.0)}
    sites = {s: {"source_energy_kept": a, "target_energy_kept": b} for s, (a, b) in kept.items()}
    source, target, *_ = transfer_remarks(report_of(mapping=({"sites": sites},)))
    assert "the source's leading singular vectors hold less than 99%" in source
    assert "at 2 of 3 sites (93% at the least)" in source
    assert "at 1 of 3 sites (50% at the least)" in target


def test_what_was_lost_in_a_port_is_told_and_nothing_of_what_did_not_happen():
    mapping = {"dropped_sites": ["1.q"], "dropped_energy": 0.25, "repeated_sites": 2, "sites": {}}
    steps = (StepRecord(name="merge", lost_energy=0.125),)
    given = report_of(mapping=(mapping,), steps=steps, warnings=("mind this",))
    lines = list(transfer_remarks(given))
    for line, part in zip(
        lines,
        [
            "adapters/books: 1 of 4 source sites feed no target layer; they hold 25%",
            "adapters/books: 2 target sites share the source site",
            "merge: cutting back to the rank lost 12.5% of the energy",
            "verified: PEFT reads 3 sites; logits change by up to 0.125, the most likely token at",
            "diagnosis: left out",
            "mind this",
        ],
        strict=True,
    ):
        assert part in line
    bare = report_of(mapping=({"sites": {}},))
    assert [line.partition(":")[0] for line in transfer_remarks(bare)] == [
        *("verified", "diagnosis"),
    ]


def test_where_text_predicts_nothing_is_told():
    sites = {
        "0.q": site(0.5, input_r2=0.9, output_r2=-0.25, restricted_r2=0.0),
        "1.q": site(0.5, input_r2=0.7, output_r2=0.5, restricted_r2=0.125),
        "0.v": site(0.5, input_r2=0.8, output_r2=-1.0, restricted_r2=0.5),
    }
    report = report_of(mapping=({"sites": sites, "left_out": ["1.v > 2.v"]},))
    left_out, reads, writes = list(transfer_remarks(report))[:3]
    assert "mapper.min_r2): 1.v > 2.v" in left_out
    assert "the adapter reads at 1 of 3 target sites (R² at most 0: 0.q)" in reads
    assert "it writes at 2 of 3 target sites (R² at most 0: 0.q, 0.v)" in writes
    many = {f"{layer}.q": site(0.5, output_r2=-1.0) for layer in range(9)}
    assert "4.q, 5.q, ...)" in next(transfer_remarks(report_of(mapping=({"sites": many},))))
