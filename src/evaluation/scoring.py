"""How well a model answers a task's test rows, how far an adapter moves it, and control adapters.

Scores by likelihood and by generation, and divergences on texts, are computed once: the store keeps
them under the content of the model, the adapter and the task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..adapters import AdapterStack, LoraAdapter, LowRank
from ..data import PromptTemplate, Task
from ..data.prompts import PromptSpec, answer_tokens, prompt_tokens, scoring_rule
from ..exceptions import DataError
from ..models import BaseModel, attached
from ..models.hooks import Attachable
from ..models.kl import Divergences, KlToBaseGauge
from ..models.likelihood import log_likelihoods
from ..store import Key, Store
from .written_answers import write_answers


@dataclass(frozen=True, eq=False)
class TaskScore:
    """How one model answers one task's test rows, in their order."""

    # The label that the model gives each row; empty where it gives none.
    predictions: tuple[str, ...]
    correct: Bool[Tensor, " rows"]  # whether it is the right one
    # -log p(right label) of each row in nats, normalised over the labels; None where the scorer has
    # no likelihoods.
    row_nll: Float[Tensor, " rows"] | None = None

    @property
    def accuracy(self) -> float:
        """Share of the rows that are answered right."""
        return float(self.correct.double().mean())

    @property
    def nll(self) -> float | None:
        """Mean of :attr:`row_nll`."""
        return None if self.row_nll is None else float(self.row_nll.double().mean())


def _asked(task: Task) -> list[str]:
    """Return the texts of the test rows."""
    if not task.test:
        raise DataError(
            f"task {task.name} has no test row, but scoring takes at least one; raise tasks.limit "
            "or add rows to its test.jsonl"
        )
    return [row.text for row in task.test]


@dataclass(frozen=True)
class LikelihoodScorer:
    """Answers with the label of the highest total log-likelihood behind the prompt.

    Exact for labels of several tokens and for labels that begin alike; one that begins another is
    the answer where the text does not go on to that one. Rows of like length go through the model
    together, at most ``batch_tokens``, padding included, in ``batch_rows``;
    neither the batches nor the padding change a score.
    """

    batch_tokens: int = 4096
    batch_rows: int = 256

    def log_likelihoods(
        self, base: BaseModel, task: Task, template: PromptTemplate
    ) -> Float[Tensor, "rows labels"]:
        """Return the total log-likelihood of every label for every test row, in float32."""
        return log_likelihoods(
            base,
            PromptSpec.of(task, template),
            _asked(task),
            batch_tokens=self.batch_tokens,
            batch_rows=self.batch_rows,
        )

    def score(self, base: BaseModel, task: Task, template: PromptTemplate) -> TaskScore:
        """Return the task's score of the model as it is, with what is attached to it."""
        scores = self.log_likelihoods(base, task, template)
        truth = torch.tensor([task.labels.index(row.label) for row in task.test])
        best = scores.argmax(dim=1)
        right = scores.log_softmax(dim=1).gather(1, truth[:, None]).squeeze(1)
        return TaskScore(
            predictions=tuple(task.labels[index] for index in best.tolist()),
            correct=best == truth,
            row_nll=-right,
        )


@dataclass(frozen=True)
class GenerateScorer:
    """Answers with the label that the model's greedy continuation begins with.

    It generates as many tokens as the longest label has. White space around the continuation is
    ignored; a continuation that begins with no label is wrong.
    """

    batch_tokens: int = 4096
    batch_rows: int = 256

    def score(self, base: BaseModel, task: Task, template: PromptTemplate) -> TaskScore:
        """Return the task's score of the model as it is, with what is attached to it."""
        spec = PromptSpec.of(task, template)
        written = write_answers(
            base,
            prompt_tokens(base.tokenizer, spec, _asked(task)),
            max_new_tokens=max(map(len, answer_tokens(base.tokenizer, spec).values())),
            batch_rows=self.batch_rows,
            batch_tokens=self.batch_tokens,
        )
        predictions = tuple(prefix_label(text, task.labels) for text in written)
        pairs = zip(predictions, task.test, strict=True)
        return TaskScore(predictions, torch.tensor([guess == row.label for guess, row in pairs]))


