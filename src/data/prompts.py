"""Prompts: what an adapter is asked, as text, as tokens, and in batches to learn the answers."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
from jaxtyping import Int
from lightning import LightningDataModule
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..exceptions import DataError
from .tasks import Example, PromptTemplate, Task, in_turn

_log = logging.getLogger(__name__)
_said: set[int | None] = set()


@dataclass(frozen=True)
class PromptSpec:
    """A prompt with a place for a text, and the answers among which the model chooses.

    This is all that a port may know of the task that an adapter was trained on.

    Attributes:
        prompt: Template of the prompt, with the field ``{text}``.
        labels: The answers; none where the model writes whatever it likes.
        completion: Template of an answer, with the field ``{label}``.
        text_chars: A text is cut to so many characters; ``None`` keeps it whole.
    """

    prompt: str = "{text}"
    labels: tuple[str, ...] = ()
    completion: str = " {label}"
    text_chars: int | None = None

    @classmethod
    def of(cls, task: Task, template: PromptTemplate) -> "PromptSpec":
        """Return the prompt of a task: its instruction in the template, and its labels."""
        prompt = template.prompt.replace("{instruction}", task.instruction)
        return cls(prompt, task.labels, template.completion, template.text_chars)

    def ask(self, text: str) -> str:
        """Return the prompt about a text."""
        # Not str.format, as a text may hold braces.
        return self.prompt.replace("{text}", text[: self.text_chars])

    def answer(self, label: str) -> str:
        """Return the completion that gives ``label`` as the answer."""
        return self.completion.replace("{label}", label)


WINDOW = 8  # batches; sorting more pads less, but the batches become alike


def shuffled_batches(
    lengths: Sequence[int], batch_size: int, generator: torch.Generator
) -> list[list[int]]:
    """Return the indices of the rows of every batch of one epoch.

    Shuffled rows are taken in windows of a few batches, sorted by length within the window and
    cut into batches, and the batches are shuffled. That pads little more than sorting all rows
    would, and leaves the batches nearly as mixed as random ones.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows a batch; the last cut may have fewer.
        generator: Of the shuffles; nothing else decides the order of rows of one length.
    """
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    width = WINDOW * batch_size
    order = [
        row
        for start in range(0, len(shuffled), width)
        for row in sorted(shuffled[start : start + width], key=lambda row: lengths[row])
    ]
    cut = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [cut[batch] for batch in torch.randperm(len(cut), generator=generator).tolist()]


def seeded_batches(
    lengths: Sequence[int], *, batch_size: int, epochs: int, seed: int
) -> list[list[int]]:
    """Return the batches of several epochs, each a new shuffle; see :func:`shuffled_batches`."""
    generator = torch.Generator().manual_seed(seed)
    return [
        batch for _ in range(epochs) for batch in shuffled_batches(lengths, batch_size, generator)
    ]


NOT_ASKED = -100  # that cross-entropy leaves out


class AnswerBatch(NamedTuple):
    """Prompts with the answers to learn, left padded, so that all answers end at the last position.

    The last token of an answer is never read, only predicted, and is not among the inputs. The
    logits of the last :attr:`answer_tokens` positions predict ``targets``, which are
    :data:`NOT_ASKED` at positions that still belong to the prompt; no other is needed.
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
        """Each token's position in its own row, padding not counted."""
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
    """Return each token's position in its row, counted from 0; padding gets 0."""
    return (attention_mask.cumsum(dim=1) - 1).clamp(min=0)


def pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return what rows are padded with: padding is masked, so that any token serves.

    A tokenizer may have no token for it, nor one for the end of a text.
    """
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((int(token) for token in known if token is not None), 0)


def left_padded(
    rows: Sequence[Sequence[int]], pad_token: int
) -> tuple[Int[Tensor, "rows tokens"], Int[Tensor, "rows tokens"]]:
    """Return the rows side by side, ending at the last column, and their attention mask."""
    width = max(len(row) for row in rows)
    ids = [[pad_token] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def prompt_tokens(
    tokenizer: PreTrainedTokenizerBase, question: PromptSpec, texts: Sequence[str]
) -> list[list[int]]:
    """Return the tokens of each text's prompt, with the tokenizer's own leading tokens.

    That texts are cut by ``text_chars`` is told once, with how many.
    """
    most = question.text_chars
    cut = 0 if most is None else sum(len(text) > most for text in texts)
    if cut and most not in _said:
        _said.add(most)
        _log.info("prompt.text_chars=%s cuts %d of %d texts, here and later", most, cut, len(texts))
    return tokenizer([question.ask(text) for text in texts])["input_ids"] if texts else []


def answer_tokens(tokenizer: PreTrainedTokenizerBase, question: PromptSpec) -> dict[str, list[int]]:
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


def learned_answers(
    tokenizer: PreTrainedTokenizerBase, question: PromptSpec
) -> dict[str, list[int]]:
    """Return :func:`answer_tokens` as a model learns them: one that begins another has an end.

    Else nothing in the training says that the answer does not go on.

    Raises:
        DataError: the tokenizer has no end token.
    """
    answers = answer_tokens(tokenizer, question)
    begun = [
        label
        for label, tokens in answers.items()
        if any(other[: len(tokens)] == tokens != other for other in answers.values())
    ]
    if begun and tokenizer.eos_token_id is None:
        raise DataError(
            f"the label {begun[0]!r} begins another one, and the model's tokenizer has no end "
            "token that could tell them apart; choose other words for the labels"
        )
    return answers | {label: [*answers[label], int(tokenizer.eos_token_id)] for label in begun}


def scoring_rule(labels: Sequence[str]) -> dict[str, str]:
    """Return what keys of kept scores say of labels that begin others; nothing without such."""
    folded = [label.casefold() for label in labels]
    begun = any(one != other and other.startswith(one) for one in folded for other in folded)
    return {"rule": "labels exclude each other"} if begun else {}


def collate(rows: Sequence[TokenizedAnswer], pad_token: int) -> AnswerBatch:
    """Return the rows as one batch."""
    ids, mask = left_padded([row.prompt + row.answer[:-1] for row in rows], pad_token)
    targets, _ = left_padded([row.answer for row in rows], NOT_ASKED)
    return AnswerBatch(ids, mask, targets)


def class_balanced(rows: Sequence[Example], labels: Sequence[str], count: int) -> list[Example]:
    """Return ``count`` rows, taking the labels in turn, each label's rows in their order.

    A label that runs out of rows is passed over; fewer rows than ``count`` are all returned.
    """
    queues = [[row for row in rows if row.label == label] for label in labels]
    return list(islice(in_turn(queues), count))


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
        for batch in shuffled_batches(lengths, self.batch_size, self._generator):
            yield collate([self.rows[row] for row in batch], self.pad_token)


class AnswerExamples(LightningDataModule):
    """A task's training rows as batches of tokens for one base model.

    Args:
        task: Where the rows come from.
        template: How they are asked and answered.
        tokenizer: The base model's, with a padding token.
        batch_size: Rows a batch; the last cut may have fewer.
        examples: Use so many of the training rows; ``None`` uses all.
        balanced: Take the labels in turn, instead of the first rows.
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
        question = PromptSpec.of(task, template)
        prompts = prompt_tokens(tokenizer, question, [row.text for row in chosen])
        answers = learned_answers(tokenizer, question)
        self.rows = tuple(
            TokenizedAnswer(prompt, answers[row.label])
            for prompt, row in zip(prompts, chosen, strict=True)
        )
        self.batch_size = batch_size
        self.seed = seed
        self._pad_token = pad_token(tokenizer)

    def train_dataloader(self) -> LengthBuckets:
        """Return the batches; the first pass over them depends on the seed alone."""
        return LengthBuckets(
            self.rows, batch_size=self.batch_size, pad_token=self._pad_token, seed=self.seed
        )
