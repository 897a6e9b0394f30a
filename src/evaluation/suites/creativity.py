"""Creativity: how different a model's answers to one open-ended prompt are."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ...exceptions import ConfigurationError, DataError
from ...models.loading import BaseModel
from .base import SuiteScore
from .diversity import distinct, self_bleu, words
from .prompt_forms import PLAIN_PROMPT, ChatTemplate, check_chat, prompt_form
from .prompt_rows import PromptRow, drawn, hub_places, hub_rows, read_rows
from .written_answers import Sampled, write_answers

BETWEEN_SAMPLES = "\n-----\n"
"""Stands between the samples of a prompt where they are shown as one answer."""

_RULES = 1  # raise it when what a metric measures changes
_ORDERS = (1, 2, 3)


class Creativity:
    """Open-ended prompts, each answered several times by seeded nucleus sampling.

    Metrics of each prompt, over its samples: ``distinct_1`` to ``distinct_3`` (share of different
    n-grams), ``self_bleu`` (BLEU-4 of each sample against the others; lower is more varied) and
    ``mean_words``. Of all samples of all prompts together: ``whole_distinct_1`` to
    ``whole_distinct_3`` and ``whole_self_bleu``; ``chat_template`` is 1 where the model was asked
    in its chat template. Shorter answers have a higher distinct-n: read it beside ``mean_words``.

    Source: prompts of NoveltyBench (Zhang et al., 2025, arXiv 2504.05228).

    Args:
        hub: Name of each source to where it is on the hub, as :class:`HubPrompts` says it.
        path: File of JSON lines ``{"prompt"}``; None: ``creativity/prompts.jsonl`` in ``suites``.
        suites: Folder of all suites; None, and no ``path`` either: from the hub.
        count: Prompts to draw; None for all.
        samples: Answers a prompt.
        temperature: Of the sampling.
        top_p: Share of the probability that is drawn from.
        max_new_tokens: Tokens an answer at most.
        chat: ``template``, ``plain``, or ``auto``: the chat template where there is one.
        plain_prompt: The frame of a prompt without a chat template.
        batch_rows: Answers that are written together, at most.
        seed: Of the draws.

    Raises:
        ConfigurationError: an option has a value that it cannot take.
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

    def __init__(
        self,
        hub: Mapping[str, Mapping[str, object]] | None = None,
        path: str | Path | None = None,
        suites: str | Path | None = None,
        *,
        count: int | None = None,
        samples: int = 4,
        temperature: float = 1.0,
        top_p: float = 0.95,
        max_new_tokens: int = 48,
        chat: str = "auto",
        plain_prompt: str = PLAIN_PROMPT,
        batch_rows: int = 64,
        seed: int = 0,
    ) -> None:
        least = {"samples": 2, "max_new_tokens": 1, "batch_rows": 1}
        given = {"samples": samples, "max_new_tokens": max_new_tokens, "batch_rows": batch_rows}
        if count is not None:
            least["count"], given["count"] = 1, count
        for option, number in given.items():
            if number < least[option]:
                raise ConfigurationError(
                    f"suite.creativity.{option}={number}, but it takes {least[option]} or more"
                )
        check_chat(chat, plain_prompt)
        self.decoding = Sampled(seed, temperature=temperature, top_p=top_p)
        self.samples, self.max_new_tokens, self.batch_rows = samples, max_new_tokens, batch_rows
        self.chat, self.plain_prompt = chat, plain_prompt
        self.items = _draw(_rows(hub or {}, path, suites), count, seed)

    def prompts(self) -> tuple[str, ...]:
        """Return the prompts."""
        return tuple(item.prompt for item in self.items)

    def content_hash(self) -> str:
        """Return the SHA-256 of the prompts and of every setting that a score depends on."""
        sampling = [self.decoding.seed, self.decoding.temperature, self.decoding.top_p]
        parts = [
            [_RULES, self.samples, self.max_new_tokens, self.batch_rows],
            self.prompts(),
            [self.chat, self.plain_prompt],
            sampling,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def score(self, base: BaseModel) -> SuiteScore:
        """Return the model's samples and how different they are.

        Raises:
            ModelError: the tokenizer cannot put a prompt into the form that was asked for.
        """
        form = prompt_form(base, self.chat, self.plain_prompt)
        written = write_answers(
            base,
            [prompt for prompt in self.prompts() for _ in range(self.samples)],
            form,
            max_new_tokens=self.max_new_tokens,
            decoding=self.decoding,
            batch_rows=self.batch_rows,
        )
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
        whole["chat_template"] = float(isinstance(form, ChatTemplate))
        return SuiteScore(tuple(BETWEEN_SAMPLES.join(group) for group in groups), rows, whole)


def _diversity(texts: Sequence[str]) -> dict[str, float]:
    return {
        **{f"distinct_{n}": distinct(texts, n) for n in _ORDERS},
        "self_bleu": self_bleu(texts),
    }


def _rows(
    hub: Mapping[str, Mapping[str, object]], path: str | Path | None, suites: str | Path | None
) -> dict[str, list[PromptRow]]:
    """Return all prompts by source: one file, or the hub's."""
    if path is None and suites is not None:
        path = Path(suites) / "creativity" / "prompts.jsonl"
    if path is not None:
        return {"file": list(read_rows(Path(path), PromptRow, "suite.creativity.path"))}
    places = hub_places(hub, "suite.creativity.hub")
    if not places:
        raise ConfigurationError(
            "suite.creativity has neither a file nor a place on the hub; set paths.suites=DIR to "
            "a folder that holds creativity/prompts.jsonl, or suite.creativity.path to such a file"
        )
    return {
        name: list(hub_rows(place, PromptRow, f"suite.creativity.hub.{name}"))
        for name, place in places.items()
    }


def _draw(
    queues: Mapping[str, Sequence[PromptRow]], count: int | None, seed: int
) -> tuple[PromptRow, ...]:
    all_rows = sum(map(len, queues.values()))
    found = drawn(queues, all_rows if count is None else count, f"creativity {seed}")
    if count is not None and len(found) < count:
        raise DataError(
            f"suite.creativity.count={count}, but there are {len(found)} different prompts; ask "
            "for fewer, or give a file with more"
        )
    return tuple(found)
