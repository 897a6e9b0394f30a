"""Porting the held-out tasks' adapters by one method, each once."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..adapters import LoraAdapter
from ..data import AnchorPairs, Task, ZooPairs
from ..files import staged_folder
from ..mappers import LearnedMapper, Mapper, load_mapper
from ..mappers.corpus_mapper import CorpusMapper
from ..models.threads import one_thread
from ..refinement.base import Progress, Refinement
from .asked_question import asked_question
from .benchmark_methods import Method
from .building import build
from .cells import AdapterCells, Cell, cell_key
from .chosen_mapper import give_models
from .fitting import Fitting
from .information_class import costliest
from .method_keys import mapper_parts, port_parts
from .options import option
from .plan import Plan
from .porting import Porting
from .refining import Refining, taught_by
from .refining_texts import generic_texts, written_texts
from .shared_bench import SharedBench
from .transfer import base_pair


class MethodPorts:
    """One method with one seed, and the cells that it fills.

    Args:
        bench: The method's own configuration.
        method: What it is.
        zoo: Adapters of all tasks.
        tasks: The held-out ones.

    Raises:
        LoraportError: the mapper or the refinement cannot be built.
    """

    def __init__(
        self, bench: SharedBench, method: Method, zoo: ZooPairs, tasks: Mapping[str, Task]
    ) -> None:
        self.bench, self.method, self.zoo, self.tasks = bench, method, zoo, tasks
        self.cells = AdapterCells(bench.cache / "benchmark" / "ports")
        self._built: Mapper = build(bench.config.mapper)
        self._parts = mapper_parts(bench, self._built, zoo)
        self._fit_folder = bench.cache / "benchmark" / "fits" / cell_key(self._parts)

    @property
    def information_class(self) -> str:
        """What the method may use, in the words of the evaluation protocol."""
        refined = [refining.information_class for refining in self._refinings.values() if refining]
        return costliest(self._built.information_class, *refined)

    @property
    def fit_seconds(self) -> float | None:
        """How long the mapper was fitted; None where there was nothing to fit."""
        path = self._fit_folder / "fit.json"
        return json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.exists() else None

    def port(self, name: str, progress: Progress) -> Cell:
        """Return the ported adapter of a held-out task; make it where it is not known yet.

        Raises:
            LoraportError: the method cannot be used on this pair or this adapter.
        """
        adapter, refining = self.zoo.source[name], self._refinings[name]
        made_of = self._parts | port_parts(self.bench, refining)
        made_of["adapter"] = adapter.content_hash()
        return self.cells.kept(
            cell_key(made_of), lambda: self._ported(name, adapter, refining, progress)
        )

    def _ported(
        self, name: str, adapter: LoraAdapter, refining: Refining | None, progress: Progress
    ) -> Cell:
        porting, begin = self._porting, time.perf_counter()
        quiet = one_thread() if self._built.information_class == "anchors" else nullcontext()
        with quiet:
            mapped = porting.mapped([adapter])
        report: dict[str, Any] = {}
        if refining is not None:
            mapped, reports = refining.refine_all({name: adapter}, mapped, progress)
            report = reports[0]
        ported = porting.combined(mapped)
        return Cell(ported.adapter, time.perf_counter() - begin, report)

    @cached_property
    def _refinings(self) -> dict[str, Refining | None]:
        return {name: refining_for(self.bench, task) for name, task in self.tasks.items()}

    @cached_property
    def _porting(self) -> Porting:
        mapper, pair = self._mapper, base_pair(self.bench)
        give_models(mapper, pair, self.bench.config, lambda done, total: None)
        return Plan.of(self.bench.config).porting(mapper, pair)

    @cached_property
    def _mapper(self) -> Mapper:
        """The mapper, fitted: from the cache, or now."""
        if not isinstance(self._built, LearnedMapper):
            return self._built
        folder = self._fit_folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Benchmarks that run side by side share what they fit.
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                with staged_folder(folder) as staged, _timed(staged):
                    Fitting.of(self.bench, self._built, self._anchors()).fit([], staged)
        return load_mapper(folder / "mapper.ckpt")

    def _anchors(self) -> AnchorPairs | None:
        if isinstance(self._built, CorpusMapper):
            return None
        held_out = list(self.bench.config.tasks.held_out)
        data: AnchorPairs = build(self.bench.config.data, zoo=self.zoo, held_out=held_out)
        return data


def refining_for(bench: SharedBench, task: Task) -> Refining | None:
    """Return the refinement of a method for one held-out task; None without one.

    What a refinement may see of the task goes by its class: its unlabelled inputs are the first
    training rows without their labels, its labelled examples the first with them.
    """
    if "_target_" not in bench.config.refine:
        return None
    refinement: Refinement = build(bench.config.refine)
    name = type(refinement).__module__.rpartition(".")[2]
    used = refinement.information_class
    inputs = option(bench.config, "unlabelled", int) if used == "unlabelled prompts" else 0
    examples = option(bench.config, "examples", int) if used == "few-shot" else 0
    return Refining(
        bench=bench,
        name=name,
        refinement=refinement,
        questions={task.name: asked_question(bench, task.name)},
        texts=taught_by(bench, refinement, name, task.name),
        generic=generic_texts(bench),
        inputs=tuple(row.text for row in task.train[:inputs]),
        examples=task.train[:examples],
        written=written_texts(bench),
    )


@contextmanager
def _timed(folder: Path) -> Iterator[None]:
    """Write into a folder how long the block took."""
    begin = time.perf_counter()
    yield
    seconds = {"seconds": time.perf_counter() - begin}
    (folder / "fit.json").write_text(json.dumps(seconds) + "\n", encoding="utf-8")
