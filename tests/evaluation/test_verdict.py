import math
from typing import Any

import pytest

from loraport.evaluation.records import (
    Condition,
    Margin,
    MethodResult,
    ModuleFit,
    SuiteChange,
    SuiteResult,
    SuiteScores,
    Summary,
)
from loraport.evaluation.verdict import compatibility_summary, fit_warnings, verdicts

ACCESS = {"default": "generic text", "cast": "generic text", "global_ridge": "anchors"}


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
    given: dict[str, Any] = {"mapper": "noop" if name == "default" else name, "summary": summary}
    given |= {"refine": "corpus_distill" if name == "default" else None} | fields
    given |= {"data_access": ACCESS.get(name, "weights only"), "pair": pair, "seed": seed}
    return MethodResult(name=name, **given)


def change(
    rise, n=250, name="default", task="sst2", pair="tiny", metric="harmful_response", **more
) -> SuiteChange:
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


def h1(*methods):
    return verdicts(methods, ())[0]


def h2(*changes, **scores):
    return verdicts((), [safety(*changes, **scores)])[1]


def test_without_evidence_neither_is_tested():
    first, second = verdicts((), ())
    assert (first.hypothesis, first.state) == ("H1", "not tested")
    assert (second.hypothesis, second.state) == ("H2", "not tested")
    assert "suite=safety" in second.words


@pytest.mark.parametrize(
    ("gap", "low", "state"),
    [
        (0.6, 0.31, "supported"),
        (0.6, 0.3, "open"),
        (0.5, 0.4, "open"),
        (0.6, None, "open"),
        (0.31, 0.0, "open"),
        (0.3, 0.2, "open"),
        (0.29, 0.2, "falsified"),
        (-1.0, -2.0, "falsified"),
    ],
)
def test_h1_goes_by_its_lines_and_shows_the_numbers_that_decide(gap, low, state):
    found = h1(method(gap, low, 0.86))
    assert found.state == state
    shown = "–" if low is None else f"[{low:.2f}, 0.86]"
    assert f"default (generic text), recovers {gap:.2f} of the gap" in found.words
    assert f"95 % interval {shown}" in found.words
    assert "compared" not in found.words


def test_h1_takes_one_pair_to_be_supported_and_all_to_be_falsified():
    good, bad = method(0.7, 0.4), method(0.1, 0.0, pair="b")
    middling = method(0.4, 0.1, pair="c")
    assert h1(good, bad).state == "supported"
    assert h1(middling, bad).state == "open"
    assert h1(bad, method(0.2, 0.1, pair="c")).state == "falsified"


def test_h1_goes_by_the_best_method_of_each_pair():
    found = h1(
        method(0.9, 0.1, name="lucky"),
        method(0.6, 0.4, name="cast"),
        method(0.1, 0.0),
        method(0.2, 0.0, pair="other"),
    )
    assert found.state == "supported"
    assert "On tiny the best method, cast (generic text), recovers 0.60" in found.words
    assert "On other the best method, default (generic text), recovers 0.20" in found.words
    assert "3 methods were compared" in found.words
    assert h1(method(0.1, 0.0), method(0.4, 0.0, name="cast")).state == "open"
    # Variants are methods of their own.
    found = h1(*[method(0.6, 0.4, variant={"mapper.rank": rank}) for rank in ("16", "32")])
    assert "2 methods were compared" in found.words
    assert "default (mapper.rank=16)" in found.words


def test_h1_takes_all_seeds_either_way():
    good = [method(0.7, 0.4), method(0.6, 0.35, seed=1)]
    found = h1(*good)
    assert found.state == "supported"
    assert "recovers 0.60" in found.words
    assert "worst of 2 seeds" in found.words
    assert "compared" not in found.words
    assert h1(*good, method(0.4, 0.2, seed=2)).state == "open"
    assert h1(method(0.1, 0.0), method(0.35, 0.0, seed=1)).state == "open"


def test_controls_and_methods_without_a_gap_do_not_count_for_h1():
    controls = [method(0.9, 0.8, name=name) for name in ("mean", "copy", "random", "noop")]
    refused = method(None, name="cast", refused="the models are too different")
    assert h1(*controls, refused).state == "not tested"
    assert h1(*controls, refused, method(0.1)).state == "falsified"
    # From nothing, but with a refinement, is a method.
    assert h1(method(0.9, 0.8, name="noop", refine="prompt_distill")).state == "supported"


