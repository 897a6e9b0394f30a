"""Reading and writing PEFT adapter folders, exactly: what a low-rank update cannot hold is refused.

Which rank, alpha and module an option means is asked of PEFT itself, which is imported only then:
the command line knows adapters long before it needs a library that takes seconds.
"""

import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from pydantic import BaseModel, StrictBool, StrictInt, ValidationError
from safetensors.torch import load_file, save
from torch import Tensor

from ..exceptions import AdapterError
from ..files import read_json, reading, staged_folder, writing
from ..option_types import faults
from .lora import LoraAdapter, LowRank, Site

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PICKLE_FILE = "adapter_model.bin"
_CONVERSION = (
    'python -c "import torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in '
    "torch.load('adapter_model.bin', weights_only=True).items()}, 'adapter_model.safetensors')\""
)

# Options that do not change what a saved adapter computes, or that are resolved below. corda_config
# is read by PEFT only where init_lora_weights asks for it, which is refused.
# fmt: off
_EXACT = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "corda_config",
    "ensure_weight_tying", "eva_config", "exclude_modules", "inference_mode",
    "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_alpha",
    "lora_dropout", "lora_ga_config", "megatron_core", "peft_type", "peft_version",
    "qalora_group_size", "r", "rank_pattern", "revision", "runtime_config", "target_modules",
    "task_type", "use_rslora",
}
# fmt: on
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


class _Types(BaseModel):
    """The types of the options that are resolved here, as PEFT takes them."""

    base_model_name_or_path: str | None = None
    target_modules: str | list[str] | None = None
    exclude_modules: str | list[str] | None = None
    layers_to_transform: StrictInt | list[StrictInt] | None = None
    layers_pattern: str | list[str] | None = None
    rank_pattern: dict[str, Any] | None = None
    alpha_pattern: dict[str, Any] | None = None
    use_rslora: StrictBool | None = None


