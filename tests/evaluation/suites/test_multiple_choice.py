import math

import pytest
import torch

from loraport.evaluation.suites.base import Suite
from loraport.evaluation.suites.choice_likelihoods import choice_log_likelihoods, encoded_pair
from loraport.evaluation.suites.multiple_choice import ChoiceItem, MultipleChoice
from loraport.exceptions import DataError
from loraport.models import BaseModel, attached

ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"]
# Choices of one token and of many, that begin alike, that are equal, and contexts that differ.
QUESTIONS = [
    [("Which is good?", " very good"), ("Which is good?", " very bad"), ("Which is good?", " a")],
    [("a film", " b"), ("a film", " c")],
    [("the actor was a", " dull"), ("the actor was the plot", " dull")],
    [("so long a question that no window sees all of it: " * 2, " yes"), ("short", " no")],
    [("x", " same"), ("x", " same"), ("x", " same but longer")],
]


@torch.no_grad()
def one_by_one(base: BaseModel, context: str, continuation: str) -> float:
    """The likelihood from the definition: no tree, no padding, no mask, all logits."""
    begin, end = encoded_pair(base.tokenizer, context, continuation)
    tokens = torch.tensor([begin + end])
    predicted = base.network(tokens[:, :-1]).logits[0].double().log_softmax(dim=-1)
    places = range(len(begin) - 1, len(begin) + len(end) - 1)
    return float(sum(predicted[place, tokens[0, place + 1]] for place in places))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_likelihoods_are_those_of_each_text_by_itself(architecture, pico):
    base = pico(architecture)
    found = choice_log_likelihoods(base, QUESTIONS)
    for requests, values in zip(QUESTIONS, found, strict=True):
        expected = torch.tensor([one_by_one(base, *request) for request in requests])
        torch.testing.assert_close(values, expected.double(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 100, 400])
def test_neither_batches_nor_padding_change_a_number(batch_tokens, pico_target):
    together = choice_log_likelihoods(pico_target, QUESTIONS, batch_tokens=100_000)
    apart = choice_log_likelihoods(pico_target, QUESTIONS, batch_tokens=batch_tokens)
    for values, others in zip(together, apart, strict=True):
        torch.testing.assert_close(values, others, atol=1e-4, rtol=1e-5)


def test_more_logits_than_are_held_at_once_are_given(pico_target):
    questions = [[("a question", " " + letter * 200)] for letter in "abcde"]
    found = choice_log_likelihoods(pico_target, questions)
    for requests, values in zip(questions, found, strict=True):
        assert float(values) == pytest.approx(one_by_one(pico_target, *requests[0]), abs=1e-3)


def test_an_attached_adapter_takes_part(pico_target, random_adapter):
    plain = choice_log_likelihoods(pico_target, QUESTIONS)
    with attached(pico_target.network, random_adapter(pico_target)):
        adapted = choice_log_likelihoods(pico_target, QUESTIONS)
        expected = one_by_one(pico_target, *QUESTIONS[0][0])
    assert float(adapted[0][0]) == pytest.approx(expected, abs=1e-4)
    assert not torch.allclose(adapted[0], plain[0], atol=1e-2)


def test_no_question_has_no_likelihoods(pico_source):
    assert choice_log_likelihoods(pico_source, []) == []


def test_white_space_at_the_end_of_a_context_moves_to_the_continuation(pico_target):
    begin, end = encoded_pair(pico_target.tokenizer, "ab  ", "c")
    assert pico_target.tokenizer.decode(begin, skip_special_tokens=True) == "ab"
    assert pico_target.tokenizer.decode(end) == "  c"
    assert begin[0] == pico_target.tokenizer.bos_token_id


def test_a_context_that_is_too_long_loses_its_beginning(pico_target):
    limit = pico_target.network.config.max_position_embeddings
    long, kept = "x" * 600, "x" * (limit - 1)
    (found,) = choice_log_likelihoods(pico_target, [[(long, " y")]])
    tokenizer = pico_target.tokenizer
    tokens = tokenizer(kept + " y", add_special_tokens=False)["input_ids"]
    assert len(tokens) == limit + 1
    with torch.no_grad():
        logits = pico_target.network(torch.tensor([tokens[:-1]])).logits[0].log_softmax(-1)
    expected = float(logits[-2, tokens[-2]] + logits[-1, tokens[-1]])
    assert float(found) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("continuation", ["", " " + "y" * 600])
