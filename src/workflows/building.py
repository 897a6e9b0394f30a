"""From a configuration to objects: the only place that reads a DictConfig, beside the workflows."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from platformdirs import user_cache_path

from ..data import PromptTemplate, Task, TaskFolder, TaskSource, Zoo
from ..evaluation.score_cache import ScoreCache
from ..exceptions import AdapterError, ConfigurationError, LoraportError
from ..models import BaseModel, ModelSource


def build(node: DictConfig, **arguments: Any) -> Any:
    """Build what a node's ``_target_`` names.

    Raises:
        ConfigurationError: an option does not exist or has a value that cannot be taken.
    """
    try:
        # Not instantiate(node, **arguments): Hydra would turn dataclasses into configurations.
        return instantiate(node, _partial_=True)(**arguments) if arguments else instantiate(node)
    except InstantiationException as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, LoraportError):
                raise cause from None
            cause = cause.__cause__
        raise ConfigurationError(
            f"{node.get('_target_')} cannot be built from its options: {error}"
        ) from error


def plain_config(config: DictConfig) -> dict[str, Any]:
    """Return a configuration as plain data, interpolations resolved."""
    container = OmegaConf.to_container(config, resolve=True)
    return (
        {str(key): value for key, value in container.items()} if isinstance(container, dict) else {}
    )


@dataclass(frozen=True)
class Workbench:
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
        return ScoreCache(self.cache / "scores", build(scorers[name]), self.template)

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
