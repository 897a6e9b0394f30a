import copy

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
    learned_answers,
    prompt_tokens,
    scoring_rule,
    seeded_batches,
)
from loraport.data.tasks import Example, PromptTemplate
from loraport.exceptions import DataError
from loraport.models import BaseModel


def test_a_spec_fills_in_instruction_text_and_label(pico_task):
    template = PromptTemplate("{text} - {instruction}", completion=": {label}", text_chars=5)
    spec = PromptSpec.of(pico_task, template)
    assert spec.ask("a {b} text") == "a {b} - Which feeling?"
    assert spec.answer("good") == ": good"
    assert spec.labels == pico_task.labels
    assert PromptSpec().ask("some text") == "some text"


def test_all_answers_end_at_the_last_position_behind_padding_on_the_left():
    batch = collate([TokenizedAnswer([5, 6, 7], [8]), TokenizedAnswer([9], [10, 11, 12])], 0)
    assert batch.input_ids.tolist() == [[5, 6, 7], [9, 10, 11]]
    assert batch.targets.tolist() == [[NOT_ASKED, NOT_ASKED, 8], [10, 11, 12]]
    assert batch.answer_tokens == 3
    batch = collate([TokenizedAnswer([5, 6, 7], [8]), TokenizedAnswer([9], [10])], 0)
    assert batch.input_ids.tolist() == [[5, 6, 7], [0, 0, 9]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 0, 0]]


@pytest.mark.parametrize("side", ["pico_source", "pico_target"])
def test_prompt_and_answer_are_the_tokens_of_the_whole_text(side, pico_task, template, request):
    base: BaseModel = request.getfixturevalue(side)
    row, spec = pico_task.train[0], PromptSpec.of(pico_task, template)
    prompt = prompt_tokens(base.tokenizer, spec, [row.text])[0]
    answer = answer_tokens(base.tokenizer, spec)[row.label]
    whole = spec.ask(row.text) + spec.answer(row.label)
    assert prompt + answer == base.tokenizer(whole)["input_ids"]
    assert (prompt[0] == 1) == (side == "pico_target"), "BOS once, for the target alone"
    assert 1 not in answer


def test_completion_that_would_share_a_token_is_tokenised_by_itself(pico_source):
    merged = PromptSpec("{text} Which feeling some", ("good", "bad"), "what{label}")
    answers = answer_tokens(pico_source.tokenizer, merged)
    unknown = pico_source.tokenizer.unk_token_id
    assert answers == {"good": [unknown], "bad": [unknown]}


def test_an_answer_that_begins_another_is_learned_with_its_end(pico_source):
    tokenizer = pico_source.tokenizer
    spec = PromptSpec(labels=("good", "good bad", "dull"))
    plain, learned = answer_tokens(tokenizer, spec), learned_answers(tokenizer, spec)
    assert learned["good"] == [*plain["good"], tokenizer.eos_token_id]
    assert {**learned, "good": plain["good"]} == plain
    apart = PromptSpec(labels=("good", "bad good", "dull"))
    assert learned_answers(tokenizer, apart) == answer_tokens(tokenizer, apart)
    endless = copy.deepcopy(tokenizer)
    endless.eos_token = None
    with pytest.raises(DataError, match=r"'good' begins another one.* no end token"):
        learned_answers(endless, spec)


@pytest.mark.parametrize(
    ("labels", "applies"),
    [
        (("new", "new york"), True),
        (("New York", "new"), True),
        (("good", "good enough", "bad"), True),
        (("old", "new", "york new"), False),
        (("good", "bad"), False),
        ((), False),
    ],
)
def test_keys_of_scores_say_where_labels_begin_others(labels, applies):
    assert bool(scoring_rule(labels)) == applies


def test_class_balanced_takes_the_labels_in_turn():
    rows = [Example(str(place), label) for place, label in enumerate("aaaabbc")]
    chosen = class_balanced(rows, ("a", "b", "c"), 6)
    assert [row.text for row in chosen] == ["0", "4", "6", "1", "5", "2"]
    assert len(class_balanced(rows, ("a", "b", "c"), 100)) == 7


def test_examples_hold_the_chosen_rows(pico_source, pico_task, template):
    first = AnswerExamples(pico_task, template, pico_source.tokenizer, examples=5, balanced=False)
    texts = [row.text for row in pico_task.train[:5]]
    spec = PromptSpec.of(pico_task, template)
    assert [row.prompt for row in first.rows] == prompt_tokens(pico_source.tokenizer, spec, texts)
    assert len(AnswerExamples(pico_task, template, pico_source.tokenizer).rows) == 48
    assert next(iter(first.train_dataloader())).input_ids.shape[0] == 5


LENGTHS = [(7 * place) % 41 + 1 for place in range(150)]


def test_each_epoch_holds_every_row_once_in_another_seeded_order():
    batches = seeded_batches(LENGTHS, batch_size=4, epochs=2, seed=1)
    assert [len(batch) for batch in batches].count(4) == 2 * 37
    first, second = batches[:38], batches[38:]
    for epoch in (first, second):
        assert sorted(place for batch in epoch for place in batch) == list(range(150))
    assert first != second
    assert seeded_batches(LENGTHS, batch_size=4, epochs=2, seed=1) == batches
    assert seeded_batches(LENGTHS, batch_size=4, epochs=2, seed=2) != batches
    assert seeded_batches(LENGTHS, batch_size=4, epochs=0, seed=1) == []
    assert seeded_batches([], batch_size=4, epochs=1, seed=1) == []


def test_buckets_are_those_batches_a_new_epoch_each_pass():
    rows = [TokenizedAnswer([place] * length, [0]) for place, length in enumerate(LENGTHS)]
    buckets = LengthBuckets(rows, batch_size=4, pad_token=999, seed=1)
    passes = [batch.input_ids[:, -1].tolist() for _ in range(2) for batch in buckets]
    assert passes == seeded_batches(LENGTHS, batch_size=4, epochs=2, seed=1)
    assert len(buckets) == 38


def test_rows_are_sorted_within_a_window_only():
    order = torch.randperm(200, generator=torch.Generator().manual_seed(4)).tolist()
    batches = [
        [order[row] for row in batch]
        for batch in seeded_batches(order, batch_size=4, epochs=1, seed=3)
    ]
    spreads = [max(batch) - min(batch) for batch in batches]
    # Neighbours of all rows sorted would be 3 apart; of random rows about 120.
    assert 3 < sum(spreads) / len(spreads) < 40
    firsts = [batch[0] for batch in batches]
    assert firsts != sorted(firsts), "the order of the batches carries no trend"


def test_texts_that_are_cut_are_told_once(pico_source, caplog, monkeypatch):
    monkeypatch.setattr("loraport.data.prompts._said", set())
    spec = PromptSpec("{text}", ("good", "bad"), text_chars=8)
    with caplog.at_level("INFO"):
        for _ in range(2):
            tokens = prompt_tokens(pico_source.tokenizer, spec, ["the film", "the film is bad"])
    assert tokens[0] == tokens[1]
    [record] = caplog.records
    assert record.getMessage() == "prompt.text_chars=8 cuts 1 of 2 texts, here and later"
