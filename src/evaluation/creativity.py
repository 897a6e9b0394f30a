"""Creativity: how different a model's answers to one open-ended prompt are."""

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from ..exceptions import DataError
from ..models.loading import BaseModel
from ..option_types import Count, OptionalCount, Positive, Takes
from .suite import SuiteScore, checked, hashed
from .written_answers import (
    PLAIN_PROMPT,
    Chat,
    HubPrompts,
    PlainPrompt,
    Probability,
    PromptForm,
    PromptRow,
    drawn,
    prompt_rows,
    sampled,
)

# Stands between the samples of a prompt where they are shown as one answer.
BETWEEN_SAMPLES = "\n-----\n"

_RULES = 1  # raise it when what a metric measures changes
_ORDERS = (1, 2, 3)
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
_ORDER = 4
_NONE_MATCHES = 0.1  # Chen and Cherry, 2014, method 1: counts as so many matches

Ngrams = Counter[tuple[str, ...]]


class Creativity:
    """Open-ended prompts, each answered several times by seeded nucleus sampling.

    Metrics of each prompt, over its samples: ``distinct_1`` to ``distinct_3`` (share of different
    n-grams), ``self_bleu`` (BLEU-4 of each sample against the others; lower is more varied) and
    ``mean_words``. Of all samples of all prompts together: ``whole_distinct_1`` to
    ``whole_distinct_3`` and ``whole_self_bleu``; ``chat_template`` is 1 where the model was asked
    in its chat template. Shorter answers have a higher distinct-n: read it beside ``mean_words``.

    Source: prompts of NoveltyBench (Zhang et al., 2025, arXiv 2504.05228).

    The options are described in ``conf/suite/creativity.yaml``.

    Raises:
        DataError: prompts are missing or malformed, or there are fewer than asked for.
    """

    name = "creativity"
    metrics = (
        *(f"distinct_{n}" for n in _ORDERS),
        "self_bleu",
        "mean_words",
        *(f"whole_distinct_{n}" for n in _ORDERS),
        "whole_self_bleu",
    )

    @checked("suite.creativity")
    def __init__(
        self,
        hub: Mapping[str, HubPrompts] | None = None,
        path: str | Path | None = None,
        suites: str | Path | None = None,
        *,
        count: OptionalCount = None,
        samples: Annotated[int, Field(ge=2), Takes("2 or more")] = 4,
        temperature: Positive = 1.0,
        top_p: Probability = 0.95,
        max_new_tokens: Count = 48,
        chat: Chat = "auto",
        plain_prompt: PlainPrompt = PLAIN_PROMPT,
        batch_rows: Count = 64,
        seed: int = 0,
    ) -> None:
        self.form = PromptForm(chat, plain_prompt, max_new_tokens, batch_rows)
        self.choice = sampled(seed, temperature=temperature, top_p=top_p)
        self.sampling = (seed, temperature, top_p)
        self.samples = samples
        queues = prompt_rows(self.name, PromptRow, hub, path, suites)
        most = sum(map(len, queues.values())) if count is None else count
        self.items = tuple(drawn(queues, most, f"creativity {seed}"))
        if count is not None and len(self.items) < count:
            raise DataError(
                f"suite.creativity.count={count}, but there are {len(self.items)} different "
                "prompts; ask for fewer, or give a file with more"
            )

    def prompts(self) -> tuple[str, ...]:
        """Return the prompts."""
        return tuple(item.prompt for item in self.items)

    def content_hash(self) -> str:
        """Return the SHA-256 of the prompts and of every setting that a score depends on."""
        return hashed(_RULES, self.samples, self.sampling, self.prompts(), asdict(self.form))

    def score(self, base: BaseModel) -> SuiteScore:
        """Return the model's samples and how different they are."""
        asked = [prompt for prompt in self.prompts() for _ in range(self.samples)]
        written = self.form.answers(base, asked, self.choice)
        starts = range(0, len(written), self.samples)
        groups = [written[start : start + self.samples] for start in starts]
        of_each = [_diversity(group) for group in groups]
        rows = {
            name: torch.tensor([found[name] for found in of_each], dtype=torch.float64)
            for name in of_each[0]
        }
        rows["mean_words"] = torch.tensor(
            [sum(len(words(text)) for text in group) / len(group) for group in groups],
            dtype=torch.float64,
        )
        whole = {f"whole_{name}": number for name, number in _diversity(written).items()}
        whole["chat_template"] = float(self.form.uses_template(base))
        return SuiteScore(tuple(BETWEEN_SAMPLES.join(group) for group in groups), rows, whole)


