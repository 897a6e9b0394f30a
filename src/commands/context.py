"""Reading single options, each of the kind that it has to be."""

import hashlib
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from datasets.utils.logging import disable_progress_bar
from omegaconf import DictConfig, ListConfig, OmegaConf
from platformdirs import user_cache_path
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.utils import logging as transformers_logging

from ..component import Component
from ..data import PromptTemplate, Task, TaskFolder, TaskSource, Zoo
from ..evaluation.records import DATA_ACCESS
from ..evaluation.scoring import ScoreCache
from ..exceptions import AdapterError, ConfigurationError
from ..models import BaseModel, ModelSource
from ..models.loading import learning_dtype
from ..store import Store

Kind = TypeVar("Kind", bool, int, float, str)
_CALLED = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
}


def option(config: DictConfig, key: str, kind: type[Kind]) -> Kind:
    """Return the option ``key``, such as ``merge.weights``; a whole number is a number too.

    Raises:
        ConfigurationError: it is of another kind.
    """
    return _of_kind(OmegaConf.select(config, key), key, kind)


def optional(config: DictConfig, key: str, kind: type[Kind]) -> Kind | None:
    """Return the option ``key``, which may be null.

    Raises:
        ConfigurationError: it is of another kind.
    """
    value = OmegaConf.select(config, key)
    return None if value is None else _of_kind(value, key, kind)


def listed(config: DictConfig, key: str, kind: type[Kind]) -> list[Kind]:
    """Return the option ``key``, one value or several, as a list.

    Raises:
        ConfigurationError: a value is of another kind, or there is null in its place.
    """
    given = OmegaConf.select(config, key)
    values = list(given) if isinstance(given, ListConfig) else [given]
    return [_of_kind(value, key, kind) for value in values]


def _of_kind(value: Any, key: str, kind: type[Kind]) -> Kind:
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not fits or (kind is not bool and isinstance(value, bool)):
        shown = "null" if value is None else repr(value)
        raise ConfigurationError(f"{key} is {shown}; it takes {_CALLED[kind]}")
    return kind(value)


# From a configuration to objects: the only place that reads a DictConfig, beside the workflows.


def build(node: DictConfig, **arguments: Any) -> Any:
    """Build what a node's ``_target_`` names.

    Raises:
        ConfigurationError: its module cannot be imported (the message has the file and the line),
            or an option does not exist or has a value that cannot be taken.
    """
    options = OmegaConf.to_container(node, resolve=True)
    return Component.model_validate(options).build(**arguments)


