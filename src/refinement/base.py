"""What a refinement is: anything that betters a target adapter by what the models do."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..adapters import LoraAdapter
from ..data.corpora import TextSource
from ..data.prompts import PromptSpec
from ..data.tasks import Example
from ..files import write_whole
from ..models.likelihood import log_likelihoods
from ..models.loading import BaseModel

RefinementReport = dict[str, Any]
RefinementProgress = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and how much there is."""


def silent(_step: str, _done: int, _total: int) -> None:
    """Show nothing."""


@dataclass(frozen=True, eq=False)
class Teacher:
    """The source model with the adapter that is ported: what the target is to behave like.

    Attributes:
        base: The source.
        adapter: Its adapter.
    """

    base: BaseModel
    adapter: LoraAdapter


@dataclass(frozen=True, eq=False)
class DistillationInputs:
    """What a refinement may learn from.

    Attributes:
        teacher: The source with its adapter.
        target: The model that the adapter is ported to.
        question: What the adapter is asked; the text itself where nobody says.
        texts: Generic texts; None where there is no corpus.
        inputs: Unlabelled inputs of the task itself.
        examples: Labelled ones.
        cache: Folder in which unfinished and finished work is kept; None keeps nothing.
        seed: Of every draw.
        progress: Is told how far the work is.
    """

    teacher: Teacher
    target: BaseModel
    question: PromptSpec = field(default_factory=PromptSpec)
    texts: TextSource | None = None
    inputs: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    cache: Path | None = None
    seed: int = 0
    progress: RefinementProgress = silent


class Refined(NamedTuple):
    """A better adapter of the target, and what was found on the way.

    Attributes:
        adapter: The adapter.
        report: What was done, used and measured, as plain data.
    """

    adapter: LoraAdapter
    report: RefinementReport


class Refinement(ABC):
    """Betters an adapter of the target that a mapper has made.

    Attributes:
        data_access: What it may use, in the words of the evaluation protocol: ``generic
            text``, ``unlabelled prompts`` or ``few-shot``.
    """

    data_access: ClassVar[str]

    @abstractmethod
    def refine(self, start: LoraAdapter, distillation_inputs: DistillationInputs) -> Refined:
        """Return the refined adapter.

        Args:
            start: What the mapper made, at the target's sites; it may do nothing yet.
            distillation_inputs: What to learn from.

        Raises:
            LoraportError: the lesson lacks what the refinement needs, or cannot be used.
        """


# Where work is kept in the cache: under a hash of all that it depends on.


def cache_folder(cache: Path | None, kind: str, key_parts: Sequence[Any]) -> Path | None:
    """Return the folder of one piece of work; None where nothing is kept.

    Args:
        cache: The cache.
        kind: Of the work: the folder above.
        key_parts: All that the work depends on, as JSON can hold it.
    """
    if cache is None:
        return None
    key = hashlib.sha256(json.dumps(key_parts).encode()).hexdigest()[:32]
    return cache / kind / key


# Work in portions, each of which is kept in a file, so that a stopped run goes on.

Part = TypeVar("Part")


def in_shards(
    folder: Path | None,
    parts: Sequence[Part],
    work: Callable[[Part], Any],
    *,
    step: str,
    progress: RefinementProgress,
) -> list[Any]:
    """Return what ``work`` makes of each part; what an earlier run has made is read.

    Args:
        folder: Where the portions lie, a file each; its name must say all that they depend on.
            None keeps nothing.
        parts: The parts, always the same ones in the same order.
        work: Makes plain data, as JSON can hold it, of one part.
        step: What ``progress`` is told that is being done.
        progress: Is told how many parts are done.

    Raises:
        OutputError: a portion cannot be written.
    """
    made = []
    for place, part in enumerate(parts):
        progress(step, place, len(parts))
        file = None if folder is None else folder / f"{place:05}.json"
        kept = None if file is None else _read(file)
        if kept is None:
            kept = {"portion": work(part)}
            if file is not None:
                write_whole(file, json.dumps(kept))
        made.append(kept["portion"])
    progress(step, len(parts), len(parts))
    return made


def _read(file: Path) -> dict[str, Any] | None:
    """Return what the file holds; None where it is missing or damaged."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept if isinstance(kept, dict) and "portion" in kept else None


# What a student is given to learn: texts, and how the answers to each are to be distributed.


@dataclass(frozen=True, eq=False)
class SoftLabelDataset:
    """Texts with the distributions over the labels that a student is to give them.

    Attributes:
        texts: The texts; one that occurs twice weighs twice.
        targets: A distribution for each.
        report: Where they come from, as plain data.
        notes: What the user should know of them, a sentence each.
    """

    texts: tuple[str, ...]
    targets: Float[Tensor, "texts labels"]
    report: RefinementReport = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def repeated(self, times: int) -> "SoftLabelDataset":
        """Return them so many times over, so that they weigh more beside others."""
        return SoftLabelDataset(
            self.texts * times, self.targets.repeat(times, 1), self.report, self.notes
        )

    def beside(self, other: "SoftLabelDataset") -> "SoftLabelDataset":
        """Return both together."""
        return SoftLabelDataset(
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


# How far a student answers as its teacher does.


class Agreement(NamedTuple):
    """How alike a student's answers are to its teacher's, over some texts.

    Attributes:
        top_share: Share of the texts for which both find the same label likeliest.
        kl: Mean ``KL(teacher || student)`` between their distributions over the labels, in nats.
    """

    top_share: float
    kl: float

    @classmethod
    def between(
        cls, teacher: Float[Tensor, "texts labels"], student: Float[Tensor, "texts labels"]
    ) -> "Agreement":
        """Compare distributions over labels.

        Args:
            teacher: Probabilities.
            student: Log-probabilities, of any normalisation.
        """
        found = student.double().log_softmax(dim=1)
        expected = teacher.double()
        expected = expected / expected.sum(dim=1, keepdim=True)
        # Not through the logarithm of the teacher's zeros.
        entropy = -torch.special.entr(expected).sum(dim=1)
        kl = entropy - (expected * found).sum(dim=1)
        same = teacher.argmax(dim=1) == student.argmax(dim=1)
        # Not below zero by rounding; what is not a number stays so.
        return cls(float(same.double().mean()), float(kl.mean().clamp(min=0)))


class HeldOut:
    """Texts that nothing is learned from, with the teacher's answers to them.

    Args:
        question: What is asked about each.
        texts: The texts, at least one.
        targets: The teacher's distributions over the labels.
    """

    def __init__(
        self, question: PromptSpec, texts: Sequence[str], targets: Float[Tensor, "texts labels"]
    ) -> None:
        self.question, self.texts, self.targets = question, tuple(texts), targets

    def agreement(self, base: BaseModel) -> Agreement:
        """Return how far a model, with what is attached to it, agrees with the teacher."""
        found = log_likelihoods(base, self.question, self.texts)
        return Agreement.between(self.targets, found)
