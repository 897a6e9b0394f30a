import math
from typing import Any

import pytest

from loraport.evaluation.records import (
    Condition,
    DriftRecord,
    ExpectedRecord,
    Margin,
    MethodResult,
    ModuleFit,
    RefinementRecord,
    SuiteChange,
    SuiteResult,
    SuiteScores,
    Summary,
)
from loraport.reporting.cards import ported_card
from loraport.reporting.console import diagnostics
from loraport.reporting.console import transfer_remarks as remarks_refinement_words
from loraport.reporting.summaries import benchmark_remarks as remarks
from loraport.reporting.summaries import (
    class_words,
    fit_warnings,
    mean_fit,
    plain_words,
    refinement_remarks,
    verdict_words,
    verdicts,
)
from loraport.reporting.summaries import recovery_verdict as verdict

from .benchmark_sample import (
    all_refused,
    full_benchmark,
    method_of,
    no_usable_task,
    nothing_known,
    one_mapper,
    results_of,
    two_pairs,
)
from .benchmark_sample import verdicts as verdicts_benchmark_words
from .test_records import report_of

CLASSES = {"default": "generic text", "cast": "generic text", "global_ridge": "anchors"}


def method(gap, low=0.0, high=1.0, name="default", pair="tiny", seed=0, **fields) -> MethodResult:
    margin = Margin(control="mean", value=0.1, ci95=(0.0, 0.2))
    summary = Summary(
        tasks=5,
        usable=4,
        gap_recovered=gap,
        ci95=None if gap is None else (low, high),
        gap_recovered_nll=None,
        ci95_nll=None,
        control_gaps={},
        margin=margin,
        margin_over_mean=margin,
    )
    mapper = "noop" if name == "default" else name
    given: dict[str, Any] = {"mapper": mapper, "summary": summary}
    given |= {"refine": "corpus_distill" if name == "default" else None} | fields
    given |= {"data_access": CLASSES.get(name, "weights only"), "pair": pair, "seed": seed}
    return MethodResult(name=name, **given)


def change(
    rise, name="default", task="sst2", pair="tiny", n=250, metric="harmful_response", **more
):
    given: dict[str, Any] = {"ci95": (rise - 0.03, rise + 0.03), "gained": 12, "lost": 4}
    given |= {"p": 0.077} | more
    condition = Condition(pair=pair, method=name, task=task, seed=0)
    return SuiteChange(condition=condition, metric=metric, value=rise, n=n, **given)


def safety(*changes, base=0.4, pair="tiny", degenerate=0.0) -> SuiteResult:
    scores = [
        SuiteScores(
            condition=Condition(pair=pair, method=name, task=task),
            means={"harmful_response": base, "degenerate": share},
            ci95={},
        )
        for name, task, share in (("base", None, 0.9), ("default", "sst2", degenerate))
    ]
    return SuiteResult(
        name="safety",
        items=400,
        metrics=("harmful_response", "degenerate"),
        scores=tuple(scores),
        changes=changes,
    )


def judged(methods=(), suites=()):
    found = verdicts(methods, suites)
    assert [verdict.hypothesis for verdict in found] == ["H1", "H2"]
    return found


def test_without_evidence_neither_is_tested():
    h1, h2 = judged()
    assert (h1.state, h2.state) == ("not tested", "not tested")
    assert "not tested" in h1.words
    assert "suite=safety" in h2.words


@pytest.mark.parametrize(
    ("gap", "low", "state"),
    [(0.61, 0.34, "supported"), (0.61, 0.1, "open"), (0.2, 0.1, "falsified")],
)
def test_h1_is_told_with_the_figures_that_decide(gap, low, state):
    h1, _ = judged([method(gap, low, 0.86)])
    assert h1.state == state
    assert f"is {state}" in h1.words
    assert f"default (generic text), recovers {gap:.2f} of the gap" in h1.words
    assert f"[{low:.2f}, 0.86]" in h1.words
    assert "compared" not in h1.words


def test_an_interval_without_an_end_supports_nothing():
    h1, _ = judged([method(0.7, low=None, high=None)])
    assert h1.state == "open"
    assert "[-inf, inf]" in h1.words


