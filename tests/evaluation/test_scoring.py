from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from loraport.adapters import LoraAdapter
from loraport.data.answers import answer_tokens, prompt_tokens
from loraport.data.question import Question
from loraport.data.tasks import Example, PromptTemplate, Task
from loraport.evaluation.scoring import (
    GenerateScorer,
    LikelihoodScorer,
    TaskScore,
    prefix_label,
)
from loraport.exceptions import DataError
from loraport.models import ARCHITECTURES, BaseModel, attached
from loraport.models.label_likelihoods import length_batches


def naive(base: BaseModel, task: Task, template: PromptTemplate) -> Tensor:
    """Each label's log-likelihood by a forward pass of its own over the whole sequence."""
    answers = answer_tokens(base.tokenizer, Question.of(task, template))
    prompts = prompt_tokens(
        base.tokenizer, Question.of(task, template), [row.text for row in task.test]
    )
    scores = torch.empty(len(prompts), len(task.labels))
    for row, prompt in enumerate(prompts):
        for column, label in enumerate(task.labels):
            ids = torch.tensor([prompt + answers[label]])
            with torch.inference_mode():
                logits = base.network(input_ids=ids, use_cache=False).logits[0, :-1]
            chosen = logits.log_softmax(dim=-1).gather(1, ids[0, 1:, None]).squeeze(1)
            scores[row, column] = chosen[len(prompt) - 1 :].sum()
    return scores


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_likelihoods_equal_those_of_a_pass_for_each_label(
    architecture: str,
    pico: Callable[[str], BaseModel],
    random_adapter: Callable[..., LoraAdapter],
    pico_task: Task,
    template: PromptTemplate,
) -> None:
    base = pico(architecture)
    window_cuts = len(base.tokenizer(template.ask(pico_task, ""))["input_ids"])
    assert window_cuts > (getattr(base.network.config, "sliding_window", None) or 0)
    for adapter in (None, random_adapter(base)):
        with attached(base.network, adapter):
            ours = LikelihoodScorer().log_likelihoods(base, pico_task, template)
            expected = naive(base, pico_task, template)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)
    assert expected.std(dim=1).min() > 0.01


def test_labels_of_one_token_are_exact_too(
    pico_source: BaseModel, pico_task: Task, template: PromptTemplate
) -> None:
    rows = tuple(Example(row.text, "good") for row in pico_task.test)
    task = replace(pico_task, labels=("good", "bad", "dull"), train=(), test=rows)
    ours = LikelihoodScorer().log_likelihoods(pico_source, task, template)
    expected = naive(pico_source, task, template)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("batch_tokens", [1, 150, 700])
def test_batches_and_padding_do_not_change_scores(
    batch_tokens: int, pico_target: BaseModel, pico_task: Task, template: PromptTemplate
) -> None:
    whole = LikelihoodScorer(10**6).log_likelihoods(pico_target, pico_task, template)
    parts = LikelihoodScorer(batch_tokens).log_likelihoods(pico_target, pico_task, template)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-4)


def test_score_is_the_best_label_and_the_share_of_the_right_one(
    pico_target: BaseModel, pico_task: Task, template: PromptTemplate
) -> None:
    score = LikelihoodScorer().score(pico_target, pico_task, template)
    expected = naive(pico_target, pico_task, template)
    best = [pico_task.labels[place] for place in expected.argmax(dim=1).tolist()]
    right = [row.label for row in pico_task.test]
    assert score.predictions == tuple(best)
    assert score.correct.tolist() == [a == b for a, b in zip(best, right, strict=True)]
    share = expected.softmax(dim=1)[range(len(right)), [pico_task.labels.index(x) for x in right]]
    assert score.row_nll is not None
    torch.testing.assert_close(score.row_nll, -share.log(), rtol=1e-4, atol=1e-4)
    assert score.nll == pytest.approx(float(-share.log().mean()), abs=1e-4)


def test_accuracy_counts_the_right_rows() -> None:
    score = TaskScore(("a", "b", "", "a"), torch.tensor([True, False, False, False]))
    assert score.accuracy == 0.25
    assert score.nll is None


def test_batches_keep_to_both_limits_and_hold_every_row_once() -> None:
    lengths = [3, 50, 7, 7, 8, 2, 9]
    batches = list(length_batches(lengths, tokens=20, rows=3))
    assert sorted(place for batch in batches for place in batch) == list(range(7))
    assert batches[0] == [1], "a row above the limit goes alone"
    for batch in batches[1:]:
        assert len(batch) <= 3
        assert len(batch) * max(lengths[place] for place in batch) <= 20


@pytest.mark.parametrize("side", ["pico_source", "pico_target"])
@pytest.mark.parametrize("batch_tokens", [1, 10**6])
def test_generation_follows_the_most_likely_token(
    side: str,
    batch_tokens: int,
    pico_task: Task,
    template: PromptTemplate,
    request: pytest.FixtureRequest,
) -> None:
    base: BaseModel = request.getfixturevalue(side)
    longest = max(
        len(a) for a in answer_tokens(base.tokenizer, Question.of(pico_task, template)).values()
    )
    prompts = prompt_tokens(
        base.tokenizer, Question.of(pico_task, template), [row.text for row in pico_task.test]
    )
    written = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        for _ in range(longest):
            with torch.inference_mode():
                best = base.network(input_ids=ids, use_cache=False).logits[0, -1].argmax()
            if best == base.tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, best.view(1, 1)], dim=1)
        text = base.tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True)
        written.append(str(text))
    # Labels that the model does write, so that there is something to recognise.
    begun = sorted({text.strip()[:2].strip() for text in written if text.strip()})
    labels = (*begun, "never written")
    task = replace(
        pico_task,
        labels=labels,
        train=(),
        test=tuple(Example(row.text, labels[0]) for row in pico_task.test),
    )
    score = GenerateScorer(batch_tokens).score(base, task, template)
    assert score.predictions == tuple(prefix_label(text, labels) for text in written)
    assert any(score.predictions)
    assert score.row_nll is None


@pytest.mark.parametrize(
    ("text", "label"),
    [(" very good film", "very good"), ("\n neutral", "neutral"), ("so very good", ""), ("", "")],
)
def test_prefix_label(text: str, label: str) -> None:
    assert prefix_label(text, ("very good", "very bad", "neutral")) == label


@pytest.mark.parametrize("scorer", [LikelihoodScorer(), GenerateScorer()])
def test_task_without_test_rows_is_refused(
    scorer: LikelihoodScorer | GenerateScorer,
    pico_source: BaseModel,
    pico_task: Task,
    template: PromptTemplate,
) -> None:
    with pytest.raises(DataError, match=r"feeling has no test row.*tasks\.limit"):
        scorer.score(pico_source, replace(pico_task, test=()), template)
