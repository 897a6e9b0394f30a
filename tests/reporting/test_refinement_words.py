from typing import Any

import pytest

from loraport.reporting.ported_card import ported_card
from loraport.reporting.refinement_record import DriftRecord, ExpectedRecord, RefinementRecord
from loraport.reporting.refinement_words import refinement_remarks, verdict
from loraport.reporting.transfer_table import diagnostics, remarks

from .test_transfer_report import report_of

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
        "information_class": "generic text",
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
    report = report_of(mapper="noop", information_class="generic text", refinement=record())
    assert diagnostics(report) == {}
    told = list(remarks(report))
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
    refined = record(name="prompt_distill", information_class=used)
    report = report_of(mapper="copy", information_class=used, refinement=refined)
    card = ported_card(report)
    assert "task's data but for a few unlabelled inputs. `loraport` made it with the mapper" in card
    assert "`copy` and the refinement `prompt_distill` from" in card
    assert "Nothing aligns the two models' coordinates. The source with its adapter" in card
    assert diagnostics(report)
