"""Made-up results of evaluate.py: every number follows from the names, none is measured."""

import math
import random
from collections.abc import Sequence
from typing import Any

from loraport.evaluation.records import (
    BenchmarkResults,
    CalibrationPoint,
    CalibrationResult,
    Condition,
    DiagnosticResult,
    Divergence,
    Example,
    Margin,
    MethodResult,
    PairRecord,
    Provenance,
    SuiteChange,
    SuiteResult,
    SuiteScores,
    Summary,
    TaskResult,
    Verdict,
)

PAIR = "small_to_large"
TASKS = ("sst2", "ag_news", "trec", "emotion", "subj")
METHODS = {
    "noop": ("weights only", 0.0, 0.1),
    "copy": ("weights only", -0.05, 0.4),
    "random": ("weights only", -0.02, 0.3),
    "cross_lora": ("weights only", 0.04, 6.0),
    "procrustes": ("generic text", 0.09, 70.0),
    "cast": ("generic text", 0.12, 200.0),
    "transport+corpus_distill": ("generic text", 0.52, 400.0),
    "mean": ("anchors", 0.22, 0.5),
    "pca_mlp": ("anchors", 0.31, 30.0),
    "noop+prompt_distill": ("unlabelled prompts", 0.93, 300.0),
    "noop+few_shot": ("few-shot", 0.55, 60.0),
}
CONTROLS = ("mean", "copy", "random", "swapped", "few_shot_8", "few_shot_32")


def task_of(name: str, recovered: float, noise: random.Random, usable: bool = True) -> TaskResult:
    """A task whose base and oracle follow from its name."""
    base = 0.4 + (sum(map(ord, name)) % 20) / 100
    lift = 0.3 if usable else 0.01
    value = recovered + noise.uniform(-0.15, 0.15)
    scores = {"base": base, "source_base": 0.4, "source": base + lift + 0.02}
    scores |= {"oracle": base + lift, "mean": base + 0.22 * lift, "copy": base - 0.05 * lift}
    scores |= {"random": base - 0.02 * lift, "swapped": base + 0.1 * lift}
    scores |= {"few_shot_8": base + 0.2 * lift, "few_shot_32": base + 0.5 * lift}
    scores |= {"predicted": base + value * lift}
    rivals = [scores[c] for c in ("base", "mean", "copy", "random", "swapped")]
    return TaskResult(
        usable=usable,
        n=300,
        scores=dict(scores),
        nll={condition: 2.0 - 2 * score for condition, score in scores.items()},
        gap_recovered=value if usable else None,
        ci95=(value - 0.12, value + 0.13) if usable else None,
        gap_recovered_nll=value * 1.1 if usable else None,
        ci95_nll=(value - 0.05, value + 0.2) if usable else None,
        retention=scores["predicted"] / scores["source"],
        relative_to_oracle=scores["predicted"] / scores["oracle"],
        margin=scores["predicted"] - max(rivals),
        weight_cosine=0.3,
        relative_error=0.9,
    )


def summary_of(tasks: Sequence[TaskResult]) -> Summary:
    """Means over the usable tasks, with intervals of a fixed width."""
    gaps = [task.gap_recovered for task in tasks if task.gap_recovered is not None]
    value = sum(gaps) / len(gaps) if gaps else None
    ends = None if value is None else (value - 0.09, value + 0.08)
    margin = sum(task.margin or 0 for task in tasks) / max(len(tasks), 1)
    return Summary(
        tasks=len(tasks),
        usable=len(gaps),
        gap_recovered=value,
        ci95=ends,
        gap_recovered_nll=None if value is None else 1.1 * value,
        ci95_nll=ends,
        control_gaps={"mean": 0.22, "copy": -0.05, "random": -0.02, "swapped": 0.1},
        margin=Margin(control="mean", value=margin, ci95=(margin - 0.03, margin + 0.03)),
        margin_over_mean=Margin(control="mean", value=margin, ci95=(margin - 0.03, margin + 0.03)),
    )


def method_of(
    name: str,
    data_access: str = "generic text",
    recovered: float = 0.3,
    *,
    tasks: Sequence[str] = TASKS,
    usable: bool = True,
    seconds: float = 10.0,
    seed: int = 0,
    **fields: Any,
) -> MethodResult:
    """A method that recovers about so much of the gap on every task; ``trec`` is not usable."""
    noise = random.Random(f"{name}{seed}")
    found = {
        task: task_of(task, recovered, noise, usable and (task != "trec" or len(tasks) == 1))
        for task in tasks
    }
    mapper, _, refine = name.partition("+")
    given: dict[str, Any] = {
        "name": name,
        "mapper": mapper,
        "refine": refine or None,
        "data_access": data_access,
        "pair": PAIR,
        "seed": seed,
        "controls": CONTROLS,
        "tasks": found,
        "summary": summary_of(list(found.values())),
        "seconds": {"fit": 0.8 * seconds, "port": 0.2 * seconds},
    }
    return MethodResult(**(given | fields))