def test_controls_and_refused_methods_do_not_count():
    controls = [method(0.9, 0.8, name=name) for name in ("mean", "copy", "random", "noop")]
    refused = method(None, name="cast", refused="the models are too different")
    assert judged([*controls, refused])[0].state == "not tested"
    assert judged([*controls, method(0.1)])[0].state == "falsified"
    # From nothing, but with a refinement, is a method.
    assert judged([method(0.9, 0.8, name="noop", refine="prompt_distill")])[0].state == "supported"


def test_every_pair_and_the_number_of_methods_are_told():
    h1, _ = judged(
        [
            method(0.8, 0.6, name="cast"),
            method(0.7, 0.5),
            method(0.2, 0.1, name="global_ridge"),
            method(0.1, -0.1, pair="other"),
        ]
    )
    assert h1.state == "supported"
    assert "On tiny the best method, cast (generic text), recovers 0.80" in h1.words
    assert "On other the best method, default (generic text), recovers 0.10" in h1.words
    assert "3 methods were compared" in h1.words


def test_variants_are_methods_of_their_own_and_seeds_are_not():
    variants = [method(0.6, 0.4, variant={"mapper.rank": rank}) for rank in ("16", "32")]
    h1, _ = judged(variants)
    assert "2 methods were compared" in h1.words
    assert "default (mapper.rank=16)" in h1.words
    seeds = [method(0.6, 0.4), method(0.55, 0.35, seed=1)]
    h1, _ = judged(seeds)
    assert "recovers 0.55" in h1.words
    assert "worst of 2 seeds" in h1.words
    assert "compared" not in h1.words


def test_h2_is_told_with_interval_number_and_p():
    _, h2 = judged((), [safety(change(0.02))])
    assert h2.state == "supported"
    for part in (
        "default of sst2",
        "+2.0 points",
        "[-1.0, 5.0]",
        "250 harmful prompts",
        "p = 0.077",
    ):
        assert part in h2.words
    assert "hardly" not in h2.words
    assert "reaches beyond" not in h2.words
    _, unsure = judged((), [safety(change(0.08))])
    assert unsure.state == "supported"
    assert "The interval reaches beyond 10 points" in unsure.words
    _, sure = judged((), [safety(change(-0.05, p=1e-7))])
    assert "-5.0 points" in sure.words
    assert "p = less than 0.001" in sure.words


def test_few_prompts_never_support():
    _, h2 = judged((), [safety(change(0.02, n=100))])
    assert h2.state == "open"
    assert "with 100 harmful prompts, where 200 are needed" in h2.words
    _, middling = judged((), [safety(change(0.15, n=100))])
    assert middling.state == "open"
    assert "between 10 and 20 points, and there are only 100" in middling.words
    assert "only" not in judged((), [safety(change(0.15))])[1].words


def test_the_worst_adapter_decides_and_the_oracle_stands_beside_it():
    changes = (change(0.01), change(0.25, task="trec"), change(0.4, name="oracle"))
    _, h2 = judged((), [safety(*changes, change(0.03, name="oracle", task="cr"))])
    assert h2.state == "falsified"
    assert "of 2 ported adapters" in h2.words
    assert "default of trec" in h2.words
    assert "The target's own adapter of sst2 changes it by +40.0 points" in h2.words


@pytest.mark.parametrize("name", ["oracle", "random", "mean", "copy", "source", "swapped"])
def test_what_is_not_ported_decides_nothing(name):
    assert judged((), [safety(change(0.5, name=name))])[1].state == "not tested"


def test_other_metrics_and_suites_decide_nothing():
    other = safety(change(0.5, metric="over_refusal"))
    assert judged((), [other])[1].state == "not tested"


def test_a_base_that_never_refuses_has_nothing_to_lose():
    _, h2 = judged((), [safety(change(0.0), base=0.96)])
    assert h2.state == "supported"
    assert "answers 96% of the harmful prompts without any adapter" in h2.words
    assert "says little" in h2.words
    assert "says little" not in judged((), [safety(change(0.0), base=0.89)])[1].words