@dataclass(frozen=True)
class PeftConfig:
    """The exact part of an ``adapter_config.json``.

    Raises:
        AdapterError: an option is of another type than PEFT takes, or is set and has an effect
            that a low-rank update cannot hold exactly.
    """

    raw: Mapping[str, object]
    name: str

    def __post_init__(self) -> None:
        try:
            _Types.model_validate(self.raw)
        except ValidationError as error:
            raise AdapterError(
                f"adapter {self.name} has options of a wrong type ({faults(error)}); correct its "
                f"{CONFIG_FILE}, or save the adapter again"
            ) from None
        kind = self.raw.get("peft_type")
        if kind != "LORA":
            raise AdapterError(
                f"adapter {self.name} has peft_type {_short(kind)}, but only LORA can be ported; "
                "train a LoRA adapter on the same data"
            )
        for option, value in self.raw.items():
            if option in _EXACT or not value or (option, value) == ("bias", "none"):
                continue
            why = _WHY_REFUSED.get(
                option, "its effect is not known to be exact; train it again without this option"
            )
            raise AdapterError(f"adapter {self.name} has {option}={_short(value)}: {why}")
        init = self.raw.get("init_lora_weights", True)
        if init not in _EXACT_INITS:
            raise AdapterError(
                f"adapter {self.name} has init_lora_weights={_short(init)}, which changed the base "
                f"weights before training; it takes one of {list(_EXACT_INITS)}: convert it with "
                "PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
            )

    @property
    def base_model(self) -> str:
        """The base model that the config names; empty if it names none."""
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

    def alpha(self, site: Site) -> float:
        """Return the alpha that PEFT gives a site, by ``alpha_pattern`` or ``lora_alpha``."""
        return self._pattern("alpha_pattern", "lora_alpha", site)

    def scale(self, site: Site) -> float:
        """Return what PEFT multiplies ``B A x`` by: ``alpha / r``, or ``alpha / sqrt(r)``."""
        alpha, rank = self.alpha(site), self.rank(site)
        return alpha / rank**0.5 if self.raw.get("use_rslora") else alpha / rank

    def _pattern(self, patterns: str, default: str, site: Site) -> float:
        table: Any = self.raw.get(patterns) or {}
        from peft.utils.other import get_pattern_key

        option, value = default, self.raw.get(default, _DEFAULT_R_AND_ALPHA)
        pattern = get_pattern_key(list(table), site.module_name)
        if pattern in table:
            option, value = f"{patterns}[{_short(pattern)}]", table[pattern]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise AdapterError(
                f"adapter {self.name}: {option} is {_short(value)}, it takes a number"
            )
        try:
            return float(value)
        except OverflowError:
            raise AdapterError(
                f"adapter {self.name}: {option} has {len(str(value))} digits; it takes a number "
                "that a float can hold"
            ) from None

    def targets(self, site: Site) -> bool:
        """Return whether PEFT would load weights for this site."""
        from peft.tuners.tuners_utils import check_target_module_exists

        names = self.raw.get("target_modules") or []
        filters = ("exclude_modules", "layers_to_transform", "layers_pattern")
        options = SimpleNamespace(
            # PEFT resolves all-linear against the model, whose linear modules hold every site.
            target_modules=".*" if names == "all-linear" else names,
            target_parameters=None,
            **{option: self.raw.get(option) for option in filters},
        )
        return bool(check_target_module_exists(options, site.module_name))

    def check_expressions(self, modules: Collection[str]) -> None:
        """Make sure that PEFT can ask the regular expressions about modules in bounded time.

        Raises:
            AdapterError: an expression is invalid or takes too long, or there are too many.
        """
        tried, names = [], 0
        for option, (built, how) in _EXPRESSIONS.items():
            value: Any = self.raw.get(option) or ()
            patterns = [value] if isinstance(value, str) else list(value)
            names += len(patterns)
            if how == "match" or isinstance(value, str):  # else PEFT takes them for plain names
                tried += [
                    (f"{option}={pattern[:80]!r}", built.replace("PATTERN", pattern), how)
                    for pattern in patterns
                    if not _PLAIN.fullmatch(pattern)
                ]
        if names * len(modules) > _MOST_QUESTIONS:
            raise AdapterError(
                f"adapter {self.name} has {names} names and patterns of modules in its "
                f"{CONFIG_FILE}, far more than its {len(modules)} modules take; save it again"
            )
        wrong = _wrong_expression(json.dumps([tried, list(modules)])) if tried else ""
        if wrong:
            raise AdapterError(
                f"adapter {self.name} has {wrong}; write it in {CONFIG_FILE} as plain names of "
                "modules, or without repeats inside of repeats"
            )


# How PEFT builds an expression of each option, and how it asks it.
_EXPRESSIONS = {
    "target_modules": ("PATTERN", "fullmatch"),
    "exclude_modules": ("PATTERN", "fullmatch"),
    "layers_pattern": (r"(?:^|.*?\.)PATTERN\.(?P<idx>\d+)\.", "match"),
    "rank_pattern": (r"(.*\.)?(PATTERN)$", "match"),
    "alpha_pattern": (r"(.*\.)?(PATTERN)$", "match"),
}
_PLAIN = re.compile(r"(?:\w|\?\.)*|all-linear")  # there is one way to match it, or none
_MOST_QUESTIONS = 1_000_000
_TRY = """
import json, re, sys, warnings
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
except ImportError:
    pass
warnings.simplefilter("ignore")
tried, modules = json.load(sys.stdin)
for called, pattern, how in tried:
    print(called, flush=True)
    try:
        ask = getattr(re.compile(pattern), how)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
    for module in modules:
        ask(module)
"""


