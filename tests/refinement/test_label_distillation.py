from collections.abc import Callable
from contextlib import closing

import pytest
import torch

from loraport.adapters import LoraAdapter
from loraport.data.answers import answer_tokens
from loraport.data.question import Question
from loraport.exceptions import DataError
from loraport.models import BaseModel, attached
from loraport.refinement.label_distillation import LabelStudent, SoftBatch

from .conftest import Sentences

TEXTS = list(Sentences().texts("train"))[:10]
TARGETS = torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]] * 5)


@pytest.mark.parametrize(
    "labels", [("very good", "very bad", "neutral"), ("a", "b", "ab"), ("x", "xy", "xyz")]
)
def test_loss_is_the_cross_entropy_of_whole_labels(
    pico_target: BaseModel, random_adapter: Callable[..., LoraAdapter], labels: tuple[str, ...]
) -> None:
    question = Question("{text}\n?", labels)
    start = random_adapter(pico_target)
    tokens = list(answer_tokens(pico_target.tokenizer, question).values())
    prompts = pico_target.tokenizer([question.ask(text) for text in TEXTS[:2]])["input_ids"]
    expected = 0.0
    for prompt, target in zip(prompts, TARGETS, strict=False):
        for label, weight in zip(tokens, target.tolist(), strict=True):
            ids = torch.tensor([prompt + label])
            with attached(pico_target.network, start), torch.inference_mode():
                steps = pico_target.network(input_ids=ids).logits[0, len(prompt) - 1 : -1]
            chosen = steps.log_softmax(dim=-1).gather(1, torch.tensor(label)[:, None])
            expected -= weight * float(chosen.sum()) / 2
    with closing(LabelStudent(pico_target, start, question)) as student:
        found = student.loss(SoftBatch(prompts, TARGETS[:2]))
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)


def test_batches_keep_texts_and_targets_together(
    pico_target: BaseModel, question: Question, nothing: Callable[..., LoraAdapter]
) -> None:
    targets = torch.arange(30.0).reshape(10, 3)
    with closing(LabelStudent(pico_target, nothing(pico_target), question)) as student:
        batches = student.batches(TEXTS, targets, batch_size=4, epochs=2, seed=0)
    assert [len(batch.prompts) for batch in batches[:3]].count(4) == 2
    expected = {
        tuple(ids): row
        for ids, row in zip(
            pico_target.tokenizer(TEXTS)["input_ids"], targets.tolist(), strict=True
        )
    }
    for batch in batches:
        for prompt, row in zip(batch.prompts, batch.targets.tolist(), strict=True):
            assert expected[tuple(prompt)] == row
    assert sum(len(batch.prompts) for batch in batches) == 20


def test_labels_that_the_target_cannot_tell_apart_leave_it_alone(
    pico_source: BaseModel, nothing: Callable[..., LoraAdapter]
) -> None:
    modules = list(pico_source.network.modules())
    with pytest.raises(DataError, match="are the same tokens for pico/source"):
        LabelStudent(pico_source, nothing(pico_source), Question("{text}", ("sublime", "lousy")))
    assert list(pico_source.network.modules()) == modules