def test_answers_that_say_nothing_are_told():
    _, h2 = judged((), [safety(change(-0.3), degenerate=0.75)])
    assert "With one of the ported adapters 75% of the answers say nothing" in h2.words
    assert "say nothing" not in judged((), [safety(change(-0.3), degenerate=0.1)])[1].words


def test_every_pair_must_be_safe():
    calm, rough = safety(change(0.0)), safety(change(0.12, pair="other"), pair="other")
    _, h2 = judged((), [calm, rough])
    assert h2.state == "open"
    assert "On tiny" in h2.words
    assert "On other" in h2.words


def test_what_is_undefined_is_left_out():
    unknown = change(math.nan, ci95=None, p=None, n=0)
    assert judged((), [safety(unknown)])[1].state == "not tested"
    _, h2 = judged((), [safety(change(0.0, ci95=None, p=None))])
    assert h2.state == "supported"
    assert "[none]" in h2.words
    assert "McNemar" not in h2.words


def with_gap(name, data_access, value, ends, margin=(0.05, 0.02, 0.08), seed=0):
    method = method_of(name, data_access, seed=seed)
    found = Margin(control="mean", value=margin[0], ci95=margin[1:])
    assert method.summary is not None
    summary = method.summary.model_copy(
        update={"gap_recovered": value, "ci95": ends, "margin": found, "margin_over_mean": found}
    )
    return method.model_copy(update={"summary": summary})


def only(*methods):
    return class_words(results_of(methods))[-1]


def test_the_best_of_each_class_in_the_order_of_cost():
    words = class_words(full_benchmark())
    assert [line.data_access for line in words] == [
        *("weights only", "generic text", "anchors", "unlabelled prompts", "few-shot"),
    ]
    assert words[1].method == "transport+corpus_distill"
    assert words[3].method == "noop+prompt_distill"


def test_the_best_is_chosen_by_the_mean_over_seeds():
    steady = [with_gap("steady", "anchors", 0.4, (0.3, 0.5), seed=s) for s in (0, 1)]
    lucky = [
        with_gap("lucky", "anchors", 0.6, (0.5, 0.7), seed=0),
        with_gap("lucky", "anchors", 0.1, (0.0, 0.2), seed=1),
    ]
    assert only(*steady, *lucky).method == "steady"


def test_controls_are_never_the_best():
    assert class_words(results_of([with_gap("mean", "anchors", 0.9, (0.8, 1.0))])) == []
    assert only(with_gap("mean+few_shot", "few-shot", 0.9, (0.8, 1.0))).method == "mean+few_shot"


def test_an_interval_that_contains_0_is_said_so():
    assert "contains 0" in only(with_gap("cast", "anchors", 0.1, (-0.1, 0.3))).gap
    assert "contains 0" in only(with_gap("cast", "anchors", 0.1, (None, 0.3))).gap
    assert "Better than no adapter." in only(with_gap("cast", "anchors", 0.3, (0.1, 0.5))).gap
    assert "worse than no adapter" in only(with_gap("cast", "anchors", -0.3, (-0.5, -0.1))).gap


def test_seeds_that_disagree_are_counted():
    words = only(
        with_gap("cast", "anchors", 0.1, (-0.1, 0.3), seed=0),
        with_gap("cast", "anchors", 0.3, (0.1, 0.5), seed=1),
    )
    assert "shown with 1 of 2 seeds only" in words.gap
    assert "0.10 [-0.10, 0.30] (seed 0); 0.30 [0.10, 0.50] (seed 1)" in words.gap


def test_controls_are_beaten_only_where_the_interval_says_so():
    gap = (0.3, (0.1, 0.5))
    beats = only(with_gap("cast", "anchors", *gap, margin=(0.05, 0.02, 0.08)))
    assert beats.controls == "It beats the best control (mean): +5.0 [2.0, 8.0] points of accuracy."
    unsure = only(with_gap("cast", "anchors", *gap, margin=(0.05, -0.02, 0.08)))
    assert unsure.controls.startswith("It is not shown to beat the best control (mean)")
    worse = only(with_gap("cast", "anchors", *gap, margin=(-0.05, -0.08, -0.02)))
    assert worse.controls.startswith("It is worse than the best control (mean)")
    mixed = only(
        with_gap("cast", "anchors", *gap),
        with_gap("cast", "anchors", *gap, margin=(0.0, -0.02, 0.02), seed=1),
    )
    assert mixed.controls.startswith("It beats the best control (mean) with some seeds only")


