"""A benchmark that is stopped again and again ends as one that was never stopped."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loraport.evaluation.records import BenchmarkResults

from .conftest import Workspace
from .test_evaluate import evaluation, numbers

ROOT = Path(__file__).resolve().parents[2]
STOPS = 10
METHODS = "methods=[global_ridge,pertensor_ridge,cross_lora,rebasin,pca_ridge]"


def started(workspace: Workspace, cache: Path, run: Path) -> subprocess.Popen[bytes]:
    own = (f"paths.cache={cache}", f"hydra.run.dir={run}", "diagnosis=none", "seeds=[0,1]", METHODS)
    words = [
        w for w in evaluation(workspace, *own) if not w.startswith("paths.cache=") or w == own[0]
    ]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "evaluate.py"), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def work_done(cache: Path) -> int:
    """How many finished files lie in a cache."""
    return sum(1 for path in cache.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_run_that_is_stopped_ten_times_ends_with_the_same_table(
    workspace: Workspace, tmp_path: Path
):
    whole = started(workspace, tmp_path / "whole", tmp_path / "run-whole")
    begin = time.monotonic()
    _, err = whole.communicate(timeout=300)
    assert whole.returncode == 0, err.decode()
    takes = time.monotonic() - begin
    chance, broken = random.Random(0), tmp_path / "broken"
    stopped, done = 0, []
    for turn in range(STOPS):
        run = started(workspace, broken, tmp_path / f"run-{turn}")
        time.sleep(chance.uniform(0.3, 0.9) * takes)
        if run.poll() is None:
            # Half of them are stopped at the keyboard, half have their machine taken away.
            os.killpg(run.pid, signal.SIGINT if turn % 2 else signal.SIGKILL)
            stopped += 1
        run.communicate(timeout=120)
        done.append(work_done(broken))
    assert stopped >= STOPS // 2  # the later ones find so much done that they come to their end
    assert done[-1] > done[0] or done[0] > 0
    last = started(workspace, broken, tmp_path / "run-last")
    _, err = last.communicate(timeout=300)
    assert last.returncode == 0, err.decode()
    ends = [
        BenchmarkResults.read(tmp_path / name / "results.json")
        for name in ("run-whole", "run-last")
    ]
    assert numbers(ends[0]) == numbers(ends[1])