def _diversity(texts: Sequence[str]) -> dict[str, float]:
    shares = {f"distinct_{n}": distinct(texts, n) for n in _ORDERS}
    return {**shares, "self_bleu": self_bleu(texts)}


def words(text: str) -> list[str]:
    """Return a text's words and marks, in lower case.

    >>> words("It's dark, isn't it?")
    ["it's", 'dark', ',', "isn't", 'it', '?']
    """
    return _WORD.findall(text.lower())


def distinct(texts: Sequence[str], n: int) -> float:
    """Return the share of the n-grams of all texts together that are different: distinct-n.

    No n-gram runs from one text into the next. NaN where no text has n words. Source: Li et al.,
    2016 (arXiv 1510.03055).
    """
    counts = Counter(gram for text in texts for gram in _ngrams(words(text), n))
    return len(counts) / counts.total() if counts else math.nan


def self_bleu(texts: Sequence[str]) -> float:
    """Return the mean BLEU-4 of each text against all others: 0 to 1, 1 where all are alike.

    With clipped counts, the reference of the closest length, and a smoothing of 0.1 for an order
    without a match. NaN for fewer than two texts. A text without words scores 0. The time grows
    with the words, not with the pairs of texts.

    Source: Zhu et al., 2018 (Texygen, arXiv 1802.01886); BLEU by Papineni et al., 2002; smoothing
    by Chen and Cherry, 2014, method 1.
    """
    if len(texts) < 2:
        return math.nan
    split = [words(text) for text in texts]
    products = [1.0] * len(split)
    for n in range(1, _ORDER + 1):
        counts = [Counter(_ngrams(each, n)) for each in split]
        most = _two_most(counts)
        for place, own in enumerate(counts):
            products[place] *= _precision(own, place, most, n)
    lengths = sorted(map(len, split))
    scores = [
        product ** (1 / _ORDER) * _brevity(len(each), lengths)
        for each, product in zip(split, products, strict=True)
    ]
    return sum(scores) / len(scores)


def _brevity(length: int, lengths: Sequence[int]) -> float:
    """Return BLEU's penalty of a text that is shorter than the other text of closest length.

    ``lengths`` are those of all texts, its own among them, in order.
    """
    place = bisect_left(lengths, length)
    others = [*lengths[max(0, place - 1) : place], *lengths[place + 1 : place + 2]]
    closest = min(others, key=lambda other: (abs(other - length), other))
    return 1.0 if length >= closest else math.exp(1 - closest / length) if length else 0.0


def _ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]


def _two_most(counts: Sequence[Ngrams]) -> dict[tuple[str, ...], tuple[int, int, int]]:
    """Return for each n-gram its highest count, the text that has it, and the next highest."""
    most: dict[tuple[str, ...], tuple[int, int, int]] = {}
    for place, own in enumerate(counts):
        for gram, count in own.items():
            first, where, second = most.get(gram, (0, -1, 0))
            if count > first:
                most[gram] = count, place, first
            elif count > second:
                most[gram] = first, where, count
    return most


def _precision(
    own: Ngrams, place: int, most: dict[tuple[str, ...], tuple[int, int, int]], n: int
) -> float:
    """Return the share of a text's n-grams that another text has as well, smoothed."""
    matches = 0
    for gram, count in own.items():
        first, where, second = most[gram]
        matches += min(count, second if where == place else first)
    if not matches:
        # No word in common is no similarity at all; only longer n-grams are smoothed.
        return 0.0 if n == 1 else _NONE_MATCHES / max(1, own.total())
    return matches / own.total()
