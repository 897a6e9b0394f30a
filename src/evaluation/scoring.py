"""How well a base model answers a task's test rows, by likelihood and by generation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import GenerationConfig

from ..data.answers import answer_tokens, left_padded, prompt_tokens
from ..data.question import Question
from ..data.tasks import PromptTemplate, Task
from ..exceptions import DataError
from ..models.base import BaseModel
from ..models.label_likelihoods import length_batches, log_likelihoods


@dataclass(frozen=True, eq=False)
class TaskScore:
    """How one model answers one task's test rows, in their order.

    Attributes:
        predictions: The label that the model gives each row; empty where it gives none.
        correct: Whether it is the right one.
        row_nll: ``-log p(right label)`` of each row in nats, normalised over the labels; ``None``
            where the scorer has no likelihoods.
    """

    predictions: tuple[str, ...]
    correct: Bool[Tensor, " rows"]
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

    Exact for labels of several tokens and for labels that begin alike. Rows of like length go
    through the model together; neither the batches nor the padding change a score.

    Attributes:
        batch_tokens: Tokens a forward pass, padding included; bounds memory and sets the speed.
        batch_rows: Rows a forward pass at most.
    """

    batch_tokens: int = 4096
    batch_rows: int = 256

    def log_likelihoods(
        self, base: BaseModel, task: Task, template: PromptTemplate
    ) -> Float[Tensor, "rows labels"]:
        """Return the total log-likelihood of every label for every test row, in float32.

        Raises:
            DataError: the task has no test row.
        """
        return log_likelihoods(
            base,
            Question.of(task, template),
            _asked(task),
            batch_tokens=self.batch_tokens,
            batch_rows=self.batch_rows,
        )

    def score(self, base: BaseModel, task: Task, template: PromptTemplate) -> TaskScore:
        """Return the task's score of the model as it is, with what is attached to it.

        Raises:
            DataError: the task has no test row.
        """
        scores = self.log_likelihoods(base, task, template)
        truth = torch.tensor([task.labels.index(row.label) for row in task.test])
        best = scores.argmax(dim=1)
        right = scores.log_softmax(dim=1).gather(1, truth[:, None]).squeeze(1)
        return TaskScore(
            predictions=tuple(task.labels[place] for place in best.tolist()),
            correct=best == truth,
            row_nll=-right,
        )


@dataclass(frozen=True)
class GenerateScorer:
    """Answers with the label that the model's greedy continuation begins with.

    It generates as many tokens as the longest label has. White space around the continuation is
    ignored; a continuation that begins with no label is wrong.

    Attributes:
        batch_tokens: Tokens a batch, padding and answers included.
        batch_rows: Rows a batch at most.
    """

    batch_tokens: int = 4096
    batch_rows: int = 256

    @torch.inference_mode()
    def score(self, base: BaseModel, task: Task, template: PromptTemplate) -> TaskScore:
        """Return the task's score of the model as it is, with what is attached to it.

        Raises:
            DataError: the task has no test row.
        """
        question = Question.of(task, template)
        prompts = prompt_tokens(base.tokenizer, question, _asked(task))
        answers = answer_tokens(base.tokenizer, question)
        longest = max(len(answer) for answer in answers.values())
        texts = [""] * len(prompts)
        lengths = [len(prompt) + longest for prompt in prompts]
        for places in length_batches(lengths, self.batch_tokens, self.batch_rows):
            generated = self._batch(base, [prompts[place] for place in places], longest)
            for place, text in zip(places, generated, strict=True):
                texts[place] = text
        predictions = tuple(prefix_label(text, task.labels) for text in texts)
        pairs = zip(predictions, task.test, strict=True)
        return TaskScore(predictions, torch.tensor([guess == row.label for guess, row in pairs]))

    def _batch(self, base: BaseModel, prompts: list[list[int]], new_tokens: int) -> list[str]:
        network: Any = base.network  # transformers' types hide `generate`
        pad = int(base.tokenizer.pad_token_id)
        ids, mask = left_padded(prompts, pad)
        produced = network.generate(
            input_ids=ids.to(network.device),
            attention_mask=mask.to(network.device),
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=new_tokens,
                pad_token_id=pad,
                eos_token_id=base.tokenizer.eos_token_id,
            ),
        )
        return base.tokenizer.batch_decode(produced[:, ids.shape[1] :], skip_special_tokens=True)


def prefix_label(text: str, labels: Sequence[str]) -> str:
    """Return the label that a continuation begins with, or an empty string.

    >>> prefix_label(" positive, I think", ["negative", "positive"])
    'positive'
    """
    begun = [label for label in labels if text.strip().startswith(label)]
    return max(begun, key=len, default="")
