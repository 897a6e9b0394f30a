"""Checks a written adapter: PEFT reads the same updates, and they change the model's logits."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

from ..adapters import LoraAdapter, LowRank, Site
from ..adapters.peft_io import read_peft_config
from ..exceptions import VerificationError
from ..files import in_short
from .streaming import StreamedWeights, hollow_network, streaming

_PROBE_TOKENS = 12  # spread over the vocabulary
# Of an update's norm; bfloat16, the coarsest dtype that is written, rounds to 2^-9.
_TOLERANCE = 1e-2
# Units in the last place of the largest logit: less is what rounding makes of nothing.
_ROUNDING = 32


@dataclass(frozen=True)
class Verification:
    """What PEFT made of an adapter's folder, and what that does on a short probe."""

    sites: int  # modules that PEFT put an update on
    smallest_norm: float  # Frobenius norm among the updates
    largest_norm: float
    logit_change: float  # greatest absolute change of a next-token logit
    changed_top_token: float  # share of the positions whose most likely token changed


def verify(
    folder: Path, target: StreamedWeights, adapter: LoraAdapter, *, called: Path | None = None
) -> Verification:
    """Load a folder through PEFT onto its base model and compare it with what was meant.

    The base model's weights are streamed, so that it never is whole in memory. An adapter that
    is zero everywhere, as that of ``mapper=noop``, must leave the logits as they are; any other
    must change the most likely token somewhere, or a logit by more than rounding. Messages call
    the folder ``called``, where its own name is a passing one.

    Raises:
        VerificationError: PEFT lacks a site, has one too many, or another update there; an
            update is not finite, or zero where it should not be; or the logits do not change.
    """
    network = hollow_network(target)
    width = int(target.config.vocab_size)
    ids = torch.linspace(1, width - 1, _PROBE_TOKENS).long()[None]
    with torch.inference_mode(), streaming(network, target):
        before = network(input_ids=ids).logits
    name = called or folder
    # PEFT asks the config about every module, and adapters were asked about their sites alone.
    read_peft_config(folder).check_expressions([module for module, _ in network.named_modules()])
    try:
        # PEFT draws the factors that it is about to overwrite.
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # every one of them is checked below, and named
            model: nn.Module = PeftModel.from_pretrained(network, str(folder))
    except Exception as error:
        raise VerificationError(
            f"PEFT cannot put the adapter in {name} on {target.name}: {in_short(error)}"
        ) from error
    norms = _compared(_updates(model), adapter, name)
    with torch.inference_mode(), streaming(model, target):
        after = model(input_ids=ids).logits
    change, expected = float((after - before).abs().max()), adapter.norm() > 0
    changed = float((before.argmax(-1) != after.argmax(-1)).double().mean())
    rounding = _ROUNDING * torch.finfo(before.dtype).eps * float(before.abs().max())
    acts = changed > 0 or change > rounding if expected else change > 0
    if not torch.isfinite(after).all() or acts != expected:
        least = f"change by more than rounding ({rounding:.1g})"
        raise VerificationError(
            f"with the adapter in {name} the target's logits change by {change:.2g} at most, but "
            f"they should {least if expected else 'stay as they are'} and be finite; check scale= "
            "and the source adapter"
        )
    return Verification(len(norms), min(norms), max(norms), change, changed)


def _updates(model: nn.Module) -> dict[Site, LowRank]:
    """Return the update of each module that PEFT has put one on."""
    updates = {}
    for name, module in model.named_modules():
        factors = getattr(module, "lora_A", None)
        site = Site.parse(name.removeprefix("base_model.model."))
        if isinstance(factors, nn.ModuleDict) and factors and site is not None:
            (key,) = factors
            a, b = (getattr(module, part)[key].weight.data for part in ("lora_A", "lora_B"))
            scaling: dict[str, float] = getattr(module, "scaling")  # noqa: B009 - untyped
            updates[site] = LowRank(a, b, float(scaling[key]))
    return updates


def _compared(updates: dict[Site, LowRank], adapter: LoraAdapter, folder: Path) -> list[float]:
    """Return the norms of what PEFT has read, where that is what was meant."""
    odd = sorted(set(updates) ^ set(adapter), key=lambda site: site.sort_key)
    if odd:
        what = "lacks" if odd[0] in adapter else "has too many by"
        raise VerificationError(
            f"PEFT reads {folder} and {what} {odd[0].module_name}: of {len(adapter)} sites that "
            f"were written it finds {len(updates)}"
        )
    norms = []
    for site, meant in adapter.items():
        read, norm = updates[site], meant.norm()
        finite = bool(torch.isfinite(read.A).all() and torch.isfinite(read.B).all())
        squared = read.inner(read) - 2 * read.inner(meant) + norm**2 if finite else float("nan")
        if not max(squared, 0.0) ** 0.5 <= _TOLERANCE * norm:
            raise VerificationError(
                f"PEFT reads another update at {site.module_name} from {folder} than was meant: "
                f"norm {read.norm() if finite else 'not finite'} instead of {norm}"
            )
        norms.append(read.norm())
    return norms
