"""How well refinements port adapters without task data, beside every control.

``python -m benchmarks.refinements --tasks-folder DIR --zoo DIR --corpus FILE --output DIR`` ports
the source adapters of the held-out tasks and of five anchors that are treated as new (their own
adapters are hidden), and scores them on the target. A method is

- ``corpus_distill``, ``prompt_distill`` (32 inputs of the task without their labels) or
  ``few_shot`` (32 labelled examples), with overrides of its YAML, such as
  ``corpus_distill:refine.texts=512,refine.lr=1e-3``, or
- the same under a name of one's own, ``long=corpus_distill:refine.epochs=4``, or
- a control of ``corpus_distill`` that takes the same overrides: ``random_labels``, the same texts
  with the teacher's distributions permuted among them, and ``swapped_teacher``, another task's
  adapter of the source that answers this task's question with this task's labels.

They begin from nothing, or with ``--start mean`` from the mean of the other anchors. Beside them
stand base, oracle, mean, a random adapter of the anchors' norm, and the source without and with the
adapter. Adapters are kept in the output folder and scores in the cache, so that it goes on where it
was stopped, and processes share the work by ``--methods`` and ``--tasks``; a run with all of them
then reads what there is and prints the table. ``--pair tiny`` needs no folders.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from rich.console import Console

from benchmarks.transfers import Scores, table
from benchmarks.trial import Port, Trial, add_arguments, kept, refined
from loraport.adapters import LoraAdapter
from loraport.commands.context import quiet_libraries
from loraport.data.prompts import class_balanced
from loraport.files import write_whole
from loraport.refinement.base import DistillationInputs
from loraport.refinement.label_distillation import CorpusDistill, SoftLabelDataset

METHODS = ("corpus_distill", "prompt_distill")
CONTROLS = ("random_labels", "swapped_teacher")
GIVEN_ROWS = 32  # unlabelled inputs, or labelled examples
Seconds = dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class RandomLabels(CorpusDistill):
    """Control: the same texts and the same distributions, but each belongs to another text.

    The last weights are kept, as agreement with the true teacher must not choose any.
    """

    stops_early: ClassVar[bool] = False

    def dataset(self, data: DistillationInputs) -> SoftLabelDataset:
        """Return the chosen texts with permuted distributions."""
        made = super().dataset(data)
        generator = torch.Generator().manual_seed(data.seed)
        order = torch.randperm(len(made.texts), generator=generator)
        return SoftLabelDataset(made.texts, made.targets[order], made.report, made.notes)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--methods", nargs="*", default=[*METHODS, *CONTROLS], metavar="METHOD")
    parser.add_argument("--start", default="zero", choices=("zero", "mean"))
    return parser.parse_args()


def port(trial: Trial, method: str, start: str, name: str) -> Port:
    """Port one task's adapter by one method, or read what an earlier run has made."""
    kind, yaml = asked(method).partition(":")[0], composed(method)

    def make() -> tuple[LoraAdapter, dict[str, Any]]:
        taught_by = trial.another(name) if kind == "swapped_teacher" else None
        distillation_inputs = _with_rows(
            trial, name, kind, trial.distillation_inputs(name, taught_by)
        )
        return refined(trial.refinement(yaml), trial.start(start, name), distillation_inputs)

    return kept(trial.folder(yaml, start, kind) / name, make)


def composed(method: str) -> str:
    """Return a method as the YAML and the overrides that its refinement is composed of."""
    kind, _, rest = asked(method).partition(":")
    yaml = {"swapped_teacher": "corpus_distill", "random_labels": "corpus_distill"}.get(kind, kind)
    if kind == "random_labels":
        rest = f"refine._target_=benchmarks.refinements.RandomLabels,{rest}"
    return f"{yaml}:{rest}"


def _with_rows(
    trial: Trial, name: str, kind: str, distillation_inputs: DistillationInputs
) -> DistillationInputs:
    """Return the lesson with what the method may see of the task."""
    task = trial.tasks[name]
    if kind == "prompt_distill":
        return replace(
            distillation_inputs, inputs=tuple(row.text for row in task.train[:GIVEN_ROWS])
        )
    if kind == "few_shot":
        chosen = class_balanced(task.train, task.labels, GIVEN_ROWS)
        return replace(distillation_inputs, examples=tuple(chosen))
    return distillation_inputs


