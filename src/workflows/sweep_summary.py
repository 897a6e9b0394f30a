"""After a sweep of ``transfer.py``: which options did best on the anchors."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich import box
from rich.console import Console
from rich.table import Table

_PIPED_WIDTH = 120


class Job(NamedTuple):
    """One job of a sweep: its folder, what it was asked, and what it scored on the anchors."""

    folder: Path
    options: str
    scores: dict[str, Any]


class SweepSummary(Callback):
    """Prints the jobs of a sweep, the best first, by their mean gain in log-likelihood.

    It reads the reports that the jobs wrote, so that it does not matter which process ran them.
    """

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Gather the jobs under the sweep's folder and print them."""
        jobs = scored_jobs(Path(config.hydra.sweep.dir), list(config.hydra.sweeper.params or {}))
        if jobs:
            console = Console()
            if not console.is_terminal:
                console = Console(width=_PIPED_WIDTH)
            console.print(summary(jobs))


def scored_jobs(folder: Path, swept: list[str]) -> list[Job]:
    """Return the jobs that were scored on anchors, the best first."""
    jobs = []
    for path in sorted(folder.glob("*/adapter/report.json")):
        report = json.loads(path.read_text(encoding="utf-8"))
        scores = report.get("anchor_scores", {})
        if scores.get("mean_nll_gain") is not None:
            asked = OmegaConf.load(path.parents[1] / ".hydra" / "overrides.yaml")
            told = [str(word) for word in asked if str(word).partition("=")[0] in swept]
            jobs.append(Job(path.parents[1], " ".join(told or map(str, asked)), scores))
    return sorted(jobs, key=lambda job: -job.scores["mean_nll_gain"])


def summary(jobs: list[Job]) -> Table:
    """Return a table of the jobs with their means over the anchors."""
    table = Table(
        title="scores on the anchors, mean over tasks; the options to take stand first",
        caption="NLL gain: of the right label, ported against the target as it is, in nats",
        box=box.SIMPLE_HEAD,
        show_edge=False,
    )
    table.add_column("options")
    for heading in ("NLL gain", "accuracy", "base", "oracle", "run"):
        table.add_column(heading, justify="right")
    for job in jobs:
        rows = job.scores["anchors"].values()
        means = [
            sum(row["accuracy"][name] for row in rows) / len(rows)
            for name in ("ported", "base", "oracle")
        ]
        gain = f"{job.scores['mean_nll_gain']:+.3f}"
        table.add_row(job.options, gain, *(f"{mean:.3f}" for mean in means), job.folder.name)
    return table
