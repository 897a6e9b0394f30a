import json
import math
import platform
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from loraport.evaluation.records import (
    AdapterRecord,
    Geometry,
    IntersectionMap,
    LayerConfidence,
    MeasureMap,
    ModuleFit,
    PairRecord,
    Probes,
    Provenance,
    Results,
    StepRecord,
    TaskResult,
    TransferReport,
    TransportCell,
    git_revision,
    library_versions,
    plain,
)
from loraport.evaluation.records import CompatibilityVerdict as Verdict
from loraport.exceptions import DataError

from .benchmark_sample import full_benchmark
from .conftest import conditions, results_of


def rewritten(path: Path, **changes: object) -> Path:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in (content | changes).items() if v is not ...}))
    return path


@pytest.fixture
def path(results, tmp_path):
    return results.write(tmp_path / "results.json")


def test_the_file_has_the_fields_of_the_format(path):
    content = json.loads(path.read_text())
    assert content["schema"] == 1
    assert set(content) == {
        *("schema", "command", "config", "pair", "mapper", "data_access", "space", "seed"),
        *("controls", "tasks", "summary", "mapper_report", "timing", "provenance"),
    }
    task = content["tasks"]["emotion"]
    assert task["scores"]["predicted"] == 0.5
    assert task["gap_recovered"] == pytest.approx(2 / 3)
    assert len(task["ci95"]) == 2
    assert content["tasks"]["trec"]["gap_recovered"] is None
    assert content["tasks"]["trec"]["ci95"] is None