def called(method: str) -> str:
    """Return how a method is called in tables: its own name, or the one it was given."""
    name, _, rest = method.partition("=")
    return name if rest and ":" not in name else method


def asked(method: str) -> str:
    """Return a method without the name that it was given."""
    return method if called(method) == method else method.partition("=")[2]


def adapters(trial: Trial, name: str) -> Iterator[tuple[str, LoraAdapter | None]]:
    """Give what needs no training, for the target."""
    yield "base", None
    yield "oracle", trial.zoo.target[name]
    yield "mean", trial.mean(name)
    yield "random", trial.random(name)


def source_scores(trial: Trial, found: Scores) -> None:
    """Score the source without and with its adapters."""
    for name, task in trial.tasks.items():
        for condition, adapter in (("source_base", None), ("source", trial.zoo.source[name])):
            found[name][condition] = trial.context.scores.score(trial.source, adapter, task)


def scored(
    trial: Trial, methods: list[str], start: str, console: Console
) -> tuple[Scores, Seconds]:
    """Return every score, and the seconds of every port, and print them as they come."""
    found: Scores = {name: {} for name in trial.names}
    seconds: Seconds = {called(method): [] for method in methods}
    source_scores(trial, found)
    for name, task in trial.tasks.items():
        for condition, adapter in adapters(trial, name):
            found[name][condition] = trial.context.scores.score(trial.target, adapter, task)
        told(console, name, found)
        write_numbers(trial, start, name, found, {})
    for method in methods:
        for name, task in trial.tasks.items():
            made, shown = port(trial, method, start, name), called(method)
            seconds[shown].append(made.seconds)
            found[name][shown] = trial.context.scores.score(trial.target, made.adapter, task)
            told(console, name, found, shown)
            setting = trial.setting(composed(method), start, made)
            write_numbers(trial, start, name, found, {shown: made}, setting)
    return found, seconds


def told(console: Console, name: str, found: Scores, *conditions: str) -> None:
    """Print accuracy and likelihood of a task under some conditions, or under all."""
    shown = conditions or tuple(found[name])
    cells = (f"{c} {found[name][c].accuracy:.3f} ({found[name][c].nll:.3f})" for c in shown)
    console.print(f"{name}: {', '.join(cells)}", highlight=False, soft_wrap=True)


def write_numbers(
    trial: Trial,
    start: str,
    name: str,
    found: Scores,
    ports: dict[str, Port],
    setting: dict[str, Any] | None = None,
) -> None:
    """Add the numbers of a task to its JSON, beside what other runs have put there."""
    path = trial.options.output / trial.direction / start / "numbers" / f"{name}.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for condition, score in found[name].items():
        numbers = {"accuracy": score.accuracy, "nll": score.nll, "rows": len(score.correct)}
        made = ports.get(condition)
        facts: dict[str, Any] = {}
        if made is not None:
            facts = {"seconds": made.seconds, "report": made.report, "setting": setting}
        known[condition] = known.get(condition, {}) | numbers | facts
    write_whole(path, json.dumps(known, indent=1) + "\n")


def full_table(found: Scores, seconds: Seconds) -> Iterator[str]:
    """Give the lines of the table, with the share of the oracle's score and seconds a port."""
    lines = table(found)
    yield f"{next(lines)} of the oracle's | s a port |"
    yield f"{next(lines)}---|---|"
    for condition, line in zip(next(iter(found.values())), lines, strict=True):
        shares = [s[condition].accuracy / s["oracle"].accuracy for s in found.values()]
        taken = seconds.get(condition)
        cell = f"{sum(taken) / len(taken):.0f}" if taken else ""
        yield f"{line} {sum(shares) / len(shares):.2f} | {cell} |"


def summary_file(trial: Trial, start: str) -> Path:
    """Return where the table goes."""
    return trial.options.output / trial.direction / start / "table.md"


def main() -> None:
    """Port, score and print the table."""
    quiet_libraries()
    options = arguments()
    trial = Trial(options)
    found, seconds = scored(trial, options.methods, options.start, Console(stderr=True))
    lines = "\n".join(full_table(found, seconds))
    write_whole(summary_file(trial, options.start), lines + "\n")
    print(lines)


if __name__ == "__main__":
    main()
