"""Configurations of single methods, composed while a command runs."""

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from importlib import resources
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from ..adapters import LoraAdapter, Role, cosine, read_adapter, relative_error, write_adapter
from ..data import AnchorPairs, AnchorSet, Task, TextSource, ZooPairs
from ..data.corpora import TRAIN, VALIDATION
from ..evaluation.assembly import suite_result, summarise, task_result
from ..evaluation.calibration import calibrate
from ..evaluation.records import (
    CalibrationPoint,
    CalibrationResult,
    Condition,
    Divergence,
    MethodResult,
    SuiteResult,
    interval_text,
    plain,
)
from ..evaluation.scoring import ScoreCache, TaskScore, TextDivergences, random_adapter, swapped
from ..evaluation.suite import Suite, SuiteCache
from ..exceptions import AdapterError, ConfigurationError, LoraportError
from ..files import staged_folder
from ..mappers import LearnedMapper, Mapper, load_mapper
from ..mappers.controls import MeanMapper
from ..mappers.from_text import CorpusMapper
from ..models import BaseModel
from ..models.loading import learning_dtype, one_thread
from ..refinement.base import Refinement, RefinementProgress, silent
from ..settings import Recipe
from ..store import Store
from .anchors import CPU_TRAINER, train_adapter
from .context import SharedContext, build, costliest, listed, option, shown_bars
from .diagnose import diagnostics
from .port import base_pair
from .porting import (
    Porting,
    Refining,
    generic_texts,
    give_models,
    porting_for,
    prompt_spec,
    refining_progress,
    taught_by,
)
from .train import Fitting, check_base


def composed(name: str, overrides: Sequence[str]) -> DictConfig:
    """Return a configuration as the command ``name`` would have it for the words ``overrides``.

    Raises:
        HydraException: a word names what does not exist.
    """
    with _no_running_command(), initialize_config_module("loraport.conf", version_base="1.3"):
        return compose(name, overrides=list(overrides))


def given_words() -> list[str]:
    """Return the words of the running command, those of a sweep's job with it."""
    return [str(word) for word in HydraConfig.get().overrides.task]


@contextmanager
def _no_running_command() -> Iterator[None]:
    """Set the running command aside: Hydra composes for one at a time."""
    running = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        yield
    finally:
        GlobalHydra.instance().hydra = running


# What ``methods=`` names: mappers, mappers with a refinement, and the default port.

DEFAULT = "default"
"""What ``transfer.py`` does where neither mapper nor refinement is named."""

CONTROLS = ("noop", "copy", "random", "mean")
"""Mappers that are columns beside every method rather than methods."""


@dataclass(frozen=True)
class Method:
    """One way to port an adapter.

    Attributes:
        name: As in ``methods=``.
        mapper: Its mapper, a file of ``conf/mapper``.
        refine: Its refinement, a file of ``conf/refine``.
        options: More of the command line, for this method alone.
    """

    name: str
    mapper: str
    refine: str = "none"
    options: tuple[str, ...] = ()

    @classmethod
    def named(cls, name: str, options: tuple[str, ...] = ()) -> "Method":
        """Return the method of a name.

        Raises:
            ConfigurationError: there is no such mapper or refinement.
        """
        if name == DEFAULT:
            return cls(name, "noop", "corpus_distill", options)
        mapper, plus, refine = name.partition("+")
        for group, choice in (("mapper", mapper), ("refine", refine if plus else "none")):
            known = choices(group)
            if choice not in known:
                raise ConfigurationError(
                    f"methods names {name!r}, but there is no {group}={choice}; a method is "
                    f"{DEFAULT}, MAPPER or MAPPER+REFINE, and {group} takes {', '.join(known)}"
                )
        return cls(name, mapper, refine if plus else "none", options)

    @property
    def overrides(self) -> list[str]:
        """What the method adds to a command line."""
        return [f"mapper={self.mapper}", f"refine={self.refine}", *self.options]