def plain_config(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain data, interpolations resolved."""
    container = OmegaConf.to_container(config, resolve=True)
    return (
        {str(key): value for key, value in container.items()} if isinstance(container, dict) else {}
    )


@dataclass(frozen=True)
class RunContext:
    """What every command needs of its configuration: paths, prompt, tasks, models."""

    config: DictConfig

    @property
    def cache(self) -> Path:
        """Folder for everything that is built once."""
        given = self.config.paths.cache or os.environ.get("LORAPORT_CACHE")
        return Path(given).expanduser() if given else user_cache_path("loraport")

    @property
    def template(self) -> PromptTemplate:
        """The prompt."""
        prompt = self.config.prompt
        return PromptTemplate(prompt.template, prompt.completion, prompt.text_chars)

    @property
    def scores(self) -> ScoreCache:
        """The scorer, with its memory."""
        scorers = self.config.evaluation.scorers
        name = self.config.evaluation.scoring
        if name not in scorers:
            raise ConfigurationError(
                f"evaluation.scoring is {name!r}; it takes one of {', '.join(scorers)}"
            )
        return ScoreCache(Store(self.cache), build(scorers[name]), self.template)

    def task_source(self) -> TaskSource:
        """Return where tasks come from: ``paths.tasks``, or what the tasks' YAML names."""
        folder = self.config.paths.tasks
        return TaskFolder(folder) if folder else build(self.config.tasks.source)

    def tasks(self, names: list[str]) -> dict[str, Task]:
        """Return tasks with at most ``tasks.limit`` test rows."""
        loaded = self.task_source().load(names)
        return {name: task.limited(self.config.tasks.limit) for name, task in loaded.items()}

    def model(self, side: str) -> BaseModel:
        """Load the base model of a side."""
        source: ModelSource = build(self.config.pair[side])
        return source.load(self.cache)

    def zoo_folder(self) -> Path:
        """Return ``paths.zoo``, or the folder in the cache that is kept for these settings."""
        if self.config.paths.zoo:
            return Path(self.config.paths.zoo)
        return self.cache / "zoo" / f"{self.config.pair.name}-{self.recipe_hash()[:12]}"

    def has_zoo(self) -> bool:
        """Return whether a zoo is named, or lies where one is kept for these settings."""
        paths = self.config.paths
        named = (paths.zoo, paths.zoo_source, paths.zoo_target)
        return any(named) or self.zoo_folder().exists()

    def zoo(self) -> Zoo:
        """Open the zoo.

        Raises:
            AdapterError: it does not exist.
        """
        paths = self.config.paths
        if bool(paths.zoo_source) != bool(paths.zoo_target):
            raise ConfigurationError(
                "paths.zoo_source and paths.zoo_target are set together or not at all: two "
                "folders with same-named adapters of the source and of the target"
            )
        if paths.zoo_source:
            return Zoo(Path(paths.zoo_source), Path(paths.zoo_target))
        folder = self.zoo_folder()
        if not folder.exists():
            raise AdapterError(
                f"there is no zoo of pair={self.config.pair.name} at {folder}; set paths.zoo=DIR "
                "to one, or train it with `python anchors.py` and the same pair and recipe"
            )
        return Zoo.open(folder)

    def recipe_hash(self) -> str:
        """Return the SHA-256 of what determines the adapters of a zoo."""
        config = plain_config(self.config)
        # Not all of prompt: what a transfer asks about its own adapter trains none of the zoo's.
        prompt = {key: config["prompt"][key] for key in ("template", "completion", "text_chars")}
        parts = {"recipe": config["recipe"], "prompt": prompt}
        parts["pair"] = {side: config["pair"][side] for side in ("source", "target")}
        parts["tasks"] = config["tasks"]["source"]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


# A workbench that loads each model once, however many pieces of work are done at it.


@dataclass(frozen=True)
class SharedContext(RunContext):
    """A workbench with the models that were loaded at it, or at another one of the same pair.

    Attributes:
        loaded: Models by their side, and by ``learning`` and side as they teach and learn.
    """

    loaded: dict[str, BaseModel] = field(default_factory=dict)

    def model(self, side: str) -> BaseModel:
        """Load the base model of a side, once."""
        if side not in self.loaded:
            self.loaded[side] = super().model(side)
        return self.loaded[side]

    def learner(self, side: str) -> BaseModel:
        """Return the model of a side in the dtype of ``refine_dtype``, converted once.

        Raises:
            ConfigurationError: there is no such dtype.
        """
        base, key = self.model(side), f"learning {side}"
        if key not in self.loaded:
            named = option(self.config, "refine_dtype", str)
            self.loaded[key] = base.converted(learning_dtype(named, base))
        return self.loaded[key]


# How long each step of a run takes.

log = logging.getLogger(__name__)


class Stopwatch:
    """Seconds of each named step of a run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the time of the block to a step's."""
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
        log.info("%s: %.1f s", name, self.seconds[name])


# Keeping libraries from talking over the tables and progress bars of a run.


def quiet_libraries() -> None:
    """Silence tips, bars and notices that no user of a command can act on."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bar()
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",  # torch 2.13 deprecates what Lightning 2.6 calls
        ".*returned `None`, this fit will run with no optimizer.*",
        ".*`IterableDataset` has `__len__` defined.*",  # of one process it is right
        ".*isinstance.treespec.*",
        ".*exists and is not empty.*",
        ".*nn.functional.all_gather is deprecated.*",  # likewise
        ".*Total length of `list` across ranks is zero.*",
        ".*You passed in a `val_dataloader` but have no `validation_step`.*",
        ".*GPU available but not used.*",
    ):
        warnings.filterwarnings("ignore", message)


# The bars that workflows show while they work.


def shown_bars(unit: str = "") -> Progress:
    """Return bars with what is done, how far it is, and how long the rest takes.

    They go to standard error, and are gone when the work is done.

    Args:
        unit: What is counted, where the descriptions do not say it.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}, remaining" if unit else "remaining"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


# What a result may have used, by the dearest of what went into it.


def costliest(*classes: str) -> str:
    """Return the dearest of some classes.

    >>> costliest("generic text", "weights only")
    'generic text'
    """
    return max(classes, key=DATA_ACCESS.index)