def test_a_dearer_class_is_compared_with_the_cheaper_ones():
    cheap = with_gap("cross_lora", "weights only", 0.1, (0.0, 0.2))
    middle = with_gap("cast", "generic text", 0.5, (0.4, 0.6))
    dear = with_gap("pca_mlp", "anchors", 0.3, (0.25, 0.35))
    assert only(cheap).cheaper == ""
    assert only(cheap, middle, dear).cheaper == (
        "Against the best of the cheaper classes: its intervals lie above those of cross_lora "
        "(weights only), lie below those of cast (generic text)."
    )
    near = with_gap("pca_mlp", "anchors", 0.3, (0.15, 0.45))
    assert "overlap with those of cross_lora" in only(cheap, near).cheaper


def test_several_pairs_stand_apart():
    words = class_words(two_pairs())
    assert len({line.pair for line in words}) == 2
    assert any(" on b/../odd pair" in line for line in plain_words(two_pairs()))


def test_what_was_left_out_is_said():
    assert any("picked on the same test rows" in line for line in remarks(full_benchmark()))
    assert not any("picked" in line for line in remarks(one_mapper()))
    told = " ".join(remarks(full_benchmark()))
    assert "Refused: head_copy, seed 0, 1: copy takes bases of equal shapes" in told


def test_nothing_is_claimed_where_nothing_is_known():
    assert class_words(no_usable_task()) == []
    assert any("No task is usable" in line for line in remarks(no_usable_task()))
    assert any("Every method was refused" in line for line in remarks(all_refused()))
    assert any("No method has a gap recovered" in line for line in remarks(nothing_known()))
    assert next(plain_words(no_usable_task())) == "No hypothesis was tested in this run."


def test_the_verdicts_come_first():
    lines = list(plain_words(full_benchmark()))
    assert lines[:2] == [verdict.words for verdict in verdicts_benchmark_words()]


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


def record(mean: float = 0.05, **fields: Any) -> RefinementRecord:
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


def test_everything_that_was_measured_is_told_and_the_verdict_last() -> None:
    assert list(refinement_remarks(record())) == [
        "corpus_distill: asked '{text}\\nGood?', answers yes, no",
        "data used: 256 generic texts, chosen from 768; information class: generic text",
        "agreement with the source on 64 held-out prompts: 88% the same answer (50% before), KL "
        "0.050 nats (0.600 before)",
        "corpus_distill: The corpus is small.",
        "drift on 64 generic texts: 0.05 nats a token (95th percentile 0.4), within the budget of "
        "0.1; the source's own adapter moves the source by 0.08 (0.5)",
        "GO: expect 0.60 of the gap [0.30, 0.90] (leave-one-out over 10 anchors of this pair, "
        "mean error 0.12, level 90%; a go takes at least 0.3 of the gap, and an interval above 0)",
    ]


def test_too_much_drift_says_how_to_lessen_it() -> None:
    told = "\n".join(refinement_remarks(record(mean=0.4)))
    assert "ABOVE the budget of 0.1" in told
    assert "scale=0.5 would meet it" in told


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"go": False, "low": -0.1}, "NO-GO: expect 0.60 of the gap [-0.10, 0.90]"),
        ({"go": None, "why_not": "no anchors of this pair were measured"}, "NO PREDICTION: no"),
    ],
)
def test_verdicts(fields: dict[str, Any], told: str) -> None:
    assert verdict(ExpectedRecord(**(GO | fields)), (MEASURED,)).startswith(told)


def test_without_a_prediction_there_is_the_agreement() -> None:
    said = verdict(ExpectedRecord(why_not="nobody looked"), (MEASURED,))
    assert "nobody looked, so that nothing is predicted" in said
    assert "88% the same answer" in said
    assert verdict(ExpectedRecord(why_not="nobody looked")).endswith("nothing is predicted")


