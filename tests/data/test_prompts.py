import pytest
import torch

from loraport.data.prompts import (
    NOT_ASKED,
    AnswerExamples,
    LengthBuckets,
    PromptSpec,
    TokenizedAnswer,
    answer_tokens,
    class_balanced,
    collate,
    prompt_tokens,
    seeded_batches,
)
from loraport.data.tasks import Example, PromptTemplate, Task
from loraport.exceptions import DataError
from loraport.models import BaseModel


def test_task_and_question_ask_and_answer_alike(pico_task: Task) -> None:
    template = PromptTemplate("{text} - {instruction}", completion=": {label}", text_chars=4)
    question = PromptSpec.of(pico_task, template)
    assert question.ask("a {b} text") == template.ask(pico_task, "a {b} text")
    assert question.answer("good") == template.answer("good") == ": good"
    assert question.labels == pico_task.labels


def test_without_template_the_text_itself_is_asked() -> None:
    assert PromptSpec().ask("some text") == "some text"
    assert PromptSpec().labels == ()


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
        PromptSpec(**options)  # type: ignore[arg-type]


def test_all_answers_end_at_the_last_position() -> None:
    batch = collate([TokenizedAnswer([5, 6, 7], [8]), TokenizedAnswer([9], [10, 11, 12])], 0)
    assert batch.input_ids.tolist() == [[5, 6, 7], [9, 10, 11]]
    assert batch.targets.tolist() == [[NOT_ASKED, NOT_ASKED, 8], [10, 11, 12]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert batch.answer_tokens == 3


def test_shorter_rows_are_padded_on_the_left_and_count_their_own_positions() -> None:
    batch = collate([TokenizedAnswer([5, 6, 7], [8]), TokenizedAnswer([9], [10])], 0)
    assert batch.input_ids.tolist() == [[5, 6, 7], [0, 0, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 0]]


@pytest.mark.parametrize("side", ["pico_source", "pico_target"])
def test_prompt_and_answer_are_the_tokens_of_the_whole_text(
    side: str, pico_task: Task, template: PromptTemplate, request: pytest.FixtureRequest
) -> None:
    base: BaseModel = request.getfixturevalue(side)
    row = pico_task.train[0]
    prompt = prompt_tokens(base.tokenizer, PromptSpec.of(pico_task, template), [row.text])[0]
    answer = answer_tokens(base.tokenizer, PromptSpec.of(pico_task, template))[row.label]
    whole = template.ask(pico_task, row.text) + template.answer(row.label)
    assert prompt + answer == base.tokenizer(whole)["input_ids"]
    assert (prompt[0] == 1) == (side == "pico_target"), "BOS once, for the target alone"
    assert 1 not in answer


def test_completion_that_would_share_a_token_is_tokenised_by_itself(
    pico_source: BaseModel,
) -> None:
    merged = PromptSpec("{text} Which feeling some", ("good", "bad"), "what{label}")
    answers = answer_tokens(pico_source.tokenizer, merged)
    unknown = pico_source.tokenizer.unk_token_id
    assert answers == {"good": [unknown], "bad": [unknown]}


def test_class_balanced_takes_the_labels_in_turn() -> None:
    rows = [Example(str(place), label) for place, label in enumerate("aaaabbc")]
    chosen = class_balanced(rows, ("a", "b", "c"), 6)
    assert [row.text for row in chosen] == ["0", "4", "6", "1", "5", "2"]
    assert len(class_balanced(rows, ("a", "b", "c"), 100)) == 7


def test_a_pass_has_every_row_once_in_batches_of_like_length() -> None:
    lengths = torch.randperm(37, generator=torch.Generator().manual_seed(4)).tolist()
    rows = [TokenizedAnswer([length] * (length + 1), [99]) for length in lengths]
    buckets = LengthBuckets(rows, batch_size=8, pad_token=0, seed=3)
    batches = list(buckets)
    assert len(batches) == len(buckets) == 5
    seen = sorted(row for batch in batches for row in batch.input_ids[:, -1].tolist())
    assert seen == list(range(37))
    spread = [int(batch.input_ids[:, -1].max() - batch.input_ids[:, -1].min()) for batch in batches]
    assert max(spread) == 7
    widths = [batch.input_ids.shape[1] for batch in batches]
    assert widths != sorted(widths), "the order of the batches carries no trend"


def test_rows_are_sorted_within_a_window_only() -> None:
    rows = [TokenizedAnswer([1] * (1 + place), [place]) for place in range(200)]
    batches = list(LengthBuckets(rows, batch_size=4, pad_token=0, seed=3))
    spreads = [int(b.targets.max() - b.targets.min()) for b in batches]
    # Neighbours of all rows sorted would be 3 apart; of random rows about 120.
    assert 3 < sum(spreads) / len(spreads) < 40


def test_passes_are_determined_by_the_seed_and_differ_from_each_other() -> None:
    rows = [TokenizedAnswer([place] * 4, [99]) for place in range(20)]

    def passes(seed: int) -> list[list[list[int]]]:
        buckets = LengthBuckets(rows, batch_size=4, pad_token=0, seed=seed)
        return [[batch.input_ids[:, 0].tolist() for batch in buckets] for _ in range(2)]

    assert passes(0) == passes(0)
    assert passes(0) != passes(1)
    first, second = passes(0)
    assert first != second


def test_examples_hold_the_chosen_rows(
    pico_source: BaseModel, pico_task: Task, template: PromptTemplate
) -> None:
    first = AnswerExamples(pico_task, template, pico_source.tokenizer, examples=5, balanced=False)
    prompts = prompt_tokens(
        pico_source.tokenizer,
        PromptSpec.of(pico_task, template),
        [row.text for row in pico_task.train[:5]],
    )
    assert [row.prompt for row in first.rows] == prompts
    assert len(AnswerExamples(pico_task, template, pico_source.tokenizer).rows) == 48
    batch = next(iter(first.train_dataloader()))
    assert batch.input_ids.shape[0] == 5


LENGTHS = [(7 * place) % 41 + 1 for place in range(150)]


def test_each_epoch_holds_every_row_once_in_another_order() -> None:
    batches = seeded_batches(LENGTHS, batch_size=4, epochs=2, seed=1)
    assert [len(batch) for batch in batches].count(4) == 2 * 37
    first, second = batches[:38], batches[38:]
    for epoch in (first, second):
        assert sorted(place for batch in epoch for place in batch) == list(range(150))
    assert first != second


def test_rows_of_like_length_are_together_as_in_the_training_of_anchors() -> None:
    rows = [TokenizedAnswer([place] * length, [0]) for place, length in enumerate(LENGTHS)]
    buckets = LengthBuckets(rows, batch_size=4, pad_token=999, seed=1)
    expected = [batch.input_ids[:, -1].tolist() for batch in buckets]
    assert seeded_batches(LENGTHS, batch_size=4, epochs=1, seed=1) == expected


def test_nothing_makes_no_batches() -> None:
    assert seeded_batches(LENGTHS, batch_size=4, epochs=0, seed=1) == []
    assert seeded_batches([], batch_size=4, epochs=1, seed=1) == []