def prefix_label(text: str, labels: Sequence[str]) -> str:
    """Return the label that a continuation begins with, or an empty string.

    >>> prefix_label(" positive, I think", ["negative", "positive"])
    'positive'
    """
    begun = [label for label in labels if text.strip().startswith(label)]
    return max(begun, key=len, default="")


@runtime_checkable
class Scorer(Protocol):
    """A way to score a task; its ``repr`` says every setting that matters."""

    def score(self, base: BaseModel, task: Task, template: PromptTemplate) -> TaskScore:
        """Return the task's score of the model as it is.

        Raises:
            DataError: the task has no test row.
        """
        ...


@dataclass(frozen=True)
class ScoreCache:
    """Scores adapters on tasks, and keeps each score in the store."""

    store: Store
    scorer: Scorer
    template: PromptTemplate

    def score(
        self, base: BaseModel, adapter: LoraAdapter | Attachable | None, task: Task
    ) -> TaskScore:
        """Return the score of a base model with an adapter, or without one, on a task."""

        def scored() -> dict[str, Any]:
            with attached(base.network, adapter):
                score = self.scorer.score(base, task, self.template)
            nll = None if score.row_nll is None else score.row_nll.tolist()
            return asdict(score) | {"correct": score.correct.tolist(), "row_nll": nll}

        key = Key.of(
            "scores",
            **model_key(base, adapter),
            task=task,
            scorer=repr(self.scorer),
            template=repr(self.template),
            **scoring_rule(task.labels),
        )
        kept = self.store.made(key, scored)
        nll = kept["row_nll"]
        return TaskScore(
            predictions=tuple(kept["predictions"]),
            correct=torch.tensor(kept["correct"], dtype=torch.bool),
            row_nll=None if nll is None else torch.tensor(nll, dtype=torch.float32),
        )


@dataclass(frozen=True, eq=False)
class TextDivergences:
    """Divergences of any number of adapters of one base model on the same texts, kept in the store.

    ``most`` of the texts are looked at, drawn from all, at so many ``positions`` each. What the
    model says without adapter is held, which is large: finish with one list before the next one.
    """

    base: BaseModel
    texts: tuple[str, ...]
    store: Store
    most: int = 64
    positions: int = 4
    seed: int = 0

    def of(self, adapter: LoraAdapter | Attachable) -> Divergences:
        """Return how far an adapter moves the model on the texts."""
        key = Key.of(
            "divergences",
            **model_key(self.base, adapter),
            texts=self.texts,
            settings=[self.most, self.positions, self.seed],
        )
        return Divergences(**self.store.made(key, lambda: asdict(self._gauge.measures(adapter))))

    @cached_property
    def _gauge(self) -> KlToBaseGauge:
        """Made only where something is not kept already: the model is run for it."""
        return KlToBaseGauge(
            self.base, self.texts, most=self.most, positions=self.positions, seed=self.seed
        )


def model_key(base: BaseModel, adapter: LoraAdapter | Attachable | None) -> dict[str, Any]:
    """Return what a model's outputs depend on."""
    return base.key_parts | {"adapter": adapter}


def random_adapter(anchors: AdapterStack, base_model: str, seed: int) -> LoraAdapter:
    """Return Gaussian factors, each site's update as large as the anchors' on average.

    The norm of each site is the root mean square of the anchors' norms there, so that the
    control is the same for every mapper.
    """
    generator = torch.Generator().manual_seed(seed)
    sites = {}
    for site, stack in anchors.items():
        _, rank, inputs = stack.A.shape
        a = torch.randn(rank, inputs, generator=generator)
        b = torch.randn(stack.B.shape[1], rank, generator=generator)
        drawn = LowRank(a, b)
        norm = float(stack.delta_gram(stack).diagonal().mean()) ** 0.5
        factor = (norm / drawn.norm()) ** 0.5
        sites[site] = LowRank(factor * a, factor * b)
    return LoraAdapter(sites, base_model)


def swapped(
    adapters: Mapping[str, LoraAdapter], spare: Sequence[LoraAdapter]
) -> dict[str, LoraAdapter]:
    """Return for each held-out task the next one's adapter, for the last one the first's.

    Where only one task is held out, the first of the spare adapters, of other tasks, serves.
    """
    names = list(adapters)
    if len(names) == 1:
        return {names[0]: spare[0]} if spare else {}
    return {name: adapters[names[(index + 1) % len(names)]] for index, name in enumerate(names)}