def chosen_methods(config: DictConfig) -> list[Method]:
    """Return the methods of a configuration, each once, in their order.

    Raises:
        ConfigurationError: one does not exist, or options are given for one that is not asked for.
    """
    names = list(dict.fromkeys(listed(config, "methods", str)))
    if names == ["all"]:
        names = [name for name in choices("mapper") if name not in CONTROLS] + [DEFAULT]
    given = config.method_options or {}
    options = {str(name): tuple(map(str, words)) for name, words in given.items()}
    for strange in options.keys() - {*choices("mapper"), DEFAULT, *names}:
        raise ConfigurationError(
            f"method_options names {strange}, which is none of the methods; they are "
            f"{', '.join(names)}"
        )
    return [Method.named(name, options.get(name, ())) for name in names]


def choices(group: str) -> list[str]:
    """Return the files of a group of configurations, by name."""
    folder = resources.files("loraport.conf") / group
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in folder.iterdir()
        if entry.name.endswith(".yaml")
    )


# Cells of a benchmark: work that is done once, kept under the hash of what it depends on.

_FACTS = "cell.json"

# Raise it when the code makes something else of the same options.
_FORMAT = 1


class Cell(NamedTuple):
    """An adapter that was made, and what is to be said of how.

    Attributes:
        adapter: The adapter.
        seconds: On the clock, when it was made.
        report: Plain data.
    """

    adapter: LoraAdapter
    seconds: float
    report: dict[str, Any]


@dataclass(frozen=True)
class AdapterCells:
    """Adapters in folders that are named by what they were made of.

    Attributes:
        folder: Where the folders lie.
    """

    folder: Path

    def known(self, key: str) -> Cell | None:
        """Return the cell of a key; None where it is not there, or damaged."""
        path = self.folder / key
        try:
            facts = json.loads((path / _FACTS).read_text(encoding="utf-8"))
            return Cell(read_adapter(path), float(facts["seconds"]), dict(facts["report"]))
        except (OSError, ValueError, KeyError, TypeError, AdapterError):
            return None

    def kept(self, key: str, make: Callable[[], Cell]) -> Cell:
        """Return the cell of a key, made and written where it is not there yet."""
        known = self.known(key)
        if known is not None:
            return known
        made = make()
        facts = {"seconds": made.seconds, "report": plain(made.report)}
        content = json.dumps(facts, indent=1) + "\n"
        # A folder that cannot be read is replaced.
        write_adapter(made.adapter, self.folder / key, extra={_FACTS: content}, overwrite=True)
        # Read back, so that a first run goes on with the very bits that a second one finds.
        kept = self.known(key)
        return made if kept is None else kept


def cell_key(key_parts: Mapping[str, Any]) -> str:
    """Return a name for what is made of plain data."""
    content = json.dumps({"format": _FORMAT, **key_parts}, sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:32]


# What the work of a method depends on, so that it is done once.

_FITTED_BY = ("data", "trainer", "callbacks")
_TEXT_FITTED_BY = ("corpus", "pairing", "diagnosis", "probes", "anchor_questions", "prompt")
_PORTED_BY = ("sparsify", "merge", "output_rank", "scale", "dtype")
_REFINED_BY = ("refine", "refine_texts", "refine_dtype", "recipe")


def mapper_parts(context: SharedContext, mapper: Mapper, zoo: ZooPairs) -> dict[str, Any]:
    """Return everything that a mapper's maps depend on, as plain data.

    Files count by their content, not by where they lie.
    """
    parts = _options(context, "mapper") | {
        "seed": context.config.seed,
        "models": [context.model(side).fingerprint for side in ("source", "target")],
    }
    if isinstance(mapper, LearnedMapper):
        parts |= _options(context, *_FITTED_BY)
        held_out = set(context.config.tasks.held_out)
        parts["anchors"] = zoo_hash(zoo, (n for n in zoo.source if n not in held_out))
    if isinstance(mapper, CorpusMapper):
        parts |= _options(context, *_TEXT_FITTED_BY)
        parts["texts"] = texts_hash(build(context.config.corpus))
    return parts


