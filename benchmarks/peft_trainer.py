"""LoRA training as anyone would write it: transformers' Trainer with PEFT.

LoRA on q and v with rank 8 and alpha 16, as PEFT draws it; rows in random order, padded on the
right, loss at the answer's tokens over the whole vocabulary, linear schedule with warm-up,
gradients clipped at 1, float32.
"""

import tempfile
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from loraport.adapters import LowRank, Role, Site
from loraport.data.prompts import NOT_ASKED, TokenizedAnswer

ROLES, RANK, ALPHA = (Role.Q, Role.V), 8, 16


@dataclass(frozen=True)
class Schedule:
    """How long, how fast and how much at a time is trained.

    Attributes:
        steps: Of the optimizer.
        batch_rows: Texts a step.
        lr: Learning rate after the warm-up; it falls linearly to 0.
        warmup_steps: Over which it rises from 0.
        seed: Of the factors that training begins with, and of the order of texts.
    """

    steps: int
    batch_rows: int = 8
    lr: float = 2e-3
    warmup_steps: int = 4
    seed: int = 0

    def epochs(self, texts: int) -> int:
        """Return how often so many texts are seen, rounded up."""
        return -(-self.steps * self.batch_rows // texts)


def with_lora(network: nn.Module, seed: int) -> PeftModel:
    """Put new LoRA modules into a network."""
    config = LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=[role.module for role in ROLES],
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers 5 has renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        torch.manual_seed(seed)
        return get_peft_model(network, config)


def train(
    model: PeftModel, rows: Sequence[TokenizedAnswer], pad_token: int, schedule: Schedule
) -> None:
    """Train the LoRA modules of a model on rows."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=model,
            args=_settings(folder, schedule),
            train_dataset=list(rows),
            data_collator=collator(pad_token),
        )
        trainer.remove_callback(transformers.PrinterCallback)  # It would print into the table.
        trainer.train()


def updates(network: nn.Module, sites: Iterable[Site]) -> dict[Site, LowRank]:
    """Return what the LoRA modules of a network hold."""
    found = {}
    for site in sites:
        module: Any = network.get_submodule(site.module_name)
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        found[site] = LowRank(a.detach().clone(), b.detach().clone(), ALPHA / RANK)
    return found


def _settings(folder: str, schedule: Schedule) -> transformers.TrainingArguments:
    return transformers.TrainingArguments(
        output_dir=folder,
        max_steps=schedule.steps,
        per_device_train_batch_size=schedule.batch_rows,
        learning_rate=schedule.lr,
        warmup_steps=schedule.warmup_steps,
        lr_scheduler_type="linear",
        weight_decay=0.0,
        max_grad_norm=1.0,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        disable_tqdm=True,
        seed=schedule.seed,
    )


def collator(pad_token: int) -> Any:
    """Pad on the right; ask at the answer alone."""

    def collate(rows: list[TokenizedAnswer]) -> dict[str, torch.Tensor]:
        whole = [row.prompt + row.answer for row in rows]
        width = max(map(len, whole))
        asked = [[NOT_ASKED] * len(row.prompt) + row.answer for row in rows]

        def padded(sequences: list[list[int]], value: int) -> torch.Tensor:
            return torch.tensor([row + [value] * (width - len(row)) for row in sequences])

        return {
            "input_ids": padded(whole, pad_token),
            "attention_mask": padded([[1] * len(row) for row in whole], 0),
            "labels": padded(asked, NOT_ASKED),
        }

    return collate
