"""What comparisons of refinements share: zoo, tasks, texts, both models, and ports that are kept.

A trial ports source adapters of a zoo as if each task was new: an anchor's own adapters are hidden
from whatever is fitted for it, and held-out tasks are no anchors. What a method may learn from is a
:class:`~loraport.refinement.base.DistillationInputs`: the source with its adapter, the task's
prompt and label
words, and generic texts.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.setting import stopwatch
from benchmarks.transfers import benchmark_for, rows
from loraport.adapters import LoraAdapter, LowRank, read_adapter, write_adapter
from loraport.commands.anchors import CPU_TRAINER, builds_zoo, train_zoo
from loraport.commands.porting import port_setting
from loraport.component import Component
from loraport.data import AnchorSet, Interleaved, Task, TaskTexts, TextSource, ZooPairs
from loraport.data.prompts import PromptSpec
from loraport.data.zoo import SIDES
from loraport.evaluation.scoring import random_adapter
from loraport.exceptions import DataError
from loraport.files import write_whole
from loraport.mappers.controls import MeanMapper
from loraport.models import BaseModel
from loraport.models.loading import DTYPES
from loraport.refinement.base import DistillationInputs, Refined, Refinement, Teacher
from loraport.store import Store

NEW = ("ag_news", "amazon_polarity", "cr", "sst2", "subj")  # anchors that are treated as new
SWAP = 2  # places to another task: neighbours on the list are alike, such as two kinds of emotion


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what every comparison takes."""
    parser.add_argument("--pair", default="smollm2_gemma3", help="a file of conf/pair")
    parser.add_argument("--tasks-folder", help="NAME/task.json, NAME/*.jsonl")
    parser.add_argument("--zoo", help="source/NAME and target/NAME, PEFT folders")
    parser.add_argument("--backwards", action="store_true", help="the zoo's target is the source")
    parser.add_argument("--corpus", help="generic texts: a folder or file")
    parser.add_argument("--anchor-texts", action="store_true", help="mix in texts of other anchors")
    parser.add_argument("--dtype", default="bfloat16", choices=DTYPES, help="of both models")
    parser.add_argument("--tasks", nargs="+", help="of the zoo")
    parser.add_argument("--rows", type=int, default=300, help="test rows of each task")
    parser.add_argument("--output", required=True, type=Path, help="folder of what is made")


