"""What a model writes behind prompts, as text: one continuation each, or several drawn ones."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from ...exceptions import ConfigurationError
from ...models.generation import MostLikely, NucleusSampling, generate
from ...models.likelihood import length_batches
from ...models.loading import BaseModel


@dataclass(frozen=True)
class Decoding:
    """How continuations are chosen.

    Attributes:
        samples: Continuations a prompt: 1 is the most likely tokens, more are drawn.
        max_new_tokens: Tokens a continuation at most.
        temperature: Divides the logits that are drawn from.
        top_p: Share of the probability that is drawn from.
        seed: Of the draws.
        batch_rows: Rows that go through the model together. Changes what is drawn.

    Raises:
        ConfigurationError: a value is not possible.
    """

    samples: int = 1
    max_new_tokens: int = 256
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0
    batch_rows: int = 16

    def __post_init__(self) -> None:
        possible = {
            "samples": self.samples >= 1,
            "max_new_tokens": self.max_new_tokens >= 1,
            "temperature": self.temperature > 0,
            "top_p": 0 < self.top_p <= 1,
            "batch_rows": self.batch_rows >= 1,
        }
        wrong = [name for name, fits in possible.items() if not fits]
        if wrong:
            raise ConfigurationError(
                f"suite.code.decoding.{wrong[0]} is {getattr(self, wrong[0])}, but samples, "
                "max_new_tokens and batch_rows take 1 or more, temperature takes more than 0 and "
                "top_p more than 0 up to 1; correct it"
            )

    def signature(self) -> tuple[int | float, ...]:
        """Return all that decides what is written; nothing of the draws where there are none."""
        if self.samples == 1:
            return (1, self.max_new_tokens)
        drawn = (self.temperature, self.top_p, self.seed, self.batch_rows)
        return (self.samples, self.max_new_tokens, *drawn)


def completions(
    base: BaseModel, prompts: Sequence[str], decoding: Decoding, stops: Sequence[str]
) -> list[list[str]]:
    """Return the continuations of each prompt, each cut before the first stop text in it.

    Args:
        base: The model, with what is attached to it.
        prompts: What it goes on behind.
        decoding: How many are written, and how.
        stops: Texts that are not part of a continuation, nor what follows them.
    """
    choice: MostLikely | NucleusSampling = MostLikely()
    if decoding.samples > 1:
        choice = NucleusSampling(
            torch.Generator().manual_seed(decoding.seed),
            temperature=decoding.temperature,
            top_p=decoding.top_p,
        )
    # Rows of one prompt stand side by side, and so mostly in one batch.
    rows: list[list[int]] = [
        ids for ids in base.tokenizer(list(prompts))["input_ids"] for _ in range(decoding.samples)
    ]
    texts = [""] * len(rows)
    lengths = [len(row) for row in rows]
    for places in length_batches(lengths, sum(lengths), decoding.batch_rows):
        written = generate(
            base,
            [rows[place] for place in places],
            max_new_tokens=decoding.max_new_tokens,
            choice=choice,
        )
        for place, tokens in zip(places, written, strict=True):
            texts[place] = _cut(_text_behind(base.tokenizer, rows[place], tokens), stops)
    return [
        texts[start : start + decoding.samples] for start in range(0, len(rows), decoding.samples)
    ]


def _text_behind(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], tokens: Sequence[int]
) -> str:
    """Return the text of tokens as they stand behind a prompt.

    By themselves, some tokenizers' first token would lose the space that it begins with, and
    a program its indentation.
    """

    def text(ids: Sequence[int]) -> str:
        return str(
            tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    before, whole = text(prompt), text([*prompt, *tokens])
    return whole[len(before) :] if whole.startswith(before) else text(tokens)


def _cut(text: str, stops: Sequence[str]) -> str:
    ends = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return text[: min(ends, default=len(text))]
