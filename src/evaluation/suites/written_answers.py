"""How a suite lets a model write answers: in batches of like length, each in the form it knows."""

import random
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch

from ...exceptions import ConfigurationError
from ...models.generation import MostLikely, NextToken, NucleusSampling, generate, text_behind
from ...models.likelihood import length_batches
from ...models.loading import BaseModel
from .prompt_forms import PromptForm


@runtime_checkable
class Decoding(Protocol):
    """How the tokens of answers are chosen, batch by batch."""

    def choice(self, places: Sequence[int]) -> NextToken:
        """Return what chooses the tokens of the batch of the prompts at these places."""
        ...


class Greedy:
    """Always the most likely token."""

    def choice(self, places: Sequence[int]) -> NextToken:
        """Return the choice of the most likely token, whatever the batch."""
        return MostLikely()


class Sampled:
    """Seeded nucleus sampling: with one seed, two models are asked with the same draws.

    Args:
        seed: Of the draws; every batch starts a generator of its own from it.
        temperature: Divides the logits.
        top_p: Share of the probability that is drawn from.

    Raises:
        ConfigurationError: a temperature that is not positive, or a share outside of (0, 1].
    """

    def __init__(self, seed: int, *, temperature: float = 1.0, top_p: float = 0.95) -> None:
        if temperature <= 0:
            raise ConfigurationError(f"temperature={temperature}, but it takes more than 0")
        if not 0 < top_p <= 1:
            raise ConfigurationError(f"top_p={top_p}, but it takes more than 0 and at most 1")
        self.seed, self.temperature, self.top_p = seed, temperature, top_p

    def choice(self, places: Sequence[int]) -> NextToken:
        """Return sampling with a generator that depends on the seed and the batch alone."""
        # random.Random hashes a string by SHA-512: the same on every machine.
        drawn = random.Random(f"answers {self.seed} {places[0]}").getrandbits(63)
        generator = torch.Generator().manual_seed(drawn)
        return NucleusSampling(generator, temperature=self.temperature, top_p=self.top_p)


def write_answers(
    base: BaseModel,
    prompts: Sequence[str],
    form: PromptForm,
    *,
    max_new_tokens: int,
    decoding: Decoding | None = None,
    batch_rows: int = 64,
    batch_tokens: int = 8192,
) -> list[str]:
    """Return what the model answers to each prompt, in their order.

    An answer ends with the tokenizer's end-of-text token or any other that the model's generation
    settings call an end, such as an end of turn; or where ``form`` sees a further question begin.
    A character that was cut off at the last token allowed is left out.

    Args:
        base: The model, with what is attached to it.
        prompts: What is asked.
        form: How it is asked.
        max_new_tokens: Tokens an answer at most.
        decoding: How tokens are chosen; None for the most likely ones.
        batch_rows: Prompts that go through the model together, at most.
        batch_tokens: Tokens of prompts a batch, padding included; bounds memory.

    Raises:
        ConfigurationError: a number is below 1.
        ModelError: the tokenizer cannot put a prompt into the form.
    """
    for name, count in (("max_new_tokens", max_new_tokens), ("batch_rows", batch_rows)):
        if count < 1:
            raise ConfigurationError(f"{name}={count}, but writing answers takes at least 1")
    decoding = decoding or Greedy()
    tokens = form.tokens(base, prompts)
    ends = _ends(base)
    answers = [""] * len(prompts)
    for places in length_batches([len(row) for row in tokens], batch_tokens, batch_rows):
        rows = [tokens[place] for place in places]
        choice = decoding.choice(places)
        written = generate(base, rows, max_new_tokens=max_new_tokens, choice=choice)
        for place, row, answer in zip(places, rows, written, strict=True):
            answers[place] = form.cut(_text(base, row, answer, ends))
    return answers


def _ends(base: BaseModel) -> set[int]:
    """Return the tokens that end an answer."""
    known = getattr(base.network.generation_config, "eos_token_id", None)
    more = [known] if isinstance(known, int) else list(known or [])
    return {int(base.tokenizer.eos_token_id), *more}


def _text(base: BaseModel, prompt: list[int], answer: list[int], ends: set[int]) -> str:
    """Decode an answer up to its end; a character that was cut off is left out."""
    stop = next((place for place, token in enumerate(answer) if token in ends), None)
    text = text_behind(base, prompt, answer[:stop])
    return text.rstrip("\ufffd") if stop is None else text
