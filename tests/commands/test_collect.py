import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from loraport.commands.collect import (
    SweepSummary,
    SweptJob,
    collect,
    differing,
    jobs_in,
    sweep_rows,
)
from loraport.evaluation.records import (
    BenchmarkResults,
    Condition,
    Divergence,
    Example,
    MethodResult,
    PairRecord,
    Provenance,
    SuiteResult,
    SuiteScores,
)
from loraport.exceptions import DataError

from .sweep_sample import training, write_job


def test_jobs_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("10", "9", "0"):
        job = write_job(tmp_path / "run" / name, "seed=0")
        if name != "9":
            (job / "results.json").write_text("{}")
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / "results.json").write_text("{}")
    jobs = jobs_in(tmp_path)
    assert [job.folder.name for job in jobs] == ["copied", "0", "9", "10"]
    assert [job.done for job in jobs] == [True, True, False, True]
    assert jobs[0].asked == {}


def test_a_transfer_is_done_when_its_report_is_there(tmp_path: Path) -> None:
    job = SweptJob(write_job(tmp_path / "0"))
    assert not job.done
    (tmp_path / "0" / "adapter").mkdir()
    job.transfer_report.write_text("{}")
    assert job.done


def test_what_only_keeps_books_is_no_option(tmp_path: Path) -> None:
    given = ("+mapper.rank=80", "logger=csv", "hydra.verbose=true", "output=DIR", "a=b=c")
    job = SweptJob(write_job(tmp_path / "0", *given))
    assert job.asked == {"mapper.rank": "80", "a": "b=c"}