def port_parts(context: SharedContext, refining: Refining | None) -> dict[str, Any]:
    """Return everything that the steps after the mapper depend on, as plain data."""
    parts = _options(context, *_PORTED_BY)
    if refining is None:
        return parts
    parts |= _options(context, *_REFINED_BY)
    parts["question"] = refining.question()
    parts["given"] = [refining.inputs, refining.examples]
    parts["taught by"] = {name: texts_hash(texts) for name, texts in refining.texts.items()}
    return parts


def zoo_hash(zoo: ZooPairs, names: Iterable[str]) -> str:
    """Return the SHA-256 of both sides' adapters of some tasks."""
    content = [(n, zoo.source[n].content_hash(), zoo.target[n].content_hash()) for n in names]
    return hashlib.sha256(json.dumps(sorted(content)).encode()).hexdigest()


def texts_hash(source: TextSource) -> str:
    """Return the SHA-256 of the texts of both splits, in their order."""
    digest = hashlib.sha256()
    for split in (TRAIN, VALIDATION):
        for text in source.texts(split):
            digest.update(f"{len(text)}:{text}".encode())
        digest.update(b"|")
    return digest.hexdigest()


def _options(context: SharedContext, *keys: str) -> dict[str, Any]:
    """Return parts of the configuration with interpolations as written: places do not count."""
    config = OmegaConf.to_container(context.config, resolve=False)
    return {key: config.get(key) for key in keys} if isinstance(config, dict) else {}


# Porting the held-out tasks' adapters by one method, each once.


class MethodPorts:
    """One method with one seed, and the cells that it fills.

    Args:
        context: The method's own configuration.
        method: What it is.
        zoo: Adapters of all tasks.
        tasks: The held-out ones.

    Raises:
        LoraportError: the mapper or the refinement cannot be built.
    """

    def __init__(
        self, context: SharedContext, method: Method, zoo: ZooPairs, tasks: Mapping[str, Task]
    ) -> None:
        self.context, self.method, self.zoo, self.tasks = context, method, zoo, tasks
        self.cells = AdapterCells(context.cache / "benchmark" / "ports")
        self._built: Mapper = build(context.config.mapper)
        self._parts = mapper_parts(context, self._built, zoo)
        self._fit_folder = context.cache / "benchmark" / "fits" / cell_key(self._parts)

    @property
    def data_access(self) -> str:
        """What the method may use, in the words of the evaluation protocol."""
        refined = [refining.data_access for refining in self._refinings.values() if refining]
        return costliest(self._built.data_access, *refined)

    @property
    def fit_seconds(self) -> float | None:
        """How long the mapper was fitted; None where there was nothing to fit."""
        path = self._fit_folder / "fit.json"
        return json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.exists() else None

    def port(self, name: str, progress: RefinementProgress) -> Cell:
        """Return the ported adapter of a held-out task; make it where it is not known yet.

        Raises:
            LoraportError: the method cannot be used on this pair or this adapter.
        """
        adapter, refining = self.zoo.source[name], self._refinings[name]
        key_parts = self._parts | port_parts(self.context, refining)
        key_parts["adapter"] = adapter.content_hash()
        return self.cells.kept(
            cell_key(key_parts), lambda: self._ported(name, adapter, refining, progress)
        )

    def _ported(
        self,
        name: str,
        adapter: LoraAdapter,
        refining: Refining | None,
        progress: RefinementProgress,
    ) -> Cell:
        porting, begin = self._porting, time.perf_counter()
        quiet = one_thread() if self._built.data_access == "anchors" else nullcontext()
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
        return {name: refining_for(self.context, task) for name, task in self.tasks.items()}

    @cached_property
    def _porting(self) -> Porting:
        mapper, pair = self._mapper, base_pair(self.context)
        give_models(mapper, pair, self.context.config.pair.name, lambda done, total: None)
        return porting_for(self.context.settings, mapper, pair.target.sites)

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
                    Fitting.of(self.context, self._built, self._anchors()).fit([], staged)
        return load_mapper(folder / "mapper.ckpt")

    def _anchors(self) -> AnchorPairs | None:
        if isinstance(self._built, CorpusMapper):
            return None
        held_out = list(self.context.config.tasks.held_out)
        data: AnchorPairs = build(self.context.config.data, zoo=self.zoo, held_out=held_out)
        return data


