"""What PEFT would do with a config, asked of PEFT itself on the pico source model."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer

from loraport.adapters import Role, Site
from loraport.adapters.peft_config import PeftConfig
from loraport.exceptions import AdapterError

Q_AND_V = ["q_proj", "v_proj"]
ALL_SITES = [Site(layer, role) for layer in (0, 1) for role in Role]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": Q_AND_V},
    "default rank and alpha": {"target_modules": Q_AND_V, "r": 8, "lora_alpha": 8},
    "rslora": {"target_modules": Q_AND_V, "use_rslora": True},
    "rank pattern by suffix": {"target_modules": Q_AND_V, "rank_pattern": {"q_proj": 2}},
    "first of two patterns": {
        "target_modules": Q_AND_V,
        "rank_pattern": {r"layers.0.self_attn.q_proj": 1, "q_proj": 2, r".*\.q_proj": 3},
        "alpha_pattern": {r"^model\.layers\.1\..*v_proj": 1.5, "v_proj": 7},
    },
    "pattern that is no suffix": {
        "target_modules": Q_AND_V,
        "rank_pattern": {"proj": 2, "_proj": 3},
    },
    "both patterns with rslora": {
        "target_modules": Q_AND_V,
        "rank_pattern": {"v_proj": 3},
        "alpha_pattern": {"v_proj": 5},
        "use_rslora": True,
    },
    "negative alpha": {"target_modules": Q_AND_V, "lora_alpha": -4},
    "alpha of zero at one module": {"target_modules": Q_AND_V, "alpha_pattern": {"v_proj": 0}},
    "layers": {"target_modules": Q_AND_V, "layers_to_transform": [1]},
    "one layer": {"target_modules": Q_AND_V, "layers_to_transform": 0},
    "no layers": {"target_modules": Q_AND_V, "layers_to_transform": []},
    "layers pattern": {
        "target_modules": Q_AND_V,
        "layers_to_transform": [1],
        "layers_pattern": ["h", "layers"],
    },
    "layers pattern as an expression": {
        "target_modules": Q_AND_V,
        "layers_to_transform": [1],
        "layers_pattern": "(blocks|lay.*)",
    },
    "full name beside layers": {
        "target_modules": ["model.layers.0.self_attn.q_proj", "v_proj"],
        "layers_to_transform": [1],
    },
    "expression": {"target_modules": r".*\.1\.(self_attn\.[qk]|mlp\.up)_proj"},
    "expression for a part of the name": {"target_modules": r".*0\.mlp\.gate_proj|v_proj"},
    "all linear": {"target_modules": "all-linear"},
    "all linear but some": {"target_modules": "all-linear", "exclude_modules": ["down_proj"]},
    "full names": {
        "target_modules": ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"]
    },
    "partial names": {"target_modules": ["0.self_attn.q_proj", "mlp.up_proj"]},
    "excluded by name": {
        "target_modules": Q_AND_V,
        "exclude_modules": ["model.layers.0.self_attn.q_proj"],
    },
    "excluded by expression": {
        "target_modules": Q_AND_V,
        "exclude_modules": r".*layers\.1\..*q_.*",
    },
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_targets_ranks_and_scales_are_those_of_peft(
    options: dict[str, Any], peft_model: Callable[[LoraConfig], PeftModel]
) -> None:
    config = LoraConfig(**{"r": 4, "lora_alpha": 6} | options)
    # As it would be in the file, before PEFT resolves it against a model.
    raw = json.loads(json.dumps(config.to_dict(), default=sorted)) | {"peft_type": "LORA"}
    ours = PeftConfig(raw, "options")
    modules = dict(peft_model(config).get_base_model().named_modules())
    made = {
        site: module
        for site in ALL_SITES
        if isinstance(module := modules[site.module_name], LoraLayer)
    }
    assert {site for site in ALL_SITES if ours.targets(site)} == set(made)
    assert made
    for site, layer in made.items():
        assert ours.rank(site) == layer.r["default"]
        assert ours.scale(site) == layer.scaling["default"]


def test_what_the_file_leaves_out_has_the_defaults_of_peft() -> None:
    config = PeftConfig({"peft_type": "LORA", "target_modules": ["q_proj"]}, "short")
    defaults = LoraConfig()
    site = Site(0, Role.Q)
    assert (config.rank(site), config.scale(site)) == (defaults.r, defaults.lora_alpha / defaults.r)
    assert config.base_model == ""


def test_every_default_of_peft_is_taken() -> None:
    raw = LoraConfig(target_modules=Q_AND_V).to_dict() | {"peft_type": "LORA"}
    assert PeftConfig(raw, "defaults").targets(Site(0, Role.V))


def test_no_target_modules_target_nothing() -> None:
    assert not PeftConfig({"peft_type": "LORA"}, "empty").targets(Site(0, Role.Q))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peft_type": "IA3"}, r"mine has peft_type 'IA3'.*only LORA"),
        ({"peft_type": None}, r"mine has peft_type None"),
        ({"bias": "lora_only"}, r"mine has bias='lora_only'"),
        ({"fan_in_fan_out": True}, r"fan_in_fan_out=True.*transposed"),
        ({"layer_replication": [[0, 2]]}, r"layer_replication=\[\[0, 2\]\].*copies of layers"),
        ({"use_qalora": True}, r"use_qalora=True.*not known to be exact"),
        ({"target_parameters": ["experts.up"]}, r"target_parameters=\['experts.up'\]"),
        ({"alora_invocation_tokens": [5]}, r"alora_invocation_tokens=\[5\]"),
        ({"use_of_the_future": "yes"}, r"use_of_the_future='yes'.*without this option"),
        ({"init_lora_weights": "corda"}, r"init_lora_weights='corda'.*path_initial_model"),
        ({"init_lora_weights": "loftq"}, r"init_lora_weights='loftq'.*base weights"),
        ({"init_lora_weights": "pissa_niter_16"}, r"init_lora_weights='pissa_niter_16'"),
    ],
)
def test_what_is_not_exact_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        PeftConfig({"peft_type": "LORA", "r": 4, **options}, "mine")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0}, r"mine has rank 0\.0 at model\.layers\.0\.self_attn\.q_proj.*positive"),
        ({"r": 2.5}, r"rank 2\.5 .*whole"),
        ({"r": "four"}, r"mine: r is 'four', it takes a number"),
        ({"lora_alpha": None}, r"lora_alpha is None, it takes a number"),
        ({"lora_alpha": True}, r"lora_alpha is True, it takes a number"),
        ({"rank_pattern": {"q_proj": "four"}}, r"rank_pattern\['q_proj'\] is 'four'"),
        ({"alpha_pattern": ["q_proj"]}, r"alpha_pattern is \['q_proj'\], it takes a mapping"),
    ],
)
def test_malformed_ranks_and_alphas_are_named(options: dict[str, Any], message: str) -> None:
    config = PeftConfig({"peft_type": "LORA", **options}, "mine")
    with pytest.raises(AdapterError, match=message):
        config.scale(Site(0, Role.Q))
