"""What evaluate.py is made of: every method and control on every held-out task, each once.

A method's mapper is fitted, the held-out tasks' source adapters are ported and refined, and what
comes out is scored beside base, oracle and controls. Fits, ported and few-shot adapters are kept in
the store under all that they depend on, scores likewise: a run that was stopped goes on, and a
further method computes only its own. Suites, divergences and the calibration of the diagnosis are
measured of the same adapters.
"""

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from ..adapters import LoraAdapter, Role, cosine, read_adapter, relative_error, write_adapter
from ..composing import compose
from ..data import AnchorSet, Task, TextSource, ZooPairs
from ..data.corpora import TRAIN, VALIDATION
from ..data.prompts import scoring_rule
from ..data.zoo import SIDES
from ..evaluation.assembly import suite_result, summarise, task_result
from ..evaluation.calibration import calibrate
from ..evaluation.records import (
    GENERIC,
    CalibrationPoint,
    CalibrationResult,
    Condition,
    Divergence,
    MethodResult,
    SuiteResult,
    interval_text,
    plain,
)
from ..evaluation.scoring import TaskScore, TextDivergences, random_adapter, swapped
from ..evaluation.suite import Suite, SuiteCache
from ..exceptions import ConfigurationError, LoraportError, OutputError
from ..mappers import BasePair, LearnedMapper, Mapper, load_mapper
from ..mappers.controls import MeanMapper, NearestMapper
from ..models.loading import learning_dtype, one_thread
from ..progress import shown_progress, shown_steps
from ..refinement.base import Refinement, RefinementProgress, silent
from ..reporting.console import print_line
from ..settings import Method, MethodSettings, Recipe
from ..store import Key, Store, results_first
from .anchors import CPU_TRAINER, train_adapter
from .compatibility import compatibility_key
from .context import RunContext, costliest, trainer_device
from .diagnose import diagnostics
from .port import base_pair
from .porting import (
    Porting,
    Refining,
    generic_texts,
    porting_for,
    prompt_spec,
    taught_by,
)
from .train import Fitting, check_base, paired_anchors

Conditions = dict[str, TaskScore]
"""Score of one task under each condition."""

# The options that each step of a method depends on, beside models, adapters and texts.
_FITTED_BY = ("data", "trainer", "callbacks")
_TEXT_FITTED_BY = ("pairing", "anchor_questions", "prompt")
_PORTED_BY = ("sparsify", "merge", "output_rank", "scale", "dtype")
_REFINED_BY = ("refine", "refine_texts", "recipe")

_FACTS = "run.json"  # beside a kept adapter: how long it took, and what was reported of it
_FIT_FACTS = "fit.json"  # beside a kept mapper: how long it was fitted


def method_context(context: RunContext, method: Method, seed: int, zoo: ZooPairs) -> RunContext:
    """Return the context of one method with one seed, which shares the models that are loaded.

    Its configuration is composed of the running command's words and the method's own, see
    :meth:`~loraport.settings.MethodSettings.of_method`. Where a mapper is fitted for the roles that
    its YAML names, they become those of the zoo's adapters.

    Raises:
        ConfigurationError: an option of the method cannot be taken.
        HydraException: a word of it names what does not exist.
    """
    settings: MethodSettings = context.settings.of_method(method, seed)
    roles = settings.mapper.options.get("roles")
    if roles and roles == compose("evaluate", [f"mapper={method.mapper}"]).mapper.get("roles"):
        adapted = {site.role for adapter in zoo.source.values() for site in adapter}
        mapper = settings.mapper.with_options(roles=[r.value for r in Role if r in adapted])
        settings = settings.model_copy(update={"mapper": mapper})
    return RunContext(settings, context.loaded)


class CachedRun(NamedTuple):
    """An adapter that was made once, by a port or by training.

    Attributes:
        adapter: The adapter.
        seconds: Wall time of making it.
        report: Plain data on how it was made.
    """

    adapter: LoraAdapter
    seconds: float
    report: dict[str, Any]


def cached_run(store: Store, key: Key, make: Callable[[], CachedRun]) -> CachedRun:
    """Return the run that is kept under a key; where there is none, make it.

    A first run reads it back as well, so that it goes on with the very bits that a second finds.
    """

    def write(folder: Path) -> None:
        made = make()
        facts = {"seconds": made.seconds, "report": plain(made.report)}
        extra = {_FACTS: json.dumps(facts, indent=1) + "\n"}
        write_adapter(made.adapter, folder, extra=extra, overwrite=True)

    with results_first():
        folder = store.made_folder(key, write)
    facts = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    return CachedRun(read_adapter(folder), facts["seconds"], facts["report"])


