"""What every suite is: items that a model is asked, and numbers for each of its answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from ...models.loading import BaseModel


@dataclass(frozen=True, eq=False)
class SuiteScore:
    """How one model answers a suite's items, in their order.

    Attributes:
        answers: What the model answered each item, as text: a choice, or what it wrote.
        rows: Metric to one number an item, such as 1 for right and 0 for wrong; NaN where an item
            does not count for that metric. Rows of two models are paired, item by item.
        whole: Metrics of all answers together, such as self-BLEU.
    """

    answers: tuple[str, ...]
    rows: Mapping[str, Float[Tensor, " items"]]
    whole: Mapping[str, float]

    def means(self) -> dict[str, float]:
        """Return every metric's mean over the items that count, and the metrics of the whole."""
        return {n: float(torch.nanmean(v.double())) for n, v in self.rows.items()} | {**self.whole}


@runtime_checkable
class Suite(Protocol):
    """A set of items with a way to score answers to them."""

    @property
    def name(self) -> str:
        """As in ``suite=``, and in tables."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics in the order in which they are shown; the first is the main one."""
        ...

    def prompts(self) -> tuple[str, ...]:
        """Return what is asked, an item each: drift is measured there as well."""
        ...

    def content_hash(self) -> str:
        """Return the SHA-256 of the items and of every setting that a score depends on."""
        ...

    def score(self, base: BaseModel) -> SuiteScore:
        """Return the score of the model as it is, with what is attached to it."""
        ...
