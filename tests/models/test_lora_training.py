from contextlib import closing
from dataclasses import replace

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn

from loraport.adapters import LoraAdapter, Role
from loraport.data.prompts import AnswerExamples
from loraport.data.tasks import Example, PromptTemplate, Task
from loraport.evaluation.scoring import GenerateScorer, LikelihoodScorer
from loraport.models import BaseModel, LoraFineTuning, attached


def trainer(epochs: int = 1) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
    )


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(left: LoraAdapter, right: LoraAdapter) -> bool:
    return left.content_hash() == right.content_hash()


@pytest.fixture
def examples(pico_source: BaseModel, pico_task: Task, template: PromptTemplate) -> AnswerExamples:
    return AnswerExamples(pico_task, template, pico_source.tokenizer, batch_size=8)


def test_learns_the_task(
    pico_source: BaseModel, examples: AnswerExamples, pico_task: Task, template: PromptTemplate
) -> None:
    before = LikelihoodScorer().score(pico_source, pico_task, template)
    with closing(LoraFineTuning(pico_source, lr=0.01, roles=tuple(Role))) as tuning:
        trainer(epochs=10).fit(tuning, examples)
        adapter = tuning.adapter()
    with attached(pico_source.network, adapter):
        after = LikelihoodScorer().score(pico_source, pico_task, template)
    assert before.accuracy < 0.7
    assert after.accuracy == 1.0
    assert after.nll is not None
    assert after.nll < 0.2


def test_base_network_is_itself_again_and_the_adapter_is_what_was_trained(
    pico_target: BaseModel, pico_task: Task, template: PromptTemplate
) -> None:
    examples = AnswerExamples(pico_task, template, pico_target.tokenizer, examples=16)
    ids = torch.arange(2, 14)[None]
    before, modules = weights(pico_target.network), list(pico_target.network.modules())
    with closing(LoraFineTuning(pico_target, rank=4, alpha=12)) as tuning:
        trainer().fit(tuning, examples)
        adapter = tuning.adapter()
        with torch.inference_mode():
            trained = pico_target.network(input_ids=ids).logits
    after = weights(pico_target.network)
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert list(pico_target.network.modules()) == modules
    assert not pico_target.network.training
    assert not any(parameter.requires_grad for parameter in pico_target.network.parameters())
    assert not hasattr(pico_target.network, "peft_config")
    with attached(pico_target.network, adapter), torch.inference_mode():
        torch.testing.assert_close(pico_target.network(input_ids=ids).logits, trained)
    assert any((update.B != 0).any() for update in adapter.values())
    assert adapter.base_model == "pico/target"
    assert {(update.rank, update.scale) for update in adapter.values()} == {(4, 3.0)}
    assert adapter.roles == (Role.Q, Role.V)


def test_same_seeds_give_the_same_adapter_bit_for_bit(
    pico_source: BaseModel, pico_task: Task, template: PromptTemplate
) -> None:
    def trained(seed: int) -> LoraAdapter:
        rows = AnswerExamples(pico_task, template, pico_source.tokenizer, examples=16, seed=seed)
        with closing(LoraFineTuning(pico_source)) as tuning:
            trainer().fit(tuning, rows)
            return tuning.adapter()

    torch.manual_seed(1)
    first = trained(0)
    torch.manual_seed(2)
    assert same(first, trained(0))
    assert not same(first, trained(1))


def test_adapters_of_one_base_start_from_the_same_a_and_from_nothing(
    pico_source: BaseModel,
) -> None:
    def start(init_seed: int) -> LoraAdapter:
        with closing(LoraFineTuning(pico_source, init_seed=init_seed)) as tuning:
            return tuning.adapter()

    state = torch.get_rng_state()
    first, again, other = start(0), start(0), start(1)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not touched"
    assert same(first, again)
    assert not same(first, other)
    for update in first.values():
        assert (update.B == 0).all()
        assert 0.9 / 32**0.5 < float(update.A.abs().max()) <= 1 / 32**0.5


def test_loss_is_the_mean_over_the_tokens_of_the_answers(
    pico_source: BaseModel, pico_task: Task, template: PromptTemplate
) -> None:
    examples = AnswerExamples(pico_task, template, pico_source.tokenizer, examples=6, batch_size=6)
    log_likelihoods, tokens = 0.0, 0
    for row in examples.rows:
        ids = torch.tensor([row.prompt + row.answer])
        with torch.inference_mode():
            steps = pico_source.network(input_ids=ids).logits[0, :-1].log_softmax(dim=-1)
        chosen = steps.gather(1, ids[0, 1:, None])[len(row.prompt) - 1 :]
        log_likelihoods += float(chosen.sum())
        tokens += len(row.answer)
    batch = next(iter(examples.train_dataloader()))
    with closing(LoraFineTuning(pico_source)) as tuning:
        loss = tuning.training_step(batch, 0)
    assert float(loss.detach()) == pytest.approx(-log_likelihoods / tokens, rel=1e-5)


def test_learning_rate_warms_up_and_falls_to_zero(
    pico_source: BaseModel, examples: AnswerExamples
) -> None:
    rates: list[float] = []

    class Recorded(LoraFineTuning):
        def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
            rates.append(optimizer.param_groups[0]["lr"])

    with closing(Recorded(pico_source, lr=1.0, warmup_steps=2)) as tuning:
        trainer().fit(tuning, examples)
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.75, 0.5, 0.25])


def test_a_label_that_begins_another_is_told_from_it(
    pico_source: BaseModel, pico_task: Task, template: PromptTemplate
) -> None:
    """Trained with an end, and scored as an answer that does not go on; else it always wins."""
    names = {"very good": "good", "very bad": "good bad", "neutral": "neutral"}

    def renamed(rows: tuple[Example, ...]) -> tuple[Example, ...]:
        return tuple(Example(row.text, names[row.label]) for row in rows)

    train, test = renamed(pico_task.train), renamed(pico_task.test)
    task = replace(pico_task, labels=tuple(names.values()), train=train, test=train + test)
    examples = AnswerExamples(task, template, pico_source.tokenizer, batch_size=8)
    with closing(LoraFineTuning(pico_source, lr=0.01, roles=tuple(Role))) as tuning:
        trainer(epochs=10).fit(tuning, examples)
        adapter = tuning.adapter()
    with attached(pico_source.network, adapter):
        found = LikelihoodScorer().score(pico_source, task, template)
        written = GenerateScorer().score(pico_source, task, template)
    for label in names.values():
        rows = torch.tensor([row.label == label for row in task.test])
        assert float(found.correct[rows].double().mean()) > 0.8, label
        assert float(written.correct[rows].double().mean()) > 0.8, label
