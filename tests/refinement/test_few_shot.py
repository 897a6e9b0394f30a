from dataclasses import replace

import pytest
import torch

from loraport.adapters import LoraAdapter
from loraport.data.question import Question
from loraport.data.tasks import Example
from loraport.exceptions import ConfigurationError, DataError
from loraport.models import BaseModel
from loraport.refinement.base import Lesson, Teacher
from loraport.refinement.few_shot import FewShot
from loraport.refinement.label_teacher import label_distributions

from .conftest import Sentences

QUICK = FewShot(generic=16, pool=24, repeats=2, held_out=8, lr=0.01)
EXAMPLES = (
    Example("the film was very good", "very good"),
    Example("the plot was dull", "neutral"),
    # The teacher says otherwise.
    Example("the actor was good", "neutral"),
)


@pytest.fixture
def lesson(word_teacher: Teacher, pico_target: BaseModel, question: Question) -> Lesson:
    return Lesson(word_teacher, pico_target, question, Sentences(), examples=EXAMPLES)


def test_examples_are_learned_by_their_labels_beside_generic_texts(lesson: Lesson) -> None:
    exercises = QUICK.exercises(lesson)
    assert exercises.texts[:6] == tuple(row.text for row in EXAMPLES) * 2
    assert len(exercises.texts) == 6 + 16
    labels = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 0, 1]])
    assert torch.equal(exercises.targets[:6], labels.repeat(2, 1))
    assert exercises.report["example_labels"] == {"very good": 1, "very bad": 0, "neutral": 2}
    assert exercises.notes == ("No example is labelled 'very bad'.",)


def test_teacher_has_its_share_in_the_targets(lesson: Lesson) -> None:
    own = replace(QUICK, generic=0, repeats=1)
    teacher = label_distributions(lesson.teacher, lesson.question, [e.text for e in EXAMPLES])
    hard = own.exercises(lesson).targets
    mixed = replace(own, teacher_weight=0.25).exercises(lesson).targets
    torch.testing.assert_close(mixed, 0.75 * hard + 0.25 * teacher)


def test_examples_that_contradict_the_teacher_are_still_learned(
    lesson: Lesson, start: LoraAdapter
) -> None:
    adapter, report = replace(QUICK, generic=0, repeats=48).refine(start, lesson)
    assert adapter.norm() > 0
    assert (report["best_step"], report["checks"]) == (report["steps"], {})
    assert report["kl_before"] is not None
    assert report["kl_after"] != report["kl_before"]
    assert report["loss_last"] < 0.7 * report["loss_first"]


def test_no_corpus_is_needed(lesson: Lesson, start: LoraAdapter) -> None:
    report = QUICK.refine(start, replace(lesson, texts=None)).report
    assert (report["examples"], report["steps"], report["held_out"]) == (3, 1, 0)


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ((), "there are none; give examples=FILE"),
        (
            (*EXAMPLES, Example("a film", "so so")),
            "labelled 'so so', but the labels are 'very good'",
        ),
        ((*EXAMPLES, Example(" ", "neutral")), "1 of 4 examples have no text"),
    ],
)
def test_examples_that_cannot_be_learned_from_are_refused(
    lesson: Lesson, start: LoraAdapter, examples: tuple[Example, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        QUICK.refine(start, replace(lesson, examples=examples))


def test_impossible_weight_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"refine\.teacher_weight=1.5, but it takes"):
        FewShot(teacher_weight=1.5)
