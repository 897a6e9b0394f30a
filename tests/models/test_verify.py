import copy
import json
import re
import warnings
from collections.abc import Callable, Mapping
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


def edited(
    folder: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor | None]]
) -> None:
    """Change tensors of a folder; None removes one."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    changed = {**tensors, **change(tensors)}
    save_file({k: v.contiguous() for k, v in changed.items() if v is not None}, file)


def configured(folder: Path, **options: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | options))


def keys(site: Site) -> tuple[str, str]:
    name = f"base_model.model.{site.module_name}"
    return f"{name}.lora_A.weight", f"{name}.lora_B.weight"


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


def test_a_model_in_bfloat16_in_shards_is_verified(
    pico_target: BaseModel, adapter: LoraAdapter, folder: Path, tmp_path: Path
) -> None:
    network = copy.deepcopy(pico_target.network).bfloat16()
    network.save_pretrained(tmp_path / "half", max_shard_size="20KB")
    half = StreamedWeights.open(tmp_path / "half", "half")
    assert half.embedding().dtype == torch.bfloat16
    assert verify(folder, half, adapter).logit_change > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_factors_of_any_dtype_are_verified(
    target: StreamedWeights, adapter: LoraAdapter, tmp_path: Path, dtype: torch.dtype
) -> None:
    rounded = adapter.map(lambda update: update.to(dtype))
    write_adapter(rounded, tmp_path / "adapter")
    assert verify(tmp_path / "adapter", target, rounded).sites == 21


def test_some_sites_of_some_layers_are_verified(
    target: StreamedWeights, adapter: LoraAdapter, tmp_path: Path
) -> None:
    few = LoraAdapter(
        {site: adapter[site] for site in (Site(0, Role.Q), Site(2, Role.DOWN), Site(2, Role.V))},
        adapter.base_model,
    )
    write_adapter(few, tmp_path / "adapter")
    assert verify(tmp_path / "adapter", target, few).sites == 3


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


class TestRefused:
    """Each of these is a folder that was written wrongly."""

    Q = Site(1, Role.Q)

    def refused(
        self, folder: Path, target: StreamedWeights, adapter: LoraAdapter, message: str
    ) -> None:
        with pytest.raises(VerificationError, match=message) as error:
            verify(folder, target, adapter)
        assert error.value.exit_code == 1

    def test_a_site_whose_tensors_are_missing(
        self, folder: Path, target: StreamedWeights, adapter: LoraAdapter
    ) -> None:
        edited(folder, lambda _: dict.fromkeys(keys(self.Q)))
        self.refused(folder, target, adapter, rf"another update at {self.Q.module_name}.*norm 0")

    def test_a_factor_that_is_missing(
        self, folder: Path, target: StreamedWeights, adapter: LoraAdapter
    ) -> None:
        edited(folder, lambda _: {keys(self.Q)[1]: None})
        self.refused(folder, target, adapter, rf"another update at {self.Q.module_name}")

    def test_a_site_that_is_not_targeted(
        self, folder: Path, target: StreamedWeights, adapter: LoraAdapter
    ) -> None:
        configured(folder, exclude_modules=[self.Q.module_name])
        self.refused(folder, target, adapter, rf"lacks {self.Q.module_name}: of 21 .*finds 20")

    def test_a_site_too_many(
        self, folder: Path, target: StreamedWeights, adapter: LoraAdapter
    ) -> None:
        meant = LoraAdapter({s: u for s, u in adapter.items() if s != self.Q}, adapter.base_model)
        self.refused(folder, target, meant, rf"too many by {self.Q.module_name}: of 20.*finds 21")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_factor_that_is_not_finite(
        self, folder: Path, target: StreamedWeights, adapter: LoraAdapter, value: float
    ) -> None:
        def spoil(tensors: dict[str, Tensor]) -> dict[str, Tensor | None]:
            tensors[keys(self.Q)[0]][0, 0] = value
            return {}

        edited(folder, spoil)
        self.refused(folder, target, adapter, rf"{self.Q.module_name}.*norm not finite instead")

    def test_one_update_of_zero(
        self, folder: Path, target: StreamedWeights, adapter: LoraAdapter
    ) -> None:
        edited(folder, lambda t: {keys(self.Q)[1]: torch.zeros_like(t[keys(self.Q)[1]])})
        self.refused(folder, target, adapter, rf"{self.Q.module_name}.*norm 0\.0 instead")

    def test_other_factors(
        self, folder: Path, target: StreamedWeights, adapter: LoraAdapter
    ) -> None:
        other = Site(2, Role.Q)
        edited(
            folder,
            lambda t: dict(zip(keys(self.Q), [t[k].clone() for k in keys(other)], strict=True)),
        )
        self.refused(folder, target, adapter, rf"another update at {self.Q.module_name}")

    def test_another_scale(
        self, folder: Path, target: StreamedWeights, adapter: LoraAdapter
    ) -> None:
        configured(folder, lora_alpha=2 * 0.5 * 3)
        self.refused(folder, target, adapter, "another update at")

    def test_a_sign(self, folder: Path, target: StreamedWeights, adapter: LoraAdapter) -> None:
        """The norms are right, and the update is wrong."""
        edited(folder, lambda t: {keys(self.Q)[0]: -t[keys(self.Q)[0]]})
        self.refused(folder, target, adapter, rf"another update at {self.Q.module_name}")

    def test_factors_of_another_rank(
        self, folder: Path, target: StreamedWeights, adapter: LoraAdapter
    ) -> None:
        configured(folder, r=2)
        self.refused(folder, target, adapter, "PEFT cannot put the adapter in .* on pico/target")

    def test_a_file_that_is_cut_off(
        self, folder: Path, target: StreamedWeights, adapter: LoraAdapter
    ) -> None:
        file = folder / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        self.refused(folder, target, adapter, re.escape(str(folder)))

    @pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
    def test_a_file_that_is_missing(
        self, folder: Path, target: StreamedWeights, adapter: LoraAdapter, name: str
    ) -> None:
        (folder / name).unlink()
        self.refused(folder, target, adapter, re.escape(str(folder)))

    def test_an_adapter_of_another_model(
        self, folder: Path, pico: Callable[[str], BaseModel], adapter: LoraAdapter, tmp_path: Path
    ) -> None:
        pico("llama").network.save_pretrained(tmp_path / "llama")
        llama = StreamedWeights.open(tmp_path / "llama", "pico/llama")
        self.refused(folder, llama, adapter, "PEFT")

    def test_logits_that_stay_as_they_are(
        self, target: StreamedWeights, adapter: LoraAdapter, tmp_path: Path
    ) -> None:
        faint = adapter.map(lambda update: update.scaled(1e-20))
        write_adapter(faint, tmp_path / "faint")
        self.refused(tmp_path / "faint", target, faint, r"by 0\.0 at most.*should change.*scale=")

    def test_logits_that_overflow(
        self, target: StreamedWeights, adapter: LoraAdapter, tmp_path: Path
    ) -> None:
        vast = adapter.map(lambda update: update.scaled(1e38))
        write_adapter(vast, tmp_path / "vast")
        self.refused(tmp_path / "vast", target, vast, "and be finite; check scale=")

    def test_logits_that_change_without_an_update(
        self,
        target: StreamedWeights,
        adapter: LoraAdapter,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
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
        self.refused(tmp_path / "zero", target, zero, "should stay as they are")
