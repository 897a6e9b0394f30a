"""Every option of every YAML is bound to the signature of what it configures.

A misspelt or outdated option fails here, without anything being built. Source of the idea:
torchtune's config validation.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.utils import get_object
from omegaconf import DictConfig

CONF = Path(__file__).resolve().parents[1] / "conf"
HYDRA_KEYS = {"_target_", "_args_", "_partial_", "_convert_", "_recursive_"}


def nodes(content: object, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every mapping with a ``_target_`` and the path of keys that leads to it."""
    if isinstance(content, dict):
        if "_target_" in content:
            yield path or ".", content
        for key, value in content.items():
            yield from nodes(value, f"{path}.{key}".lstrip("."))
    elif isinstance(content, list):
        for place, value in enumerate(content):
            yield from nodes(value, f"{path}[{place}]")


NODES = [
    pytest.param(node, id=f"{file.relative_to(CONF)}:{path}")
    for file in sorted(CONF.rglob("*.yaml"))
    for path, node in nodes(yaml.safe_load(file.read_text(encoding="utf-8")))
    if "${" not in node["_target_"]
]


def test_there_are_nodes():
    assert len(NODES) >= 5


@pytest.mark.parametrize("node", NODES)
def test_options_fit_the_signature(node):
    target = get_object(node["_target_"])
    options = {key: value for key, value in node.items() if key not in HYDRA_KEYS}
    inspect.signature(target).bind_partial(*node.get("_args_", ()), **options)


def test_a_misspelt_option_is_noticed():
    signature = inspect.signature(get_object("loraport.data.HubTasks"))
    with pytest.raises(TypeError, match="rows_tran"):
        signature.bind_partial(rows_tran=3)


def choices(group: str) -> list[str]:
    """Return the options of a group."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def given(command: str) -> list[str]:
    """Return what a command cannot do without."""
    return ["adapter=DIR"] if command == "transfer" else []


@pytest.mark.parametrize(
    "choice",
    [f"{group}={name}" for group in ("mapper", "sparsify", "merge") for name in choices(group)],
)
def test_every_choice_of_a_transfer_composes(choice):
    with initialize_config_module("loraport.conf", version_base="1.3"):
        config = compose("transfer", overrides=[choice, *given("transfer")])
    assert config.mapper._target_.startswith("loraport.mappers.")
    assert config.merge.method._target_.startswith("loraport.adapters.")


def sweeps() -> Iterator[tuple[str, str]]:
    """Give each sweep with the command that its comment tells."""
    for name in choices("sweep"):
        told = (CONF / "sweep" / f"{name}.yaml").read_text()
        [command] = set(re.findall(rf"# +python (\w+)\.py sweep={name} ", told))
        yield command, name


@pytest.mark.parametrize(("command", "name"), list(sweeps()))
def test_every_sweep_switches_to_multirun_and_tries_options_that_exist(command, name):
    overrides = [f"sweep={name}", *given(command)]
    with initialize_config_module("loraport.conf", version_base="1.3"):
        config = compose(command, overrides=overrides, return_hydra_config=True)
        assert config.hydra.mode.name == "MULTIRUN"
        assert [c._target_ for c in config.hydra.callbacks.values()] == [
            "loraport.commands.collect.SweepSummary"
        ]
        for choice in sweep_choices(config):
            compose(command, overrides=[*overrides, *choice])


def sweep_choices(config: DictConfig) -> Iterator[list[str]]:
    """Give each first value of each option, with the first one of each group."""
    params = {key: str(value) for key, value in config.hydra.sweeper.params.items()}
    first = {key: re.split(r",(?![^\[]*\])", value)[0] for key, value in params.items()}
    if "direction" in config.hydra.sweeper:  # what is drawn is no list of values
        first = dict.fromkeys(params, "1")
    yield [f"{key}={value}" for key, value in first.items()]


@pytest.mark.parametrize("name", sorted(p.stem for p in (CONF / "hydra/launcher").glob("*.yaml")))
def test_every_launcher_composes_with_options_of_its_plugin(name):
    with initialize_config_module("loraport.conf", version_base="1.3"):
        overrides = [f"hydra/launcher={name}"]
        config = compose("train", overrides=overrides, return_hydra_config=True)
    assert config.hydra.launcher._target_.startswith("hydra_plugins.")


def shared_choices() -> Iterator[tuple[str, str]]:
    """Give what every command takes; experiments that choose mappers go to the command for them."""
    for group in ("pair", "experiment", "recipe"):
        for name in choices(group):
            content = (CONF / group / f"{name}.yaml").read_text()
            commands = ["train", "anchors", "transfer", "diagnose", "evaluate"]
            if "override /mapper" in content:
                commands = ["train"]
            if "\nmethods:" in content:
                commands = ["evaluate"]
            for command in commands:
                yield command, f"{group}={name}"


@pytest.mark.parametrize(("command", "choice"), list(shared_choices()))
def test_every_choice_composes(command, choice):
    with initialize_config_module("loraport.conf", version_base="1.3"):
        config = compose(command, overrides=[choice, *given(command)])
    assert {"source", "target", "name"} <= set(config.pair)
    assert config.tasks.held_out


def test_an_experiment_sets_what_evaluate_has_defaults_for():
    with initialize_config_module("loraport.conf", version_base="1.3"):
        config = compose("evaluate", overrides=["experiment=benchmark", "paths.corpus=DIR"])
    assert list(config.seeds) == [0, 1]
    assert "adjoint_transport" in config.methods
    assert config.method_options.default == ["paths.corpus=DIR/diverse.jsonl"]
    assert config.tasks.limit == 300
