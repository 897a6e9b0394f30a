"""What a sweep of transfer.py ends with."""

import json
from pathlib import Path

import yaml
from omegaconf import OmegaConf

from loraport.workflows.sweep_summary import SweepSummary, scored_jobs

GAINS = {"0": 0.1, "1": 0.4, "2": None}


def write_jobs(folder: Path) -> None:
    for place, (name, gain) in enumerate(GAINS.items()):
        (folder / name / "adapter").mkdir(parents=True)
        (folder / name / ".hydra").mkdir()
        asked = ["pair=local", f"sparsify.p=0.{place + 7}"]
        (folder / name / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(asked))
        row = {"accuracy": {"base": 0.5, "ported": 0.5 + (gain or 0), "oracle": 0.9}}
        scores = {"anchors": {"films": row, "plays": row}, "mean_nll_gain": gain}
        (folder / name / "adapter" / "report.json").write_text(
            json.dumps({"anchor_scores": scores})
        )


def test_the_best_job_stands_first_and_jobs_without_scores_are_left_out(tmp_path: Path) -> None:
    write_jobs(tmp_path)
    jobs = scored_jobs(tmp_path, ["sparsify.p"])
    assert [(job.folder.name, job.options) for job in jobs] == [
        ("1", "sparsify.p=0.8"),
        ("0", "sparsify.p=0.7"),
    ]


def test_it_is_printed_when_the_sweep_ends(tmp_path: Path, capsys) -> None:
    write_jobs(tmp_path)
    hydra = {"sweep": {"dir": str(tmp_path)}, "sweeper": {"params": {"sparsify.p": "0.7,0.8"}}}
    SweepSummary().on_multirun_end(OmegaConf.create({"hydra": hydra}))
    lines = capsys.readouterr().out.splitlines()
    best = next(line for line in lines if "sparsify.p" in line)
    assert best.split() == ["sparsify.p=0.8", "+0.400", "0.900", "0.500", "0.900", "1"]


def test_nothing_is_printed_without_scores(tmp_path: Path, capsys) -> None:
    hydra = {"sweep": {"dir": str(tmp_path)}, "sweeper": {"params": None}}
    SweepSummary().on_multirun_end(OmegaConf.create({"hydra": hydra}))
    assert capsys.readouterr().out == ""
