"""The configuration as typed values: what is refused, what is resolved, and what is found."""

import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, cast

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from loraport.component import Component
from loraport.composing import as_running, choices, compose, given_words
from loraport.exceptions import ConfigurationError
from loraport.option_types import read_as
from loraport.settings import (
    DEFAULT_TEMPLATE,
    SETTINGS,
    EvaluateSettings,
    Method,
    Prompt,
    TransferSettings,
    load,
    options,
)

CONF = Path(__file__).resolve().parents[1] / "conf"
COMMANDS = list(SETTINGS)
GIVEN = {"transfer": ["adapter=DIR"]}
# What a choice cannot do without.
NEEDED = {
    "pair=hub": ["pair.source.name=a/b", "pair.target.name=c/d"],
    "pair=local": ["pair.source.path=A", "pair.target.path=B"],
    "corpus=hub": ["corpus.name=wikitext"],
    "sweep=sparsify": ["choose.anchors=[sst2]", "refine=none"],
    "sweep=cross_lora_rank": ["choose.anchors=[sst2]"],
    "sweep=alpha_rank": ["choose.anchors=[sst2]", "merge.with=[DIR]", "refine=none"],
    "suite=code": ["suite.code.allow_execution=true"],
}


CROSS_LORA = "# @package _global_\ndefaults:\n- override /mapper: cross_lora\n"


def settled(command: str, *words: str) -> Any:
    return load(command, [*GIVEN.get(command, []), *words])


@cache
def composed(command: str) -> dict[str, Any]:
    """What a command has without any options, as plain data."""
    with as_running(command, GIVEN.get(command, [])) as config:
        plain: Any = OmegaConf.to_container(config, resolve=True)
    if command == "transfer":
        del plain["refine"]["chosen"]
    return plain


