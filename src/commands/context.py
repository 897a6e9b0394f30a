"""What every command has at hand: settings, cache, models, and how it shows its work."""

import json
import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets.utils.logging import disable_progress_bar
from transformers.utils import logging as transformers_logging

from ..data import PromptTemplate, Task, TaskFolder, TaskSource, Zoo
from ..evaluation.records import DATA_ACCESS
from ..evaluation.scoring import ScoreCache
from ..exceptions import AdapterError
from ..models import BaseModel, ModelSource, StreamedWeights
from ..models.loading import learning_dtype
from ..store import Store

log = logging.getLogger(__name__)


class RunContext:
    """The settings of a command, and what they name: tasks, zoo, scorer, base models.

    Each base model is loaded once, whatever uses it.

    Args:
        settings: Of the command, see :mod:`loraport.settings`; their type is the reader's to know.
        loaded: Models that another context of the same pair has loaded; they are shared.
    """

    def __init__(self, settings: Any, loaded: dict[str, BaseModel] | None = None) -> None:
        self.settings = settings
        self.loaded: dict[str, BaseModel] = {} if loaded is None else loaded

    @property
    def cache(self) -> Path:
        """Folder for everything that is built once."""
        folder: Path = self.settings.paths.cache_folder
        return folder

    def options(self, *keys: str) -> str:
        """Return options of the first level as JSON, for keys of the store.

        They are one text, since a key takes no infinite number, such as a ridge's strength.
        """
        plain = self.settings.plain()
        return json.dumps({key: plain[key] for key in keys}, sort_keys=True)

    @property
    def template(self) -> PromptTemplate:
        """How a row of a task is shown to a model."""
        prompt = self.settings.prompt
        return PromptTemplate(prompt.full_template, prompt.completion, prompt.text_chars)

    @property
    def scores(self) -> ScoreCache:
        """The scorer, which remembers what it has scored."""
        scorer = self.settings.evaluation.scorer.build()
        return ScoreCache(Store(self.cache), scorer, self.template)

    def task_source(self) -> TaskSource:
        """Return where tasks come from: ``paths.tasks``, or what ``tasks.source`` names."""
        folder = self.settings.paths.tasks
        return TaskFolder(folder) if folder else self.settings.tasks.source.build()

    def tasks(self, names: list[str]) -> dict[str, Task]:
        """Return tasks with at most ``tasks.limit`` test rows."""
        loaded = self.task_source().load(names)
        return {name: task.limited(self.settings.tasks.limit) for name, task in loaded.items()}

    def model_source(self, side: str) -> ModelSource:
        """Return where the base model of a side comes from."""
        source: ModelSource = getattr(self.settings.pair, side).build()
        return source

    def weights(self, side: str) -> StreamedWeights:
        """Open the weights of a side's base model on disk.

        Raises:
            ModelError: it cannot be found, or its architecture is not known.
        """
        return self.model_source(side).weights(self.cache)

    def model(self, side: str) -> BaseModel:
        """Load the base model of a side, once.

        Raises:
            ModelError: it cannot be found or read.
        """
        if side not in self.loaded:
            self.loaded[side] = self.model_source(side).load(self.cache)
        return self.loaded[side]

    def learner(self, side: str) -> BaseModel:
        """Return the model of a side in the dtype of ``refine_dtype``, converted once."""
        base, key = self.model(side), f"learning {side}"
        if key not in self.loaded:
            self.loaded[key] = base.converted(learning_dtype(self.settings.refine_dtype, base))
        return self.loaded[key]

    def zoo_folder(self) -> Path:
        """Return ``paths.zoo``, or the folder in the cache that is kept for these settings."""
        settings = self.settings
        kept = self.cache / "zoo" / f"{settings.pair.name}-{settings.recipe_hash()[:12]}"
        return settings.paths.zoo or kept

    def has_zoo(self) -> bool:
        """Return whether a zoo is named, or lies where one is kept for these settings."""
        paths = self.settings.paths
        return bool(paths.zoo or paths.zoo_source) or self.zoo_folder().exists()

    def zoo(self) -> Zoo:
        """Open the zoo.

        Raises:
            AdapterError: it does not exist.
        """
        paths = self.settings.paths
        if paths.zoo_source:
            return Zoo(paths.zoo_source, paths.zoo_target)
        folder = self.zoo_folder()
        if not folder.exists():
            raise AdapterError(
                f"there is no zoo of pair={self.settings.pair.name} at {folder}; set paths.zoo=DIR "
                "to one, or train it with `python anchors.py` and the same pair and recipe"
            )
        return Zoo.open(folder)


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

    def rounded(self) -> dict[str, float | None]:
        """Return the seconds as reports hold them."""
        return {name: round(value, 2) for name, value in self.seconds.items()}


def trainer_device(options: Mapping[str, Any]) -> str:
    """Return the kind of device that a Lightning trainer of these options computes on."""
    name = str(options.get("accelerator", "auto"))
    if name not in ("auto", "gpu"):
        return name
    found = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if found is None else found.type


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


def costliest(*classes: str) -> str:
    """Return which of some classes of data access may use the most.

    >>> costliest("generic text", "weights only")
    'generic text'
    """
    return max(classes, key=DATA_ACCESS.index)
