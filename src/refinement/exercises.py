"""What a student is given to learn: texts, and how the answers to each are to be distributed."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from .base import Report


@dataclass(frozen=True, eq=False)
class Exercises:
    """Texts with the distributions over the labels that a student is to give them.

    Attributes:
        texts: The texts; one that occurs twice weighs twice.
        targets: A distribution for each.
        report: Where they come from, as plain data.
        notes: What the user should know of them, a sentence each.
    """

    texts: tuple[str, ...]
    targets: Float[Tensor, "texts labels"]
    report: Report = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def repeated(self, times: int) -> "Exercises":
        """Return them so many times over, so that they weigh more beside others."""
        return Exercises(self.texts * times, self.targets.repeat(times, 1), self.report, self.notes)

    def beside(self, other: "Exercises") -> "Exercises":
        """Return both together."""
        return Exercises(
            self.texts + other.texts,
            torch.cat([self.targets, other.targets]),
            self.report | other.report,
            self.notes + other.notes,
        )


def distinct(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts without blank ones and without those that have occurred before."""
    seen = set()
    for text in texts:
        if text.strip() and text not in seen:
            seen.add(text)
            yield text