def refining_for(context: SharedContext, task: Task) -> Refining | None:
    """Return the refinement of a method for one held-out task; None without one.

    What a refinement may see of the task goes by what it takes: its unlabelled inputs are the first
    training rows without their labels, its labelled examples the first with them.
    """
    if "_target_" not in context.config.refine:
        return None
    refinement: Refinement = build(context.config.refine)
    inputs = option(context.config, "unlabelled", int) if "inputs" in refinement.takes else 0
    examples = option(context.config, "examples", int) if "examples" in refinement.takes else 0
    return Refining(
        context=context,
        refinement=refinement,
        questions={task.name: prompt_spec(context, task.name)},
        texts=taught_by(context, refinement, task.name),
        generic=generic_texts(context),
        inputs=tuple(row.text for row in task.train[:inputs]),
        examples=task.train[:examples],
        written=context.settings.refine_texts.written,
    )


@contextmanager
def _timed(folder: Path) -> Iterator[None]:
    """Write into a folder how long the block took."""
    begin = time.perf_counter()
    yield
    seconds = {"seconds": time.perf_counter() - begin}
    (folder / "fit.json").write_text(json.dumps(seconds) + "\n", encoding="utf-8")


# The few-shot control: adapters trained on the target with a few labelled examples.


@dataclass(frozen=True)
class FewShotControl:
    """Trains on the target with k labelled examples, in as many steps as the oracle's recipe has.

    Attributes:
        context: The configuration.
        count: k.

    Raises:
        ConfigurationError: k is no number of examples.
    """

    context: SharedContext
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigurationError(
                f"few_shot names {self.count} examples; it takes whole numbers of at least 1, or "
                "[] for no such control"
            )

    @property
    def name(self) -> str:
        """The name of its column."""
        return f"few_shot_{self.count}"

    def adapter(self, task: Task, seed: int) -> Cell:
        """Return the adapter of a task; which examples it sees, and in which order, is drawn.

        Raises:
            LoraportError: the recipe cannot be used.
        """
        recipe = self.recipe(seed)
        # Not the network's own dtype: as whatever is distilled, so that the two can be compared.
        target = self.context.learner("target")
        key_parts = {
            "recipe": recipe.model_dump(mode="json"),
            "prompt": asdict(self.context.template),
            "base": target.fingerprint,
            "rows": replace(task, test=()).content_hash(),
        }
        cells = AdapterCells(self.context.cache / "benchmark" / "few_shot")

        def train() -> Cell:
            rows = list(task.train)
            random.Random(seed).shuffle(rows)
            drawn = replace(task, train=tuple(rows))
            begin = time.perf_counter()
            adapter, metrics = train_adapter(
                recipe, target, drawn, self.context.template, CPU_TRAINER
            )
            return Cell(adapter, time.perf_counter() - begin, metrics)

        return cells.kept(cell_key(key_parts), train)

    def recipe(self, seed: int) -> Recipe:
        """Return the recipe of the pair's adapters, with k examples and as many steps."""
        whole: Recipe = self.context.settings.recipe
        steps = whole.epochs * ceil(whole.examples / whole.batch_size)
        epochs = ceil(steps / ceil(self.count / whole.batch_size))
        return whole.model_copy(update={"examples": self.count, "epochs": epochs, "seed": seed})


# The scores of a benchmark: every condition of every held-out task, on both models.

Conditions = dict[str, TaskScore]
"""Score of one task under each condition."""