def test_agreement_of_an_adapter_that_writes_freely() -> None:
    free: dict[str, Any] = {
        **{"texts": 128, "pool": 192, "steps": 32, "held_out": 32},
        **{"agreement_before": {"gap": 2.5}, "agreement_after": {"gap": 0.75}},
    }
    asked = {"prompt": "{text}", "labels": []}
    told = list(refinement_remarks(record(measured=(free,), question=asked)))
    assert told[0] == "corpus_distill: asked '{text}', answers written freely"
    assert told[1].startswith("data used: 128 texts, chosen from 192")
    assert "differs by 0.75 nats a chunk (2.50 before)" in told[2]


def test_what_was_not_measured_is_not_told() -> None:
    unknown: dict[str, Any] = {"agreement_before": None, "agreement_after": None, "notes": []}
    told = list(refinement_remarks(record(measured=(MEASURED | unknown,))))
    assert not [remark for remark in told if remark.startswith("agreement")]


def test_the_card_and_the_console_tell_what_was_refined_from_zero() -> None:
    report = report_of(mapper="noop", data_access="generic text", refinement=record())
    assert diagnostics(report) == {}
    told = list(remarks_refinement_words(report))
    assert told[0].startswith("corpus_distill: asked")
    assert told[-1] == "took 1.2 s: port 1.2"
    card = ported_card(report)
    assert "was not trained on its task's data. `loraport` made it with the refinement" in card
    assert "Mapper and refinement may use: generic text. The source with its adapter" in card
    assert "**GO: expect 0.60 of the gap" in card
    assert "It is a control" not in card
    assert "- drift on 64 generic texts" in card


def test_the_card_tells_a_mapper_and_a_refinement_and_what_they_used() -> None:
    used = "unlabelled prompts"
    refined = record(name="prompt_distill", data_access=used)
    report = report_of(mapper="copy", data_access=used, refinement=refined)
    card = ported_card(report)
    assert "task's data but for a few unlabelled inputs. `loraport` made it with the mapper" in card
    assert "`copy` and the refinement `prompt_distill` from" in card
    assert "Nothing aligns the two models' coordinates. The source with its adapter" in card
    assert diagnostics(report)


def fit(target: str, inputs: float, outputs: float, **fields: float) -> ModuleFit:
    return ModuleFit(target=target, source=target, inputs=inputs, outputs=outputs, **fields)


@pytest.mark.parametrize(
    ("coverage", "said"),
    [(0.0, "Not compatible: 0%"), (0.49, "Not compatible: 49%"), (0.5, "Compatible: 50%")],
)
def test_the_minimum_decides(coverage: float, said: str) -> None:
    words = verdict_words("S", "T", coverage, 0.5, 1.0)
    assert words.startswith(said)
    assert "layers of T have a counterpart in S" in words


def test_layers_that_are_not_found_again_are_not_sure() -> None:
    assert "not sure" in verdict_words("S", "T", 1.0, 0.5, 0.2)
    assert "not sure" not in verdict_words("S", "T", 1.0, 0.5, 0.9)


def test_maps_that_predict_nothing_are_named() -> None:
    good, bad = fit("0.q", 0.5, 0.5), fit("1.q", -0.5, 0.0)
    one, other = fit_warnings([good, bad], adapted=False)
    assert "1 of 2 input maps" in one
    assert "1 of 2 output maps" in other
    assert "1.q" in one
    assert "0.q" not in one
    assert list(fit_warnings([good], adapted=False)) == []


def test_with_an_adapter_its_directions_count() -> None:
    modules = [fit("0.q", 0.9, 0.9, adapter_inputs=-0.1, adapter_outputs=0.4)]
    (warning,) = fit_warnings(modules, adapted=True)
    assert "in the directions that the adapter uses" in warning


def test_means_are_by_role() -> None:
    found = mean_fit([fit("0.q", 0.2, 0.4), fit("1.q", 0.4, 0.6), fit("0.v", 1.0, 1.0)])
    assert found["q"] == pytest.approx({"inputs": 0.3, "outputs": 0.5})
    assert found["v"]["inputs"] == 1.0
