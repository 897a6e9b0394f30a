"""``train.py``: a mapper fitted on anchors or on text, and scored on held-out tasks.

:func:`run` tells it from checking to reporting; what it calls stands behind it in the same order.
"""

import io
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO

from ..adapters import LoraAdapter, cosine, relative_error, write_adapter
from ..alignment.layer_matching import LayerPairing, Pairing, RelativeDepth, Spread
from ..data import AnchorPairs, Task, TextCorpus, ZooPairs
from ..data.prompts import PromptSpec
from ..data.tasks import refuse_unknown
from ..data.zoo import SIDES
from ..evaluation.assembly import summarise, task_result
from ..evaluation.records import (
    PairRecord,
    Provenance,
    Results,
)
from ..evaluation.scoring import ScoreCache, TaskScore, random_adapter, swapped
from ..exceptions import ConfigurationError, OutputError
from ..files import whole_file, write_whole, writing
from ..mappers import LearnedMapper, Mapper, load_mapper
from ..mappers.controls import MeanMapper, NearestMapper
from ..mappers.from_text import CorpusMapper, ModelPair
from ..models import BaseModel
from ..models.hooks import Attachable
from ..models.loading import one_thread
from ..models.lora_training import interruptible
from ..models.statistics import StatisticsStore
from ..progress import shown_progress
from ..reporting.cards import adapter_card
from ..reporting.console import print_line, print_results
from ..reporting.figures import write_chart
from ..reporting.loggers import begun_loggers, finish_loggers, log_results
from ..settings import MethodSettings, Settings, TrainSettings
from ..store import Key, Store, results_first
from .anchors import CPU_TRAINER, builds_zoo, train_zoo
from .compatibility import check_compatibility, known_compatibility
from .context import RunContext, Stopwatch, log, quiet_libraries, trainer_device

TaskScores = dict[str, dict[str, TaskScore]]
"""The score of each task under each condition."""


@results_first()
def run(settings: TrainSettings) -> float | None:
    """Fit a mapper, predict the held-out tasks' adapters, score them, report.

    A mapper that learns from text is fitted and saved also where there is no zoo to score it on.

    Returns:
        What ``objective=`` asks for, on anchors, for sweeps that choose; None without.

    Raises:
        LoraportError: something that was asked for or given cannot be used, or the two models
            are not compatible.
    """
    quiet_libraries()
    context, watch = RunContext(settings), Stopwatch()
    folder = Path(HydraConfig.get().runtime.output_dir)
    mapper, objective = learned_mapper(settings), chosen_objective(settings)
    scorer = context.scores  # built here, so that a wrong option is refused before the fit
    with watch.step("diagnose"):
        compatible = check_compatibility(context, [type(mapper)])
    with watch.step("zoo"):
        data = anchor_pairs(context, mapper)
        if objective is not None:
            check_objective(objective, mapper, data)
        tasks = {} if data is None else context.tasks(list(data.held_out))
    loggers = begun_loggers(settings.logger)

    with watch.step("fit"):
        fitting = Fitting.of(context, mapper, data)
        trainer, mapper = fitting.fit(loggers, folder)
    if not trainer.is_global_zero:  # the other devices have done their part
        return None
    if data is None:
        print_line(
            "fitted and saved, but not scored: there is no zoo of this pair; set paths.zoo=DIR to "
            "one"
        )
        print_line(f"checkpoint  {folder / 'mapper.ckpt'}")
        return None

    facts = {} if fitting.text is None else {"text": fitting.text.facts()}
    facts |= {} if compatible is None else {"diagnosis": dict(compatible)}
    if objective is not None:
        with watch.step("choose"):
            facts["objective"] = objective.facts(context, mapper, data)
    with watch.step("predict"), one_thread():
        predictions = predict(mapper, data, settings.evaluation.controls, settings.seed)
    with watch.step("score"):
        scores, hashes = score(context, scorer, predictions, tasks)

    results = assemble(settings, mapper, predictions, scores, hashes, watch, facts)
    with keeping(folder / "mapper.ckpt"):
        written = write(results, predictions, folder)
        log_results(loggers, results, folder / "scores.png")
        records = finish_loggers(loggers)
    print_results(results)
    for what, place in [*written, *(("log", record) for record in records)]:
        print_line(f"{what:>10}  {place}")
    return facts["objective"]["value"] if objective is not None else None


