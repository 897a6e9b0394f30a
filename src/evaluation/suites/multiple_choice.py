"""Multiple choice: which of a few texts a model finds most likely."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from ...models.loading import BaseModel
from .base import SuiteScore
from .choice_likelihoods import Request, choice_log_likelihoods

_SCORED = "tree-1"  # part of the content hash: to be changed with whatever changes a score


@dataclass(frozen=True)
class ChoiceItem:
    """A question as it is put to a model.

    Attributes:
        requests: A choice each: a context and the continuation whose likelihood counts. Contexts
            differ where a blank is filled in and what stands behind it is scored.
        choices: The choices' texts; their lengths normalise, and one of them is the answer.
        answer: Place of the right choice.
    """

    requests: tuple[Request, ...]
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class MultipleChoice:
    """Questions whose choices are compared by their likelihood, as in lm-eval 0.4.13.

    The metrics of each question:

    - ``accuracy``: 1 where the likeliest continuation is the right one (lm-eval's ``acc``). Of
      equally likely ones the first is taken.
    - ``accuracy_norm``: the same for the log-likelihood divided by the number of characters of
      the choice, without the space before it (lm-eval's ``acc_norm``). Not there where the choices
      of a question are told apart by their contexts: what is scored is then the same text.
    - ``nll``: ``-log p`` of the right choice in nats, normalised over the choices.

    Attributes:
        name: As in tables.
        items: The questions.
        batch_tokens: Tokens a forward pass; sets speed and memory, not the score.
    """

    name: str
    items: tuple[ChoiceItem, ...] = field(repr=False)
    batch_tokens: int = 2048

    @property
    def metrics(self) -> tuple[str, ...]:
        """Accuracy, length-normalised accuracy where it means something, and nll."""
        lengthy = any(len({context for context, _ in item.requests}) == 1 for item in self.items)
        return ("accuracy", "accuracy_norm", "nll") if lengthy else ("accuracy", "nll")

    def prompts(self) -> tuple[str, ...]:
        """Return each item's context; the first choice's where contexts differ."""
        return tuple(item.requests[0][0] for item in self.items)

    def content_hash(self) -> str:
        """Return the SHA-256 of the items and of how they are scored."""
        content = [[item.requests, item.choices, item.answer] for item in self.items]
        return hashlib.sha256(json.dumps([_SCORED, content]).encode()).hexdigest()

    def score(self, base: BaseModel) -> SuiteScore:
        """Return which choice the model takes, and whether it is right.

        Raises:
            DataError: a continuation has no token, or more than the model reads at once.
        """
        likelihoods = choice_log_likelihoods(
            base, [item.requests for item in self.items], batch_tokens=self.batch_tokens
        )
        chosen = [_first_best(values) for values in likelihoods]
        normed = [
            _first_best(values / _lengths(item.choices))
            for item, values in zip(self.items, likelihoods, strict=True)
        ]
        rows = {
            "accuracy": self._right(chosen),
            "accuracy_norm": self._right(normed),
            "nll": torch.stack(
                [
                    -values.log_softmax(dim=0)[item.answer]
                    for item, values in zip(self.items, likelihoods, strict=True)
                ]
            ),
        }
        answers = tuple(i.choices[place] for i, place in zip(self.items, chosen, strict=True))
        return SuiteScore(answers, {metric: rows[metric] for metric in self.metrics}, {})

    def _right(self, chosen: Sequence[int]) -> Float[Tensor, " items"]:
        right = [place == i.answer for i, place in zip(self.items, chosen, strict=True)]
        return torch.tensor(right, dtype=torch.float64)


def _first_best(values: Float[Tensor, " choices"]) -> int:
    """Return the place of the largest value, the first of equal ones (as numpy, unlike torch)."""
    numbers = values.tolist()
    return numbers.index(max(numbers))


def _lengths(choices: Sequence[str]) -> Float[Tensor, " choices"]:
    return torch.tensor([len(choice) for choice in choices], dtype=torch.float64)
