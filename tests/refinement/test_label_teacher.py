from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import loraport.refinement.label_teacher as module
from loraport.adapters import LoraAdapter
from loraport.data.answers import answer_tokens
from loraport.data.question import Question
from loraport.exceptions import DataError
from loraport.models import BaseModel, attached
from loraport.models.label_likelihoods import log_likelihoods
from loraport.refinement.base import Teacher
from loraport.refinement.label_teacher import (
    check_labels,
    check_teaches,
    confidence,
    label_balance,
    label_distributions,
    label_shares,
)

from .conftest import Sentences, answer

TEXTS = list(Sentences().texts("train"))[:150]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of texts that the model was asked about, call by call."""
    counts: list[int] = []

    def counted(base: BaseModel, question: Question, texts: list[str]) -> torch.Tensor:
        counts.append(len(texts))
        return log_likelihoods(base, question, texts)

    monkeypatch.setattr(module, "log_likelihoods", counted)
    return counts


def test_distribution_is_the_softmax_of_the_likelihoods_of_whole_labels(
    word_teacher: Teacher, question: Question
) -> None:
    base = word_teacher.base
    labels = answer_tokens(base.tokenizer, question)
    found = label_distributions(word_teacher, question, TEXTS[:3], temperature=2.0)
    for row, text in zip(found, TEXTS, strict=False):
        prompt = base.tokenizer(text)["input_ids"]
        totals = []
        for tokens in labels.values():
            ids = torch.tensor([prompt + tokens])
            with attached(base.network, word_teacher.adapter), torch.inference_mode():
                steps = base.network(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            totals.append(sum(s.log_softmax(0)[t] for s, t in zip(steps, tokens, strict=True)))
        expected = (torch.stack([torch.as_tensor(total) for total in totals]) / 2).softmax(0)
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-4)


def test_teacher_answers_by_the_last_word(word_teacher: Teacher, question: Question) -> None:
    found = label_distributions(word_teacher, question, TEXTS)
    tops = [question.labels[top] for top in found.argmax(dim=1).tolist()]
    assert tops == [answer(text) for text in TEXTS]
    shares = label_shares(found, question.labels)
    assert shares == {label: tops.count(label) / 150 for label in question.labels}
    assert 0.9 < confidence(found) < 1


def test_labelling_is_kept_for_other_temperatures_and_no_other_adapter(
    word_teacher: Teacher,
    question: Question,
    tmp_path: Path,
    asked: list[int],
    random_adapter: Callable[..., LoraAdapter],
) -> None:
    fresh = label_distributions(word_teacher, question, TEXTS)
    asked.clear()
    first = label_distributions(word_teacher, question, TEXTS, cache=tmp_path)
    assert asked == [64, 64, 22]
    assert torch.equal(first, fresh)
    assert torch.equal(label_distributions(word_teacher, question, TEXTS, cache=tmp_path), first)
    sharp = label_distributions(word_teacher, question, TEXTS, cache=tmp_path, temperature=0.5)
    assert asked == [64, 64, 22]
    assert confidence(sharp) > confidence(first)
    changed: list[tuple[Teacher, Question, list[str]]] = [
        (replace(word_teacher, adapter=random_adapter(word_teacher.base)), question, TEXTS),
        (word_teacher, replace(question, prompt="{text} ?"), TEXTS),
        (word_teacher, question, TEXTS[:-1]),
    ]
    for number, (teacher, other, texts) in enumerate(changed, start=2):
        label_distributions(teacher, other, texts, cache=tmp_path)
        assert len(asked) == 3 * number


def test_killed_labelling_goes_on(
    word_teacher: Teacher,
    question: Question,
    tmp_path: Path,
    asked: list[int],
) -> None:
    told: list[tuple[int, int]] = []

    def stop(_step: str, done: int, total: int) -> None:
        told.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    expected = label_distributions(word_teacher, question, TEXTS)
    asked.clear()
    with pytest.raises(KeyboardInterrupt):
        label_distributions(word_teacher, question, TEXTS, cache=tmp_path, progress=stop)
    assert (asked, told) == ([64, 64], [(0, 3), (1, 3), (2, 3)])
    found = label_distributions(word_teacher, question, TEXTS, cache=tmp_path)
    assert asked == [64, 64, 22]
    assert torch.equal(found, expected)


def test_labels_of_the_same_tokens_are_refused(
    pico_source: BaseModel, random_adapter: Callable[..., LoraAdapter]
) -> None:
    unknown = Question("{text}", ("good", "sublime", "lousy"))
    with pytest.raises(DataError, match=r"'sublime' and 'lousy' are the same tokens for pico/sou"):
        check_labels(pico_source, unknown)
    teacher = Teacher(pico_source, random_adapter(pico_source))
    with pytest.raises(DataError, match="choose other words"):
        label_distributions(teacher, unknown, TEXTS)


def test_teacher_that_gives_one_answer_only_is_refused() -> None:
    rows = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.6, 0.4]])
    with pytest.raises(DataError, match=r"answers 'yes' to 100% of 3 texts.*prompt\.labels"):
        check_teaches(rows, ["yes", "no"])


def test_teacher_that_does_not_read_the_text_is_refused() -> None:
    rows = torch.tensor([[0.5001, 0.4999], [0.4999, 0.5001]])
    with pytest.raises(DataError, match="nothing can be learned"):
        check_teaches(rows, ["yes", "no"])


def test_teacher_that_hardly_varies_is_told_of() -> None:
    rows = torch.tensor([[0.9, 0.1]] * 199 + [[0.1, 0.9]])
    (note,) = check_teaches(rows, ["yes", "no"])
    assert "'yes' to 99.5% of the texts" in note
    assert check_teaches(rows[-20:], ["yes", "no"]) == ()


@pytest.mark.parametrize(
    ("shares", "balance"),
    [((0.25, 0.25, 0.25, 0.25), 1.0), ((1.0, 0.0), 0.0), ((0.5, 0.5, 0.0, 0.0), 0.5)],
)
def test_balance_is_the_entropy_of_the_labels_shares(
    shares: tuple[float, ...], balance: float
) -> None:
    named = {f"label {place}": share for place, share in enumerate(shares)}
    assert label_balance(named) == pytest.approx(balance)
