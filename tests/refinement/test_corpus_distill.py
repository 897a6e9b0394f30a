from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import loraport.refinement.generic_texts as generic_module
from loraport.adapters import LoraAdapter, Role, relative_error
from loraport.data.question import Question
from loraport.exceptions import ConfigurationError, DataError
from loraport.models import BaseModel, attached
from loraport.models.label_likelihoods import log_likelihoods
from loraport.refinement.agreement import Agreement, HeldOut
from loraport.refinement.base import Lesson, Refined, Refinement, Teacher
from loraport.refinement.corpus_distill import CorpusDistill
from loraport.refinement.label_distillation import LabelStudent, SoftBatch
from loraport.refinement.label_teacher import label_balance, teacher_answers

from .conftest import Lines, Sentences, answer

QUICK = CorpusDistill(texts=24, pool=40, held_out=8, lr=0.01, checks=3)
LONG = CorpusDistill(texts=160, pool=176, held_out=32, epochs=4, lr=0.01, checks=2)

GOOD = [text for text in Sentences().texts("train") if text.endswith("good")]


@pytest.fixture
def lesson(word_teacher: Teacher, pico_target: BaseModel, question: Question) -> Lesson:
    return Lesson(word_teacher, pico_target, question, Sentences())


def accuracy(base: BaseModel, adapter: LoraAdapter, question: Question) -> float:
    texts = list(Sentences(validation=300).texts("validation"))[-100:]
    with attached(base.network, adapter):
        found = log_likelihoods(base, question, texts).argmax(dim=1).tolist()
    same = [question.labels[top] == answer(text) for top, text in zip(found, texts, strict=True)]
    return sum(same) / len(same)


def test_skill_arrives_from_texts_alone(lesson: Lesson, start: LoraAdapter) -> None:
    adapter, report = LONG.refine(start, lesson)
    assert accuracy(lesson.target, adapter, lesson.question) > 0.7
    assert report["agreement_after"] > 0.7 > 0.6 > report["agreement_before"]
    assert report["kl_after"] < 0.3 * report["kl_before"]
    assert (report["texts"], report["pool"], report["held_out"]) == (160, 176, 32)
    assert report["steps"] == 4 * 20
    assert report["loss_last"] < 0.3 * report["loss_first"]
    assert sum(report["pool_shares"].values()) == pytest.approx(1)
    assert report["pool_balance"] == label_balance(report["pool_shares"])
    assert report["chosen_shares"] == pytest.approx(
        dict.fromkeys(lesson.question.labels, 1 / 3), abs=0.05
    )
    assert report["notes"] == []


def test_the_same_texts_with_labels_that_say_nothing_of_them_teach_nothing(
    lesson: Lesson, start: LoraAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shuffled(*args: Any, **options: Any) -> torch.Tensor:
        found = teacher_answers(*args, **options)
        return found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))]

    monkeypatch.setattr(generic_module, "teacher_answers", shuffled)
    control = replace(LONG, checks=0).refine(start, lesson).adapter
    assert accuracy(lesson.target, control, lesson.question) < 0.6


def test_best_of_the_measured_weights_is_what_comes_out(lesson: Lesson, start: LoraAdapter) -> None:
    report = QUICK.refine(start, lesson).report
    assert list(report["checks"]) == ["0", "1", "2", "3"]
    best = min(report["checks"].values())
    assert report["checks"][str(report["best_step"])] == best
    assert report["kl_before"] == report["checks"]["0"]
    assert report["kl_after"] == pytest.approx(best, rel=1e-5)


def test_given_adapter_is_kept_without_steps(
    lesson: Lesson, random_adapter: Callable[..., LoraAdapter]
) -> None:
    given = random_adapter(lesson.target)
    adapter, report = replace(QUICK, epochs=0).refine(given, lesson)
    assert relative_error(adapter, given) < 1e-6
    assert (report["steps"], report["loss_first"]) == (0, None)
    assert report["agreement_after"] == report["agreement_before"]