def test_nothing_in_a_record_is_resolved(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SECRET", "hidden")
    job = SweptJob(write_job(tmp_path / "0", "objective=${oc.env:SECRET}"))
    assert job.asked == {"objective": "${oc.env:SECRET}"}


@pytest.mark.parametrize("content", [b"- [a", b"\xff\xfe", b"- !!python/object/apply:os.getcwd []"])
def test_a_record_that_is_no_list_of_words_is_named(tmp_path: Path, content: bytes) -> None:
    folder = write_job(tmp_path / "0")
    (folder / ".hydra" / "overrides.yaml").write_bytes(content)
    with pytest.raises(DataError, match=r"overrides\.yaml cannot be read"):
        _ = SweptJob(folder).asked


def test_only_options_that_differ_are_told(tmp_path: Path) -> None:
    asked = (
        ("mapper=mean", "seed=0"),
        ("mapper=mean", "seed=1"),
        ("mapper=mean", "data.anchors=4"),
    )
    jobs = [SweptJob(write_job(tmp_path / str(n), *words)) for n, words in enumerate(asked)]
    assert differing(jobs) == ["seed", "data.anchors"]
    assert differing(jobs[:1]) == []


# A multirun becomes one benchmark, and nothing is dropped in silence.


def write_training(folder: Path, *asked: str, age: int = 0, predicted: int = 45, **fields: Any):
    path = training(predicted, **fields).write(write_job(folder, *asked) / "results.json")
    os.utime(path, (1000 - age, 1000 - age))


def write_evaluation(folder: Path, *asked: str, age: int = 0, **fields: Any) -> None:
    results = training(50).as_benchmark().model_copy(update=fields)
    path = results.write(write_job(folder, *asked) / "results.json")
    os.utime(path, (1000 - age, 1000 - age))


def keys(results: BenchmarkResults) -> list[tuple[str, int, dict[str, str]]]:
    return [(method.name, method.seed, method.variant) for method in results.methods]


def test_mappers_and_seeds_are_methods_without_a_variant(tmp_path: Path) -> None:
    for place, (mapper, seed) in enumerate(
        (mapper, seed) for mapper in ("mean", "global_ridge") for seed in (0, 1)
    ):
        asked = (f"mapper={mapper}", f"seed={seed}", "tasks.limit=16", "logger=csv")
        write_training(tmp_path / str(place), *asked, mapper=mapper, seed=seed)
    found = collect(tmp_path)
    assert keys(found.results) == [
        *(("mean", 0, {}), ("mean", 1, {}), ("global_ridge", 0, {}), ("global_ridge", 1, {}))
    ]
    assert found.warnings == ()
    assert list(found.results.pairs) == ["tiny"]
    method = found.results.methods[0]
    assert method.summary == training(45).summary
    assert method.tasks == training(45).tasks
    assert method.seconds == {"fit": 1.5}
    assert found.results.timing == {"fit": 6.0}


def test_other_options_that_differ_are_the_variant(tmp_path: Path) -> None:
    for place, anchors in enumerate((4, 8, 12)):
        asked = (f"data.anchors={anchors}", "seed=0", "pair=tiny", f"paths.cache=/c{place}")
        write_training(tmp_path / str(place), *asked, predicted=40 + anchors)
    results = collect(tmp_path).results
    assert [method.variant for method in results.methods] == [
        *({"data.anchors": "4"}, {"data.anchors": "8"}, {"data.anchors": "12"})
    ]
    gaps = [method.summary.gap_recovered for method in results.methods if method.summary]
    assert gaps == pytest.approx([14 / 30, 18 / 30, 22 / 30])


def test_jobs_that_failed_and_transfers_are_named(tmp_path: Path) -> None:
    write_training(tmp_path / "0", "mapper=mean")
    write_job(tmp_path / "1", "mapper=pca_mlp", "data.anchors=99")
    (write_job(tmp_path / "2", "adapter=DIR") / "adapter").mkdir()
    (tmp_path / "2" / "adapter" / "report.json").write_text("{}")
    failed, transfer = collect(tmp_path).warnings
    assert failed == (
        "run 1 has no results.json: it failed or goes on (mapper=pca_mlp data.anchors=99)"
    )
    assert transfer.startswith("run 2 is one of transfer.py")


@pytest.mark.parametrize("newer", ["0", "1"])
def test_of_two_runs_of_the_same_the_newer_one_counts(tmp_path: Path, newer: str) -> None:
    for name, predicted in (("0", 40), ("1", 50)):
        write_training(
            tmp_path / name, "seed=0", predicted=predicted, age=0 if name == newer else 9
        )
    found = collect(tmp_path)
    [method] = found.results.methods
    assert method.tasks["trec"].scores["predicted"] == {"0": 0.4, "1": 0.5}[newer]
    [warning] = found.warnings
    assert "global_ridge on tiny, seed 0, is in the runs" in warning
    assert warning.endswith(f"{tmp_path / newer}; the latter, which is newer, counts")


def test_the_same_evidence_twice_is_no_warning(tmp_path: Path) -> None:
    write_training(tmp_path / "0", "seed=0")
    write_training(tmp_path / "1", "seed=0")
    assert len(collect(tmp_path).results.methods) == 1
    assert collect(tmp_path).warnings == ()


def condition(method: str, seed: int | None = None) -> Condition:
    return Condition(
        pair="tiny", method=method, task="trec" if seed is not None else None, seed=seed
    )


def suite(*means: tuple[Condition, float], items: int = 20) -> SuiteResult:
    scores = tuple(SuiteScores(condition=c, means={"acc": m}, ci95={"acc": None}) for c, m in means)
    return SuiteResult(name="reasoning", items=items, metrics=("acc",), scores=scores)


def divergence(seed: int, kl: float) -> Divergence:
    given: dict[str, Any] = {
        "texts": "generic",
        "positions": 8,
        "kl_p95": 1.0,
        "js": 0.1,
        "top1": 0.5,
    }
    return Divergence(condition=condition("default", seed), kl=kl, **given)


def test_runs_of_evaluate_are_merged(tmp_path: Path) -> None:
    base = condition("base")
    for seed in (0, 1):
        answers = {"base": "no", f"method{seed}": "yes"}
        write_evaluation(
            tmp_path / str(seed),
            f"seed={seed}",
            methods=(training(50, seed=seed).as_benchmark().methods[0],),
            suites=(suite((base, 0.3), (condition("default", seed), 0.5 + seed / 10)),),
            divergences=(divergence(seed, 0.1 + seed),),
            examples={"trec": (Example(text="who ?", label="person", answers=answers),)},
            similarities={"tiny": [[0.1, 0.9]]},
        )
    found = collect(tmp_path)
    assert found.warnings == ()
    assert [method.seed for method in found.results.methods] == [0, 1]
    [merged] = found.results.suites
    assert [(s.condition.method, s.means["acc"]) for s in merged.scores] == [
        *(("base", 0.3), ("default", 0.5), ("default", 0.6))
    ]
    assert [d.kl for d in found.results.divergences] == [0.1, 1.1]
    [example] = found.results.examples["trec"]
    assert example.answers == {"base": "no", "method0": "yes", "method1": "yes"}
    assert found.results.similarities == {"tiny": [[0.1, 0.9]]}
    assert found.results.verdicts == ()


def test_suites_with_other_items_and_other_scores_are_told(tmp_path: Path) -> None:
    base = condition("base")
    write_evaluation(tmp_path / "0", "tasks.limit=5", suites=(suite((base, 0.1), items=5),), age=20)
    write_evaluation(tmp_path / "1", suites=(suite((base, 0.3)),), age=10)
    write_evaluation(tmp_path / "2", suites=(suite((base, 0.4)),))
    found = collect(tmp_path)
    [merged] = found.results.suites
    assert (merged.items, [s.means["acc"] for s in merged.scores]) == (20, [0.4])
    assert any("other items in the runs 0" in warning for warning in found.warnings)
    assert any("a score of the suite reasoning differs" in warning for warning in found.warnings)


def test_runs_of_other_versions_are_told(tmp_path: Path) -> None:
    write_training(tmp_path / "0", "seed=0")
    other = Provenance(versions={"torch": "2.99.0"})
    write_training(tmp_path / "1", "seed=1", seed=1, provenance=other)
    assert collect(tmp_path).warnings == ("the runs differ in their versions of torch",)


def test_two_pairs_of_one_name_are_refused(tmp_path: Path) -> None:
    write_training(tmp_path / "0", "seed=0")
    other = PairRecord(name="tiny", source="tiny-source", target="another")
    write_training(tmp_path / "1", "seed=1", seed=1, pair=other)
    with pytest.raises(DataError, match=r"pair=tiny is tiny-source -> tiny-target in one run and"):
        collect(tmp_path)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    write_job(tmp_path / "0")
    with pytest.raises(DataError, match=r"no run under .* has a results\.json"):
        collect(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (write_job(tmp_path / "0") / "results.json").write_text("{")
    with pytest.raises(DataError, match=r"0/results\.json cannot be read .* the results of a run"):
        collect(tmp_path)


def test_methods_keep_variants_of_their_own(tmp_path: Path) -> None:
    method: MethodResult = training(50).as_benchmark().methods[0]
    own = method.model_copy(update={"variant": {"scale": "0.5"}})
    write_evaluation(tmp_path / "0", "output_rank=16", methods=(own,))
    write_evaluation(tmp_path / "1", "output_rank=32", methods=(own,))
    variants = [method.variant for method in collect(tmp_path).results.methods]
    assert variants == [
        *({"output_rank": "16", "scale": "0.5"}, {"output_rank": "32", "scale": "0.5"})
    ]


# What a sweep ends with.

GAINS = {"0": 0.1, "1": 0.4, "2": None}


def write_transfers(folder: Path) -> None:
    for place, (name, gain) in enumerate(GAINS.items()):
        write_job(folder / name, "pair=local", f"sparsify.p=0.{place + 7}")
        (folder / name / "adapter").mkdir()
        row = {"accuracy": {"base": 0.5, "ported": 0.5 + (gain or 0), "oracle": 0.9}}
        scores = {"anchors": {"films": row, "plays": row}, "mean_nll_gain": gain}
        report = {"anchor_scores": scores, "timing": {"port": 1.25}}
        (folder / name / "adapter" / "report.json").write_text(json.dumps(report))


def write_trainings(folder: Path, objectives: dict[str, float] | None = None) -> None:
    """Runs whose held-out gap rises with the number of anchors."""
    for place, anchors in enumerate(("12", "4", "8")):
        job = write_job(folder / str(place), "pair=tiny", f"data.anchors={anchors}")
        report = {"objective": {"value": objectives[anchors]}} if objectives else {}
        found = training(40 + int(anchors), mapper_report=report)
        found.write(job / "results.json")


def end(folder: Path, params: dict[str, str] | None = None, *, best_first: bool = True) -> None:
    hydra = {"sweep": {"dir": str(folder)}, "sweeper": {"params": params}}
    SweepSummary(best_first).on_multirun_end(OmegaConf.create({"hydra": hydra}))


def lines(text: str, mark: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if mark in line]


def test_the_best_transfer_stands_first(tmp_path: Path, capsys) -> None:
    write_transfers(tmp_path)
    end(tmp_path, {"sparsify.p": "0.7,0.8,0.9"})
    out = capsys.readouterr().out
    assert lines(out, "0.900") == [
        ["0.8", "+0.400", "0.900", "0.500", "0.900", "1.2", "1"],
        ["0.7", "+0.100", "0.600", "0.500", "0.900", "1.2", "0"],
    ]


def test_a_curve_keeps_the_order_of_its_option(tmp_path: Path, capsys) -> None:
    write_transfers(tmp_path)
    end(tmp_path, {"sparsify.p": "0.7,0.8,0.9"}, best_first=False)
    assert [line[-1] for line in lines(capsys.readouterr().out, "0.900")] == ["0", "1"]


def test_a_learning_curve_goes_from_few_anchors_to_many(tmp_path: Path, capsys) -> None:
    write_trainings(tmp_path)
    end(tmp_path, {"data.anchors": "4,8,12"})
    out = capsys.readouterr().out
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["data.anchors"] for row in rows] == ["4", "8", "12"]
    gaps = [float(row["gap recovered"]) for row in rows]
    assert gaps == pytest.approx([14 / 30, 18 / 30, 22 / 30])
    assert "never by these" in out, "held-out tasks are nothing to choose by"


def test_runs_that_choose_are_ordered_by_the_objective_and_not_by_the_gap(tmp_path: Path) -> None:
    write_trainings(tmp_path, {"4": 0.2, "8": 0.9, "12": 0.5})
    rows = sweep_rows(jobs_in(tmp_path), ["data.anchors"], best_first=True)
    assert [row.options["data.anchors"] for row in rows] == ["4", "12", "8"]
    assert [row.numbers["objective"] for row in rows] == [0.2, 0.5, 0.9]


def test_jobs_without_results_are_named(tmp_path: Path, capsys) -> None:
    write_trainings(tmp_path)
    write_job(tmp_path / "3", "data.anchors=99")
    end(tmp_path)
    assert "without results: 3" in capsys.readouterr().out


def test_nothing_is_printed_without_scores(tmp_path: Path, capsys) -> None:
    end(tmp_path)
    assert capsys.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []
