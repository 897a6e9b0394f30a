"""What is left of two adapters of one model when they are merged into one, by every method.

``python -m benchmarks.merging --tasks-folder DIR --zoo DIR`` merges the target's own adapters of
two tasks, each method with its default options, and scores the result on both.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import platformdirs
from rich.console import Console

from loraport.adapters import LoraAdapter, read_adapter
from loraport.commands.context import quiet_libraries
from loraport.data import TaskFolder
from loraport.evaluation.scoring import LikelihoodScorer, ScoreCache
from loraport.settings import load
from loraport.store import Store

from .setting import TEMPLATE

METHODS = ("linear", "weight_average", "ties", "dare", "dare_ties", "do_merge")


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", default="smollm2_gemma3", help="a file of conf/pair")
    parser.add_argument("--side", default="target", choices=("source", "target"))
    parser.add_argument("--tasks-folder", required=True, help="NAME/task.json, NAME/*.jsonl")
    parser.add_argument("--zoo", required=True, help="source/NAME and target/NAME, PEFT folders")
    parser.add_argument("--tasks", nargs=2, default=["trec", "bbc_news"])
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument(
        "--cache",
        default=os.environ.get("LORAPORT_CACHE") or str(platformdirs.user_cache_path("loraport")),
    )
    return parser.parse_args()


def conditions(
    options: argparse.Namespace, own: list[LoraAdapter]
) -> Iterator[tuple[str, LoraAdapter | None, float]]:
    """Give a name, an adapter, and the energy that cutting it back to a rank lost."""
    yield "no adapter", None, 0.0
    for name, adapter in zip(options.tasks, own, strict=True):
        yield f"{name} alone", adapter, 0.0
    for method in METHODS:
        for rank in (None, own[0][next(iter(own[0]))].rank):
            merged = _settings(options, method).merge.method.build()(own, rank=rank)
            at = "sum of the ranks" if rank is None else f"rank {rank}"
            yield f"`{method}`, {at}", merged.adapter, merged.total_lost_energy


def _settings(options: argparse.Namespace, method: str) -> Any:
    return load("transfer", [f"pair={options.pair}", f"merge={method}", "adapter=given"])


def main() -> None:
    """Merge, score and print a Markdown table."""
    quiet_libraries()
    options = arguments()
    cache = Path(options.cache)
    own = [read_adapter(Path(options.zoo) / options.side / name) for name in options.tasks]
    tasks = [
        task.limited(options.rows)
        for task in TaskFolder(options.tasks_folder).load(list(options.tasks)).values()
    ]
    base = getattr(_settings(options, "linear").pair, options.side).build().load(cache)
    scores = ScoreCache(Store(cache), LikelihoodScorer(), TEMPLATE)
    console = Console(width=200)
    console.print(f"| adapter | {' | '.join(options.tasks)} | mean | lost energy |")
    console.print("|---|---|---|---|---|")
    for name, adapter, lost in conditions(options, own):
        accuracy = [scores.score(base, adapter, task).accuracy for task in tasks]
        cells = [f"{value:.3f}" for value in (*accuracy, sum(accuracy) / len(accuracy))]
        console.print(f"| {name} | {' | '.join(cells)} | {lost:.2f} |", highlight=False)


if __name__ == "__main__":
    main()