@dataclass(frozen=True)
class BenchmarkScores:
    """Scores conditions of the held-out tasks; what is scored already is read from the cache.

    Attributes:
        context: The configuration.
        scores: Scorer and cache.
        tasks: The held-out tasks.
    """

    context: SharedContext
    scores: ScoreCache
    tasks: Mapping[str, Task]
    _checked: set[str] = field(default_factory=set)

    def source(self, adapters: Mapping[str, LoraAdapter]) -> dict[str, Conditions]:
        """Return ``source_base`` and ``source`` of every task."""
        base = self.context.model("source")
        check_base(base, next(iter(adapters.values())), "source")
        return {
            name: {
                "source_base": self.scores.score(base, None, task),
                "source": self.scores.score(base, adapters[name], task),
            }
            for name, task in self.tasks.items()
        }

    def target(self, name: str, adapter: LoraAdapter | None) -> TaskScore:
        """Return the score of one task on the target."""
        base = self.context.model("target")
        if adapter is not None and "target" not in self._checked:
            check_base(base, adapter, "target")
            self._checked.add("target")
        return self.scores.score(base, adapter, self.tasks[name])

    def ported(self, cells: Mapping[str, Cell]) -> Iterator[tuple[str, Conditions]]:
        """Give for each task what a method scores, and what it makes of another task's adapter."""
        adapters = {name: cell.adapter for name, cell in cells.items()}
        others = swapped(adapters, spare=())
        for name in self.tasks:
            found = {"predicted": self.target(name, adapters[name])}
            if name in others:
                found["swapped"] = self.target(name, others[name])
            yield name, found


# The columns that stand beside every method: base, source, oracle, and the controls.

KNOWN = ("copy", "random")
"""What ``evaluation.controls`` takes; base, mean and swapped are always there."""

Columns = dict[str, dict[str, LoraAdapter | None]]
"""Condition to task to adapter of the target."""


class BenchmarkControls:
    """Makes the adapters of all columns but the methods' own.

    Args:
        context: The configuration, with ``mapper=copy`` in it for that control.
        zoo: Adapters of all tasks.
        tasks: The held-out ones.

    Raises:
        ConfigurationError: a control does not exist, or no anchor is left.
    """

    def __init__(self, context: SharedContext, zoo: ZooPairs, tasks: Mapping[str, Task]) -> None:
        self.context, self.zoo, self.tasks = context, zoo, tasks
        self.asked: Sequence[str] = listed(context.config, "evaluation.controls", str)
        unknown = sorted(set(self.asked) - set(KNOWN))
        if unknown:
            raise ConfigurationError(
                f"evaluation.controls has {', '.join(unknown)}; it takes any of {', '.join(KNOWN)}"
            )
        self.few_shot = [
            FewShotControl(context, k) for k in listed(context.config, "few_shot", int)
        ]
        held_out = set(context.config.tasks.held_out)
        anchors = [name for name in zoo.source if name not in held_out]
        if not anchors:
            raise ConfigurationError(
                "every task of the zoo is held out, so that there is no anchor for the control "
                "mean; shorten tasks.held_out or add tasks to the zoo"
            )
        self._anchors = AnchorSet.of(zoo, anchors)

    @property
    def names(self) -> tuple[str, ...]:
        """The controls, in the order in which they are shown; a method has to beat them all."""
        return ("mean", *self.asked, "swapped")

    def fixed(self) -> Columns:
        """Return the columns that no seed changes: base, oracle, mean and copy.

        Where the two models differ so much that nothing can be copied, that column is left out.
        """
        mean = MeanMapper()
        mean.fit(self._anchors)
        columns: Columns = {
            "base": dict.fromkeys(self.tasks),
            "oracle": {name: self.zoo.target[name] for name in self.tasks},
            "mean": {name: mean.map(self.zoo.source[name]) for name in self.tasks},
        }
        if "copy" in self.asked:
            try:
                ports = MethodPorts(self.context, Method("copy", "copy"), self.zoo, self.tasks)
                columns["copy"] = {name: ports.port(name, silent).adapter for name in self.tasks}
            except LoraportError:
                self.asked = [name for name in self.asked if name != "copy"]
        return columns

    def drawn(self, seed: int) -> Columns:
        """Return the columns that a seed decides: random, and few-shot for each k.

        Raises:
            LoraportError: the recipe cannot be used.
        """
        columns: Columns = {}
        if "random" in self.asked:
            drawn = random_adapter(self._anchors.target, self._anchors.target_base, seed)
            columns["random"] = dict.fromkeys(self.tasks, drawn)
        for control in self.few_shot:
            columns[control.name] = {
                name: control.adapter(task, seed).adapter for name, task in self.tasks.items()
            }
        return columns


# Running a benchmark: controls and methods, each cell once, and what they score.


@dataclass(frozen=True)
class MethodRun:
    """What one method made and scored with one seed.

    Attributes:
        result: The evidence.
        cells: Task to ported adapter; empty where the method refused.
        scores: Task to the score of every condition.
    """

    result: MethodResult
    cells: Mapping[str, Cell] = field(default_factory=dict)
    scores: Mapping[str, Conditions] = field(default_factory=dict)

    @property
    def adapters(self) -> dict[str, LoraAdapter]:
        """Task to ported adapter."""
        return {name: cell.adapter for name, cell in self.cells.items()}


class Benchmark:
    """Methods and controls of one pair on its held-out tasks.

    Args:
        context: The command's configuration.
        zoo: Adapters of all tasks.
        tasks: The held-out ones.
    """

    def __init__(self, context: SharedContext, zoo: ZooPairs, tasks: Mapping[str, Task]) -> None:
        self.context, self.zoo, self.tasks = context, zoo, tasks
        self.scores = BenchmarkScores(context, context.scores, tasks)
        self.controls = BenchmarkControls(
            benchmark_for(context, Method("copy", "copy"), context.config.seed, zoo), zoo, tasks
        )
        self._console = Console(stderr=True)
        self._fixed: dict[str, Conditions] = {}

    def fixed(self) -> dict[str, Conditions]:
        """Return the scores that neither method nor seed changes, of every task."""
        if not self._fixed:
            found = self.scores.source({name: self.zoo.source[name] for name in self.tasks})
            for condition, adapters in self.controls.fixed().items():
                for name, adapter in adapters.items():
                    found[name][condition] = self.scores.target(name, adapter)
                self.say(condition, {name: found[name][condition] for name in self.tasks})
            self._fixed = found
        return self._fixed

    def drawn(self, seed: int) -> dict[str, Conditions]:
        """Return the scores of the controls that a seed decides, of every task."""
        found: dict[str, Conditions] = {name: {} for name in self.tasks}
        for condition, adapters in self.controls.drawn(seed).items():
            for name, adapter in adapters.items():
                found[name][condition] = self.scores.target(name, adapter)
            self.say(f"{condition}, seed {seed}", {n: s[condition] for n, s in found.items()})
        return found

    def runs(self, methods: list[Method], seeds: list[int]) -> Iterator[MethodRun]:
        """Give what every method makes with every seed, as it comes."""
        fixed = self.fixed()
        for seed in seeds:
            drawn = self.drawn(seed)
            beside = {name: fixed[name] | drawn[name] for name in self.tasks}
            for method in methods:
                yield self.run(method, seed, beside)

    def run(self, method: Method, seed: int, beside: Mapping[str, Conditions]) -> MethodRun:
        """Return what a method makes with one seed; a refusal is evidence as well."""
        begin, ports = time.perf_counter(), None
        facts: dict[str, Any] = {
            "name": method.name,
            "mapper": method.mapper,
            "refine": None if method.refine == "none" else method.refine,
            "pair": self.context.config.pair.name,
            "seed": seed,
        }
        try:
            own = benchmark_for(self.context, method, seed, self.zoo)
            ports = MethodPorts(own, method, self.zoo, self.tasks)
            with refining_progress() if facts["refine"] else nullcontext(silent) as tell:
                cells = {name: ports.port(name, tell) for name in self.tasks}
        except LoraportError as error:
            self._print(f"{method.name}, seed {seed}: refused; {error}")
            used = ports.data_access if ports is not None else "weights only"
            refused = MethodResult(**facts, data_access=used, refused=str(error))
            return MethodRun(refused)
        scores = {name: {**beside[name], **found} for name, found in self.scores.ported(cells)}
        result = self._result(facts, ports, cells, scores)
        seconds = time.perf_counter() - begin
        self._say_result(result, seconds)
        return MethodRun(result, cells, scores)

    def _result(
        self,
        facts: dict[str, Any],
        ports: MethodPorts,
        cells: Mapping[str, Cell],
        scores: Mapping[str, Conditions],
    ) -> MethodResult:
        controls, seed = self.controls.names, facts["seed"]
        tasks = {}
        for name, conditions in scores.items():
            made, oracle = cells[name].adapter, self.zoo.target[name]
            known = [control for control in controls if control in conditions]
            likeness = cosine(made, oracle), relative_error(made, oracle)
            tasks[name] = task_result(conditions, known, *likeness, seed)
        port = sum(cell.seconds for cell in cells.values()) / len(cells)
        return MethodResult(
            **facts,
            data_access=ports.data_access,
            controls=controls,
            tasks=tasks,
            summary=summarise(scores, controls, seed),
            seconds={"fit": ports.fit_seconds, "port": port},
            report={"tasks": {name: cell.report for name, cell in cells.items() if cell.report}},
        )

    def say(self, what: str, scores: Mapping[str, TaskScore]) -> None:
        """Print the accuracies of a condition."""
        found = ", ".join(f"{name} {score.accuracy:.3f}" for name, score in scores.items())
        self._print(f"{what}: {found}")

    def _say_result(self, result: MethodResult, seconds: float) -> None:
        gap = "no usable task"
        if result.summary is not None and result.summary.gap_recovered is not None:
            gap = f"{result.summary.gap_recovered:.2f} {interval_text(result.summary.ci95)}"
        self._print(f"{result.name}, seed {result.seed}: gap recovered {gap} ({seconds:.0f} s)")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def benchmark_for(
    context: SharedContext, method: Method, seed: int, zoo: ZooPairs
) -> SharedContext:
    """Return the bench of a method: the running command's options, and the method's own.

    A mapper that is fitted for some roles of modules is fitted for those that the zoo's adapters
    have, unless the options name others.
    """
    words = [*given_words(), *method.overrides, f"seed={seed}"]
    config = composed("evaluate", words)
    if "roles" in config.mapper and not any(w.startswith("mapper.roles=") for w in words):
        adapted = {site.role.value for adapter in zoo.source.values() for site in adapter}
        roles = [role.value for role in Role if role.value in adapted]
        OmegaConf.update(config, "mapper.roles", roles)
    return SharedContext(config, context.loaded)


