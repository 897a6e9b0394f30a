"""Composing configurations from Python and while a command runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra import version
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict


def compose(
    command: str, words: Sequence[str] = (), *, beside: Sequence[str] | None = None
) -> DictConfig:
    """Return a configuration as a command would have it for some words of its command line.

    Choices are looked up where the running command looks them up, so that those of
    ``--config-dir`` and ``hydra.searchpath`` are found.

    Args:
        command: One of :data:`SETTINGS`, or a choice of a group such as ``refine/auto``.
        words: Such as ``mapper=cross_lora``.
        beside: Folders of more YAML files, where no command is running yet.

    Raises:
        HydraException: a word names what does not exist.
    """
    with _composer(beside):
        return hydra.compose(command, overrides=list(words))


def choices(group: str) -> list[str]:
    """Return the choices of a group, those from outside the package with it."""
    with _composer() as composer:
        return sorted(composer.config_loader.get_group_options(group))


def given_words() -> list[str]:
    """Return the words of the running command, those of a sweep's job with it.

    They are for :func:`compose` alone, which makes the running configuration of them again; what a
    configuration means is never read from them.
    """
    return [str(word) for word in HydraConfig.get().overrides.task]


@contextmanager
def as_running(command: str, words: Sequence[str] = ()) -> Iterator[DictConfig]:
    """Give a configuration as if its command ran, so that what it takes of Hydra's is found.

    Raises:
        HydraException: a word names what does not exist.
    """
    kept = HydraConfig.instance().cfg
    with _composer():
        config = hydra.compose(command, overrides=list(words), return_hydra_config=True)
    try:
        with open_dict(config):
            config.hydra.runtime.output_dir = "."
            HydraConfig.instance().set_config(config)
            del config["hydra"]
        yield config
    finally:
        HydraConfig.instance().cfg = kept


@contextmanager
def _composer(beside: Sequence[str] | None = None) -> Iterator[Hydra]:
    """Set the running command aside, as Hydra composes for one at a time."""
    aside = GlobalHydra.instance().hydra
    if beside is None and HydraConfig.initialized():
        found: ConfigSearchPath = ConfigSearchPathImpl()
        for source in HydraConfig.get().runtime.config_sources:
            found.append(source.provider, f"{source.schema}://{source.path}")
    else:
        found = create_config_search_path("pkg://loraport.conf")
        last = SearchPathQuery(provider="schema", path=None)
        for folder in beside or ():
            found.prepend("command-line", f"file://{Path(folder).absolute()}", last)
    GlobalHydra.instance().clear()
    try:
        version.setbase("1.3")
        yield Hydra.create_main_hydra2("loraport", found)
    finally:
        GlobalHydra.instance().hydra = aside
