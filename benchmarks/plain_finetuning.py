"""Plain fine-tuning on what the teacher answers: transformers' Trainer with PEFT, hard labels.

The simplest port by behaviour, and what anyone would try first: the source with its adapter names
the likeliest label of every text, and a new LoRA of the target is trained on these labels as if
they were the truth (benchmarks/peft_trainer.py). Texts, steps, batch size and learning rate are
given, so that they can be those of what it is compared with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.peft_trainer import ROLES, Schedule, train, updates, with_lora
from loraport.adapters import LoraAdapter
from loraport.data.prompts import PromptSpec, TokenizedAnswer, answer_tokens, prompt_tokens
from loraport.models import BaseModel, attached
from loraport.models.likelihood import log_likelihoods
from loraport.refinement.base import Teacher


@dataclass(frozen=True)
class TaughtTexts:
    """Texts with what a teacher answers to them: all that a comparison may learn from.

    Attributes:
        question: What is asked of every text.
        texts: Generic texts; none of a task.
        labels: The teacher's likeliest label of each.
    """

    question: PromptSpec
    texts: tuple[str, ...]
    labels: tuple[str, ...]

    @classmethod
    def by(cls, teacher: Teacher, question: PromptSpec, texts: Sequence[str]) -> "TaughtTexts":
        """Ask the teacher."""
        with attached(teacher.base.network, teacher.adapter):
            likely = log_likelihoods(teacher.base, question, texts)
        labels = tuple(question.labels[place] for place in likely.argmax(dim=1).tolist())
        return cls(question, tuple(texts), labels)


def fine_tuned(base: BaseModel, taught: TaughtTexts, schedule: Schedule) -> LoraAdapter:
    """Return the adapter that Trainer and PEFT make of the taught texts."""
    model = with_lora(base.network, schedule.seed)
    try:
        train(model, _rows(base, taught), int(base.tokenizer.pad_token_id), schedule)
        return LoraAdapter(updates(base.network, base.sites.of_roles(ROLES)), base.name)
    finally:
        model.unload()
        base.network.eval()


def _rows(base: BaseModel, taught: TaughtTexts) -> list[TokenizedAnswer]:
    prompts = prompt_tokens(base.tokenizer, taught.question, taught.texts)
    answers = answer_tokens(base.tokenizer, taught.question)
    return [
        TokenizedAnswer(prompt, answers[label])
        for prompt, label in zip(prompts, taught.labels, strict=True)
    ]
