"""How well mappers port adapters of held-out tasks, beside their controls.

``python -m benchmarks.transfers --tasks-folder DIR --zoo DIR`` ports the source adapters of a zoo
with every method and scores them on the target. A method is

- a mapper that needs nothing to be trained, with its overrides, such as
  ``cross_lora:mapper.variant=typed``, or
- a name and the checkpoint of a mapper that ``train.py`` has fitted, such as
  ``cast=runs/cast/mapper.ckpt``; one that makes cartridges is scored as a cartridge as well.

Beside each method stands the same with another task's adapter, and first of all base, oracle, the
anchors' mean adapter, ``copy`` and ``random``. Scores are kept and printed as they come, so that
it goes on where it was stopped. ``--pair tiny`` needs no folders.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import track

from loraport.adapters import LoraAdapter
from loraport.commands.anchors import CPU_TRAINER, builds_zoo, train_zoo
from loraport.commands.context import RunContext, quiet_libraries
from loraport.commands.port import base_pair
from loraport.commands.porting import porting_for
from loraport.data import AnchorSet, Task, ZooPairs
from loraport.data.zoo import SIDES
from loraport.evaluation.assembly import summarise
from loraport.evaluation.records import interval_text
from loraport.evaluation.scoring import TaskScore, swapped
from loraport.files import write_whole
from loraport.mappers import Mapper, load_mapper
from loraport.mappers.controls import MeanMapper
from loraport.models.hooks import Attachable
from loraport.settings import load

METHODS = (*("cross_lora:mapper.variant=typed", "cross_lora", "rebasin", "optimal_transport"),)
CONTROLS = ("copy", "random")
Scores = dict[str, dict[str, TaskScore]]
Adapters = Mapping[str, LoraAdapter | Attachable | None]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", default="smollm2_gemma3", help="a file of conf/pair")
    parser.add_argument("--tasks-folder", help="NAME/task.json, NAME/*.jsonl")
    parser.add_argument("--zoo", help="source/NAME and target/NAME, PEFT folders")
    parser.add_argument("--backwards", action="store_true", help="the zoo's target is the source")
    parser.add_argument("--tasks", nargs="+", help="of the zoo; by default the held-out ones")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), metavar="METHOD")
    parser.add_argument("--controls", nargs="*", default=list(CONTROLS), help="more methods")
    parser.add_argument("--rows", type=int, default=300, help="test rows of each task")
    parser.add_argument("--output", type=Path, help="where the numbers go as JSON")
    return parser.parse_args()


def checkpoint(method: str) -> Path | None:
    """Return the checkpoint that a method names; None of a mapper with overrides."""
    name, _, path = method.partition("=")
    return Path(path).expanduser() if path and ":" not in name else None


def benchmark_for(options: argparse.Namespace, method: str) -> RunContext:
    """Compose the configuration of ``transfer.py`` for one method."""
    name, _, rest = method.partition(":")
    path = checkpoint(method)
    # The name that a checkpoint is given need not be a mapper's.
    overrides = [f"pair={options.pair}", "adapter=given", "diagnosis=none"]
    overrides += [f"ckpt={path}"] if path else [f"mapper={name}", *filter(None, rest.split(","))]
    if options.zoo:
        sides = SIDES[::-1] if options.backwards else SIDES
        for side, place in zip(SIDES, sides, strict=True):
            overrides.append(f"paths.zoo_{side}={options.zoo}/{place}")
    if options.tasks_folder:
        overrides.append(f"paths.tasks={options.tasks_folder}")
    return RunContext(load("transfer", overrides))


class Method:
    """A mapper, ready to port the adapters of a zoo.

    Args:
        options: The command line.
        name: What the command line calls it.

    Raises:
        LoraportError: it cannot be built or loaded, or was fitted for another pair.
    """

    def __init__(self, options: argparse.Namespace, name: str) -> None:
        context, path = benchmark_for(options, name), checkpoint(name)
        self.mapper: Mapper = context.settings.mapper.build() if path is None else load_mapper(path)
        pair = base_pair(context)
        self.mapper.use(pair)
        self.porting = porting_for(context.settings, self.mapper, pair.target.sites)

    def ported(self, adapters: Mapping[str, LoraAdapter]) -> dict[str, LoraAdapter]:
        """Port every adapter."""
        return {name: self.porting.port([adapter]).adapter for name, adapter in adapters.items()}


def conditions(
    options: argparse.Namespace, zoo: ZooPairs, held_out: set[str], given: dict[str, LoraAdapter]
) -> Iterator[tuple[str, Adapters]]:
    """Give what is scored on the target: a name, and an adapter a task."""
    yield "base", dict.fromkeys(given)
    yield "oracle", {name: zoo.target[name] for name in given}
    mean = MeanMapper()
    mean.fit(AnchorSet.of(zoo, [name for name in zoo.source if name not in {*held_out, *given}]))
    yield "mean", {name: mean.map(adapter) for name, adapter in given.items()}
    others = swapped(given, [])
    for name in dict.fromkeys([*options.controls, *options.methods]):
        method, shown = Method(options, name), name.partition("=")[0] if checkpoint(name) else name
        mapper = method.mapper
        yield shown, method.ported(given)
        if name != "random":
            yield f"swapped {shown}", method.ported(others)
        if mapper.has_cartridge:
            yield f"{shown} cartridge", {n: mapper.cartridge(a) for n, a in given.items()}
            yield (
                f"swapped {shown} cartridge",
                {n: mapper.cartridge(a) for n, a in others.items()},
            )


def scored(options: argparse.Namespace) -> Scores:
    """Return the score of every task under every condition."""
    context = benchmark_for(options, "noop")
    if builds_zoo(context):
        train_zoo(context, SIDES, list(context.task_source().names()), CPU_TRAINER)
    zoo, held_out = context.zoo().read(None), list(context.settings.tasks.held_out)
    names = options.tasks or [name for name in held_out if name in zoo.source]
    tasks = rows(context, names, options.rows)
    given = {name: zoo.source[name] for name in names}
    found: Scores = {name: {} for name in names}
    source = context.model("source")
    for condition, adapters in (("source_base", dict.fromkeys(given)), ("source", given)):
        for name in names:
            found[name][condition] = context.scores.score(source, adapters[name], tasks[name])
    del source
    target, console = context.model("target"), Console(stderr=True)
    for condition, made in conditions(options, zoo, set(held_out), given):
        for name in track(names, condition, console=console, transient=True):
            found[name][condition] = context.scores.score(target, made[name], tasks[name])
        line = ", ".join(f"{n} {found[n][condition].accuracy:.3f}" for n in names)
        console.print(f"{condition}: {line}", highlight=False)
        if options.output is not None:
            write_numbers(options.output, found)
    return found


def rows(context: RunContext, names: list[str], most: int) -> dict[str, Task]:
    """Return tasks with so many test rows."""
    return {name: task.limited(most) for name, task in context.task_source().load(names).items()}


def write_numbers(path: Path, found: Scores) -> None:
    """Write accuracy and likelihood of every task under every condition as JSON."""
    numbers = {
        name: {c: {"accuracy": s.accuracy, "nll": s.nll} for c, s in scores.items()}
        for name, scores in found.items()
    }
    write_whole(path, json.dumps(numbers, indent=1) + "\n")


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
    print("\n".join(table(scored(arguments()))))


if __name__ == "__main__":
    main()