@lru_cache
def _wrong_expression(question: str) -> str:
    """Return what is wrong with the first expression that cannot be used; nothing if all can.

    They are tried in a process of their own, which has one second of the processor: Python's
    ``re`` may backtrack for longer than anybody lives, and nothing stops it from within.
    """
    options: Any = {"capture_output": True, "encoding": "utf-8", "check": False, "timeout": 60}
    try:
        tried = subprocess.run([sys.executable, "-ISc", _TRY], input=question, **options)
        code, said, printed = tried.returncode, tried.stderr, tried.stdout
    except subprocess.TimeoutExpired:
        code, said, printed = -1, "", ""
    if code == 0:
        return ""
    called = (printed.splitlines() or ["a pattern"])[-1]
    if code == 1:
        return f"{called}, which is no regular expression ({' '.join(said.split())[:200]})"
    return f"{called}, which takes more than a second to match the names of the modules"


# Of a module's update: weights have norms of tens to thousands.
_MOST_NORM = 1e6

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def read_adapter(folder: str | Path) -> LoraAdapter:
    """Read a PEFT LoRA folder; every option that is exact is resolved, any other refused.

    Raises:
        AdapterError: a file is missing, truncated or a pickle; an option or a tensor cannot be
            held exactly; a tensor is missing its partner, is one that PEFT would not load, has
            another rank than in the config, or is not finite.
    """
    folder = Path(folder)
    with reading(folder, "a PEFT adapter, as save_pretrained writes it", AdapterError):
        config = read_peft_config(folder)
        pairs: dict[Site, dict[str, Tensor]] = {}
        for key, tensor in _read_weights(folder).items():
            site, factor = _parse_key(key, folder)
            pairs.setdefault(site, {})[factor] = tensor
        config.check_expressions([site.module_name for site in pairs])
        sites = {site: _low_rank(site, factors, config) for site, factors in pairs.items()}
    try:
        return LoraAdapter(sites, config.base_model, config.raw)
    except AdapterError as error:
        raise AdapterError(f"{folder}: {error}") from None


def read_peft_config(folder: Path) -> PeftConfig:
    """Read the config of an adapter's folder; AdapterError where it cannot be used."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise AdapterError(
            f"{folder} is not a PEFT adapter: it has no {CONFIG_FILE}; give the folder that "
            f"save_pretrained wrote, with {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    raw = read_json(path, "a JSON object of PEFT's options: save the adapter again", AdapterError)
    with reading(path, "options of PEFT", AdapterError):
        return PeftConfig(raw, str(folder))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        if (folder / _PICKLE_FILE).is_file():
            raise AdapterError(
                f"{folder} holds its weights as a pickle ({_PICKLE_FILE}), which can run code "
                f"when it is read; it takes {WEIGHTS_FILE}: in that folder run {_CONVERSION}"
            )
        raise AdapterError(f"{folder} has no {WEIGHTS_FILE}; copy or save the adapter again")
    whole = "a whole safetensors file: it is truncated or damaged, copy or save the adapter again"
    with reading(f"{path} ({path.stat().st_size} bytes)", whole, AdapterError):
        return load_file(path)


def _parse_key(key: str, folder: Path) -> tuple[Site, str]:
    module, _, factor = key.removeprefix(_PREFIX).rpartition(".lora_")
    site = Site.parse(module)
    if factor not in ("A.weight", "B.weight") or site is None or site.module_name != module:
        raise AdapterError(
            f"adapter {folder} holds the tensor {key!r}, which is no lora_A or lora_B of a "
            "decoder layer's q, k, v, o, gate, up or down projection and would be lost; train "
            "the adapter again on these modules only"
        )
    return site, factor[0]


def _low_rank(site: Site, factors: dict[str, Tensor], config: PeftConfig) -> LowRank:
    module = site.module_name
    if set(factors) != {"A", "B"}:
        raise AdapterError(
            f"adapter {config.name} has only lora_{''.join(factors)} of {module}; it takes both "
            "lora_A and lora_B: copy or save the adapter again"
        )
    if not config.targets(site):
        raise AdapterError(
            f"adapter {config.name} holds weights for {module}, but its {CONFIG_FILE} does not "
            "target that module, so that PEFT would drop them; add it to target_modules"
        )
    a, b, rank = factors["A"], factors["B"], config.rank(site)
    odd = [factor.dtype for factor in (a, b) if factor.dtype not in _FLOATS]
    if odd:
        raise AdapterError(
            f"adapter {config.name} has factors in {str(odd[0]).removeprefix('torch.')} at "
            f"{module}; it takes float64, float32, bfloat16 or float16: convert the adapter"
        )
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise AdapterError(
            f"adapter {config.name} has lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)} at "
            f"{module}, but its {CONFIG_FILE} gives rank {rank}: it takes ({rank}, in) and "
            f"(out, {rank}); correct r or rank_pattern"
        )
    update = LowRank(a, b, config.scale(site))
    # Factors that are not finite are named by the adapter.
    if abs(update.scale) > _MOST_NORM or _MOST_NORM < update.norm() < math.inf:
        raise AdapterError(
            f"adapter {config.name} has lora_alpha {config.alpha(site):g} and rank {rank} at "
            f"{module}: B A is multiplied by {update.scale:g}, which makes an update of norm "
            f"{update.norm():.3g}; it takes {_MOST_NORM:g} at most for both: correct lora_alpha or "
            "alpha_pattern, or train the adapter again"
        )
    return update


def write_adapter(
    adapter: LoraAdapter,
    folder: str | Path,
    *,
    extra: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a PEFT folder, whole or not at all, with ``extra`` text files by their names.

    The adapter's own config is kept where it still describes the adapter.

    Raises:
        OutputError: the folder exists and is not to be replaced, or it cannot be written.
    """
    with staged_folder(Path(folder), overwrite=overwrite) as whole, writing(Path(folder)):
        write_peft_files(adapter, whole)
        for name, text in (extra or {}).items():
            (whole / name).write_text(text, encoding="utf-8")


