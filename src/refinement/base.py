"""What a refinement is, and what it takes: both models, texts, and a store for its work.

A refinement takes the adapter that a mapper has made for the target and returns a better one, by
what the models do on texts: it distils the source's behaviour, or scales the adapter.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from ..adapters import LoraAdapter
from ..data.corpora import TextSource
from ..data.prompts import PromptSpec
from ..data.tasks import Example
from ..exceptions import ConfigurationError
from ..models.loading import BaseModel
from ..store import Store

RefinementReport = dict[str, Any]
RefinementProgress = Callable[[str, int, int], None]
"""Called with the name of the current step, how much of it is done, and how much there is."""

NO_STORE = Store(None)


def silent(_step: str, _done: int, _total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """The source model with the adapter that is ported: what the target learns to behave like."""

    base: BaseModel
    adapter: LoraAdapter


@dataclass(frozen=True, eq=False)
class DistillationInputs:
    """What a refinement may learn from.

    Attributes:
        teacher: The source with its adapter.
        target: The model that the adapter is ported to.
        prompt_spec: Prompt and labels of the adapter's task; by default the prompt is the text.
        texts: Generic texts; None where there is no corpus.
        inputs: Unlabelled inputs of the task.
        examples: Labelled examples of the task.
        store: Keeps finished shards and unfinished training, so that a stopped run goes on.
        seed: Of every draw.
        progress: Called while the work goes on.
    """

    teacher: Teacher
    target: BaseModel
    prompt_spec: PromptSpec = field(default_factory=PromptSpec)
    texts: TextSource | None = None
    inputs: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    store: Store = NO_STORE
    seed: int = 0
    progress: RefinementProgress = silent


class Refined(NamedTuple):
    """A better adapter of the target; and what was done, used and measured, as plain data."""

    adapter: LoraAdapter
    report: RefinementReport


class Refinement(ABC):
    """Improves an adapter of the target that a mapper has made.

    Attributes:
        name: Its file in ``conf/refine``.
        data_access: What it may use, in the words of the evaluation protocol: ``generic
            text``, ``unlabelled prompts`` or ``few-shot``.
        takes: Which of the task's data it cannot do without: ``inputs``, ``examples`` or neither.
        needs_texts: Whether it cannot do without generic texts.
        learns: Whether the target learns from the teacher, and so from one adapter at a time.
            Otherwise the texts are only measured on.
    """

    name: ClassVar[str]
    data_access: ClassVar[str]
    takes: ClassVar[tuple[str, ...]] = ()
    needs_texts: ClassVar[bool] = False
    learns: ClassVar[bool] = True

    @property
    def kl_budget(self) -> float | None:
        """The KL divergence to the base that it keeps the adapter within, in nats, if any."""
        return None

    @abstractmethod
    def refine(self, start: LoraAdapter, data: DistillationInputs) -> Refined:
        """Return the refined adapter.

        ``start`` is what the mapper made, at the target's sites; it may be zero.

        Raises:
            LoraportError: the data lack what the refinement needs, or cannot be used.
        """


_POSITIVE = math.ulp(0.0)  # the least number above 0
_RANGES: dict[str, tuple[float, float, str]] = {
    **dict.fromkeys(
        ("texts", "pool", "text_chars", "batch_size", "repeats", "max_new_tokens", "tau"),
        (1, math.inf, "1 or more"),
    ),
    **dict.fromkeys(
        ("generic", "held_out", "epochs", "warmup_steps", "checks", "ce_weight"),
        (0, math.inf, "0 or more"),
    ),
    **dict.fromkeys(("lr", "temperature"), (_POSITIVE, math.inf, "a number above 0")),
    "keep": (_POSITIVE, 1, "a share above 0, up to 1"),
    "teacher_weight": (0, 1, "a share from 0 to 1"),
}


@dataclass(frozen=True, kw_only=True)
class Distillation(Refinement):
    """Trains a LoRA on the target that starts from the given adapter, on what a teacher does.

    Attributes:
        pool: Number of texts that the teacher answers, and those to learn from are chosen among.
        held_out: Number of texts on which agreement with the teacher is measured; they are never
            learned from.
        epochs: How often each text is learned from; 0 keeps the given adapter.
        batch_size: Texts in a step.
        lr: Learning rate after the warm-up; it falls linearly to 0.
        warmup_steps: Steps over which it rises from 0.
        checks: How often agreement is measured during training; the best weights are kept. 0
            keeps the last.

    Raises:
        ConfigurationError: an option has a value it cannot take.
    """

    pool: int = 1024
    held_out: int = 64
    epochs: int = 1
    batch_size: int = 8
    lr: float = 2e-3
    warmup_steps: int = 4
    checks: int = 2

    def __post_init__(self) -> None:
        for name, (least, most, takes) in _RANGES.items():
            value = getattr(self, name, least)
            if not least <= value <= most:
                raise ConfigurationError(f"refine.{name}={value}, but it takes {takes}")


def distinct(texts: Iterable[str]) -> Iterator[str]:
    """Yield the texts without blank ones and without repetitions."""
    seen = set()
    for text in texts:
        if text.strip() and text not in seen:
            seen.add(text)
            yield text
