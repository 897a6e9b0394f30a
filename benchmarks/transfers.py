"""How well each weights-only mapper ports adapters of held-out tasks, beside its controls.

``python -m benchmarks.transfers --tasks-folder DIR --zoo DIR`` ports the source adapters of a zoo
with every method and scores them on the target. A method is a mapper with its overrides, such as
``cross_lora:mapper.variant=typed``. Scores are kept, so that it goes on where it was stopped.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from rich.console import Console
from rich.progress import track

from loraport.adapters import LoraAdapter
from loraport.data import AnchorSet, Task, ZooPairs
from loraport.evaluation.controls import swapped
from loraport.evaluation.scoring import TaskScore
from loraport.files import write_whole
from loraport.mappers import WeightMapper
from loraport.mappers.mean import MeanMapper
from loraport.reporting.assembly import summarise
from loraport.reporting.verdict import interval_text
from loraport.workflows.building import Workbench, build
from loraport.workflows.plan import Plan
from loraport.workflows.quiet import quiet_libraries
from loraport.workflows.transfer import base_pair

METHODS = (
    *("copy", "cross_lora:mapper.variant=typed", "cross_lora", "rebasin"),
    *("optimal_transport", "embedding_ridge"),
)
HELD_OUT = ("emotion", "tweet_emotion", "bbc_news", "ethos_binary", "trec")
Scores = dict[str, dict[str, TaskScore]]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", default="smollm2_gemma3", help="a file of conf/pair")
    parser.add_argument("--tasks-folder", required=True, help="NAME/task.json, NAME/*.jsonl")
    parser.add_argument("--zoo", required=True, help="source/NAME and target/NAME, PEFT folders")
    parser.add_argument("--backwards", action="store_true", help="the zoo's target is the source")
    parser.add_argument("--tasks", nargs="+", default=["emotion", "bbc_news", "trec"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--output", type=Path, help="where the numbers go as JSON")
    return parser.parse_args()


def bench_for(options: argparse.Namespace, method: str) -> Workbench:
    """Compose the configuration of ``transfer.py`` for one method."""
    name, _, rest = method.partition(":")
    sides = ("target", "source") if options.backwards else ("source", "target")
    overrides = [
        *(f"mapper={name}", f"pair={options.pair}", "adapter=given"),
        f"paths.zoo_source={options.zoo}/{sides[0]}",
        f"paths.zoo_target={options.zoo}/{sides[1]}",
        f"paths.tasks={options.tasks_folder}",
        *(rest.split(",") if rest else ()),
    ]
    with initialize_config_module("loraport.conf", version_base="1.3"):
        return Workbench(compose("transfer", overrides=overrides))


def ported(bench: Workbench, adapters: dict[str, LoraAdapter]) -> dict[str, LoraAdapter]:
    """Port every adapter."""
    mapper: Any = build(bench.config.mapper)
    pair = base_pair(bench)
    if isinstance(mapper, WeightMapper):
        mapper.use(pair)
    porting = Plan.of(bench.config).porting(mapper, pair)
    return {name: porting.port([adapter]).adapter for name, adapter in adapters.items()}


def conditions(
    options: argparse.Namespace, zoo: ZooPairs, given: dict[str, LoraAdapter]
) -> Iterator[tuple[str, dict[str, LoraAdapter | None]]]:
    """Give what is scored on the target: a name, and an adapter a task."""
    oracles = {name: zoo.target[name] for name in given}
    anchors = [name for name in zoo.source if name not in HELD_OUT]
    mean = MeanMapper()
    mean.fit(AnchorSet.of(zoo, anchors))
    yield "base", dict.fromkeys(given)
    yield "oracle", dict(oracles)
    yield "mean", {name: mean.map(adapter) for name, adapter in given.items()}
    yield "random", dict(ported(bench_for(options, "random"), given))
    others = swapped(given, [])
    for method in options.methods:
        bench = bench_for(options, method)
        yield method, dict(ported(bench, given))
        yield f"swapped {method}", dict(ported(bench, others))


def scored(options: argparse.Namespace) -> Scores:
    """Return the score of every task under every condition."""
    bench = bench_for(options, "noop")
    zoo, tasks = bench.zoo().read(None), rows(bench, options)
    given = {name: zoo.source[name] for name in options.tasks}
    found: Scores = {name: {} for name in options.tasks}
    source = bench.model("source")
    for condition, adapters in (("source_base", dict.fromkeys(given)), ("source", given)):
        for name in options.tasks:
            found[name][condition] = bench.scores.score(source, adapters[name], tasks[name])
    del source
    target = bench.model("target")
    for condition, made in conditions(options, zoo, given):
        for name in track(options.tasks, condition, console=Console(stderr=True), transient=True):
            found[name][condition] = bench.scores.score(target, made[name], tasks[name])
        line = ", ".join(f"{n} {found[n][condition].accuracy:.3f}" for n in options.tasks)
        Console(stderr=True).print(f"{condition}: {line}", highlight=False)
    return found


def rows(bench: Workbench, options: argparse.Namespace) -> dict[str, Task]:
    """Return the tasks with so many test rows."""
    loaded = bench.task_source().load(list(options.tasks))
    return {name: task.limited(options.rows) for name, task in loaded.items()}


def table(found: Scores) -> Iterator[str]:
    """Give the lines of a Markdown table, one condition a line."""
    tasks = list(found)
    yield f"| condition | {' | '.join(tasks)} | mean | gap recovered, 95 % | NLL gap, 95 % |"
    yield "|---" * (len(tasks) + 4) + "|"
    for condition in next(iter(found.values())):
        accuracy = [found[name][condition].accuracy for name in tasks]
        cells = [condition, *(f"{value:.3f}" for value in accuracy)]
        cells.append(f"{sum(accuracy) / len(accuracy):.3f}")
        cells += ["", ""] if condition in ("source_base", "source") else gaps(found, condition)
        yield f"| {' | '.join(cells)} |"


def gaps(found: Scores, condition: str) -> list[str]:
    """Return the mean gap recovered by accuracy and by likelihood, with intervals."""
    shown = {name: {**scores, "predicted": scores[condition]} for name, scores in found.items()}
    summary = summarise(shown, ("mean", "random"), 0)
    if condition in ("base", "oracle"):
        return [f"{float(condition == 'oracle'):.0f}"] * 2
    return [
        "-" if value is None else f"{value:.2f} {interval_text(ends)}"
        for value, ends in (
            (summary.gap_recovered, summary.ci95),
            (summary.gap_recovered_nll, summary.ci95_nll),
        )
    ]


def main() -> None:
    """Score everything and print the table."""
    quiet_libraries()
    options = arguments()
    found = scored(options)
    if options.output is not None:
        numbers = {
            name: {c: {"accuracy": s.accuracy, "nll": s.nll} for c, s in scores.items()}
            for name, scores in found.items()
        }
        write_whole(options.output, json.dumps(numbers, indent=1) + "\n")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