class Trial:
    """Everything that one comparison is about.

    Args:
        options: The command line.
        cache: Where teachers' answers and unfinished work are kept; by default with everything
            else that is built once.

    Attributes:
        every: The held-out tasks, and five anchors that are treated as new.
        names: The tasks that are ported: those of the command line, or every.
    """

    def __init__(self, options: argparse.Namespace, cache: Path | None = None) -> None:
        self.options = options
        self.context = benchmark_for(options, f"noop:{','.join(self._texts())}")
        if builds_zoo(self.context) and not self.context.has_zoo():
            train_zoo(self.context, SIDES, list(self.context.task_source().names()), CPU_TRAINER)
        self.zoo: ZooPairs = self.context.zoo().read(None)
        self.held_out = [n for n in self.context.settings.tasks.held_out if n in self.zoo.source]
        self.every = [*self.held_out, *self._treated_as_new()]
        self.names: list[str] = options.tasks or self.every
        self.cache = cache or self.context.cache
        self._chosen: dict[str, Component] = {}

    def _texts(self) -> list[str]:
        """Return the overrides that choose generic texts."""
        if self.options.corpus:
            return ["corpus=folder", f"paths.corpus={self.options.corpus}"]
        return ["corpus=tiny_sentences"] if self.options.pair == "tiny" else []

    def _treated_as_new(self) -> list[str]:
        anchors = [name for name in self.zoo.source if name not in self.held_out]
        return [name for name in NEW if name in anchors] or anchors[: len(NEW)]

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The tasks that are ported, with as many test rows as are scored."""
        return rows(self.context, self.names, self.options.rows)

    @cached_property
    def source(self) -> BaseModel:
        """The model that the adapters come from."""
        return self.context.model("source")

    @cached_property
    def target(self) -> BaseModel:
        """The model that they are ported to."""
        return self.context.model("target")

    @cached_property
    def texts(self) -> TextSource:
        """Generic texts."""
        source: TextSource = self.context.settings.corpus.build()
        return source

    @cached_property
    def learners(self) -> tuple[BaseModel, BaseModel]:
        """Both models as they teach and learn; what is scored is :attr:`target` itself."""
        dtype = DTYPES[self.options.dtype]
        return self.source.converted(dtype), self.target.converted(dtype)

    def texts_for(self, name: str) -> TextSource:
        """Return generic texts, with training texts of other anchors where they are asked for."""
        if not self.options.anchor_texts:
            return self.texts
        tasks = self.context.task_source().load(self.others(name).names)
        return Interleaved([self.texts, TaskTexts(list(tasks.values()))])

    @property
    def direction(self) -> str:
        """A name for folders."""
        return f"{self.options.pair}{'-backwards' if self.options.backwards else ''}"

    def _component(self, method: str) -> Component:
        """Return the options of a refinement, composed once: that takes a second."""
        if method not in self._chosen:
            name, _, rest = method.partition(":")
            overrides = [*self._texts(), f"refine={name}", *filter(None, rest.split(","))]
            context = benchmark_for(self.options, f"noop:{','.join(overrides)}")
            self._chosen[method] = context.settings.refine
        return self._chosen[method]

    def refinement(self, method: str) -> Refinement:
        """Build a refinement from its YAML: ``NAME`` or ``NAME:refine.option=value,...``."""
        built: Refinement = self._component(method).build()
        return built

    def setting(self, method: str, start: str, made: "Port") -> dict[str, Any]:
        """Return what a port was made with, as ``report.json`` of ``transfer.py`` has it."""
        return port_setting(
            ("noop" if start == "zero" else start, {}),
            self._component(method).options,
            ["corpus", "anchors"] if self.options.anchor_texts else ["corpus"],
            made.adapter,
            made.report,
            {"source": self.source.fingerprint, "target": self.target.fingerprint},
        )

    def folder(self, method: str, start: str, called: str) -> Path:
        """Return where a method's ports lie: another for every option, text and start."""
        options = self._component(method).model_dump()
        texts = [
            self.context.settings.corpus.model_dump(),
            self.options.anchor_texts,
            self.options.dtype,
        ]
        key_parts = json.dumps([options, texts, start, called], sort_keys=True)
        key = hashlib.sha256(key_parts.encode()).hexdigest()[:8]
        return self.options.output / self.direction / f"{called}-{key}"

    def distillation_inputs(self, name: str, taught_by: str | None = None) -> DistillationInputs:
        """Return the lesson of a task, taught by its own adapter or by another task's."""
        return DistillationInputs(
            teacher=Teacher(self.learners[0], self.zoo.source[taught_by or name]),
            target=self.learners[1],
            prompt_spec=PromptSpec.of(self.tasks[name], self.context.template),
            texts=self.texts_for(name),
            store=Store(self.cache),
        )

    def another(self, name: str) -> str:
        """Return the task whose adapter stands in for that of a task where they are swapped."""
        place = self.every.index(name) if name in self.every else -1
        return self.every[(place + SWAP) % len(self.every)]

    def others(self, name: str) -> AnchorSet:
        """Return the anchors that a new task's port may be fitted on."""
        hidden = {name, *self.held_out}
        return AnchorSet.of(self.zoo, [n for n in self.zoo.source if n not in hidden])

    def mean(self, name: str) -> LoraAdapter:
        """Return the mean of the other anchors' adapters of the target."""
        mapper = MeanMapper()
        mapper.fit(self.others(name))
        return mapper.map(self.zoo.source[name])

    def random(self, name: str) -> LoraAdapter:
        """Return random factors, each site as large as the other anchors' on average."""
        anchors = self.others(name)
        return random_adapter(anchors.target, anchors.target_base, seed=0)

    def zero(self) -> LoraAdapter:
        """Return an adapter that does nothing yet, of the modules and ranks of the zoo's."""
        known = next(iter(self.zoo.target.values()))
        return LoraAdapter(
            {
                site: LowRank(torch.zeros_like(update.A), torch.zeros_like(update.B), update.scale)
                for site, update in known.items()
            },
            self.target.name,
        )

    def start(self, kind: str, name: str) -> LoraAdapter:
        """Return what refinement begins from: ``zero`` or ``mean``."""
        return self.zero() if kind == "zero" else self.mean(name)


class Port(NamedTuple):
    """A ported adapter, what it took, and what was reported.

    Attributes:
        adapter: The adapter.
        seconds: On the clock.
        report: Plain data.
    """

    adapter: LoraAdapter
    seconds: float
    report: dict[str, Any]


def kept(folder: Path, make: Callable[[], tuple[LoraAdapter, dict[str, Any]]]) -> Port:
    """Return the port that lies in a folder; make it and put it there where there is none."""
    return kept_together({"": folder}, lambda: _one(*make()))[""]


def _one(
    adapter: LoraAdapter, report: dict[str, Any]
) -> tuple[dict[str, LoraAdapter], dict[str, Any]]:
    return {"": adapter}, report


def kept_together(
    folders: Mapping[str, Path],
    make: Callable[[], tuple[dict[str, LoraAdapter], dict[str, Any]]],
) -> dict[str, Port]:
    """Return ports that are made together, each with its share of the seconds.

    They are made anew unless all of them lie in their folders.
    """
    facts = {name: folder.with_name(f"{folder.name}.json") for name, folder in folders.items()}
    if not all(path.is_file() for path in facts.values()):
        with stopwatch() as elapsed:
            adapters, report = make()
        kept_facts = {"seconds": elapsed.wall / len(folders), "report": report}
        for name, folder in folders.items():
            write_adapter(adapters[name], folder, overwrite=True)
            # Last, as it says that the adapter is there.
            write_whole(facts[name], json.dumps(kept_facts, indent=1) + "\n")
    return {name: _read(folder, facts[name]) for name, folder in folders.items()}


def _read(folder: Path, facts: Path) -> Port:
    known = json.loads(facts.read_text(encoding="utf-8"))
    return Port(read_adapter(folder), known["seconds"], known["report"])


def refined(
    refinement: Refinement, start: LoraAdapter, distillation_inputs: DistillationInputs
) -> tuple[LoraAdapter, dict[str, Any]]:
    """Refine; where the teacher's answers teach nothing, the start is what there is."""
    try:
        made: Refined = refinement.refine(start, distillation_inputs)
    except DataError as error:
        return start, {"notes": [str(error)]}
    return made.adapter, made.report
