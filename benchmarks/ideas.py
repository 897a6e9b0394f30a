"""What might raise a port by activations, each idea with its number, on anchor tasks.

``python -m benchmarks.ideas --ckpt MAPPER.ckpt --tasks-folder DIR --zoo DIR`` ports the source
adapters of some anchors by a mapper that ``train.py`` has fitted on text, as they are and changed
in one way at a time, and scores them on the target. Held-out tasks are not touched: it is here
that settings are chosen. Ideas that belong to the fit (loss, text, pairing of layers) are tried by
another checkpoint.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from benchmarks.transfers import Method, Scores, benchmark_for, gaps, rows
from loraport.adapters import LoraAdapter, LowRank, Role, stacked
from loraport.commands.context import quiet_libraries
from loraport.data import ZooPairs
from loraport.evaluation.scoring import swapped

TASKS = ("sst2", "subj", "ag_news", "cr", "tweet_eval_sentiment")
Given = dict[str, LoraAdapter]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", required=True, type=Path, help="of a mapper fitted on text")
    parser.add_argument("--pair", default="smollm2_gemma3", help="a file of conf/pair")
    parser.add_argument("--tasks-folder", help="NAME/task.json, NAME/*.jsonl")
    parser.add_argument("--zoo", help="source/NAME and target/NAME, PEFT folders")
    parser.add_argument("--backwards", action="store_true", help="the zoo's target is the source")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="anchors of the zoo")
    parser.add_argument("--rows", type=int, default=100, help="test rows of each task")
    return parser.parse_args()


def of_roles(adapter: LoraAdapter, *roles: Role) -> LoraAdapter:
    """Return an adapter with the sites of some roles alone."""
    kept = {site: update for site, update in adapter.items() if site.role in roles}
    return LoraAdapter(kept, adapter.base_model)


def plus(adapter: LoraAdapter, other: LoraAdapter, weight: float) -> LoraAdapter:
    """Return the sum of an adapter and a multiple of another one; sites may be in one alone."""
    zero = {s: u.scaled(0.0) for s, u in (*adapter.items(), *other.items())}
    terms = {s: [adapter.sites.get(s, z), other.sites.get(s, z)] for s, z in zero.items()}
    summed = {
        site: stacked([_full(u) for u in pair], [1.0, weight]) for site, pair in terms.items()
    }
    return LoraAdapter(summed, adapter.base_model)


def mean_of(adapters: dict[str, LoraAdapter], without: str) -> LoraAdapter:
    """Return the exact mean of all but one of the adapters."""
    kept = [adapter for name, adapter in adapters.items() if name != without]
    return LoraAdapter(
        {
            site: stacked([_full(a[site]) for a in kept], [1 / len(kept)] * len(kept))
            for site in kept[0]
        },
        kept[0].base_model,
    )


def _full(update: LowRank) -> LowRank:
    return LowRank(update.A.float(), update.B.float(), update.scale)


def ideas(
    zoo: ZooPairs, anchors: list[str], given: Given, port: Callable[[Given], Given]
) -> Iterator[tuple[str, Given]]:
    """Give each idea's adapters for the target."""
    sources = {name: zoo.source[name] for name in anchors}
    targets = {name: zoo.target[name] for name in anchors}
    whole = port(given)
    yield "as it is", whole
    yield "swapped", port(swapped(given, []))
    yield "only v", {n: of_roles(a, Role.V) for n, a in whole.items()}
    yield "only q", {n: of_roles(a, Role.Q) for n, a in whole.items()}
    yield "scale 0.25", {n: a.map(lambda u: u.scaled(0.25)) for n, a in whole.items()}
    own = port({n: plus(a, mean_of(sources, n), -1.0) for n, a in given.items()})
    yield "less the anchors' mean", own
    means = {n: mean_of(targets, n) for n in given}
    yield "mean of the target's anchors alone", means
    yield "less the anchors' mean, plus the target's", {n: plus(own[n], means[n], 1.0) for n in own}
    yield (
        "the same, only v",
        {n: plus(of_roles(own[n], Role.V), means[n], 1.0) for n in own},
    )


def main() -> None:
    """Score every idea and print a line for each."""
    quiet_libraries()
    options = arguments()
    context = benchmark_for(options, "noop")
    zoo, held_out = context.zoo().read(None), set(context.settings.tasks.held_out)
    anchors = [name for name in zoo.source if name not in held_out]
    tasks = rows(context, options.tasks, options.rows)
    given = {name: zoo.source[name] for name in options.tasks if name in anchors}
    method = Method(options, f"ported={options.ckpt}")
    target = context.model("target")
    fixed: dict[str, dict[str, LoraAdapter | None]] = {
        "base": dict.fromkeys(given),
        "oracle": {name: zoo.target[name] for name in given},
    }
    found: Scores = {
        name: {
            c: context.scores.score(target, made[name], tasks[name]) for c, made in fixed.items()
        }
        for name in given
    }
    console = Console()
    console.print("| idea | accuracy | gap recovered, 95 % | NLL gap, 95 % |\n|---|---|---|---|")
    for idea, adapters in ideas(zoo, anchors, given, method.ported):
        for name, adapter in adapters.items():
            found[name][idea] = context.scores.score(target, adapter, tasks[name])
        accuracy = sum(found[name][idea].accuracy for name in given) / len(given)
        cells = " | ".join(gaps(found, idea))
        console.print(f"| {idea} | {accuracy:.3f} | {cells} |", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