def refused(command: str, *words: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        settled(command, *words)
    return str(caught.value)


@pytest.fixture
def outside(tmp_path: Path) -> list[str]:
    """Words that let YAML files outside of the package be found: a mapper and an experiment."""
    for place, content in {
        "mapper/outside": "# @package _global_\nmapper:\n  _target_: elsewhere.OutsideMapper\n",
        "experiment/by_cross_lora": CROSS_LORA,
        "experiment/unknown": "# @package _global_\nforse: true\n",
    }.items():
        file = tmp_path / f"{place}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return [f"hydra.searchpath=[file://{tmp_path}]"]


# Every choice.


def groups(command: str) -> dict[str, list[str]]:
    """Return the choices of each group of a command, those left out that are for another one."""
    entries: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{command}.yaml").defaults)
    names = [key for entry in entries if isinstance(entry, dict) for key in entry]
    found = {name: choices(name) for name in names if not name.startswith("override ")}
    texts = {
        name: (CONF / "experiment" / f"{name}.yaml").read_text() for name in found["experiment"]
    }
    only = {"methods:": "evaluate", "override /mapper": "train"}
    found["experiment"] = [
        name
        for name, text in texts.items()
        if all(word not in text or command == where for word, where in only.items())
    ]
    if command != "train":  # what a pair or a mapper takes is the same for every command
        found["pair"] = found["pair"][:3]
        found["mapper"] = found.get("mapper", [])[:6]
    if command == "evaluate":  # it takes one method through methods= alone
        del found["mapper"], found["refine"]
    if command == "diagnose":
        found["diagnosis"].remove("none")
    if command == "anchors":
        found["trainer"].remove("ddp")
    return {name: some for name, some in found.items() if some and name != "sweep"}


def together(command: str) -> Iterator[list[str]]:
    """Give the first choices of all groups, then the second ones, until each was there once."""
    found = groups(command)
    for turn in range(max(map(len, found.values()))):
        chosen = {name: some[turn] for name, some in found.items() if turn < len(some)}
        if "cast" in (chosen.get("mapper"), str(chosen.get("experiment")).partition("_")[0]):
            chosen.pop("callbacks", None)  # it sets options of those that it chooses
        words = [f"{name}={choice}" for name, choice in chosen.items()]
        yield [*words, *(needed for word in words for needed in NEEDED.get(word, []))]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_choice_of_every_group_can_be_used(command):
    for words in together(command):
        try:
            settled(command, *words)
        except (ConfigurationError, HydraException) as error:
            pytest.fail(f"{command} {' '.join(words)}: {error}")


@pytest.mark.parametrize("sweep", choices("sweep"))
def test_every_sweep_switches_to_multirun_and_tries_options_that_exist(sweep):
    text = (CONF / "sweep" / f"{sweep}.yaml").read_text()
    [command] = set(re.findall(rf"# +python (\w+)\.py sweep={sweep} ", text))
    words = [*GIVEN.get(command, []), f"sweep={sweep}", *NEEDED.get(f"sweep={sweep}", [])]
    with initialize_config_module("loraport.conf", version_base="1.3"):
        hydra = hydra_compose(command, overrides=words, return_hydra_config=True).hydra
    assert hydra.mode.name == "MULTIRUN"
    summary = "loraport.commands.collect.SweepSummary"
    assert summary in [callback._target_ for callback in hydra.callbacks.values()]
    params = {key: str(value) for key, value in hydra.sweeper.params.items()}
    # Of a list of values the first; where they are drawn, there is none.
    first = {key: re.split(r",(?![^\[]*\])", value)[0] for key, value in params.items()}
    if "direction" in hydra.sweeper:
        first = dict.fromkeys(params, "1")
    load(command, [*words, *(f"{key}={value}" for key, value in first.items())])


LAUNCHERS = sorted(path.stem for path in (CONF / "hydra/launcher").glob("*.yaml"))


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_every_launcher_composes_with_options_of_its_plugin(launcher):
    with initialize_config_module("loraport.conf", version_base="1.3"):
        words = [f"hydra/launcher={launcher}"]
        config = hydra_compose("train", overrides=words, return_hydra_config=True)
    assert config.hydra.launcher._target_.startswith("hydra_plugins.")


@pytest.mark.parametrize("mapper", ["cast", "copy", "pca_mlp"])
def test_a_mapper_is_a_method(mapper):
    with as_running("evaluate") as config:
        method = EvaluateSettings.of(config).of_method(Method(mapper), seed=3)
    assert method.seed == 3
    assert method.mapper.target.startswith("loraport.mappers.")
    assert method.refine is None


def test_an_experiment_sets_what_evaluate_has_defaults_for():
    found = settled("evaluate", "experiment=benchmark", "paths.corpus=DIR")
    assert found.seeds == (0, 1)
    assert "adjoint_transport" in found.methods
    assert found.method_options["default"] == ("paths.corpus=DIR/diverse.jsonl",)
    assert found.tasks.limit == 300


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_listed_with_what_it_takes_and_means(command):
    listed = {option.name: option for option in options(command)}
    assert all(option.takes and option.meaning for option in listed.values())
    content = OmegaConf.to_container(compose(command, GIVEN.get(command, [])), resolve=False)
    for key in cast("dict[str, Any]", content):
        assert any(name.partition(".")[0] == key for name in listed) or key in ("probes", "corpus")


# What is refused.


@pytest.mark.parametrize(
    ("command", "word", "message"),
    [
        ("train", "seed=abc", "seed is 'abc'; it takes a whole number from 0"),
        ("train", "seed=-1", "seed is -1; it takes a whole number from 0"),
        ("train", "seed=1.5", "seed is 1.5; it takes a whole number"),
        ("train", "force=1", "force is 1; it takes true or false"),
        ("train", "tasks.limit=0", "tasks.limit is 0; it takes a whole number of at least 1, or"),
        ("train", "recipe.lr=0", "recipe.lr is 0; it takes a positive number"),
        ("train", "recipe.roles=[q,z]", "recipe.roles is ['q', 'z']; it takes one or more of q, k"),
        ("train", "evaluation.controls=[copy]", "it takes any of nearest, random, swapped"),
        ("train", "evaluation.scoring=luck", "'luck'; it takes one of likelihood, generate"),
        ("train", "paths.zoo_source=A", "paths.zoo_source and paths.zoo_target are set together"),
        ("train", "paths.cache=3", "paths.cache is 3; it takes the path of a file or folder"),
        ("train", "prompt.template=text", "prompt.template is 'text', so that all prompts"),
        ("train", "prompt.completion=yes", "prompt.completion is 'yes', so that all answers"),
        ("train", "prompt=3", "prompt is 3; it takes the options completion, template"),
        ("train", "+fource=true", "no option fource (did you mean force?); the command takes anch"),
        ("train", "+recipe.rnk=3", "there is no option recipe.rnk (did you mean rank?); recipe ta"),
        ("train", "mapper=3", "mapper is 3; it takes a choice of its group, or a node with a _tar"),
        ("train", "+callbacks.own.x=3", "callbacks.own is {'x': 3}; it takes a choice of its"),
        ("anchors", "side=left", "side is 'left'; it takes source, target or both"),
        ("transfer", "device=foo", "device is 'foo'; it takes auto, cpu, cuda, or the name of a G"),
        ("transfer", "refine_dtype=int8", "refine_dtype is 'int8'; it takes auto or one of"),
        ("transfer", "scale=0", "scale is 0; it takes a finite number other than 0"),
        ("transfer", "merge.with=null", "merge.with is null; it takes folders of adapters"),
        ("transfer", "scale=inf", "scale is inf; it takes a finite number other than 0"),
        ("transfer", "adapter=[]", "adapter is []; it takes a PEFT folder, a hub id or a task"),
        ("transfer", "adapter=[A,A]", "adapter names A twice; name it once"),
        ("transfer", "merge.with=[A,A]", "merge.with names A twice; name it once"),
        ("transfer", "merge.weights=[a]", "merge.weights is ['a']; it takes numbers"),
        ("transfer", "prompt.labels=A", "prompt.labels is 'A'; it takes at least two different w"),
        ("transfer", "prompt.labels=[A]", "prompt.labels is ['A']; it takes at least two differ"),
        ("transfer", "prompt.labels=[A,B,A]", "prompt.labels names A twice; name each once"),
        (
            *("transfer", "prompt.labels=[true,false]"),
            "as text it is written \"prompt.labels=['true','false']\"",
        ),
        ("transfer", "prompt.labels=[1,1]", "at least two different words"),
        ("transfer", "prompt.instruction=5", "as text it is written \"prompt.instruction='5'\""),
        ("transfer", "tasks.names=[1,a]", "as text it is written \"tasks.names=['1','a']\""),
        ("transfer", "prompt.labels=[A,B,' A']", "prompt.labels names A twice; name each once"),
        ("transfer", "refine_texts.anchors=yes_please", "is 'yes_please'; it takes true, false"),
        ("transfer", "cartridge=C", "cartridge=C takes ckpt= of mapper=cast"),
        ("anchors", "trainer.devices=2", "trainer.devices is 2, but anchors.py trains each"),
        ("anchors", "trainer.num_nodes=3", "trainer.num_nodes is 3, but anchors.py"),
        ("transfer", "choose.anchors=[DIR]", "choose.anchors has DIR, which is ported itself"),
        ("transfer", "choose.anchors=[speaker_33]", "which tasks.held_out keeps for evaluation"),
        ("transfer", "choose.anchors=[a]", "refine= would refine each for minutes; set refine=no"),
        ("evaluate", "methods=[luck]", "methods names 'luck', but there is no mapper=luck; a met"),
        ("evaluate", "methods=[copy+luck]", "but there is no refine=luck; a method is"),
        ("evaluate", "methods=[copy+auto]", "but there is no refine=auto; a method is"),
        ("evaluate", "methods=[]", "methods is []; it takes names of methods"),
        ("evaluate", "method_options={luck: [a]}", "method_options names luck, which is none of"),
        ("evaluate", "seeds=[0,-1]", "seeds is [0, -1]; it takes whole numbers of at least 0"),
        ("evaluate", "few_shot=[0]", "few_shot is [0]; it takes whole numbers of at least 1"),
        ("evaluate", "dashboard=me", "dashboard is 'me'; it takes ENTITY/PROJECT, as W&B has it"),
    ],
)
def test_an_option_out_of_its_range_is_refused(command, word, message):
    given = OverridesParser.create().parse_override(word)
    content = OmegaConf.create(composed(command))
    OmegaConf.update(content, given.key_or_group, given.value(), force_add=True, merge=False)
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        read_as(SETTINGS[command], OmegaConf.to_container(content))


@pytest.mark.parametrize(
    ("command", "word", "message"),
    [
        ("train", "pair=local", "pair.source.path is not given, and there is no default; set pair"),
        ("diagnose", "diagnosis=none", "diagnosis=none leaves nothing to do"),
        ("evaluate", "mapper=cross_lora", "compares methods, but mapper= is given; write methods"),
        ("evaluate", "refine=drift_budget", "compares methods, but refine= is given; write meth"),
    ],
)
def test_a_choice_that_cannot_be_used_is_refused(command, word, message):
    assert message in refused(command, word)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inputs=F"], "refine=none does not use inputs=; leave it out, or set refine=prompt_di"),
        (["examples=F"], "refine=none does not use examples=; leave it out, or set refine=few_s"),
        (["refine_texts.written=8"], "refine_texts.written is 8, but nothing is refined"),
        (["refine.texts=32"], "refine.texts is set, but a port by a mapper or a checkpoint"),
        (["choose.anchors=[a]", "adapter=[b,x/a/]"], "choose.anchors has a, which is ported"),
        (["choose.anchors=[a]", "merge.with=[z/a]", "choose.merged=true"], "with its own answer"),
        (["ckpt=F", "cartridge=C", "adapter=[A,B]"], "cartridge=C holds one adapter, but adapter"),
        (["ckpt=F", "cartridge=C", "refine=drift_budget"], "which refine= does not change"),
    ],
)
def test_what_does_not_go_with_another_option_is_refused(words, message):
    assert message in refused("transfer", "mapper=copy", *words)