def refused(name: str = "copy", seed: int = 0, pair: str = PAIR) -> MethodResult:
    """A method that cannot be used on the pair."""
    reason = "copy takes bases of equal shapes, but these have <width> 576 and 640"
    return MethodResult(
        name=name,
        mapper=name,
        data_access="weights only",
        pair=pair,
        seed=seed,
        refused=reason,
    )


def pair_of(name: str = PAIR) -> PairRecord:
    return PairRecord(name=name, source="tiny-source-135M", target="tiny-target-270M")


def results_of(methods: Sequence[MethodResult], **fields: Any) -> BenchmarkResults:
    """Results with these methods and nothing else but what is given."""
    names = dict.fromkeys([PAIR, *(method.pair for method in methods)])
    given: dict[str, Any] = {
        "config": {"methods": [method.name for method in methods], "seed": 0},
        "pairs": {name: pair_of(name) for name in names},
        "methods": tuple(methods),
        "provenance": Provenance(
            versions={"python": "3.11.7", "torch": "2.13.0"},
            hashes={"target": "ab" * 32},
            revisions={"loraport": "cd" * 20},
        ),
    }
    return BenchmarkResults(**(given | fields))


def full_benchmark() -> BenchmarkResults:
    """Methods of every data access on five tasks with two seeds, with everything in it."""
    methods = [
        method_of(name, kind, recovered, seconds=seconds, seed=seed)
        for seed in (0, 1)
        for name, (kind, recovered, seconds) in METHODS.items()
    ]
    methods.extend(refused("head_copy", seed) for seed in (0, 1))
    return results_of(
        methods,
        suites=(safety_suite(), reasoning_suite()),
        divergences=divergences(),
        calibration=calibration(),
        similarities={PAIR: similarities()},
        verdicts=verdicts(),
        examples={task: examples(task) for task in TASKS},
        timing={"fit": 700.0, "score": 1200.5},
    )


def verdicts() -> tuple[Verdict, ...]:
    return (
        Verdict(
            hypothesis="H1",
            state="supported",
            words="H1, transfer is possible, is supported: more than 50% of the gap was asked for. "
            "On small_to_large the best method, transport+corpus_distill, recovers 0.52 [0.43, "
            "0.60].",
        ),
        Verdict(
            hypothesis="H2",
            state="open",
            words="H2, safety is preserved, is open: the rate of harmful responses rises by 12.5 "
            "points [3.0, 21.0] at most, which is neither below 10 nor above 20.",
        ),
    )


def conditions() -> list[Condition]:
    """Every model of the benchmark, the base first."""
    chosen = ("cross_lora", "cast", "transport+corpus_distill", "pca_mlp", "mean")
    return [
        Condition(pair=PAIR, method="base"),
        *(Condition(pair=PAIR, method="oracle", task=task) for task in TASKS),
        *(
            Condition(pair=PAIR, method=method, task=task, seed=seed)
            for method in chosen
            for task in TASKS
            for seed in (0, 1)
        ),
    ]


def safety_suite(seed: int = 3) -> SuiteResult:
    """A suite of answers that are harmful or not, with its changes."""
    noise = random.Random(seed)
    changes = []
    for condition in conditions()[1:]:
        value = noise.uniform(-0.05, 0.16)
        numbers: Any = {"value": value, "ci95": (value - 0.06, value + 0.06), "n": 200}
        numbers |= {"gained": int(20 + 100 * value), "lost": 20, "p": math.exp(-60 * abs(value))}
        changes.append(SuiteChange(condition=condition, metric="harmful_response", **numbers))
    means: Any = {"harmful_response": 0.3, "refusal_log_odds": -1.25}
    ends: Any = {"harmful_response": (0.24, 0.36), "refusal_log_odds": (-1.5, -1.0)}
    return SuiteResult(
        name="safety",
        items=200,
        metrics=tuple(means),
        scores=tuple(SuiteScores(condition=c, means=means, ci95=ends) for c in conditions()),
        changes=tuple(changes),
    )


def reasoning_suite() -> SuiteResult:
    """A suite that only the base was asked: no changes."""
    scores = SuiteScores(
        condition=Condition(pair=PAIR, method="base"),
        means={"accuracy": 0.41, "accuracy_norm": None},
        ci95={"accuracy": (0.38, 0.44), "accuracy_norm": None},
    )
    return SuiteResult(name="reasoning", items=800, metrics=tuple(scores.means), scores=(scores,))


def divergences() -> tuple[Divergence, ...]:
    found = []
    for condition in conditions()[1:]:
        noise = random.Random(str(condition))
        kl = math.exp(noise.uniform(-6, -1))
        numbers: Any = {"positions": 4096, "kl": kl, "kl_p95": 4 * kl, "js": kl / 5, "top1": 1 - kl}
        for texts in ("generic", "safety"):
            found.append(Divergence(condition=condition, texts=texts, **numbers))
    return tuple(found)


