"""Prompts and answers as tokens: what a base model is asked and what it should reply."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int
from lightning import LightningDataModule
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .question import Question
from .shuffled_batches import shuffled_batches
from .tasks import Example, PromptTemplate, Task

NOT_ASKED = -100


class AnswerBatch(NamedTuple):
    """Prompts with the answers to learn, left padded, so that all answers end at the last position.

    The last token of an answer is never read, only predicted, and is not among the inputs. The
    logits of the last :attr:`answer_tokens` positions predict ``targets``; no other is needed.

    Attributes:
        input_ids: Prompt and answer without its last token.
        attention_mask: 1 at tokens, 0 at padding.
        targets: The token that each of the last positions should predict, and
            :data:`NOT_ASKED` at positions that still belong to the prompt.
    """

    input_ids: Int[Tensor, "rows tokens"]
    attention_mask: Int[Tensor, "rows tokens"]
    targets: Int[Tensor, "rows answers"]

    @property
    def answer_tokens(self) -> int:
        """Number of last positions whose logits are asked for."""
        return self.targets.shape[1]

    @property
    def position_ids(self) -> Int[Tensor, "rows tokens"]:
        """Each token's place in its own row, padding not counted."""
        return positions(self.attention_mask)


class TokenizedAnswer(NamedTuple):
    """One training row."""

    prompt: list[int]
    answer: list[int]

    @property
    def length(self) -> int:
        """Number of input tokens: all but the answer's last."""
        return len(self.prompt) + len(self.answer) - 1


def positions(attention_mask: Int[Tensor, "rows tokens"]) -> Int[Tensor, "rows tokens"]:
    """Return each token's place in its row, counted from 0; padding gets 0."""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


def left_padded(
    rows: Sequence[Sequence[int]], pad_token: int
) -> tuple[Int[Tensor, "rows tokens"], Int[Tensor, "rows tokens"]]:
    """Return the rows side by side, ending at the last column, and their attention mask."""
    width = max(len(row) for row in rows)
    ids = [[pad_token] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def prompt_tokens(
    tokenizer: PreTrainedTokenizerBase, question: Question, texts: Sequence[str]
) -> list[list[int]]:
    """Return the tokens of each text's prompt, with the tokenizer's own leading tokens."""
    return tokenizer([question.ask(text) for text in texts])["input_ids"] if texts else []


def answer_tokens(tokenizer: PreTrainedTokenizerBase, question: Question) -> dict[str, list[int]]:
    """Return the tokens of each label's completion, as they follow a prompt of the question.

    Some tokenizers put a space before a text that stands alone, so the completion is read off
    behind a prompt. Where prompt and completion would share a token (a prompt that ends in a
    space), the completion is tokenised by itself instead.
    """
    prompt = question.ask("")
    stem = tokenizer(prompt)["input_ids"]
    found = {}
    for label in question.labels:
        completion = question.answer(label)
        whole = tokenizer(prompt + completion)["input_ids"]
        if whole[: len(stem)] == stem and len(whole) > len(stem):
            found[label] = whole[len(stem) :]
        else:
            found[label] = tokenizer(completion, add_special_tokens=False)["input_ids"]
    return found


def collate(rows: Sequence[TokenizedAnswer], pad_token: int) -> AnswerBatch:
    """Return the rows as one batch."""
    ids, mask = left_padded([row.prompt + row.answer[:-1] for row in rows], pad_token)
    width = max(len(row.answer) for row in rows)
    targets = [[NOT_ASKED] * (width - len(row.answer)) + row.answer for row in rows]
    return AnswerBatch(ids, mask, torch.tensor(targets))


def class_balanced(rows: Sequence[Example], labels: Sequence[str], count: int) -> list[Example]:
    """Return ``count`` rows, taking the labels in turn, each label's rows in their order.

    A label that runs out of rows is passed over; fewer rows than ``count`` are all returned.
    """
    queues = [[row for row in rows if row.label == label] for label in labels]
    turns = max((len(queue) for queue in queues), default=0)
    chosen = [queue[turn] for turn in range(turns) for queue in queues if turn < len(queue)]
    return chosen[:count]


class LengthBuckets:
    """Batches of rows of like length; each pass over them is a new seeded shuffle."""

    def __init__(
        self, rows: Sequence[TokenizedAnswer], *, batch_size: int, pad_token: int, seed: int
    ) -> None:
        self.rows = tuple(rows)
        self.batch_size = batch_size
        self.pad_token = pad_token
        self._generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[AnswerBatch]:
        lengths = [row.length for row in self.rows]
        for places in shuffled_batches(lengths, self.batch_size, self._generator):
            yield collate([self.rows[place] for place in places], self.pad_token)


class AnswerExamples(LightningDataModule):
    """A task's training rows as batches of tokens for one base model.

    Args:
        task: Where the rows come from.
        template: How they are asked and answered.
        tokenizer: The base model's, with a padding token.
        batch_size: Rows a batch; the last cut may have fewer.
        examples: Use so many of the training rows; ``None`` uses all.
        balanced: Take the labels in turn while choosing them, instead of the first rows.
        seed: Of the shuffles.
    """

    def __init__(
        self,
        task: Task,
        template: PromptTemplate,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 8,
        examples: int | None = None,
        balanced: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        count = len(task.train) if examples is None else examples
        chosen = class_balanced(task.train, task.labels, count) if balanced else task.train[:count]
        question = Question.of(task, template)
        prompts = prompt_tokens(tokenizer, question, [row.text for row in chosen])
        answers = answer_tokens(tokenizer, question)
        self.rows = tuple(
            TokenizedAnswer(prompt, answers[row.label])
            for prompt, row in zip(prompts, chosen, strict=True)
        )
        self.batch_size = batch_size
        self.seed = seed
        self._pad_token = int(tokenizer.pad_token_id)

    def train_dataloader(self) -> LengthBuckets:
        """Return the batches; the first pass over them depends on the seed alone."""
        return LengthBuckets(
            self.rows, batch_size=self.batch_size, pad_token=self._pad_token, seed=self.seed
        )
