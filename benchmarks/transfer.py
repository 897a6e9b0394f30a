"""The default port beside PorTAL and plain fine-tuning, on the same texts with the same budget.

``python -m benchmarks.transfer --tasks-folder DIR --zoo DIR --corpus FILE --output DIR`` ports the
source adapters of the held-out tasks, or of ``--tasks``, and scores on the target

- base, oracle, and the mean of the anchors' adapters,
- ours: ``corpus_distill``, with overrides where ``--ours`` gives some,
- PorTAL, refitted as benchmarks/portal.py says, and
- plain fine-tuning by transformers and PEFT on the teacher's hard labels
  (benchmarks/plain_finetuning.py).

All learn from the very texts that ours has chosen, labelled by the same teacher, and take the same
number of steps with the same number of texts on the target; ours and plain fine-tuning also share
the learning rate and its schedule, PorTAL has its own. Seconds a port hold the labelling of the
pool of texts, which happens once and counts for each. No task data but the prompt and the labels.

Adapters and labels are kept in the output folder and scores in the cache, so that it goes on where
it was stopped. PorTAL ports all tasks of a run together: another list of tasks is another port.
``--pair tiny`` needs no folders.
"""

import argparse
import hashlib
import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.peft_trainer import Schedule
from benchmarks.plain_finetuning import TaughtTexts, fine_tuned
from benchmarks.portal import Portal, TaughtTask
from benchmarks.refinements import Seconds, full_table, source_scores, told, write_numbers
from benchmarks.setting import stopwatch
from benchmarks.transfers import Scores
from benchmarks.trial import Port, Trial, add_arguments, kept, kept_together, refined
from loraport.adapters import LoraAdapter
from loraport.commands.context import quiet_libraries
from loraport.files import write_whole
from loraport.refinement.label_distillation import CorpusDistill

OURS, PORTAL, PLAIN = "corpus_distill", "PorTAL", "plain fine-tuning"


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--ours", default=OURS, help="corpus_distill, with overrides of its YAML")
    parser.add_argument("--start", default="zero", choices=("zero", "mean"), help="of ours")
    parser.add_argument("--source-epochs", type=int, default=3, help="of PorTAL's core")
    parser.add_argument("--validation", type=int, default=8, help="texts of PorTAL's, a task")
    return parser.parse_args()


class Comparison:
    """Ours, PorTAL and plain fine-tuning, on what one teacher a task has labelled.

    Args:
        options: The command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        # A cache of its own: with labels from elsewhere, labelling would seem to take no time.
        trial = Trial(options, options.output / "cache")
        trial.names = options.tasks or trial.held_out
        self.options, self.trial = options, trial
        refinement = trial.refinement(options.ours)
        if not isinstance(refinement, CorpusDistill):
            raise SystemExit(f"--ours takes corpus_distill with overrides, not {options.ours}")
        self.ours = refinement
        self.labelling: dict[str, float] = {}
        self.taught: dict[str, TaughtTask] = {}

    @property
    def folder(self) -> Path:
        """Where everything goes that these options decide."""
        return self.trial.folder(self.options.ours, self.options.start, "compared")

    def label(self) -> None:
        """Let each teacher label the texts, and note how long the first run needed."""
        trial = self.trial
        for name in trial.names:
            distillation_inputs, path = (
                trial.distillation_inputs(name),
                self.folder / "labelling" / f"{name}.json",
            )
            with stopwatch() as elapsed:
                made = self.ours.dataset(distillation_inputs)
                held_out = self.ours.held_out_texts(distillation_inputs, self.options.validation)
            if held_out is None:
                raise SystemExit("the corpus has no validation texts; PorTAL takes some")
            if not path.is_file():
                write_whole(path, json.dumps(elapsed.wall))
            self.labelling[name] = float(json.loads(path.read_text()))
            labels = distillation_inputs.prompt_spec.labels
            learned, checked = (
                TaughtTexts(
                    distillation_inputs.prompt_spec,
                    tuple(each.texts),
                    tuple(labels[place] for place in each.targets.argmax(dim=1).tolist()),
                )
                for each in (made, held_out)
            )
            self.taught[name] = TaughtTask(learned, checked)

    def schedule(self, name: str) -> Schedule:
        """Return the schedule of ours, for another method."""
        ours, texts = self.ours, len(self.taught[name].train.texts)
        return Schedule(
            steps=math.ceil(texts / ours.batch_size) * ours.epochs,
            batch_rows=ours.batch_size,
            lr=ours.lr,
            warmup_steps=ours.warmup_steps,
        )

    def port_ours(self, name: str) -> Port:
        """Port by the refinement."""
        start = self.trial.start(self.options.start, name)
        return kept(
            self.folder / "ours" / name,
            lambda: refined(self.ours, start, self.trial.distillation_inputs(name)),
        )

    def port_plainly(self, name: str) -> Port:
        """Port by plain fine-tuning."""
        schedule = self.schedule(name)

        def make() -> tuple[LoraAdapter, dict[str, Any]]:
            adapter = fine_tuned(self.trial.target, self.taught[name].train, schedule)
            return adapter, {"steps": schedule.steps}

        return kept(self.folder / "plain" / name, make)

    def port_by_portal(self) -> dict[str, Port]:
        """Port all tasks by PorTAL."""
        names, options = self.trial.names, self.options
        portal = Portal(self.schedule(names[0]), source_epochs=options.source_epochs)
        key = hashlib.sha256(json.dumps([names, repr(portal), options.validation]).encode())
        folder = self.folder / f"portal-{key.hexdigest()[:8]}"

        def make() -> tuple[dict[str, LoraAdapter], dict[str, Any]]:
            made = portal.port(self.trial.source, self.trial.target, self.taught)
            return made.adapters, made.report

        return kept_together({name: folder / name for name in names}, make)


def compared(comparison: Comparison, console: Console) -> tuple[Scores, Seconds]:
    """Return scores and seconds, printed and written as they come."""
    trial, options = comparison.trial, comparison.options
    found: Scores = {name: {} for name in trial.names}
    seconds: Seconds = {OURS: [], PORTAL: [], PLAIN: []}

    def score(name: str, condition: str, adapter: LoraAdapter | None) -> None:
        task = trial.tasks[name]
        found[name][condition] = trial.context.scores.score(trial.target, adapter, task)
        told(console, name, found, condition)

    def note(name: str, condition: str, port: Port) -> None:
        taken = port._replace(seconds=port.seconds + comparison.labelling[name])
        seconds[condition].append(taken.seconds)
        score(name, condition, port.adapter)
        write_numbers(trial, options.start, name, found, {condition: taken})

    source_scores(trial, found)
    for name in trial.names:
        score(name, "base", None)
        score(name, "oracle", trial.zoo.target[name])
        score(name, "mean", trial.mean(name))
    comparison.label()
    for name in trial.names:
        note(name, OURS, comparison.port_ours(name))
        note(name, PLAIN, comparison.port_plainly(name))
    for name, port in comparison.port_by_portal().items():
        note(name, PORTAL, port)
    return found, seconds


def main() -> None:
    """Port, score and print the table."""
    quiet_libraries()
    comparison = Comparison(arguments())
    found, seconds = compared(comparison, Console(stderr=True))
    lines = "\n".join(full_table(found, seconds))
    write_whole(comparison.folder / "table.md", lines + "\n")
    print(lines)


if __name__ == "__main__":
    main()