# Check.


def learned_mapper(settings: TrainSettings) -> LearnedMapper:
    """Build the mapper that is to be trained.

    Raises:
        ConfigurationError: there is nothing to train in it.
    """
    mapper: Mapper = settings.mapper.build()
    if not isinstance(mapper, LearnedMapper):
        name = mapper.name
        raise ConfigurationError(
            f"mapper={name} has nothing to train: port an adapter by `python transfer.py "
            f"mapper={name} pair={settings.pair.name} adapter=DIR output=DIR`"
        )
    return mapper


def anchor_pairs(context: RunContext, mapper: LearnedMapper) -> AnchorPairs | None:
    """Return the zoo's adapters; for a pair that brings its own tasks, train them first.

    Returns:
        The pairs that the mapper learns from, or that a mapper of text is scored on; None where
        there is no zoo for the latter.

    Raises:
        ConfigurationError: no held-out task is in the zoo.
    """
    settings: TrainSettings = context.settings
    on_text = mapper.learns_from == "text"
    if on_text and not (builds_zoo(context) or context.has_zoo()):
        return None
    pairs, held_out = zoo_pairs(context), list(settings.tasks.held_out)
    data = AnchorPairs(pairs, held_out=held_out) if on_text else paired_anchors(settings, pairs)
    if not data.held_out:
        raise ConfigurationError(
            f"none of tasks.held_out={held_out} is in the zoo, so that nothing is left to predict; "
            f"it has {', '.join(pairs.source)}: name at least one of them"
        )
    return data


def paired_anchors(settings: TrainSettings | MethodSettings, pairs: ZooPairs) -> AnchorPairs:
    """Return the adapters that a mapper learns from, those of held-out tasks set aside."""
    held_out = list(settings.tasks.held_out)
    if settings.data is None:
        return AnchorPairs(pairs, held_out=held_out)
    data: AnchorPairs = settings.data.build(zoo=pairs, held_out=held_out)
    return data


def zoo_pairs(context: RunContext) -> ZooPairs:
    """Return the zoo's adapters; for a pair that brings its own tasks, train them first.

    Raises:
        LoraportError: a task does not exist, or there is no zoo that can be used.
    """
    settings: Settings = context.settings
    names = list(settings.tasks.names) if settings.tasks.names else None
    known, asked = context.task_source().names(), [*(names or []), *settings.tasks.held_out]
    refuse_unknown(asked, known, f"tasks of {settings.pair.name}")
    if builds_zoo(context):
        train_zoo(context, SIDES, names or list(known), CPU_TRAINER)
    pairs = context.zoo().read(names)
    refuse_unknown(list(pairs.source), known, "the task source")
    return pairs


# What a sweep chooses by: never the held-out tasks, which only measure what was chosen.


class Objective(ABC):
    """A number that says how good the options of a run are; less is better."""

    def check(self, mapper: LearnedMapper, data: AnchorPairs) -> None:  # noqa: B027
        """Raise ConfigurationError unless it can be computed; before the mapper is fitted."""

    @abstractmethod
    def facts(
        self, context: RunContext, mapper: LearnedMapper, data: AnchorPairs
    ) -> dict[str, Any]:
        """Return its ``name``, its ``value`` and what it was computed from, as plain data."""


class LeaveOneOutError(Objective):
    """The leave-one-out error that a mapper finds on its anchors, relative to the mean adapter's.

    Below 1 the mapper predicts an anchor that it has not seen better than the mean of the others.
    """

    def facts(
        self, context: RunContext, mapper: LearnedMapper, data: AnchorPairs
    ) -> dict[str, Any]:
        """Take it from the mapper's report.

        Raises:
            ConfigurationError: the mapper computes none.
        """
        value = mapper.report().get("loo_error_relative_to_mean")
        if value is None:
            raise ConfigurationError(
                f"objective=leave_one_out takes a mapper that leaves out its anchors in turn "
                f"(global_ridge, pertensor_ridge, pca_ridge), not {type(mapper).__name__}; choose "
                "objective=validation_nll"
            )
        return {"name": "leave_one_out", "value": float(value)}


