"""Sweeps on every launcher, as a user starts them; `make test-slow` runs these."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import HELD_OUT, Workspace

ROOT = Path(__file__).resolve().parents[2]
LAUNCHERS = {
    "local": (),
    "joblib": ("hydra/launcher=processes",),
    "submitit": ("hydra/launcher=slurm_here",),
    "ray": ("hydra/launcher=ray_here",),
}


def sweep(workspace: Workspace, *options: str) -> subprocess.CompletedProcess[str]:
    given = [*workspace.training(), "logger=none", "diagnosis=none", "hydra.sweep.dir=sweep"]
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *given, *options],
        cwd=workspace.root,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_learning_curve_on_every_launcher(workspace: Workspace, launcher: str) -> None:
    options = ("sweep=anchors", "mapper=mean", "data.anchors=2,3", "seed=0")
    end = sweep(workspace, *options, *LAUNCHERS[launcher])
    assert end.returncode == 0, end.stderr
    done = sorted(path.parent.name for path in (workspace.root / "sweep").glob("*/results.json"))
    assert done == ["0", "1"]
    with (workspace.root / "sweep" / "sweep.csv").open() as table:
        assert [row["data.anchors"] for row in csv.DictReader(table)] == ["2", "3"]
    for held_out in HELD_OUT:
        assert (workspace.root / "sweep" / "0" / "adapters" / held_out).is_dir()


@pytest.mark.slow
def test_a_job_that_fails_ends_the_sweep_with_its_reason(workspace: Workspace) -> None:
    end = sweep(workspace, "sweep=anchors", "mapper=mean", "data.anchors=2,99", "seed=0")
    assert end.returncode == 2
    assert "data.anchors=99, but 3 tasks of the zoo are not held out" in end.stderr
    assert (workspace.root / "sweep" / "0" / "results.json").is_file(), "the others are kept"
