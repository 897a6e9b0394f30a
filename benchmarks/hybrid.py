"""Does a map between the models give refinement a head start? Initial map x steps of refinement.

``python -m benchmarks.hybrid --tasks-folder DIR --zoo DIR --corpus FILE --output DIR`` ports the
source adapters of a few tasks by every start, refines each for so many steps on generic text, and
scores them on the target. A start is

- ``zero``, or ``mean`` of the other anchors,
- a mapper that needs nothing to be trained, with its overrides, such as ``cross_lora``, or
- a name and the checkpoint of a mapper that ``train.py`` has fitted, or a folder with one ported
  adapter a task, such as ``transport=runs/transport/mapper.ckpt`` or ``cast=ported/cast``.

Every number of steps is a training of its own, whose learning rate falls to 0 at its end; so many
texts are learned from as the steps take, at most ``--texts``, and then several times. The modules
that the zoo's adapters have are always trained, from zero where the start lacks them, so that no
start has fewer to learn with. Writes the numbers as JSON and the curves as a PNG (gap recovered by
accuracy and by likelihood, mean over tasks). Adapters are kept, so that it goes on where it was
stopped, and processes share the work by ``--starts``, ``--tasks`` and ``--steps``.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

from benchmarks.refinements import called, told
from benchmarks.transfers import Method, Scores, table
from benchmarks.trial import Trial, add_arguments, kept, refined
from loraport.adapters import LoraAdapter, read_adapter
from loraport.adapters.peft_io import CONFIG_FILE
from loraport.commands.context import quiet_libraries
from loraport.evaluation.assembly import summarise
from loraport.files import write_whole
from loraport.refinement.label_distillation import LabelDistillation

TASKS = ("sst2", "ag_news", "trec")
STARTS, STEPS = ("zero", "mean", "cross_lora"), (0, 16, 64, 256)
REFINEMENT = "corpus_distill"
# Okabe and Ito's palette, and dashes and marks for whoever cannot tell the colours.
_LINES = (
    *(("#000000", "-", "o"), ("#0072B2", "--", "s"), ("#D55E00", "-.", "^"), ("#009E73", ":", "D")),
    *(("#CC79A7", "-", "v"), ("#E69F00", "--", "P"), ("#56B4E9", "-.", "X")),
)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--starts", nargs="+", default=list(STARTS), metavar="START")
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS))
    parser.add_argument("--texts", type=int, default=512, help="different ones at most")
    parser.add_argument("--refinement", default=REFINEMENT, help="with overrides of its YAML")
    return parser.parse_args()


class Hybrid:
    """Starts, and what so many steps of refinement make of them.

    Args:
        trial: Zoo, tasks, texts and models.
    """

    def __init__(self, trial: Trial) -> None:
        self.trial, self.options = trial, trial.options
        self._starts: dict[tuple[str, str], LoraAdapter] = {}

    def start(self, start: str, name: str) -> LoraAdapter:
        """Return what a start makes of a task's adapter, q and v included."""
        if (start, name) not in self._starts:
            made = self._made(start, name)
            zero = self.trial.zero()
            self._starts[start, name] = LoraAdapter({**zero.sites, **made.sites}, made.base_model)
        return self._starts[start, name]

    def _made(self, start: str, name: str) -> LoraAdapter:
        if start in ("zero", "mean"):
            return self.trial.start(start, name)
        folder = Path(start.partition("=")[2]).expanduser() / name
        if (folder / CONFIG_FILE).is_file():
            return read_adapter(folder)
        given = {name: self.trial.zoo.source[name] for name in self.trial.names}
        # A mapper is loaded once, for all tasks.
        ported = Method(self.options, start).ported(given)
        zero = self.trial.zero().sites
        self._starts |= {
            (start, n): LoraAdapter({**zero, **a.sites}, a.base_model) for n, a in ported.items()
        }
        return ported[name]

    def adapter(self, start: str, steps: int, name: str) -> LoraAdapter:
        """Return the start refined for so many steps."""
        begun = self.start(start, name)
        if steps == 0:
            return begun
        method = self._method(steps)
        # By content: another checkpoint under the same name is another start.
        folder = self.trial.folder(method, begun.content_hash(), f"{steps}-steps") / name

        def make() -> tuple[LoraAdapter, dict[str, Any]]:
            distillation_inputs = self.trial.distillation_inputs(name)
            return refined(self.trial.refinement(method), begun, distillation_inputs)

        return kept(folder, make).adapter

    def _method(self, steps: int) -> str:
        """Return the refinement with the options that make it take so many steps."""
        plain = self.trial.refinement(self.options.refinement)
        if not isinstance(plain, LabelDistillation):
            raise SystemExit(f"--refinement takes one that trains, not {self.options.refinement}")
        texts = min(steps * plain.batch_size, self.options.texts)
        epochs = math.ceil(steps * plain.batch_size / texts)
        name, _, rest = self.options.refinement.partition(":")
        options = (f"refine.texts={texts}", f"refine.epochs={epochs}")
        return f"{name}:{','.join([*filter(None, rest.split(',')), *options])}"


