"""Questions: what is asked of a text, and what is refused."""

import pytest

from loraport.data.question import Question
from loraport.data.tasks import PromptTemplate, Task
from loraport.exceptions import DataError


def test_task_and_question_ask_and_answer_alike(pico_task: Task) -> None:
    template = PromptTemplate("{text} - {instruction}", completion=": {label}", text_chars=4)
    question = Question.of(pico_task, template)
    assert question.ask("a {b} text") == template.ask(pico_task, "a {b} text")
    assert question.answer("good") == template.answer("good") == ": good"
    assert question.labels == pico_task.labels


def test_without_template_the_text_itself_is_asked() -> None:
    assert Question().ask("some text") == "some text"
    assert Question().labels == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "Is it good?"}, r"has no \{text\}"),
        ({"completion": "yes"}, r"has no \{label\}"),
        ({"labels": ("good",)}, "at least two different words"),
        ({"labels": ("good", " ")}, "at least two different words"),
        ({"labels": ("good", "bad", "good")}, "name good twice"),
    ],
)
def test_questions_that_ask_nothing_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Question(**options)  # type: ignore[arg-type]
