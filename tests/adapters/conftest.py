"""Adapters that PEFT itself makes for the pico source model, and what PEFT makes of a folder."""

import copy
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraport.models import BaseModel

IDS = torch.arange(24).reshape(2, 12) % 20 + 2


@contextmanager
def _without_warnings() -> Iterator[None]:
    """PEFT cannot look up the vocabulary of a model that is on no hub, and says so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="session")
def peft_model(pico_source: BaseModel) -> Callable[[LoraConfig], PeftModel]:
    """Put a LoRA with random factors on a copy of the source model."""

    def make(config: LoraConfig) -> PeftModel:
        generator = torch.Generator().manual_seed(3)
        with _without_warnings(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            model = get_peft_model(copy.deepcopy(pico_source.network), config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
        return model

    return make


@pytest.fixture
def peft_folder(
    peft_model: Callable[[LoraConfig], PeftModel], tmp_path: Path
) -> Callable[..., Path]:
    """Save a LoRA that PEFT made; by default of rank 4 on q and v in float32."""

    def make(dtype: torch.dtype = torch.float32, **options: Any) -> Path:
        given: dict[str, Any] = {
            "r": 4,
            "lora_alpha": 6,
            "target_modules": ["q_proj", "v_proj"],
        } | options
        config = LoraConfig(**given)
        model = peft_model(config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(dtype)
        with _without_warnings():
            model.save_pretrained(str(tmp_path / "original"), save_embedding_layers=False)
        return tmp_path / "original"

    return make


@pytest.fixture
def peft_logits(pico_source: BaseModel) -> Callable[[Path | None], Tensor]:
    """Return the logits of a fresh copy of the source model with what PEFT reads from a folder."""

    def logits(folder: Path | None) -> Tensor:
        network = copy.deepcopy(pico_source.network)
        with _without_warnings(), torch.inference_mode():
            model = network if folder is None else PeftModel.from_pretrained(network, folder)
            return model.eval()(input_ids=IDS).logits

    return logits


@pytest.fixture(scope="session")
def edited() -> Callable[..., Path]:
    """Change the config and the tensors of a folder: None removes an entry."""

    def edit(
        folder: Path,
        config: Mapping[str, object] | None = None,
        tensors: Mapping[str, Tensor | None] | None = None,
    ) -> Path:
        path = folder / "adapter_config.json"
        changed = json.loads(path.read_text()) | dict(config or {})
        path.write_text(json.dumps(changed))
        weights = load_file(folder / "adapter_model.safetensors") | dict(tensors or {})
        kept = {name: tensor for name, tensor in weights.items() if tensor is not None}
        save_file(kept, folder / "adapter_model.safetensors")
        return folder

    return edit
