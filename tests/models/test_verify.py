import copy
import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from loraport.adapters import LoraAdapter, Role, Site, write_adapter
from loraport.exceptions import VerificationError
from loraport.models import ARCHITECTURES, BaseModel, StreamedWeights, Verification, verify

RandomAdapter = Callable[..., LoraAdapter]


@pytest.fixture(scope="module")
def target(pico_target: BaseModel, tmp_path_factory: pytest.TempPathFactory) -> StreamedWeights:
    folder = tmp_path_factory.mktemp("target")
    pico_target.network.save_pretrained(folder)
    return StreamedWeights.open(folder, pico_target.name)


@pytest.fixture
def adapter(pico_target: BaseModel, random_adapter: RandomAdapter) -> LoraAdapter:
    return random_adapter(pico_target)


@pytest.fixture
def folder(adapter: LoraAdapter, tmp_path: Path) -> Path:
    write_adapter(adapter, tmp_path / "adapter")
    return tmp_path / "adapter"


Q = Site(1, Role.Q)
NAME = re.escape(Q.module_name)
A_KEY, B_KEY = (f"base_model.model.{Q.module_name}.lora_{factor}.weight" for factor in "AB")
WEIGHTS = "adapter_model.safetensors"


def edited(folder: Path, **changes: Callable[[Tensor], Tensor] | None) -> None:
    """Change the factors of one site, A or B; None removes one."""
    tensors = load_file(folder / WEIGHTS)
    for factor, change in changes.items():
        key = {"A": A_KEY, "B": B_KEY}[factor]
        old = tensors.pop(key)
        if change is not None:
            tensors[key] = change(old).contiguous()
    save_file(tensors, folder / WEIGHTS)


def configured(folder: Path, **options: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_verified_as_peft_computes_it(
    pico: Callable[[str], BaseModel],
    random_adapter: RandomAdapter,
    tmp_path: Path,
    architecture: str,
) -> None:
    base = pico(architecture)
    network = copy.deepcopy(base.network)
    for parameter in network.parameters():
        if parameter.ndim == 1:  # biases and gains that would be missed
            parameter.data += 0.2
    network.save_pretrained(tmp_path / "base")
    adapter = random_adapter(base)
    write_adapter(adapter, tmp_path / "adapter")
    found = verify(tmp_path / "adapter", StreamedWeights.open(tmp_path / "base", "b"), adapter)
    norms = [update.norm() for update in adapter.values()]
    assert found.sites == len(base.sites.shapes) == 14
    assert found.smallest_norm == pytest.approx(min(norms), rel=1e-5)
    assert found.largest_norm == pytest.approx(max(norms), rel=1e-5)
    ids = torch.linspace(1, 259, 12).long()[None]
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = network(input_ids=ids).logits
        model = PeftModel.from_pretrained(network, str(tmp_path / "adapter")).eval()
        changed = model(input_ids=ids).logits
    assert found.logit_change == pytest.approx(float((changed - plain).abs().max()), rel=1e-3)
    share = (changed.argmax(-1) != plain.argmax(-1)).double().mean()
    assert found.changed_top_token == pytest.approx(float(share))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_of_any_dtype_are_verified_on_a_model_in_bfloat16_in_shards(
    pico_target: BaseModel, adapter: LoraAdapter, tmp_path: Path, dtype: torch.dtype
) -> None:
    network = copy.deepcopy(pico_target.network).bfloat16()
    network.save_pretrained(tmp_path / "half", max_shard_size="20KB")
    half = StreamedWeights.open(tmp_path / "half", "half")
    rounded = adapter.map(lambda update: update.to(dtype))
    write_adapter(rounded, tmp_path / "adapter")
    found = verify(tmp_path / "adapter", half, rounded)
    assert found.sites == 21
    assert found.logit_change > 0.1


def test_nothing_is_left_behind_and_nothing_drawn(
    target: StreamedWeights, adapter: LoraAdapter, folder: Path
) -> None:
    before, files = torch.get_rng_state(), sorted(folder.iterdir())
    first, second = (verify(folder, target, adapter) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)
    assert sorted(folder.iterdir()) == files


def test_zero_must_leave_the_logits_as_they_are(
    target: StreamedWeights, adapter: LoraAdapter, tmp_path: Path
) -> None:
    zero = adapter.map(lambda update: type(update)(update.A, torch.zeros_like(update.B)))
    write_adapter(zero, tmp_path / "adapter")
    assert verify(tmp_path / "adapter", target, zero) == Verification(21, 0.0, 0.0, 0.0, 0.0)


def refused(folder: Path, target: StreamedWeights, adapter: LoraAdapter, message: str) -> None:
    with pytest.raises(VerificationError, match=message) as error:
        verify(folder, target, adapter)
    assert error.value.exit_code == 1


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: edited(f, A=None, B=None), rf"another update at {NAME}.*norm 0"),
        (lambda f: edited(f, A=lambda a: a * math.nan), rf"{NAME}.*norm not finite instead"),
        (lambda f: edited(f, B=torch.zeros_like), rf"{NAME}.*norm 0\.0 instead"),
        # The norm is right, and the update is wrong.
        (lambda f: edited(f, A=torch.neg), rf"another update at {NAME}"),
        (
            lambda f: configured(f, exclude_modules=[Q.module_name]),
            rf"lacks {NAME}: of 21 .*finds 20",
        ),
        (lambda f: configured(f, lora_alpha=2 * 0.5 * 3), "another update at"),
        (lambda f: configured(f, r=2), "PEFT cannot put the adapter in .* on pico/target"),
        (lambda f: (f / WEIGHTS).write_bytes(b"short"), "PEFT cannot put the adapter in"),
        (lambda f: (f / WEIGHTS).unlink(), "PEFT cannot put the adapter in"),
    ],
    ids=["absent", "nan", "zero", "sign", "site", "scale", "rank", "damaged", "no weights"],
)
def test_what_peft_reads_otherwise_is_refused(
    spoil: Callable[[Path], object],
    message: str,
    folder: Path,
    target: StreamedWeights,
    adapter: LoraAdapter,
) -> None:
    spoil(folder)
    refused(folder, target, adapter, message)