class ValidationNLL(Objective):
    """Mean negative log-likelihood, in nats, of anchor tasks that the mapper has not seen.

    Their source adapters are mapped and scored on the target with test rows of their tasks.

    Args:
        tasks: How many of them at most, drawn by the seed; None takes all.
        rows: Test rows of each.
        seed: Of the draw.

    Raises:
        ConfigurationError: a number is below 1.
    """

    def __init__(self, tasks: int | None = 8, rows: int = 100, seed: int = 0) -> None:
        for name, number in (("tasks", tasks), ("rows", rows)):
            if number is not None and number < 1:
                raise ConfigurationError(
                    f"objective.{name} is {number}; it takes a whole number of at least 1"
                )
        self.tasks, self.rows, self.seed = tasks, rows, seed

    def names(self, mapper: LearnedMapper, data: AnchorPairs) -> list[str]:
        """Return the tasks that it is computed on.

        Raises:
            ConfigurationError: the mapper is fitted on all anchors.
        """
        unseen = data.anchors if mapper.learns_from == "text" else data.validation_anchors
        if unseen is None:
            raise ConfigurationError(
                "objective=validation_nll takes anchors that the mapper is not fitted on, but "
                "data.validation leaves none out; set it to a share such as data.validation=0.2"
            )
        order = torch.randperm(
            len(unseen.names), generator=torch.Generator().manual_seed(self.seed)
        )
        return sorted(unseen.names[place] for place in order.tolist()[: self.tasks])

    def check(self, mapper: LearnedMapper, data: AnchorPairs) -> None:
        """Raise ConfigurationError where the mapper is fitted on all anchors."""
        self.names(mapper, data)

    def facts(
        self, context: RunContext, mapper: LearnedMapper, data: AnchorPairs
    ) -> dict[str, Any]:
        """Map the anchors' source adapters and score them.

        Raises:
            ConfigurationError: the scorer gives no likelihoods.
        """
        names = self.names(mapper, data)
        given, tasks = context.zoo().read(names).source, context.task_source().load(names)
        target, scores = context.model("target"), context.scores
        nll, accuracy = {}, {}
        for name in names:
            task = tasks[name].limited(self.rows)
            score = scores.score(target, mapper.map(given[name]), task)
            if score.nll is None:
                raise ConfigurationError(
                    "objective=validation_nll takes likelihoods; set evaluation.scoring=likelihood"
                )
            nll[name], accuracy[name] = score.nll, score.accuracy
        value = sum(nll.values()) / len(nll)
        return {"name": "validation_nll", "value": value, "nll": nll, "accuracy": accuracy}


def chosen_objective(settings: TrainSettings) -> Objective | None:
    """Build what ``objective=`` names; None where nothing is chosen.

    Raises:
        ConfigurationError: an optimiser is to choose, but has nothing to choose by.
    """
    if settings.objective is not None:
        objective: Objective = settings.objective.build()
        return objective
    hydra = HydraConfig.get()
    sweeper = hydra.runtime.choices.get("hydra/sweeper", "basic")
    # Hydra's own sweeper tries what it is given and chooses nothing.
    if hydra.mode == RunMode.MULTIRUN and sweeper != "basic":
        raise ConfigurationError(
            f"hydra/sweeper={sweeper} chooses options, and may not do so by the held-out tasks; "
            "set objective=validation_nll or objective=leave_one_out, which go by anchors"
        )
    return None


def check_objective(objective: Objective, mapper: LearnedMapper, data: AnchorPairs | None) -> None:
    """Raise ConfigurationError unless an objective can be computed; before anything is fitted."""
    if data is None:
        raise ConfigurationError(
            "objective= goes by anchors, but there is no zoo of this pair; set paths.zoo=DIR to one"
        )
    objective.check(mapper, data)


# Fit.