def test_a_continuation_that_cannot_be_scored_is_refused(continuation, pico_target):
    with pytest.raises(DataError, match=r"of 'a question' has \d+ tokens .* takes 1 to 512 .*"):
        choice_log_likelihoods(pico_target, [[("a question", continuation)]])


def item(context: str, choices: tuple[str, ...], answer: int) -> ChoiceItem:
    return ChoiceItem(tuple((context, f" {choice}") for choice in choices), choices, answer)


def test_a_suite_tells_what_was_chosen_and_whether_it_is_right(pico_source):
    # Likelihoods of one token each come straight from the model: the best one is planted.
    words = ("good", "bad", "dull", "neutral")
    values = [one_by_one(pico_source, "the film was", f" {word}") for word in words]
    best = values.index(max(values))
    suite = MultipleChoice(
        "planted", (item("the film was", words, best), item("the film was", words, best - 1))
    )
    assert isinstance(suite, Suite)
    assert suite.metrics == ("accuracy", "accuracy_norm", "nll")
    assert suite.prompts() == ("the film was", "the film was")
    score = suite.score(pico_source)
    assert score.answers == (words[best], words[best])
    assert score.rows["accuracy"].tolist() == [1, 0]
    normaliser = math.log(sum(math.exp(value) for value in values))
    expected = [normaliser - values[best], normaliser - values[best - 1]]
    assert score.rows["nll"].tolist() == pytest.approx(expected, abs=1e-4)
    assert score.means()["accuracy"] == 0.5


def test_lengths_are_those_of_the_choices_in_characters(pico_target):
    # The longer text of the same words is less likely, but more likely by character.
    choices = ("é", "é a film " * 4)
    values = [one_by_one(pico_target, "the film", f" {choice}") for choice in choices]
    by_length = [value / len(choice) for value, choice in zip(values, choices, strict=True)]
    assert values[0] > values[1]
    assert by_length[1] > by_length[0]
    score = MultipleChoice("norm", (item("the film", choices, 1),)).score(pico_target)
    assert (float(score.rows["accuracy"]), float(score.rows["accuracy_norm"])) == (0, 1)


def test_of_equal_choices_the_first_is_taken(pico_target):
    choices = ("very good", "very good", "very good")
    for answer, right in ((0, 1.0), (1, 0.0), (2, 0.0)):
        score = MultipleChoice("ties", (item("a film", choices, answer),)).score(pico_target)
        assert float(score.rows["accuracy"]) == right
        assert float(score.rows["accuracy_norm"]) == right


def test_what_stands_behind_a_blank_is_scored_given_what_fills_it(pico_target):
    requests = (("so the film", " was bad"), ("so the actor", " was bad"))
    suite = MultipleChoice("blank", (ChoiceItem(requests, ("film", "actor"), 0),))
    assert suite.metrics == ("accuracy", "nll")
    values = [one_by_one(pico_target, *request) for request in requests]
    score = suite.score(pico_target)
    assert set(score.rows) == {"accuracy", "nll"}
    assert score.answers == (("film", "actor")[values.index(max(values))],)
    assert suite.prompts() == ("so the film",)


def test_the_hash_is_of_the_questions_and_not_of_the_batches():
    one = item("a film", ("good", "bad"), 0)
    suite = MultipleChoice("x", (one,))
    assert suite.content_hash() == MultipleChoice("x", (one,), batch_tokens=3).content_hash()
    others = [
        item("a film", ("good", "bad"), 1),
        item("a plot", ("good", "bad"), 0),
        item("a film", ("good", "dull"), 0),
        ChoiceItem(one.requests, ("god", "bad"), 0),
    ]
    hashes = {MultipleChoice("x", (other,)).content_hash() for other in [one, *others]}
    assert len(hashes) == 5