def test_undefined_numbers_become_null(results, tmp_path):
    task = results.tasks["emotion"].model_dump()
    task |= {"retention": math.nan, "ci95": (0.1, math.inf)}
    task["nll"] |= {"random": -math.inf}
    odd = TaskResult(**task)
    changed = Results(
        **(results.model_dump(exclude={"schema_version"}) | {"tasks": {"emotion": odd}})
        | {"mapper_report": {"strengths": [math.inf, 0.5]}, "timing": {"fit": math.nan}}
    )
    text = changed.write(tmp_path / "results.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    read = Results.read(tmp_path / "results.json")
    assert read.tasks["emotion"].retention is None
    assert read.tasks["emotion"].ci95 is None, "an interval without an end is none"
    assert read.tasks["emotion"].nll["random"] is None
    assert read.mapper_report == {"strengths": [None, 0.5]}
    assert read.timing == {"fit": None}


def test_an_unknown_schema_version_is_refused(path):
    with pytest.raises(DataError, match=r"schema version 2, but this release reads version 1"):
        Results.read(rewritten(path, schema=2))
    with pytest.raises(DataError, match=r"schema version None"):
        Results.read(rewritten(path, schema=...))


def test_what_is_no_such_file_is_refused_and_the_field_is_named(path, tmp_path):
    with pytest.raises(DataError, match=r"none\.json cannot be read"):
        Results.read(tmp_path / "none.json")
    odd = rewritten(path, seed=..., sed=0, pair={"name": "tiny"})
    with pytest.raises(DataError) as caught:
        Results.read(odd)
    for said in ("seed: Field required", "sed: Extra inputs", "pair.source: Field required"):
        assert said in str(caught.value)


def test_only_plain_data_is_plain():
    assert plain({"a": (1, Path("x"), None, True)}) == {"a": [1, "x", None, True]}
    with pytest.raises(ValueError, match="not Tensor"):
        plain({"a": torch.zeros(1)})


def test_a_file_from_before_there_were_cartridges_is_read(results, tmp_path):
    path = results.write(tmp_path / "results.json")
    content = json.loads(path.read_text())
    for field in ("cartridge_gap", "cartridge_gap_nll"):
        del content["summary"][field]
    path.write_text(json.dumps(content))
    assert Results.read(path).summary.cartridge_gap is None


def record(place: str | None = "adapters/books", **fields: Any) -> AdapterRecord:
    given: dict[str, Any] = {
        "place": place,
        "base_model": "pico/source",
        "sites": 4,
        "roles": ("q", "v"),
        "ranks": (2, 8),
        "norm": 1.5,
        "sha256": "ab" * 32,
    }
    return AdapterRecord(**(given | fields))


def site(kept: float, **facts: Any) -> dict[str, Any]:
    return {"source": "0.q", "norm": 2.0, "kept_norm": kept, **facts}


def report_of(**fields: Any) -> TransferReport:
    given: dict[str, Any] = {
        "config": {
            "mapper": {"_target_": "loraport.mappers.cross_lora.CrossLoraMapper", "rank": 320},
            "ckpt": None,
            "sparsify": {},
            "scale": 1.0,
            "output_rank": None,
            "dtype": "float32",
            "seed": 0,
            "paths": {"cache": "somewhere/private"},
        },
        "pair": PairRecord(name="local", source="pico/source", target="pico/target"),
        "mapper": "cross_lora",
        "data_access": "weights only",
        "adapters": (record(),),
        "mapping": (
            {
                "dropped_sites": [],
                "dropped_energy": 0.0,
                "repeated_sites": 0,
                "sites": {
                    "0.q": site(0.25, source_energy_kept=0.9),
                    "1.q": site(0.75, source_energy_kept=0.7),
                    "0.v": site(0.5),
                },
            },
        ),
        "output": record(None, base_model="pico/target", sites=3, ranks=(2, 2)),
        "dtype": "float32",
        "scale": 1.0,
        "verification": {
            "sites": 3,
            "smallest_norm": 0.5,
            "largest_norm": 2.0,
            "logit_change": 0.125,
            "changed_top_token": 0.25,
        },
        "timing": {"port": 1.25},
        "provenance": Provenance(
            versions={"torch": "2.13.0"},
            hashes={"source model": "cd" * 32},
            revisions={"checkout": None},
        ),
    }
    return TransferReport(**(given | fields))


def grid(targets: int, sources: int, best: float = 0.5) -> tuple[tuple[float, ...], ...]:
    """Highest where target and source lie equally deep."""
    return tuple(
        tuple(
            best - abs(t / max(targets - 1, 1) - s / max(sources - 1, 1)) / 2
            for s in range(sources)
        )
        for t in range(targets)
    )


def content_of(targets: int = 2, sources: int = 3, **fields: Any) -> IntersectionMap:
    given: dict[str, Any] = {
        "config": {"probes": {}, "force": False, "paths": {"cache": "somewhere/private"}},
        "pair": PairRecord(name="local", source="pico/source", target="pico/<target>"),
        "probes": Probes(name="sentences", texts=90, aligned=4000, rows=300, tokens=120),
        "verdict": Verdict(
            coverage=1.0,
            minimum=0.5,
            identification=0.5,
            compatible=True,
            forced=False,
            words="Compatible: all layers.",
        ),
        "measures": {
            name: MeasureMap(
                title=title,
                raw=grid(targets, sources, 0.6),
                calibrated=grid(targets, sources),
                rows=300,
            )
            for name, title in (("mutual_knn", "mutual k-NN"), ("rsa", "RSA"))
        },
        "transport": (
            TransportCell(target=0, source=1, rows=50, diagonal_mass=0.25, matched=0.5, ratio=0.75),
        ),
        "layers": tuple(
            LayerConfidence(
                target=t,
                source=t,
                similarity=0.4,
                covered=t == 0,
                agreement=1.0,
                procrustes_error=0.3,
            )
            for t in range(targets)
        ),
        "geometry": Geometry(mean_error=0.3, max_error=0.4, roughness=0.7, anchor_coverage=0.9),
        "pairing": (((0, 1.0),), ((1, 0.25), (2, 0.75)), *((),) * (targets - 2)),
        "pairing_name": "many_to_one",
        "modules": (
            ModuleFit(target="0.q", source="0.q", inputs=0.5, outputs=0.25),
            ModuleFit(target="1.q", source="2.q", inputs=0.7, outputs=-0.25),
        ),
        "warnings": ("mind <this>",),
        "timing": {"compare": 1.25},
        "provenance": Provenance(versions={"torch": "2"}, hashes={"source model": "cd" * 32}),
    }
    return IntersectionMap(**(given | fields))


@pytest.mark.parametrize(
    ("content", "schema", "command"),
    [
        (
            report_of(
                steps=(
                    StepRecord(name="merge", lost_energy=0.1, sites={"0.q": {"lost_energy": 0.1}}),
                ),
                merged_with=(record("films", base_model="pico/target"),),
                anchor_scores={"mean_nll_gain": 0.5},
                warnings=("mind this",),
            ),
            *(2, "transfer"),
        ),
        (content_of(), 1, "diagnose"),
        (full_benchmark(), 1, "evaluate"),
        (results_of({"task": conditions(30, 50, 60)}), 1, "train"),
    ],
)
def test_every_file_is_read_as_it_was_written(content, schema, command, tmp_path: Path) -> None:
    path = content.write(tmp_path / "file.json")
    assert type(content).read(path) == content
    plain = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert (plain["schema"], plain["command"]) == (schema, command)


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_versions_are_those_that_run():
    versions = library_versions()
    assert (versions["python"], versions["torch"]) == (platform.python_version(), torch.__version__)


def test_the_revision_is_the_commit_and_tells_changes(tmp_path, monkeypatch):
    (tmp_path / "site-packages").mkdir()
    git(tmp_path, "init", "--quiet")
    assert git_revision(tmp_path) is None
    (tmp_path / "file").write_text("one")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_revision(tmp_path) == commit
    (tmp_path / "file").write_text("two")
    assert git_revision(tmp_path) == f"{commit}+changes"
    # A folder inside another checkout has none.
    assert git_revision(tmp_path / "site-packages") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision(tmp_path) is None
