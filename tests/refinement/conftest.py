"""A teacher that answers by the last word of a text, generic texts, and adapters to begin from."""

import random
from collections.abc import Iterator, Sequence
from contextlib import closing

import pytest
import torch
from lightning import Trainer

from loraport.adapters import LoraAdapter, LowRank, Role
from loraport.data.prompts import LengthBuckets, PromptSpec, TokenizedAnswer, answer_tokens
from loraport.models import BaseModel, LoraFineTuning
from loraport.refinement.base import Teacher

FILLER = ("the", "a", "film", "plot", "actor", "scene", "is", "was", "truly", "somewhat")
ANSWERS = {"good": "very good", "bad": "very bad", "dull": "neutral"}
"""The answer to a text by its last word; the first two begin with the same token."""


def sentence(draw: random.Random) -> str:
    words = [draw.choice(FILLER) for _ in range(draw.randint(2, 6))]
    return " ".join([*words, draw.choice(list(ANSWERS))])


def answer(text: str) -> str:
    return ANSWERS[text.split()[-1]]


class Sentences:
    """A corpus of sentences that end in one of three words."""

    def __init__(self, train: int = 400, validation: int = 100) -> None:
        self.counts = {"train": train, "validation": validation}

    def texts(self, split: str) -> Iterator[str]:
        draw = random.Random(split)
        for _ in range(self.counts[split]):
            yield sentence(draw)


class Lines:
    """A corpus of given lines."""

    def __init__(self, train: list[str], validation: list[str]) -> None:
        self.lines = {"train": train, "validation": validation}

    def texts(self, split: str) -> Iterator[str]:
        yield from self.lines[split]


def zero_adapter(
    base: BaseModel, rank: int = 8, roles: Sequence[Role] = tuple(Role)
) -> LoraAdapter:
    """An adapter that does nothing yet."""
    updates = {}
    for site in base.sites.of_roles(tuple(roles)):
        out, in_ = base.sites.shapes[site]
        updates[site] = LowRank(torch.zeros(rank, in_), torch.zeros(out, rank), 2.0)
    return LoraAdapter(updates, base.name)


@pytest.fixture(scope="session")
def prompt_spec() -> PromptSpec:
    return PromptSpec("{text}", tuple(ANSWERS.values()))


@pytest.fixture(scope="session")
def word_teacher(pico_source: BaseModel, prompt_spec: PromptSpec) -> Teacher:
    """The source with an adapter that answers by the last word."""
    draw = random.Random("teacher")
    tokens = answer_tokens(pico_source.tokenizer, prompt_spec)
    texts = [sentence(draw) for _ in range(64)]
    rows = [
        TokenizedAnswer(prompt, tokens[answer(text)])
        for prompt, text in zip(pico_source.tokenizer(texts)["input_ids"], texts, strict=True)
    ]
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=10,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with closing(LoraFineTuning(pico_source, lr=0.01, roles=tuple(Role))) as tuning:
        trainer.fit(tuning, LengthBuckets(rows, batch_size=8, pad_token=0, seed=0))
        return Teacher(pico_source, tuning.adapter())


@pytest.fixture(scope="session")
def start(pico_target: BaseModel) -> LoraAdapter:
    """What a student of the target begins from where no mapper made anything."""
    return zero_adapter(pico_target)