class MethodPorts:
    """Ports the held-out tasks' adapters by one method with one seed, each once.

    Args:
        context: The method's own configuration.
        method: What it is.
        zoo: Adapters of all tasks.
        tasks: The held-out ones.

    Raises:
        LoraportError: the mapper or the refinement cannot be built.
    """

    def __init__(
        self, context: RunContext, method: Method, zoo: ZooPairs, tasks: Mapping[str, Task]
    ) -> None:
        self.context, self.method, self.zoo, self.tasks = context, method, zoo, tasks
        self.store = Store(context.cache)
        self._built: Mapper = context.settings.mapper.build()
        self._depends = self._mapper_depends()
        self._fit_key = Key.of("fits", **self._depends)

    @property
    def data_access(self) -> str:
        """What the method may use, in the words of the evaluation protocol."""
        refined = [refining.data_access for refining in self._refinings.values() if refining]
        return costliest(self._built.data_access, *refined)

    @property
    def learns(self) -> bool | None:
        """Whether its refinement learns from the source's adapter; None without one."""
        learning = [refining.refinement.learns for refining in self._refinings.values() if refining]
        return any(learning) if learning else None

    @property
    def fit_seconds(self) -> float | None:
        """How long the mapper was fitted; None where there was nothing to fit."""
        folder = self.store.get_folder(self._fit_key)
        if folder is None:
            return None
        return float(json.loads((folder / _FIT_FACTS).read_text(encoding="utf-8"))["seconds"])

    def port(self, name: str, progress: RefinementProgress) -> CachedRun:
        """Return the ported adapter of a held-out task; make it where it is not known yet.

        Raises:
            LoraportError: the method cannot be used on this pair or this adapter.
        """
        adapter, refining = self.zoo.source[name], self._refinings[name]
        key = Key.of(
            "ports",
            **self._depends,
            adapter=adapter,
            device=self._pair.device,
            ported_by=self.context.options(*_PORTED_BY),
            refined_by=None if refining is None else self._refining_depends(refining),
        )
        return cached_run(self.store, key, lambda: self._ported(name, adapter, refining, progress))

    def _ported(
        self,
        name: str,
        adapter: LoraAdapter,
        refining: Refining | None,
        progress: RefinementProgress,
    ) -> CachedRun:
        porting = self._porting  # before the clock starts: fitting is a time of its own
        begin = time.perf_counter()
        # The matrices of anchors are small: more threads would wait rather than work.
        with one_thread() if self._built.data_access == "anchors" else nullcontext():
            mapped = porting.mapped([adapter])
        report: dict[str, Any] = {}
        if refining is not None:
            mapped, reports = refining.refine_all({name: adapter}, mapped, progress)
            report = reports[0]
        ported = porting.combined(mapped).adapter
        return CachedRun(ported, time.perf_counter() - begin, report)

    def _mapper_depends(self) -> dict[str, Any]:
        """Return everything that the mapper's maps depend on; files count by their content."""
        context, built = self.context, self._built
        settings: MethodSettings = context.settings
        depends: dict[str, Any] = {
            "mapper": context.options("mapper"),
            "seed": settings.seed,
            "models": [context.model(side).key_parts for side in SIDES],
        }
        if isinstance(built, LearnedMapper):
            depends["fitted_by"] = context.options(*_FITTED_BY)
            depends["fitted_on"] = trainer_device(settings.trainer.options)
            depends["anchors"] = [
                [name, self.zoo.source[name], self.zoo.target[name]]
                for name in sorted(_anchor_names(context, self.zoo))
            ]
        if built.learns_from == "text":
            depends["text_fitted_by"] = context.options(*_TEXT_FITTED_BY)
            # Not the options of corpus and probes: where texts lie does not count.
            depends["texts"] = texts_hash(settings.corpus.build())
            if settings.diagnosis is not None:
                diagnosis, probes = settings.diagnosis.build(), settings.probes.build()
                depends["similarity"] = compatibility_key(context, diagnosis, probes).name
        return depends

    def _refining_depends(self, refining: Refining) -> dict[str, Any]:
        named = self.context.settings.refine_dtype
        return {
            "options": self.context.options(*_REFINED_BY),
            "dtypes": [learning_dtype(named, self.context.model(side)) for side in SIDES],
            "prompt": refining.question(),
            "inputs": refining.inputs,
            "examples": refining.examples,
            "texts": {name: texts_hash(texts) for name, texts in refining.texts.items()},
            **scoring_rule(next(iter(refining.questions.values())).labels),
        }

    @cached_property
    def _refinings(self) -> dict[str, Refining | None]:
        return {name: self._refining(task) for name, task in self.tasks.items()}

    def _refining(self, task: Task) -> Refining | None:
        """Return the refinement for one held-out task; None without one.

        What it may see of the task goes by what it takes: its unlabelled inputs are the first
        training rows without their labels, its labelled examples the first with them.
        """
        context = self.context
        settings: MethodSettings = context.settings
        if settings.refine is None:
            return None
        refinement: Refinement = settings.refine.build()
        inputs = settings.unlabelled if "inputs" in refinement.takes else 0
        examples = settings.examples if "examples" in refinement.takes else 0
        return Refining(
            context=context,
            refinement=refinement,
            questions={task.name: prompt_spec(context, task.name)},
            texts=taught_by(context, refinement, task.name),
            generic=generic_texts(context),
            inputs=tuple(row.text for row in task.train[:inputs]),
            examples=task.train[:examples],
            written=settings.refine_texts.written,
        )

    @cached_property
    def _pair(self) -> BasePair:
        return base_pair(self.context)

    @cached_property
    def _porting(self) -> Porting:
        mapper = self._fitted()
        mapper.use(self._pair)
        return porting_for(self.context.settings, mapper, self._pair.target.sites)

    def _fitted(self) -> Mapper:
        """Return the mapper, fitted: from the store, or now."""
        if not isinstance(self._built, LearnedMapper):
            return self._built
        mapper, data = self._built, None
        if mapper.learns_from == "anchors":
            data = paired_anchors(self.context.settings, self.zoo)

        def fit(folder: Path) -> None:
            begin = time.perf_counter()
            Fitting.of(self.context, mapper, data).fit([], folder)
            for model in self.context.loaded.values():
                # A trainer has moved them, but what follows is to be the same where a fit is kept.
                model.move("cpu")
            facts = {"seconds": time.perf_counter() - begin}
            (folder / _FIT_FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")

        with results_first():
            folder = self.store.made_folder(self._fit_key, fit)
        return load_mapper(folder / "mapper.ckpt")


def _anchor_names(context: RunContext, zoo: ZooPairs) -> list[str]:
    held_out = set(context.settings.tasks.held_out)
    return [name for name in zoo.source if name not in held_out]


def texts_hash(source: TextSource) -> str:
    """Return the SHA-256 of the texts of both splits, in their order."""
    digest = hashlib.sha256()
    for split in (TRAIN, VALIDATION):
        for text in source.texts(split):
            digest.update(f"{len(text)}:{text}".encode())
        digest.update(b"|")
    return digest.hexdigest()


def few_shot_run(context: RunContext, count: int, task: Task, seed: int) -> CachedRun:
    """Return an adapter of the target that is trained on a few labelled examples of a task.

    It takes as many steps as the recipe of the pair's adapters, and sees ``count`` examples, which
    and in which order is drawn.

    Raises:
        LoraportError: the recipe cannot be used.
    """
    whole: Recipe = context.settings.recipe
    steps = whole.epochs * ceil(whole.examples / whole.batch_size)
    epochs = ceil(steps / ceil(count / whole.batch_size))
    recipe = whole.model_copy(update={"examples": count, "epochs": epochs, "seed": seed})
    # Not the network's own dtype: as whatever is distilled, so that the two can be compared.
    target = context.learner("target")
    key = Key.of(
        "few_shot",
        recipe=recipe.model_dump(mode="json"),
        prompt=context.template,
        target=target.key_parts,
        rows=replace(task, test=()),
        seed=seed,
        **scoring_rule(task.labels),
    )

    def train() -> CachedRun:
        begin = time.perf_counter()
        rows = list(task.train)
        random.Random(seed).shuffle(rows)
        drawn = replace(task, train=tuple(rows))
        adapter, metrics = train_adapter(recipe, target, drawn, context.template, CPU_TRAINER)
        return CachedRun(adapter, time.perf_counter() - begin, dict(metrics))

    return cached_run(Store(context.cache), key, train)


@dataclass(frozen=True)
class MethodRun:
    """What one method made and scored with one seed.

    Attributes:
        result: The evidence.
        ports: Task to ported adapter; empty where the method refused.
        scores: Task to the score of every condition.
    """

    result: MethodResult
    ports: Mapping[str, CachedRun] = field(default_factory=dict)
    scores: Mapping[str, Conditions] = field(default_factory=dict)


class Benchmark:
    """Methods and controls of one pair on its held-out tasks.

    The columns beside every method are ``base``, ``source_base``, ``source`` and ``oracle``, and
    the controls, all of which a method has to beat: ``mean``, ``swapped``, those of
    ``evaluation.controls``, and ``few_shot_K`` beside them.

    Args:
        context: The command's configuration.
        zoo: Adapters of all tasks.
        tasks: The held-out ones.

    Raises:
        ConfigurationError: no anchor is left.
    """

    def __init__(self, context: RunContext, zoo: ZooPairs, tasks: Mapping[str, Task]) -> None:
        self.context, self.zoo, self.tasks = context, zoo, tasks
        self._cache, self._console = context.scores, Console(stderr=True)
        self._asked = list(context.settings.evaluation.controls)
        anchors = _anchor_names(context, zoo)
        if not anchors:
            raise ConfigurationError(
                "every task of the zoo is held out, so that there is no anchor for the control "
                "mean; shorten tasks.held_out or add tasks to the zoo"
            )
        self._anchors = AnchorSet.of(zoo, anchors)
        for side, adapters in (("source", zoo.source), ("target", zoo.target)):
            check_base(context.model(side), adapters[next(iter(tasks))], side)

    def runs(self, methods: Iterable[Method], seeds: Iterable[int]) -> Iterator[MethodRun]:
        """Give what every method makes with every seed, as it comes."""
        fixed = self._fixed()
        for seed in seeds:
            drawn = self._drawn(seed)
            beside = {name: fixed[name] | drawn[name] for name in self.tasks}
            for method in methods:
                yield self._run(method, seed, beside)

    def _run(self, method: Method, seed: int, beside: Mapping[str, Conditions]) -> MethodRun:
        """Return what a method makes with one seed; a refusal is evidence as well."""
        begin, ports = time.perf_counter(), None
        facts: dict[str, Any] = {
            "name": method.name,
            "mapper": method.mapper,
            "refine": None if method.refine == "none" else method.refine,
            "pair": self.context.settings.pair.name,
            "seed": seed,
        }
        try:
            own = method_context(self.context, method, seed, self.zoo)
            ports = MethodPorts(own, method, self.zoo, self.tasks)
            with shown_steps() if facts["refine"] else nullcontext(silent) as progress:
                made = {name: ports.port(name, progress) for name in self.tasks}
        except OutputError:
            raise  # a full disk says nothing of a method
        except LoraportError as error:
            self._print(f"{method.name}, seed {seed}: refused; {error}")
            used = ports.data_access if ports is not None else "weights only"
            return MethodRun(MethodResult(**facts, data_access=used, refused=str(error)))
        scores = {name: dict(beside[name]) for name in self.tasks}
        predicted = {name: port.adapter for name, port in made.items()}
        for condition, adapters in (
            ("predicted", predicted),
            ("swapped", swapped(predicted, spare=())),
        ):
            self._score(scores, condition, adapters)
        result = self._result(facts, ports, made, scores)
        gap = "no usable task"
        if result.summary is not None and result.summary.gap_recovered is not None:
            gap = f"{result.summary.gap_recovered:.2f} {interval_text(result.summary.ci95)}"
        seconds = time.perf_counter() - begin
        self._print(f"{result.name}, seed {seed}: gap recovered {gap} ({seconds:.0f} s)")
        return MethodRun(result, made, scores)

    def _result(
        self,
        facts: dict[str, Any],
        ports: MethodPorts,
        made: Mapping[str, CachedRun],
        scores: Mapping[str, Conditions],
    ) -> MethodResult:
        controls, seed, tasks = ("mean", *self._asked, "swapped"), facts["seed"], {}
        for name, conditions in scores.items():
            adapter, oracle = made[name].adapter, self.zoo.target[name]
            known = [control for control in controls if control in conditions]
            likeness = cosine(adapter, oracle), relative_error(adapter, oracle)
            tasks[name] = task_result(conditions, known, *likeness, seed)
        seconds = sum(port.seconds for port in made.values()) / len(made)
        return MethodResult(
            **facts,
            data_access=ports.data_access,
            learns=ports.learns,
            controls=controls,
            tasks=tasks,
            summary=summarise(scores, controls, seed),
            seconds={"fit": ports.fit_seconds, "port": seconds},
            report={"tasks": {name: port.report for name, port in made.items() if port.report}},
        )

    def _fixed(self) -> dict[str, Conditions]:
        """Score what neither method nor seed changes: bases, source, oracle, mean, nearest, copy.

        Where the two models differ so much that nothing can be copied, that column is left out.
        """
        found: dict[str, Conditions] = {name: {} for name in self.tasks}
        self._score(found, "source_base", dict.fromkeys(self.tasks), "source")
        self._score(found, "source", {n: self.zoo.source[n] for n in self.tasks}, "source")
        mean, nearest = MeanMapper(), NearestMapper()
        for looked_up in (mean, nearest):
            looked_up.fit(self._anchors)
        columns: dict[str, Mapping[str, LoraAdapter | None]] = {
            "base": dict.fromkeys(self.tasks),
            "oracle": {name: self.zoo.target[name] for name in self.tasks},
            "mean": {name: mean.map(self.zoo.source[name]) for name in self.tasks},
        }
        if "nearest" in self._asked:
            columns["nearest"] = {name: nearest.map(self.zoo.source[name]) for name in self.tasks}
        if "copy" in self._asked:
            method = Method("copy")
            own = method_context(self.context, method, self.context.settings.seed, self.zoo)
            try:
                ports = MethodPorts(own, method, self.zoo, self.tasks)
                columns["copy"] = {name: ports.port(name, silent).adapter for name in self.tasks}
            except OutputError:
                raise
            except LoraportError:
                self._asked.remove("copy")
        self._add(found, columns)
        return found

    def _drawn(self, seed: int) -> dict[str, Conditions]:
        """Score the controls that a seed decides: random, and few-shot for each k."""
        columns: dict[str, Mapping[str, LoraAdapter | None]] = {}
        if "random" in self._asked:
            drawn = random_adapter(self._anchors.target, self._anchors.target_base, seed)
            columns["random"] = dict.fromkeys(self.tasks, drawn)
        for count in self.context.settings.few_shot:
            columns[f"few_shot_{count}"] = {
                name: few_shot_run(self.context, count, task, seed).adapter
                for name, task in self.tasks.items()
            }
        found: dict[str, Conditions] = {name: {} for name in self.tasks}
        self._add(found, columns, f", seed {seed}")
        return found

    def _add(
        self,
        scores: dict[str, Conditions],
        columns: Mapping[str, Mapping[str, LoraAdapter | None]],
        note: str = "",
    ) -> None:
        """Score adapters of the target, condition by task, and print their accuracies."""
        for condition, adapters in columns.items():
            self._score(scores, condition, adapters)
            accuracies = ", ".join(f"{n} {s[condition].accuracy:.3f}" for n, s in scores.items())
            self._print(f"{condition}{note}: {accuracies}")

    def _score(
        self,
        scores: dict[str, Conditions],
        condition: str,
        adapters: Mapping[str, LoraAdapter | None],
        side: str = "target",
    ) -> None:
        """Score the adapters of tasks, on one side, as a condition."""
        base = self.context.model(side)
        with shown_progress() as progress:
            bar = progress.add_task(f"scoring {condition}, tasks", total=len(adapters))
            for name, adapter in adapters.items():
                scores[name][condition] = self._cache.score(base, adapter, self.tasks[name])
                progress.advance(bar)

    def _print(self, line: str) -> None:
        print_line(line, self._console)


# What is measured beside the tasks: suites, divergences, and the calibration of the diagnosis.

_KNOWN_BEFORE = ("pool_balance",)  # of what a refinement reports: measured before it trains

AskedModels = dict[Condition, LoraAdapter | None]
"""The models that suites are asked: conditions, and the adapter of each on the target."""


def built_suites(context: RunContext) -> list[Suite]:
    """Return the suites of ``suite=``.

    Raises:
        LoraportError: one of them cannot be read, or asks for a permission that it does not have.
    """
    found: list[Suite] = []
    for suite in context.settings.suite.values():
        built = suite.build()
        found += built if isinstance(built, list) else [built]
    return found


def asked_models(
    context: RunContext, oracles: Mapping[str, LoraAdapter], runs: Sequence[MethodRun]
) -> AskedModels:
    """Return the target without an adapter, with each oracle, and with what was ported.

    Of the methods those of ``suite_methods``, with the first seed, of the tasks those of
    ``suite_tasks``.
    """
    settings: MethodSettings = context.settings
    pair, methods = settings.pair.name, settings.suite_methods
    tasks = list(oracles) if settings.suite_tasks is None else settings.suite_tasks
    asked: AskedModels = {Condition(pair=pair, method="base"): None}
    for task in tasks:
        if task in oracles:
            asked[Condition(pair=pair, method="oracle", task=task)] = oracles[task]
    for run in first_seed(runs):
        name, seed = run.result.name, run.result.seed
        if methods is None or name in methods:
            for task, port in run.ports.items():
                if task in tasks:
                    asked[Condition(pair=pair, method=name, task=task, seed=seed)] = port.adapter
    return asked


def first_seed(runs: Sequence[MethodRun]) -> list[MethodRun]:
    """Return the runs with the first seed."""
    return [run for run in runs if run.result.seed == runs[0].result.seed]


def suite_results(
    context: RunContext, suites: Sequence[Suite], asked: AskedModels
) -> tuple[SuiteResult, ...]:
    """Return what every model scores on every suite; what is known is read from the cache."""
    if not suites:
        return ()
    cache, base, found = SuiteCache(Store(context.cache)), next(iter(asked)), []
    model = context.model("target")
    target = model.converted(learning_dtype(context.settings.suite_dtype, model))
    for suite in suites:
        scores = {}
        with shown_progress() as progress:
            bar = progress.add_task(f"suite {suite.name}, models", total=len(asked))
            for condition, adapter in asked.items():
                scores[condition] = cache.score(target, adapter, suite)
                progress.advance(bar)
        bases = {condition: base for condition in asked if condition != base}
        found.append(suite_result(suite.name, suite.metrics, scores, bases, context.settings.seed))
    return tuple(found)


def divergences(
    context: RunContext, suites: Sequence[Suite], asked: AskedModels
) -> tuple[Divergence, ...]:
    """Return how far every adapter moves the target on generic text and on the suites' prompts."""
    measured, seed = context.settings.drift, context.settings.seed
    if measured.texts < 1:
        return ()
    texts = {GENERIC: tuple(generic_texts(context).texts(VALIDATION))}
    texts |= {suite.name: suite.prompts() for suite in suites}
    adapters = {condition: adapter for condition, adapter in asked.items() if adapter is not None}
    found, target = [], context.model("target")
    with shown_progress() as progress:
        bar = progress.add_task("drift", total=len(texts) * len(adapters))
        for name, said in texts.items():
            gauge = TextDivergences(
                target, said, Store(context.cache), measured.texts, measured.positions, seed
            )
            for condition, adapter in adapters.items():
                moved = asdict(gauge.of(adapter))
                found.append(Divergence(condition=condition, texts=name, **moved))
                progress.advance(bar)
    return tuple(found)


def calibration(
    context: RunContext, adapters: Mapping[str, LoraAdapter], runs: Sequence[MethodRun]
) -> CalibrationResult | None:
    """Compare what is known before a transfer with what came of it; None where nobody asks.

    Of the seeds only the first counts: most methods make the same with every seed.

    Args:
        context: The configuration.
        adapters: The source's, of the held-out tasks.
        runs: What the methods made of them.
    """
    if not context.settings.calibration:
        return None
    known, points = diagnostics(context, adapters), []
    for run in first_seed(runs):
        result = run.result
        for task, measured in result.tasks.items():
            reported = {name: run.ports[task].report.get(name) for name in _KNOWN_BEFORE}
            before = {name: float(value) for name, value in reported.items() if value is not None}
            points.append(
                CalibrationPoint(
                    condition=Condition(
                        pair=result.pair, method=result.name, task=task, seed=result.seed
                    ),
                    gap_recovered=measured.gap_recovered,
                    gap_recovered_nll=measured.gap_recovered_nll,
                    diagnostics={**known[task], **before},
                )
            )
    return calibrate(points, seed=context.settings.seed)