def test_a_site_too_many_is_refused(
    folder: Path, target: StreamedWeights, adapter: LoraAdapter
) -> None:
    meant = LoraAdapter({s: u for s, u in adapter.items() if s != Q}, adapter.base_model)
    refused(folder, target, meant, rf"too many by {NAME}: of 20.*finds 21")


def test_an_adapter_of_another_model_is_refused(
    folder: Path, pico: Callable[[str], BaseModel], adapter: LoraAdapter, tmp_path: Path
) -> None:
    pico("llama").network.save_pretrained(tmp_path / "llama")
    refused(folder, StreamedWeights.open(tmp_path / "llama", "pico/llama"), adapter, "PEFT")


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (1e-20, r"by 0 at most.*should change.*scale="),
        (1e-8, r"at most.*should change by more than rounding"),
        (1e38, "and be finite; check scale="),
    ],
)
def test_logits_that_do_not_change_or_overflow_are_refused(
    scale: float, message: str, target: StreamedWeights, adapter: LoraAdapter, tmp_path: Path
) -> None:
    scaled = adapter.map(lambda update: update.scaled(scale))
    write_adapter(scaled, tmp_path / "scaled")
    refused(tmp_path / "scaled", target, scaled, message)


def test_logits_that_change_without_an_update_are_refused(
    target: StreamedWeights, adapter: LoraAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zero = adapter.map(lambda update: type(update)(update.A, torch.zeros_like(update.B)))
    write_adapter(zero, tmp_path / "zero")
    load = PeftModel.from_pretrained

    def disturbed(network: PreTrainedModel, place: str) -> PeftModel:
        network.get_submodule("model.rotary_emb").register_forward_hook(
            lambda _module, _inputs, output: tuple(part + 0.1 for part in output)
        )
        return load(network, place)

    monkeypatch.setattr(PeftModel, "from_pretrained", disturbed)
    refused(tmp_path / "zero", target, zero, "should stay as they are")