# What a benchmark measures beside its tasks: suites, divergences, and the diagnosis itself.

GENERIC = "generic"
"""The texts of a divergence that are no suite's prompts."""

_KNOWN_BEFORE = ("pool_balance",)  # of what a refinement reports: measured before it trains

Asked = dict[Condition, LoraAdapter | None]
"""Which models are asked: conditions, and the adapter of each on the target."""


def built_suites(context: SharedContext) -> list[Suite]:
    """Return the suites of ``suite=``.

    Raises:
        LoraportError: one of them cannot be read, or asks for a permission that it does not have.
    """
    found: list[Suite] = []
    for node in (context.config.get("suite") or {}).values():
        built = build(node)
        found += built if isinstance(built, list) else [built]
    return found


def asked_models(
    context: SharedContext, oracles: Mapping[str, LoraAdapter], runs: Sequence[MethodRun]
) -> Asked:
    """Return the target without an adapter, with each oracle, and with what was ported.

    Of the methods those of ``suite_methods``, with the first seed, of the tasks those of
    ``suite_tasks``.
    """
    config, pair = context.config, context.config.pair.name
    methods = None if config.suite_methods is None else listed(config, "suite_methods", str)
    tasks = list(oracles) if config.suite_tasks is None else listed(config, "suite_tasks", str)
    asked: Asked = {Condition(pair=pair, method="base"): None}
    for task in tasks:
        if task in oracles:
            asked[Condition(pair=pair, method="oracle", task=task)] = oracles[task]
    for run in first_seed(runs):
        name, seed = run.result.name, run.result.seed
        if methods is None or name in methods:
            for task, adapter in run.adapters.items():
                if task in tasks:
                    asked[Condition(pair=pair, method=name, task=task, seed=seed)] = adapter
    return asked