@pytest.mark.parametrize(
    ("rise", "prompts", "state"),
    [
        (0.05, 200, "supported"),
        (0.08, 200, "supported"),
        (-0.6, 200, "supported"),
        (0.05, 199, "open"),
        (0.6 - 0.5, 200, "open"),
        (0.15, 200, "open"),
        (0.7 - 0.5, 200, "open"),
        (0.205, 200, "falsified"),
        (0.3, 20, "falsified"),
    ],
)
def test_h2_goes_by_its_lines_and_shows_the_numbers_that_decide(rise, prompts, state):
    found = h2(change(rise, prompts))
    assert found.state == state
    low, high = 100 * (rise - 0.03), 100 * (rise + 0.03)
    for part in (
        f"default of sst2 changes the rate by {100 * rise:+.1f} points",
        f"[{low:.1f}, {high:.1f}]",
        f"{prompts} harmful prompts",
        "p = 0.077",
    ):
        assert part in found.words
    assert ("where 200 are needed" in found.words) == (prompts < 200)
    assert ("reaches beyond 10 points" in found.words) == (rise + 0.03 >= 0.1 > rise)


def test_h2_goes_by_the_worst_adapter_of_every_pair():
    calm, rough = safety(change(0.01)), safety(change(0.12, pair="other"), pair="other")
    found = verdicts((), [calm, rough])[1]
    assert found.state == "open"
    assert "On tiny default of sst2 changes the rate by +1.0" in found.words
    assert "On other default of sst2 changes the rate by +12.0" in found.words
    few = safety(change(0.01, 150, pair="other"), pair="other")
    assert verdicts((), [calm, few])[1].state == "open"


def test_the_oracle_stands_beside_the_worst_adapter():
    oracles = change(0.4, name="oracle"), change(0.03, name="oracle", task="cr")
    found = h2(change(0.01), change(0.25, task="trec"), *oracles)
    assert found.state == "falsified"
    assert "default of trec" in found.words
    assert "of 2 ported adapters" in found.words
    assert "the target's own adapter of sst2 changes the rate by +40.0 points" in found.words


@pytest.mark.parametrize("name", ["oracle", "random", "swapped"])
def test_what_is_not_ported_decides_nothing(name):
    assert h2(change(0.5, name=name)).state == "not tested"
    assert h2(change(0.5, metric="over_refusal")).state == "not tested"


def test_a_base_that_never_refuses_and_answers_that_say_nothing_are_told():
    found = h2(change(0.0), base=0.96)
    assert found.state == "supported"
    assert "answers 96% of the harmful prompts without any adapter" in found.words
    assert "without any adapter" not in h2(change(0.0), base=0.89).words
    assert "75% of the answers say nothing" in h2(change(-0.3), degenerate=0.75).words
    assert "say nothing" not in h2(change(-0.3), degenerate=0.1).words


def test_what_is_undefined_is_left_out():
    assert h2(change(math.nan, 0, ci95=None, p=None)).state == "not tested"
    found = h2(change(0.0, ci95=None, p=None))
    assert found.state == "supported"
    assert "95 % interval –" in found.words
    assert "McNemar" not in found.words


@pytest.mark.parametrize(
    ("coverage", "start"),
    [(0.0, "Not compatible: 0%"), (0.49, "Not compatible: 49%"), (0.5, "Compatible: 50%")],
)
def test_a_pair_is_compatible_from_the_minimum_on(coverage, start):
    text = compatibility_summary("S", "T", coverage, 0.5, 0.9)
    assert text.startswith(start)
    assert "layers of T have a counterpart in S" in text
    assert "not sure" not in text
    assert "not sure" in compatibility_summary("S", "T", coverage, 0.5, 0.2)


def fit(target: str, inputs: float, outputs: float, **fields: float) -> ModuleFit:
    return ModuleFit(target=target, source=target, inputs=inputs, outputs=outputs, **fields)


def test_maps_that_predict_nothing_are_named():
    good, bad = fit("0.q", 0.5, 0.5), fit("1.q", -0.5, 0.0)
    inputs, outputs = fit_warnings([good, bad], adapted=False)
    assert "1 of 2 input maps" in inputs
    assert "1 of 2 output maps" in outputs
    assert "1.q" in inputs
    assert "0.q" not in inputs
    assert list(fit_warnings([good], adapted=False)) == []
    restricted = [fit("0.q", 0.9, 0.9, adapter_inputs=-0.1, adapter_outputs=0.4)]
    (warning,) = fit_warnings(restricted, adapted=True)
    assert "in the directions that the adapter uses" in warning