def condition(start: str, steps: int) -> str:
    """Return how a start with so many steps is called."""
    return f"{called(start)} + {steps}"


def scored(hybrid: Hybrid, console: Console) -> Scores:
    """Return the score of every task under every condition, printed as they come."""
    trial, options = hybrid.trial, hybrid.options
    found: Scores = {name: {} for name in trial.names}

    def score(name: str, shown: str, adapter: LoraAdapter | None) -> None:
        found[name][shown] = trial.context.scores.score(trial.target, adapter, trial.tasks[name])
        told(console, name, found, shown)

    for name in trial.names:
        score(name, "base", None)
        score(name, "oracle", trial.zoo.target[name])
        score(name, "mean", trial.mean(name))
    for steps in options.steps:
        for start in options.starts:
            for name in trial.names:
                score(name, condition(start, steps), hybrid.adapter(start, steps, name))
    return found


Curve = Mapping[int, tuple[float | None, float | None, float | None]]
"""By steps: the mean gap recovered and the ends of its interval."""


def curves(found: Scores, starts: Sequence[str], steps: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Return for each start the curves by accuracy and by likelihood."""
    made: dict[str, dict[str, Any]] = {}
    for start in starts:
        made[called(start)] = {"accuracy": {}, "nll": {}}
        for count in steps:
            shown = {n: {**s, "predicted": s[condition(start, count)]} for n, s in found.items()}
            summary = summarise(shown, ("mean",), 0)
            for measure, value, ends in (
                ("accuracy", summary.gap_recovered, summary.ci95),
                ("nll", summary.gap_recovered_nll, summary.ci95_nll),
            ):
                made[called(start)][measure][count] = (value, *(ends or (None, None)))
    return made


def write_plot(found: dict[str, dict[str, Any]], title: str, path: Path) -> Path:
    """Draw gap recovered over steps as a PNG, one line a start; whiskers are 95 % intervals."""
    figure = Figure(figsize=(9.6, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharex=True)
    for axes, measure, name in zip(panels, ("accuracy", "nll"), ("accuracy", "NLL"), strict=True):
        for place, (start, by_measure) in enumerate(found.items()):
            _draw(axes, start, by_measure[measure], place, len(found))
        axes.axhline(0.0, color="#999999", linewidth=0.8)
        axes.axhline(1.0, color="#999999", linewidth=0.8, linestyle=":")
        axes.set_xlabel("steps of refinement")
        axes.set_ylabel(f"gap recovered by {name}")
        axes.spines[["top", "right"]].set_visible(False)
        axes.yaxis.grid(visible=True, color="#E5E5E5", linewidth=0.8)
        axes.set_axisbelow(True)
    figure.suptitle(title, fontsize=10)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=9
    )
    drawn = BytesIO()
    figure.savefig(drawn, format="png", bbox_inches="tight", metadata={"Software": None})
    figure.clear()
    return write_whole(path, drawn.getvalue())


def _draw(axes: Axes, start: str, curve: Curve, place: int, starts: int) -> None:
    """Draw one line, at evenly spaced places: steps grow by a factor, and one of them is 0."""
    colour, dashes, mark = _LINES[place % len(_LINES)]
    counts = sorted(curve)
    axes.set_xticks(range(len(counts)), [str(count) for count in counts])
    known = [(x, *curve[count]) for x, count in enumerate(counts) if curve[count][0] is not None]
    shift = (place - (starts - 1) / 2) * 0.04  # so that whiskers do not hide one another
    values = [float(value or 0.0) for _, value, _, _ in known]
    below = [max(v - _or(low, v), 0.0) for v, (_, _, low, _) in zip(values, known, strict=True)]
    above = [max(_or(high, v) - v, 0.0) for v, (_, _, _, high) in zip(values, known, strict=True)]
    axes.errorbar(
        [x + shift for x, *_ in known],
        values,
        yerr=(below, above),
        label=start,
        color=colour,
        linestyle=dashes,
        marker=mark,
        markersize=5,
        linewidth=1.4,
        elinewidth=0.8,
        capsize=2,
    )


def _or(end: float | None, value: float) -> float:
    """Return an interval's end, or the value where the interval has none."""
    return value if end is None else end


def main() -> None:
    """Port, refine, score, print the table and draw the curves."""
    quiet_libraries()
    options = arguments()
    trial = Trial(options)
    if options.tasks is None:
        trial.names = [name for name in TASKS if name in trial.names] or trial.names[:2]
    found = scored(Hybrid(trial), Console(stderr=True))
    made = curves(found, options.starts, options.steps)
    # Of a mapper with overrides the name alone; more would be no name for a file.
    name = "-".join(called(start).partition(":")[0] for start in options.starts)
    folder = options.output / trial.direction
    write_whole(folder / f"{name}.json", json.dumps(made, indent=1) + "\n")
    tasks = ", ".join(trial.names)
    write_plot(made, f"{trial.source.name} → {trial.target.name}\n{tasks}", folder / f"{name}.png")
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