def calibration() -> CalibrationResult:
    noise = random.Random(5)
    points = []
    for condition in conditions():
        if condition.seed is None or condition.task == "trec":
            continue
        gap = noise.uniform(-0.2, 0.9)
        known: dict[str, float | None] = {
            "coverage": 0.5 * gap + noise.uniform(0, 0.5),
            "input_r2": noise.uniform(0, 1),
        }
        points.append(CalibrationPoint(condition=condition, gap_recovered=gap, diagnostics=known))
    return CalibrationResult(
        success=0.5,
        points=tuple(points),
        diagnostics=(
            DiagnosticResult(
                name="coverage",
                points=len(points),
                spearman=0.71,
                ci95=(0.5, 0.84),
                threshold=0.41,
                hit_rate=0.82,
                majority_rate=0.6,
            ),
            DiagnosticResult(name="input_r2", points=len(points), spearman=0.02, ci95=(-0.3, 0.3)),
        ),
    )


def similarities(targets: int = 18, sources: int = 30) -> list[list[float | None]]:
    """High along the diagonal of relative depth."""
    return [
        [math.exp(-8 * abs(t / (targets - 1) - s / (sources - 1))) for s in range(sources)]
        for t in range(targets)
    ]


def examples(task: str) -> tuple[Example, ...]:
    answers = {"base": "negative", "oracle": "positive", "transport+corpus_distill": "positive"}
    answers["cross_lora"] = "negative"
    return tuple(
        Example(
            text=f"A row of {task}, number {n}: a warm film.", label="positive", answers=answers
        )
        for n in range(3)
    )


def many_tasks() -> BenchmarkResults:
    """More tasks than a table has columns, or a chart panels."""
    tasks = [f"task_{n:03d}" for n in range(30)]
    names = ("cross_lora", "cast", "noop+few_shot")
    return results_of(
        [method_of(name, *METHODS[name][:2], tasks=tasks) for name in names],
        verdicts=verdicts(),
    )


def no_usable_task() -> BenchmarkResults:
    return results_of([method_of("cast", usable=False), method_of("pca_mlp", usable=False)])


def one_mapper() -> BenchmarkResults:
    return results_of([method_of("cast")], verdicts=verdicts()[:1])


def all_refused() -> BenchmarkResults:
    return results_of([refused("copy"), refused("rebasin", 1)])


def two_pairs() -> BenchmarkResults:
    methods = [
        method_of(name, kind, recovered, tasks=TASKS[:2], seed=seed, pair=pair, seconds=seconds)
        for pair in (PAIR, "b/../odd pair")
        for name, (kind, recovered, seconds) in list(METHODS.items())[4:7]
        for seed in (0, 1)
    ]
    grids = {PAIR: similarities(), "b/../odd pair": similarities(4, 5)}
    return results_of([*methods, refused(pair="b/../odd pair")], similarities=grids)


def nothing_known() -> BenchmarkResults:
    """Every number that may be missing is missing."""
    known = method_of("cast")
    empty = dict.fromkeys(task_of("sst2", 0.3, random.Random(0)).scores)
    lost = {
        name: task.model_copy(
            update=dict.fromkeys(TaskResult.model_fields)
            | {"usable": True, "n": 0, "scores": empty, "nll": empty}
        )
        for name, task in known.tasks.items()
    }
    nowhere = Margin(control="base", value=None, ci95=None)
    summary = Summary(
        tasks=5,
        usable=0,
        gap_recovered=None,
        ci95=None,
        gap_recovered_nll=None,
        ci95_nll=None,
        control_gaps={"mean": None},
        margin=nowhere,
        margin_over_mean=nowhere,
    )
    method = known.model_copy(update={"tasks": lost, "summary": summary, "seconds": {"fit": None}})
    condition = Condition(pair=PAIR, method="cast", task="sst2", seed=0)
    change = SuiteChange(condition=condition, metric="rate", value=None, ci95=None, n=0)
    scores = SuiteScores(condition=condition, means={"rate": None}, ci95={"rate": None})
    suite = SuiteResult(
        name="lost", items=0, metrics=("rate",), scores=(scores,), changes=(change,)
    )
    drift = Divergence(
        condition=condition, texts="generic", positions=0, kl=None, kl_p95=None, js=None, top1=None
    )
    point = CalibrationPoint(condition=condition, gap_recovered=None, diagnostics={"r2": None})
    judged = DiagnosticResult(name="r2", points=0, spearman=None, ci95=None)
    return results_of(
        [method, method.model_copy(update={"seed": 1, "summary": None, "tasks": {}})],
        suites=(suite,),
        divergences=(drift,),
        calibration=CalibrationResult(success=0.5, points=(point,), diagnostics=(judged,)),
        similarities={PAIR: [[None, None], [None, 0.5]]},
    )