class TextFit(NamedTuple):
    """What a mapper is trained on.

    Attributes:
        models: The two base models.
        data: What the trainer is given.
        corpus: The texts behind it.
        pairing: Of the two models' layers.
    """

    models: ModelPair
    data: LightningDataModule
    corpus: TextCorpus
    pairing: LayerPairing

    @classmethod
    def of(cls, context: RunContext, mapper: CorpusMapper) -> "TextFit":
        """Load the models, pair their layers, read the corpus, and give the mapper all of it.

        Raises:
            LoraportError: one of them cannot be used.
        """
        models = ModelPair(*(context.model(side) for side in SIDES))
        corpus = text_corpus(context, models)
        pairing = layer_pairing(context, models)
        mapper.learn_from(models, pairing, StatisticsStore(context.cache))
        data = mapper.data_module(corpus, context.cache)
        return cls(models, data, corpus, pairing)

    def facts(self) -> dict[str, Any]:
        """Return what reports say of the texts."""
        return {
            "tokens": self.corpus.tokens,
            "held_out_tokens": self.corpus.held_out_tokens,
            "aligned_share": self.corpus.aligned_share,
            "corpus": self.corpus.content_hash(),
        }


def text_corpus(context: RunContext, models: ModelPair) -> TextCorpus:
    """Return the corpus, aligned for both models.

    Raises:
        DataError: there is none, or it has hardly any text.
    """
    settings: TrainSettings = context.settings
    if settings.data is None:
        raise ConfigurationError("data is null, but the mapper learns from text; set data=corpus")
    given = settings.data.options.get("suffixes", ())
    suffixes = [given] if isinstance(given, str) else list(given)
    if settings.anchor_questions:
        suffixes += anchor_questions(context)
    corpus: TextCorpus = settings.data.build(
        texts=settings.corpus.build(),
        source_tokenizer=models.source.tokenizer,
        target_tokenizer=models.target.tokenizer,
        suffixes=suffixes,
    )
    return corpus


def anchor_questions(context: RunContext) -> list[str]:
    """Return what each anchor task puts behind a text, once with each of its labels.

    No row of any task is read for it, and no held-out task's question or label. Tasks take turns,
    so that one of many labels does not take up more texts.
    """
    source, asked = context.task_source(), context.settings.tasks
    names = [name for name in asked.names or source.names() if name not in asked.held_out]
    specs = [PromptSpec.of(task, context.template) for task in source.load(names).values()]
    rounds = max(len(spec.labels) for spec in specs)
    return list(
        dict.fromkeys(
            spec.ask("") + spec.answer(spec.labels[turn % len(spec.labels)])
            for turn in range(rounds)
            for spec in specs
        )
    )


def layer_pairing(context: RunContext, models: ModelPair) -> LayerPairing:
    """Return which source layers feed each target layer, by the diagnosis's similarity.

    Raises:
        ConfigurationError: the pairing goes by similarity, but the diagnosis is left out.
    """
    settings: TrainSettings = context.settings
    pairing: Pairing = settings.pairing.build()
    shape = models.target.sites.layers, models.source.sites.layers
    if isinstance(pairing, RelativeDepth | Spread):
        return pairing.pair(torch.zeros(shape))
    found = known_compatibility(context)
    if found is None:
        raise ConfigurationError(
            f"the pairing {type(pairing).__name__} goes by how alike layers are, which "
            "diagnosis=none leaves out; take diagnosis=cheap, or pairing=relative_depth or spread"
        )
    return pairing.pair(torch.tensor(found.similarity))


