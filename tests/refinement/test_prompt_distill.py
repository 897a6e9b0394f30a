from dataclasses import replace
from typing import Any

import pytest

from loraport.adapters import LoraAdapter
from loraport.data.question import Question
from loraport.exceptions import ConfigurationError, DataError
from loraport.models import BaseModel
from loraport.refinement.base import Lesson, Teacher
from loraport.refinement.prompt_distill import PromptDistill

from .conftest import Lines, Sentences

QUICK = PromptDistill(generic=16, pool=24, repeats=3, held_out=8, lr=0.01)
INPUTS = ("the film was very good", "a dull plot was dull", "", "the film was very good", "so bad")


@pytest.fixture
def lesson(word_teacher: Teacher, pico_target: BaseModel, question: Question) -> Lesson:
    return Lesson(word_teacher, pico_target, question, Sentences(), inputs=INPUTS)


def test_inputs_weigh_as_often_as_they_are_repeated_beside_generic_texts(lesson: Lesson) -> None:
    exercises = QUICK.exercises(lesson)
    own = {"the film was very good", "a dull plot was dull", "so bad"}
    assert len(exercises.texts) == 3 * 3 + 16
    assert {text: exercises.texts.count(text) for text in own} == dict.fromkeys(own, 3)
    tops = dict(zip(exercises.texts, exercises.targets.argmax(dim=1).tolist(), strict=True))
    assert [lesson.question.labels[tops[text]] for text in INPUTS[:2]] == ["very good", "neutral"]
    assert exercises.report["inputs"] == 3
    assert exercises.report["generic_texts"] == 16


def test_inputs_alone_are_learned_where_there_is_nothing_else(
    lesson: Lesson, start: LoraAdapter
) -> None:
    for alone in (replace(lesson, texts=None), lesson):
        distill = replace(QUICK, generic=0)
        exercises = distill.exercises(alone)
        assert len(exercises.texts) == 9
    adapter, report = QUICK.refine(start, replace(lesson, texts=None))
    assert adapter.norm() > 0
    assert (report["texts"], report["steps"], report["held_out"]) == (3, 2, 0)
    assert "no held-out generic texts" in report["notes"][0]


def test_what_is_learned_from_inputs_is_their_answers(lesson: Lesson, start: LoraAdapter) -> None:
    inputs = tuple(list(Sentences().texts("train"))[:24])
    distill = PromptDistill(generic=0, repeats=8, lr=0.01)
    report = distill.refine(start, replace(lesson, inputs=inputs, texts=None)).report
    assert (report["inputs"], report["steps"]) == (24, 24)
    assert report["loss_last"] < 0.5 * report["loss_first"]


@pytest.mark.parametrize("inputs", [(), ("", "  ")])
def test_no_inputs_are_refused(lesson: Lesson, start: LoraAdapter, inputs: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match=rf"got {len(inputs)}, .* choose refine=corpus_distill"):
        QUICK.refine(start, replace(lesson, inputs=inputs))


def test_inputs_that_all_get_one_answer_need_others_beside_them(
    lesson: Lesson, start: LoraAdapter
) -> None:
    alike = replace(lesson, inputs=("the film was very good", "the plot was very good"))
    assert QUICK.exercises(alike).report["inputs"] == 2
    with pytest.raises(DataError, match="answers 'very good' to 100% of 2 texts"):
        QUICK.refine(start, replace(alike, texts=None))


def test_corpus_without_texts_is_told_of(lesson: Lesson) -> None:
    with pytest.raises(DataError, match="the corpus has 0 training texts"):
        QUICK.exercises(replace(lesson, texts=Lines([], [])))


@pytest.mark.parametrize(("option", "value"), [("generic", -1), ("repeats", 0)])
def test_impossible_options_are_refused(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"refine\.{option}={value}, but it takes"):
        replace(QUICK, **{option: value})
