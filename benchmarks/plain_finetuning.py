"""Plain fine-tuning on what the teacher answers: transformers' Trainer with PEFT, hard labels.

The simplest port by behaviour, and what anyone would try first: the source with its adapter names
the likeliest label of every text, and a new LoRA of the target (q and v, rank 8, alpha 16, as PEFT
draws it) is trained on these labels as if they were the truth. Rows in random order, padded on the
right, loss at the label's tokens over the whole vocabulary, linear schedule with warm-up, gradients
clipped at 1, float32. Texts, steps, batch size and learning rate are given, so that they can be
those of what it is compared with.
"""

import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

from benchmarks.anchors import collator
from loraport.adapters import LoraAdapter, LowRank, Role, Site
from loraport.data.answers import TokenizedAnswer, answer_tokens, prompt_tokens
from loraport.data.question import Question
from loraport.models import BaseModel, attached
from loraport.models.label_likelihoods import log_likelihoods
from loraport.refinement.base import Teacher

ROLES, RANK, ALPHA = (Role.Q, Role.V), 8, 16


@dataclass(frozen=True)
class TaughtTexts:
    """Texts with what a teacher answers to them: all that a comparison may learn from.

    Attributes:
        question: What is asked of every text.
        texts: Generic texts; none of a task.
        labels: The teacher's likeliest label of each.
    """

    question: Question
    texts: tuple[str, ...]
    labels: tuple[str, ...]

    @classmethod
    def by(cls, teacher: Teacher, question: Question, texts: Sequence[str]) -> "TaughtTexts":
        """Ask the teacher."""
        with attached(teacher.base.network, teacher.adapter):
            likely = log_likelihoods(teacher.base, question, texts)
        labels = tuple(question.labels[place] for place in likely.argmax(dim=1).tolist())
        return cls(question, tuple(texts), labels)


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


def fine_tuned(base: BaseModel, taught: TaughtTexts, schedule: Schedule) -> LoraAdapter:
    """Return the adapter that Trainer and PEFT make of the taught texts."""
    model = _with_lora(base, schedule.seed)
    try:
        with tempfile.TemporaryDirectory() as folder:
            trainer = transformers.Trainer(
                model=model,
                args=_settings(folder, schedule),
                train_dataset=_rows(base, taught),
                data_collator=collator(int(base.tokenizer.pad_token_id)),
            )
            trainer.remove_callback(transformers.PrinterCallback)  # It would print into the table.
            trainer.train()
        return _adapter(base)
    finally:
        model.unload()
        base.network.eval()


def _with_lora(base: BaseModel, seed: int) -> PeftModel:
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
        return get_peft_model(base.network, config)


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


def _rows(base: BaseModel, taught: TaughtTexts) -> list[TokenizedAnswer]:
    prompts = prompt_tokens(base.tokenizer, taught.question, taught.texts)
    answers = answer_tokens(base.tokenizer, taught.question)
    return [
        TokenizedAnswer(prompt, answers[label])
        for prompt, label in zip(prompts, taught.labels, strict=True)
    ]


def _adapter(base: BaseModel) -> LoraAdapter:
    def update(site: Site) -> LowRank:
        module: Any = base.network.get_submodule(site.module_name)
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        return LowRank(a.detach().clone(), b.detach().clone(), ALPHA / RANK)

    return LoraAdapter({site: update(site) for site in base.sites.of_roles(ROLES)}, base.name)
