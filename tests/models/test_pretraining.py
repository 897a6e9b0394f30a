import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from loraport.models.pretraining import Pretraining, pretrain

DOCUMENTS = [[1, 5, 6, 7, 2], [1, 8, 9, 2], [1, 5, 9, 7, 8, 6, 2], [1, 6, 2]]


@pytest.fixture
def network():
    config = LlamaConfig(
        vocab_size=12,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.3,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config)


def test_it_learns_the_documents_and_reports_every_step(network):
    reports = []
    pretrain(
        network,
        DOCUMENTS,
        Pretraining(steps=60, batch_size=4, lr=1e-2, warmup_steps=5),
        lambda step, loss: reports.append((step, loss)),
    )
    assert [step for step, _ in reports] == list(range(1, 61))
    assert reports[-1][1] < 0.6 < 2 < reports[0][1]
    assert not network.training


def test_the_loss_is_the_mean_over_the_documents_tokens_alone(network):
    with torch.no_grad():
        lost = [
            -network(torch.tensor([document[:-1]]))
            .logits[0]
            .log_softmax(-1)
            .gather(1, torch.tensor(document[1:])[:, None])
            for document in DOCUMENTS
        ]
    reports = []
    settings = Pretraining(steps=1, batch_size=4)
    pretrain(network, DOCUMENTS, settings, lambda _, loss: reports.append(loss))
    assert reports == [pytest.approx(float(torch.cat(lost).mean()), rel=1e-5)]


def test_every_document_is_read_once_before_any_is_read_again(network, monkeypatch):
    read: list[tuple[int, ...]] = []
    forward = network.forward

    def listening(input_ids, **options):
        read.extend(tuple(row[row > 0].tolist()) for row in input_ids)
        return forward(input_ids=input_ids, **options)

    monkeypatch.setattr(network, "forward", listening)
    pretrain(network, DOCUMENTS, Pretraining(steps=8, batch_size=2))
    passes = [read[start : start + 4] for start in range(0, 16, 4)]
    assert all(len(set(once)) == 4 for once in passes)
    assert len({tuple(once) for once in passes}) > 1


def test_the_learning_rate_rises_and_falls_to_zero():
    settings = Pretraining(steps=10, warmup_steps=4)
    shares = [settings.share(step) for step in range(11)]
    assert shares[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert shares[4:] == sorted(shares[4:], reverse=True)
    assert shares[9] > 0
    assert shares[10] == 0