def test_all_mistakes_are_said_at_once():
    lines = refused("transfer", "seed=abc", "dtype=int8", "adapter=???").splitlines()
    assert lines[0] == "3 options cannot be used:"
    assert [line.split()[0] for line in lines[1:]] == ["adapter", "seed", "dtype"]


def test_what_an_experiment_misspells_is_refused(outside):
    message = refused("train", *outside, "experiment=unknown")
    assert "there is no option forse (did you mean force?)" in message


def test_options_of_other_commands_are_left_out_of_an_experiment():
    assert settled("anchors", "experiment=three_anchors").tasks.held_out == ("bbc_news",)
    assert settled("transfer", "experiment=three_anchors").data is None


PROBE = """
import sys
from loraport import cli
sys.argv = ["transfer.py", "adapter=A", "seed=abc", "output=~/o", "device=foo"]
try:
    cli.transfer()
except SystemExit as end:
    heavy = {"torch", "transformers", "lightning", "peft", "scipy"} & set(sys.modules)
    print(end.code, sorted(heavy))
"""


def test_a_configuration_is_refused_before_anything_heavy_is_imported(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", PROBE], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "2 []\n"
    lines = done.stderr.splitlines()
    assert lines[0] == "loraport: 2 options cannot be used:"
    assert [line.split()[0] for line in lines[1:]] == ["seed", "device"]
    assert not list(tmp_path.iterdir())


# What is resolved.


def test_home_is_expanded_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    paths = ("cache", "tasks", "corpus", "suites", "zoo_source", "zoo_target", "zoo")
    words = [f"paths.{name}='~/{name}'" for name in paths]
    keys = ("output", "inputs", "examples", "calibration")
    words += [f"{key}='~/{key}'" for key in keys]
    words += ["pair=local", "pair.source.path='~/S'", "pair.target.path='~/T'", "corpus=folder"]
    words += ["adapter='~/A'", "merge.with=['~/B','~']", "refine=drift_budget"]
    found = settled("transfer", *words)
    for name in paths:
        assert getattr(found.paths, name) == tmp_path / name
    for key in keys:
        assert getattr(found, key) == tmp_path / key
    assert found.adapter == (f"{tmp_path}/A",)
    assert found.merge.others == (f"{tmp_path}/B", str(tmp_path))
    assert found.pair.source.options["path"] == f"{tmp_path}/S"
    assert found.corpus.options["folder"] == f"{tmp_path}/corpus"
    assert settled("evaluate", "collect='~/C'").collect == tmp_path / "C"
    assert settled("diagnose", "adapter='~/A'").adapter == f"{tmp_path}/A"
    one = settled("transfer", "ckpt='~/F'", "cartridge='~/G'", "adapter=owner/name")
    assert (one.ckpt, one.cartridge) == (tmp_path / "F", tmp_path / "G")
    assert one.adapter == ("owner/name",)


def test_the_cache_is_the_option_the_environment_or_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("LORAPORT_CACHE", str(tmp_path))
    assert settled("train").paths.cache_folder == tmp_path
    assert settled("train", "paths.cache=C").paths.cache_folder == Path("C")
    monkeypatch.delenv("LORAPORT_CACHE")
    assert settled("train").paths.cache_folder.name == "loraport"


def test_a_backslash_and_an_n_are_a_new_line_and_a_zoo_is_found_again_by_every_command():
    words = [r"prompt.template='{text}\n{instruction}\nA:'", r"prompt.completion='\n{label}'"]
    asked = [*words, r"prompt.instruction='A\nB?'"]
    every = {
        command: settled(command, *(asked if command in ("transfer", "evaluate") else words))
        for command in COMMANDS
    }
    for found in every.values():
        assert found.prompt.template == "{text}\n{instruction}\nA:"
        assert found.prompt.completion == "\n{label}"
    assert every["transfer"].prompt.instruction == every["evaluate"].prompt.instruction == "A\nB?"
    hashes = {found.recipe_hash() for found in every.values()}
    assert len(hashes) == 1
    assert hashes != {settled("train").recipe_hash()}


def test_the_default_zoo_has_the_name_that_it_had():
    settings = settled("anchors", "pair=tiny", "prompt.template=null")
    assert settings.recipe_hash()[:12] == "d0ab427866eb"
    assert settled("anchors", "pair=tiny").recipe_hash() == settings.recipe_hash()


def test_whether_a_template_is_given_is_a_value():
    default, again, other = (
        Prompt.model_validate({"template": template})
        for template in (None, DEFAULT_TEMPLATE, "{text}!")
    )
    assert (default.given, again.given, other.given) == (False, False, True)
    assert default.full_template == DEFAULT_TEMPLATE


@pytest.mark.parametrize(
    ("words", "refine"),
    [
        ([], "CorpusDistill"),
        (["mapper=noop", "refine.texts=32"], "CorpusDistill"),
        (["mapper=cross_lora"], None),
        (["ckpt=F"], None),
        (["mapper=cross_lora", "refine=drift_budget"], "KlBudget"),
        (["experiment=by_cross_lora"], None),
        (["experiment=by_cross_lora", "refine=corpus_distill"], "CorpusDistill"),
    ],
)
def test_a_port_is_refined_from_zero_alone_unless_it_is_asked_for(outside, words, refine):
    found = cast("TransferSettings", settled("transfer", *outside, *words))
    assert (None if found.refine is None else found.refine.target.split(".")[-1]) == refine
    assert "chosen" not in (found.refine.options if found.refine else {})


def test_one_value_stands_for_a_list_of_one():
    found = settled("evaluate", "methods=copy", "few_shot=4", "seeds=7", "tasks.held_out=sst2")
    assert (found.methods, found.few_shot, found.seeds) == (("copy",), (4,), (7,))
    assert found.tasks.held_out == ("sst2",)
    assert found.asked_seeds == (7,)


def test_methods_are_each_once_and_all_are_the_mappers_and_the_default():
    found = settled("evaluate", "methods=[copy,copy+drift_budget,default,copy]")
    named = [(method.mapper, method.refine) for method in found.asked_methods]
    assert named == [("copy", "none"), ("copy", "drift_budget"), ("noop", "corpus_distill")]
    every = settled("evaluate", "methods=all").asked_methods
    assert {m.name for m in every} == {*choices("mapper"), "default"} - set(Method.CONTROLS)


def test_settings_are_plain_data_again():
    found = settled("train", "mapper=global_ridge", "paths.zoo=Z")
    plain = found.plain()
    assert plain["paths"]["zoo"] == "Z"
    assert plain["mapper"]["_target_"].endswith("GlobalRidgeMapper")
    assert plain["mapper"]["strengths"][-1] == float("inf")
    assert plain["recipe"]["roles"] == ["v", "o", "down"]


# What is built.


def component(node: Any) -> Component:
    return Component.model_validate(node)


def test_a_component_is_built_of_any_package():
    found = component({"_target_": "collections.Counter", "a": 2})
    assert found.build() == {"a": 2}
    assert found.build(b=1) == {"a": 2, "b": 1}
    assert found.name == "Counter"


def test_a_component_is_called_as_its_class_says(tmp_path, monkeypatch):
    (tmp_path / "their_mapper.py").write_text("class Theirs:\n    name = 'their own'\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert component({"_target_": "their_mapper.Theirs"}).name == "their own"


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("import os\nimport nowhere_to_be_found\n", 2, "No module named 'nowhere_to_be_found'"),
        ("import os\n\ndef f(:\n", 3, "SyntaxError"),
        ("x = 1\nraise ValueError('no luck')\n", 2, "ValueError: no luck"),
    ],
)
def test_an_error_in_a_module_is_told_with_its_line(tmp_path, monkeypatch, content, line, message):
    (tmp_path / f"broken_{line}_{len(content)}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match=re.escape(message)) as caught:
        component({"_target_": f"broken_{line}_{len(content)}.Mapper"}).build()
    assert f".py, line {line})" in str(caught.value)


def test_options_that_a_class_does_not_take_are_told():
    with pytest.raises(ConfigurationError, match=r"Fraction cannot be built .*luck"):
        component({"_target_": "fractions.Fraction", "luck": 3}).build()
    with pytest.raises(ConfigurationError, match=r"Invalid literal .*fractions\.py, line \d+"):
        component({"_target_": "fractions.Fraction", "numerator": "a"}).build()
    with pytest.raises(ConfigurationError, match=r"^mapper\.space is 'x'"):
        component({"_target_": "loraport.mappers.controls.MeanMapper", "space": "x"}).build()


# Choices from outside the package.


def test_a_running_command_finds_choices_from_outside(outside):
    assert "outside" not in choices("mapper")
    with as_running("evaluate", [*outside, "methods=[outside]"]) as config:
        assert "outside" in choices("mapper")
        settings = EvaluateSettings.of(config)
        method = settings.of_method(settings.asked_methods[0], seed=1)
        assert given_words() == ["methods=[outside]"]
    assert method.mapper.target == "elsewhere.OutsideMapper"
    assert (method.seed, method.methods) == (1, ("outside",))
    with pytest.raises(HydraException):
        compose("evaluate", ["mapper=outside"])


def test_folders_beside_the_package_are_searched(tmp_path, outside):
    config = compose("train", ["mapper=outside"], beside=[str(tmp_path)])
    assert config.mapper._target_ == "elsewhere.OutsideMapper"


def test_labels_that_are_numbers_are_words():
    assert settled("transfer", "adapter=x", "prompt.labels=[1,0]").prompt.labels == ("1", "0")