@dataclass(frozen=True)
class Fitting:
    """A mapper, and what it is fitted on.

    Attributes:
        context: The configuration.
        mapper: What is fitted.
        data: What the trainer is given.
        text: Where the mapper learns from text: the models and the corpus behind ``data``.
    """

    context: RunContext
    mapper: LearnedMapper
    data: LightningDataModule
    text: TextFit | None

    @classmethod
    def of(
        cls, context: RunContext, mapper: LearnedMapper, anchors: AnchorPairs | None
    ) -> "Fitting":
        """Load what the mapper learns from.

        Raises:
            LoraportError: it cannot be used.
        """
        if isinstance(mapper, CorpusMapper):
            text = TextFit.of(context, mapper)
            return cls(context, mapper, text.data, text)
        if anchors is None:
            raise ValueError(f"{type(mapper).__name__} is fitted on anchors, but there are none")
        return cls(context, mapper, anchors, None)

    def fit(self, loggers: list[Logger], folder: Path) -> tuple[Trainer, LearnedMapper]:
        """Fit, save ``mapper.ckpt`` in the folder, and return the mapper with its best weights.

        Training on text is also saved at the end of each epoch, in the cache, and goes on from
        there when it was stopped.

        Raises:
            KeyboardInterrupt: it was stopped, at the keyboard or by the system.
        """
        settings: TrainSettings = self.context.settings
        callbacks: list[Callback] = [callback.build() for callback in settings.callbacks.values()]
        chosen = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
        for callback in chosen:
            callback.dirpath = callback.dirpath or str(folder / "checkpoints")
        # The matrices of anchors are small: more threads would wait rather than work.
        with nullcontext() if self.text else one_thread(), self._resumable(chosen) as unfinished:
            if unfinished is not None:
                callbacks.append(unfinished)
            kept = None if unfinished is None else Path(str(unfinished.dirpath))
            trainer: Trainer = settings.trainer.build(
                logger=loggers,
                callbacks=callbacks,
                default_root_dir=folder,
                plugins=[WholeCheckpoints(kept)],
            )
            checkpoint = folder / "mapper.ckpt"
            finished = checkpoint if kept is None else kept / _FINISHED
            made = kept is not None and _is_whole(finished)
            if not made:
                with interruptible():
                    trainer.fit(self.mapper, datamodule=self.data, ckpt_path=_last(kept))
                best = [callback.best_model_path for callback in chosen]
                made = bool(best and best[0])
                if not made:
                    trainer.save_checkpoint(finished, weights_only=True)
                elif trainer.is_global_zero:
                    _copy(Path(best[0]), finished)
                    Path(best[0]).unlink()
            if finished != checkpoint and trainer.is_global_zero:
                _copy(finished, checkpoint)
        if made and trainer.is_global_zero:
            return trainer, load_mapper(checkpoint)
        return trainer, self.mapper

    @contextmanager
    def _resumable(self, chosen: list[ModelCheckpoint]) -> Iterator[ModelCheckpoint | None]:
        """Give a callback that keeps the last epoch until the training has come to its end.

        The best weights so far are kept beside it, where the next run, which has another folder
        of its own, finds them.
        """
        if self.text is None or not self.mapper.automatic_optimization:
            yield None
            return
        store, key = Store(self.context.cache), self._key(self.text)
        try:
            folder = store.working_folder(key)
        except OutputError as error:
            log.warning("%s; a training that is stopped begins again", error)
            folder = None
        if folder is None:
            yield None
            return
        for callback in chosen:
            callback.dirpath = str((folder / "best").resolve())
        yield ModelCheckpoint(dirpath=folder, filename="last", enable_version_counter=False)
        store.finish(key)

    def _key(self, text: TextFit) -> Key:
        return Key.of(
            "training",
            options=self.context.options("mapper", "data", "pairing", "trainer"),
            device=trainer_device(self.context.settings.trainer.options),
            models=[model.key_parts for model in text.models],
            text=text.corpus.content_hash(),
        )


# States of an unfinished training: behind the last epoch and the one before. And what it has come
# to, until that lies in the run's folder.
_LAST, _BEFORE, _FINISHED = "last.ckpt", "before.ckpt", "finished.ckpt"


