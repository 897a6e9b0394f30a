"""PEFT's ``adapter_config.json``: what is exact, what is refused, and how a scale is resolved.

Source: peft 0.21, ``tuners/lora/model.py`` (``_create_and_replace``) and
``tuners/tuners_utils.py`` (``check_target_module_exists``).
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..exceptions import AdapterError
from .sites import Site

# Options that do not change what a saved adapter computes, or that are resolved below.
_EXACT = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",  # read only where init_lora_weights asks for it, which is refused
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
}
_WHY_REFUSED = {
    "use_dora": "DoRA rescales the base weights by trained magnitudes, which no low-rank update "
    "can hold; train it again with use_dora=False, or merge it into the base and extract a LoRA",
    "modules_to_save": "it replaces whole modules of the base; train it again without them",
    "lora_bias": "trained biases are no part of a low-rank update; train with lora_bias=False",
    "trainable_token_indices": "it changes token embeddings; train it again without them",
    "fan_in_fan_out": "it stores transposed weights, which no supported architecture uses",
    "layer_replication": "it adds copies of layers to the base; train it on the plain base",
}
_DEFAULT_R_AND_ALPHA = 8
_EXACT_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mica")


@dataclass(frozen=True)
class PeftConfig:
    """The exact part of an ``adapter_config.json``.

    Raises:
        AdapterError: an option is set whose effect a low-rank update cannot hold exactly.
    """

    raw: Mapping[str, object]
    name: str

    def __post_init__(self) -> None:
        kind = self.raw.get("peft_type")
        if kind != "LORA":
            raise AdapterError(
                f"adapter {self.name} has peft_type {kind!r}, but only LORA can be ported; "
                "train a LoRA adapter on the same data"
            )
        for option, value in self.raw.items():
            if option in _EXACT or not value or (option, value) == ("bias", "none"):
                continue
            why = _WHY_REFUSED.get(
                option, "its effect is not known to be exact; train it again without this option"
            )
            raise AdapterError(f"adapter {self.name} has {option}={value!r}: {why}")
        init = self.raw.get("init_lora_weights", True)
        if init not in _EXACT_INITS:
            raise AdapterError(
                f"adapter {self.name} has init_lora_weights={init!r}, which changed the base "
                f"weights before training; it takes one of {list(_EXACT_INITS)}: convert it with "
                "PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
            )

    @property
    def base_model(self) -> str:
        """The base model that the adapter says it was trained on; empty if it does not say."""
        return str(self.raw.get("base_model_name_or_path") or "")

    def rank(self, site: Site) -> int:
        """Return the rank that PEFT gives a site, by ``rank_pattern`` or ``r``."""
        rank = self._pattern("rank_pattern", "r", site)
        if not (rank.is_integer() and rank > 0):
            raise AdapterError(
                f"adapter {self.name} has rank {rank} at {site.module_name} by r or rank_pattern, "
                "it takes a positive whole number"
            )
        return int(rank)

    def scale(self, site: Site) -> float:
        """Return what PEFT multiplies ``B A x`` by: ``alpha / r``, or ``alpha / sqrt(r)``."""
        alpha, rank = self._pattern("alpha_pattern", "lora_alpha", site), self.rank(site)
        return alpha / rank**0.5 if self.raw.get("use_rslora") else alpha / rank

    def _pattern(self, patterns: str, default: str, site: Site) -> float:
        table = self.raw.get(patterns) or {}
        if not isinstance(table, Mapping):
            raise AdapterError(f"adapter {self.name}: {patterns} is {table!r}, it takes a mapping")
        for pattern, value in table.items():
            if re.match(rf"(.*\.)?({pattern})$", site.module_name):
                return self._number(f"{patterns}[{pattern!r}]", value)
        return self._number(default, self.raw.get(default, _DEFAULT_R_AND_ALPHA))

    def _number(self, option: str, value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise AdapterError(f"adapter {self.name}: {option} is {value!r}, it takes a number")
        return float(value)

    def targets(self, site: Site) -> bool:
        """Return whether PEFT would load weights for this site."""
        module, targets = site.module_name, self.raw.get("target_modules")
        excluded = self.raw.get("exclude_modules")
        if excluded and _matches(excluded, module):
            return False
        if targets == "all-linear":
            return True
        if isinstance(targets, str) or not targets:
            return bool(targets) and _matches(targets, module)
        # A full name is targeted whatever layers_to_transform says.
        full = isinstance(targets, Collection) and module in targets
        return full or (_matches(targets, module) and self._transforms(module))

    def _transforms(self, module: str) -> bool:
        layers: Any = self.raw.get("layers_to_transform")
        if layers is None or layers == []:
            return True
        patterns: Any = self.raw.get("layers_pattern") or "layers"
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            found = re.match(rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\.", module)
            if found:
                return int(found["layer"]) in ([layers] if isinstance(layers, int) else layers)
        return False


def _matches(names: object, module: str) -> bool:
    """A string is a regular expression for the whole name; a list holds names or suffixes."""
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    if not isinstance(names, list | tuple | set):
        return False
    return any(module == name or module.endswith(f".{name}") for name in names)