def test_training_that_helps_nothing_leaves_the_given_adapter_and_says_so(
    lesson: Lesson,
    random_adapter: Callable[..., LoraAdapter],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = iter([1.0, 2.0, 3.0, 4.0, 1.0])
    monkeypatch.setattr(HeldOut, "agreement", lambda *_: Agreement(0.5, next(found)))
    given = random_adapter(lesson.target, roles=(Role.Q,))
    adapter, report = QUICK.refine(given, lesson)
    assert (report["best_step"], report["steps"]) == (0, 3)
    assert "brought the target no nearer" in report["notes"][0]
    assert relative_error(adapter, given) < 1e-6


def test_same_seed_same_bits_and_base_models_are_left_as_they_were(
    lesson: Lesson, start: LoraAdapter
) -> None:
    bases = (lesson.teacher.base, lesson.target)
    before = [{k: v.clone() for k, v in base.network.state_dict().items()} for base in bases]
    torch.manual_seed(0)
    first = QUICK.refine(start, lesson).adapter.content_hash()
    torch.manual_seed(1)
    assert QUICK.refine(start, lesson).adapter.content_hash() == first
    assert QUICK.refine(start, replace(lesson, seed=1)).adapter.content_hash() != first
    for base, kept in zip(bases, before, strict=True):
        after = base.network.state_dict()
        assert kept.keys() == after.keys()
        assert all(torch.equal(kept[name], after[name]) for name in kept)


def test_stopped_in_labelling_and_in_training_it_ends_in_the_same_bits(
    lesson: Lesson, start: LoraAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = QUICK.refine(start, lesson)
    cached = replace(lesson, cache=tmp_path)
    calls: list[int] = []
    loss = LabelStudent.loss

    def stopping(student: LabelStudent, batch: SoftBatch) -> torch.Tensor:
        calls.append(len(batch.prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return loss(student, batch)

    def stop(step: str, _done: int, _total: int) -> None:
        if step.startswith("labelling held-out"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        QUICK.refine(start, replace(cached, progress=stop))
    monkeypatch.setattr(LabelStudent, "loss", stopping)
    modules = list(lesson.target.network.modules())
    with pytest.raises(KeyboardInterrupt):
        QUICK.refine(start, cached)
    assert list(lesson.target.network.modules()) == modules
    assert len(list(tmp_path.glob("students/*/state.pt"))) == 1
    found = QUICK.refine(start, cached)
    assert len(calls) == 4, "two steps were made, the third was begun twice"
    assert found.adapter.content_hash() == expected.adapter.content_hash()
    assert not list(tmp_path.glob("students/*"))
    for fact in ("checks", "best_step", "loss_first", "loss_last", "kl_before", "kl_after"):
        assert found.report[fact] == expected.report[fact]


def test_progress_is_told(lesson: Lesson, start: LoraAdapter) -> None:
    told: dict[str, tuple[int, int]] = {}
    QUICK.refine(start, replace(lesson, progress=lambda s, d, n: told.update({s: (d, n)})))
    assert told == {
        "labelling texts by the source": (1, 1),
        "labelling held-out texts by the source": (1, 1),
        "distilling into the target": (3, 3),
    }


def test_texts_are_cut_at_words_and_neither_empty_nor_double_nor_held_out(
    lesson: Lesson, start: LoraAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["the film was very good", "the film was bad", " ", "", "the plot was bad indeed"]
    validation = ["the film was dull", "a dull plot"]
    question = replace(lesson.question, text_chars=13)
    seen: list[list[str]] = []

    def noted(lesson: Lesson, texts: list[str], **options: Any) -> torch.Tensor:
        seen.append(texts)
        return teacher_answers(lesson, texts, **options)

    monkeypatch.setattr(generic_module, "teacher_answers", noted)
    monkeypatch.setattr(generic_module, "check_teaches", lambda *_: ())
    texts = Lines([*lines, "a scene", "A scene"], validation)
    report = QUICK.refine(start, replace(lesson, question=question, texts=texts)).report
    assert seen == [["the film was", "the plot was", "a scene", "A scene"], ["a dull plot"]]
    assert report["notes"][:2] == [
        "The corpus has 4 texts of the 24 that were asked for; all of them were used.",
        "Agreement was measured on 1 texts of the 8 that were asked for: the corpus has no more "
        "validation texts.",
    ]


def test_without_validation_texts_the_last_weights_are_kept(
    lesson: Lesson, start: LoraAdapter
) -> None:
    texts = Lines(list(Sentences().texts("train")), [])
    report = QUICK.refine(start, replace(lesson, texts=texts)).report
    assert (report["held_out"], report["kl_after"]) == (0, None)
    assert report["best_step"] == report["steps"] == 3
    assert "no held-out generic texts" in report["notes"][0]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (None, r"there is no corpus; set paths\.corpus"),
        (Lines([], []), r"the corpus has 0 training texts .* set paths\.corpus"),
        (Lines(["", " ", "a film", "a film"], []), "the corpus has 1 training texts"),
        (Lines(GOOD, []), "answers 'very good' to 100% of 40 texts"),
    ],
)
def test_texts_that_nothing_can_be_learned_from_are_refused(
    lesson: Lesson, start: LoraAdapter, texts: Lines | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        QUICK.refine(start, replace(lesson, texts=texts))


def test_question_without_labels_is_handed_over(lesson: Lesson, start: LoraAdapter) -> None:
    class Sequences(Refinement):
        information_class = "generic text"

        def refine(self, start: LoraAdapter, lesson: Lesson) -> Refined:
            return Refined(start, {"labels": len(lesson.question.labels)})

    free = replace(lesson, question=Question())
    assert replace(QUICK, sequence=Sequences()).refine(start, free) == (start, {"labels": 0})
    with pytest.raises(DataError, match=r"set prompt\.labels to the words"):
        QUICK.refine(start, free)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("texts", 0), ("pool", 0), ("held_out", -1), ("epochs", -1), ("batch_size", 0)),
        *(("lr", 0.0), ("lr", float("nan")), ("temperature", 0.0), ("checks", -1)),
    ],
)
def test_impossible_options_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"refine\.{option}={value}, but it takes"):
        replace(QUICK, **{option: value})