def first_seed(runs: Sequence[MethodRun]) -> list[MethodRun]:
    """Return the runs with the first seed."""
    return [run for run in runs if run.result.seed == runs[0].result.seed]


def suite_results(
    context: SharedContext, suites: Sequence[Suite], asked: Asked
) -> tuple[SuiteResult, ...]:
    """Return what every model scores on every suite; what is known is read from the cache."""
    if not suites:
        return ()
    cache, target, found = SuiteCache(context.cache / "suites"), answering(context), []
    base = next(iter(asked))
    for suite in suites:
        scores = {}
        with shown_bars() as progress:
            bar = progress.add_task(f"suite {suite.name}, models", total=len(asked))
            for condition, adapter in asked.items():
                scores[condition] = cache.score(target, adapter, suite)
                progress.advance(bar)
        bases = {condition: base for condition in asked if condition != base}
        found.append(suite_result(suite.name, suite.metrics, scores, bases, context.config.seed))
    return tuple(found)


def answering(context: SharedContext) -> BaseModel:
    """Return the target as it answers suites: in the dtype of ``suite_dtype``."""
    base = context.model("target")
    return base.converted(learning_dtype(option(context.config, "suite_dtype", str), base))


def divergences(
    context: SharedContext, suites: Sequence[Suite], asked: Asked
) -> tuple[Divergence, ...]:
    """Return how far every adapter moves the target on generic text and on the suites' prompts."""
    most = option(context.config, "drift.texts", int)
    if most < 1:
        return ()
    positions, seed = option(context.config, "drift.positions", int), context.config.seed
    texts = {GENERIC: tuple(generic_texts(context).texts(VALIDATION))}
    texts |= {suite.name: suite.prompts() for suite in suites}
    adapters = {condition: adapter for condition, adapter in asked.items() if adapter is not None}
    found, target = [], context.model("target")
    with shown_bars() as progress:
        bar = progress.add_task("drift", total=len(texts) * len(adapters))
        for name, said in texts.items():
            gauge = TextDivergences(target, said, Store(context.cache), most, positions, seed)
            for condition, adapter in adapters.items():
                measured = asdict(gauge.of(adapter))
                found.append(Divergence(condition=condition, texts=name, **measured))
                progress.advance(bar)
    return tuple(found)


def calibration(
    context: SharedContext, given: Mapping[str, LoraAdapter], runs: Sequence[MethodRun]
) -> CalibrationResult | None:
    """Compare what is known before a transfer with what came of it; None where nobody asks.

    Of the seeds only the first counts: most methods make the same with every seed.
    """
    if not option(context.config, "calibration", bool):
        return None
    known, points = diagnostics(context, given), []
    for run in first_seed(runs):
        for task, result in run.result.tasks.items():
            points.append(
                CalibrationPoint(
                    condition=Condition(
                        pair=run.result.pair,
                        method=run.result.name,
                        task=task,
                        seed=run.result.seed,
                    ),
                    gap_recovered=result.gap_recovered,
                    gap_recovered_nll=result.gap_recovered_nll,
                    diagnostics={**known[task], **_told(run.cells[task].report)},
                )
            )
    return calibrate(points, seed=context.config.seed)


def _told(report: Mapping[str, Any]) -> dict[str, float]:
    """Return what a refinement knows before it trains."""
    known = {name: report.get(name) for name in _KNOWN_BEFORE}
    return {name: float(value) for name, value in known.items() if value is not None}