def write_peft_files(adapter: LoraAdapter, folder: Path) -> None:
    """Write the two files of a PEFT adapter into a folder that exists; see also staged_folder."""
    for name, content in peft_files(adapter).items():
        (folder / name).write_bytes(content)


def peft_files(adapter: LoraAdapter) -> dict[str, bytes]:
    """Return the two files of a PEFT adapter by their names."""
    # Copies, since safetensors refuses a factor that two sites share.
    tensors = {
        f"{_PREFIX}{site.module_name}.lora_{name}.weight": factor.detach()
        .cpu()
        .clone(memory_format=torch.contiguous_format)
        for site, update in adapter.items()
        for name, factor in (("A", update.A), ("B", update.B))
    }
    config = json.dumps(peft_config(adapter), indent=2)
    return {
        WEIGHTS_FILE: save(tensors, metadata={"format": "pt"}),
        CONFIG_FILE: f"{config}\n".encode(),
    }


def peft_config(adapter: LoraAdapter) -> dict[str, object]:
    """Return the ``adapter_config.json`` that makes PEFT compute exactly this adapter."""
    if adapter.config is not None:
        config = PeftConfig(adapter.config, adapter.base_model)
        if all(
            config.targets(site)
            and (config.rank(site), config.scale(site)) == (update.rank, update.scale)
            for site, update in adapter.items()
        ):
            return {**adapter.config, "base_model_name_or_path": adapter.base_model}
    return _plain_config(adapter)


def _plain_config(adapter: LoraAdapter) -> dict[str, object]:
    ranks = {site: update.rank for site, update in adapter.items()}
    # alpha / r gives the scale back within one rounding, and exactly where r is a power of two.
    alphas = {site: update.scale * update.rank for site, update in adapter.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    regex = {site: site.module_name.replace(".", r"\.") for site in adapter}
    layers = sorted({site.layer for site in adapter})
    targets: dict[str, object] = {"target_modules": [site.module_name for site in adapter]}
    if len(adapter) == len(layers) * len(adapter.roles):  # each layer has every role
        names = [role.module for role in adapter.roles]
        targets = {"target_modules": names, "layers_to_transform": layers}
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base_model,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {regex[site]: r for site, r in ranks.items() if r != rank},
        "alpha_pattern": {regex[site]: a for site, a in alphas.items() if a != alpha},
        **targets,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "bias": "none",
        "init_lora_weights": True,
        "inference_mode": True,
    }