class WholeCheckpoints(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, and keeps the last two of an unfinished training.

    Lightning writes to a temporary folder and moves, which across file systems is a copy. It also
    removes what was best until now before the checkpoint that names its successor is written; here
    it goes when neither of the last two names it.

    Args:
        folder: Where the state of an unfinished training is kept; None keeps none.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._superseded: set[Path] = set()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint; OutputError where the disk is full."""
        del storage_options
        content, file = io.BytesIO(), Path(path)
        torch.save(checkpoint, content)
        is_state = file.parent == self.folder and file.name == _LAST
        if is_state and file.exists():
            os.replace(file, file.with_name(_BEFORE))
        write_whole(file, content.getbuffer())
        if is_state:
            states = [each for each in (file, file.with_name(_BEFORE)) if each.exists()]
            named = {best for state in states for best in _best_of(state)}
            for each in self._superseded - named:
                each.unlink(missing_ok=True)
            self._superseded &= named

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a checkpoint, or note that it may go."""
        if self.folder is None:
            super().remove_checkpoint(path)
        else:
            self._superseded.add(Path(path))


def _last(folder: Path | None) -> Path | None:
    """Return the state to go on from, where there is one that is not damaged."""
    states = () if folder is None else (folder / _LAST, folder / _BEFORE)
    return next((state for state in states if _is_whole(state)), None)


def _is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint, and the best weights that it names, are as they were written."""
    if not checkpoint.exists():
        return False
    try:
        for file in (checkpoint, *_best_of(checkpoint)):
            with ZipFile(file) as archive:  # torch.load does not look at checksums
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"the checksum of {damaged} differs")
    except Exception as error:  # whatever becomes of damage
        log.warning("%s is damaged (%s); the training goes on before it", checkpoint, error)
        return False
    return True


def _copy(one: Path, other: Path) -> None:
    with whole_file(other) as beside:
        shutil.copyfile(one, beside)


def _best_of(path: Path) -> list[Path]:
    """Return where the best weights of a training lie, as its last checkpoint says."""
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    named = [state.get("best_model_path") for state in content.get("callbacks", {}).values()]
    return [Path(name) for name in named if name and Path(name).parent != path.parent]


# Predict and score.


Cell = tuple[str, str, LoraAdapter | Attachable | None]
"""A score that a table needs: a task, a condition, and the adapter that it is asked with."""


@dataclass(frozen=True)
class Predictions:
    """The predicted adapters of the held-out tasks, and what stands beside them.

    Attributes:
        predicted: Task name to the mapper's adapter.
        mean: The anchors' mean adapter.
        oracles: Task name to the adapter that was trained on the target.
        queries: Task name to the source's adapter.
        controls: Control to task name to adapter.
        cartridges: Task name to the mapper's cartridge; none of a mapper that makes only LoRA.
    """

    predicted: Mapping[str, LoraAdapter]
    mean: LoraAdapter
    oracles: Mapping[str, LoraAdapter]
    queries: Mapping[str, LoraAdapter]
    controls: Mapping[str, Mapping[str, LoraAdapter]]
    cartridges: Mapping[str, Attachable] = field(default_factory=dict)

    def target_cells(self) -> Iterator[Cell]:
        """Give what is to be scored on the target."""
        for task in self.queries:
            yield task, "base", None
            yield task, "mean", self.mean
            for control, adapters in self.controls.items():
                if task in adapters:
                    yield task, control, adapters[task]
            if task in self.cartridges:
                yield task, "cartridge", self.cartridges[task]
            yield task, "predicted", self.predicted[task]
            yield task, "oracle", self.oracles[task]

    def source_cells(self) -> Iterator[Cell]:
        """Give what is to be scored on the source."""
        for task, adapter in self.queries.items():
            yield task, "source_base", None
            yield task, "source", adapter

    def distances(self) -> dict[str, dict[str, float]]:
        """Return how far each prediction is from the mean adapter, relative to the mean's norm."""
        return {
            task: {"distance_to_mean": relative_error(adapter, self.mean)}
            for task, adapter in self.predicted.items()
        }

    def likeness(self, task: str) -> tuple[float, float]:
        """Return the cosine of a prediction with its oracle, and its relative error."""
        oracle = self.oracles[task]
        return cosine(self.predicted[task], oracle), relative_error(self.predicted[task], oracle)


def predict(mapper: Mapper, data: AnchorPairs, controls: Sequence[str], seed: int) -> Predictions:
    """Predict every held-out task's adapter, and build the controls.

    The mean adapter is that of all anchors, with those that a mapper was validated on.
    """
    queries = dict(data.queries)
    mean = MeanMapper()
    mean.fit(data.anchors)
    made: dict[str, Mapping[str, LoraAdapter]] = {}
    if "nearest" in controls:
        nearest = NearestMapper()
        nearest.fit(data.anchors)
        made["nearest"] = {task: nearest.map(adapter) for task, adapter in queries.items()}
    if "random" in controls:
        drawn = random_adapter(data.anchors.target, data.anchors.target_base, seed)
        made["random"] = dict.fromkeys(queries, drawn)
    if "swapped" in controls:
        given = swapped(queries, data.spare)
        made["swapped"] = {task: mapper.map(adapter) for task, adapter in given.items()}
    cartridges = {}
    if mapper.has_cartridge:
        cartridges = {task: mapper.cartridge(adapter) for task, adapter in queries.items()}
    return Predictions(
        predicted={task: mapper.map(adapter) for task, adapter in queries.items()},
        mean=mean.map(next(iter(queries.values()))),
        oracles=data.oracles,
        queries=queries,
        controls=made,
        cartridges=cartridges,
    )


def check_base(base: BaseModel, adapter: LoraAdapter, side: str) -> None:
    """Raise unless an adapter's sites and shapes are modules of a base model."""
    what, way_out = f"an adapter of the {side} zoo", "choose the pair that the zoo belongs to"
    base.sites.check(adapter, what, f"the pair's {side} model {base.name}", way_out)


def score(
    context: RunContext, scorer: ScoreCache, predictions: Predictions, tasks: dict[str, Task]
) -> tuple[TaskScores, dict[str, str]]:
    """Score every condition on both models; return also the models' and tasks' hashes."""
    cells = {
        "source": list(predictions.source_cells()),
        "target": list(predictions.target_cells()),
    }
    examples = {"source": predictions.queries, "target": predictions.oracles}
    found: TaskScores = {name: {} for name in tasks}
    hashes = {f"task/{name}": task.content_hash() for name, task in tasks.items()}
    with shown_progress() as progress:
        bars = {
            side: progress.add_task(f"scoring {side}", total=len(cells[side])) for side in SIDES
        }
        for side in SIDES:
            base = context.model(side)
            check_base(base, next(iter(examples[side].values())), side)
            hashes[f"model/{base.name}"] = base.fingerprint
            for task, condition, adapter in cells[side]:
                found[task][condition] = scorer.score(base, adapter, tasks[task])
                progress.advance(bars[side])
    return found, hashes


# Report.


def assemble(
    settings: TrainSettings,
    mapper: Mapper,
    predictions: Predictions,
    scores: TaskScores,
    hashes: dict[str, str],
    watch: Stopwatch,
    facts: dict[str, Any],
) -> Results:
    """Return everything that ``results.json`` holds."""
    seed, controls = settings.seed, ("mean", *predictions.controls)
    hashes |= {f"source/{n}": a.content_hash() for n, a in predictions.queries.items()}
    hashes |= {f"oracle/{n}": a.content_hash() for n, a in predictions.oracles.items()}
    tasks = {}
    for name, conditions in scores.items():
        alike, error = predictions.likeness(name)
        tasks[name] = task_result(conditions, controls, alike, error, seed)
    return Results(
        config=settings.plain(),
        pair=PairRecord(
            name=settings.pair.name,
            source=next(iter(predictions.queries.values())).base_model,
            target=predictions.mean.base_model,
        ),
        mapper=mapper.name,
        data_access=mapper.data_access,
        space=settings.mapper.options.get("space"),
        seed=seed,
        controls=controls,
        tasks=tasks,
        summary=summarise(scores, controls, seed),
        mapper_report=mapper.report() | facts | {"predictions": predictions.distances()},
        timing=watch.rounded(),
        provenance=Provenance.of(hashes),
    )


@contextmanager
def keeping(checkpoint: Path) -> Iterator[None]:
    """Let the run's folder with its checkpoint stay where results cannot be written."""
    try:
        with writing("what is known of the mapper"):
            yield
    except OutputError as error:
        error.keeps = True
        error.args = (f"{error}; the fitted mapper stays in {checkpoint}",)
        raise


def write(results: Results, predictions: Predictions, folder: Path) -> list[tuple[str, Path]]:
    """Write results, chart and adapters into a folder; return where what lies."""
    path = results.write(folder / "results.json")
    chart = write_chart(results, folder / "scores.png")
    adapters = folder / "adapters"
    for task, adapter in predictions.predicted.items():
        card = adapter_card(results, task)
        write_adapter(adapter, adapters / task, extra={"README.md": card}, overwrite=True)
    checkpoint = folder / "mapper.ckpt"
    return [("results", path), ("chart", chart), ("adapters", adapters), ("checkpoint", checkpoint)]
