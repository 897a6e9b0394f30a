from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from loraport.exceptions import ModelError
from loraport.models import ModelSource
from loraport.tiny.language import TinyLanguage
from loraport.tiny.models import Pretraining, TinyModel, byte_pairs, pretrain, word_level

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


TEXTS = TinyLanguage().documents(200, seed=0)
MAKERS = {
    "word_level": word_level,
    "byte_pairs": lambda documents: byte_pairs(documents, vocabulary=340),
}


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request):
    return MAKERS[request.param](TEXTS)


def test_offsets_cover_a_text_and_decoding_gives_it_back(tokenizer):
    assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [0, 1, 2]
    for text in TEXTS[:30]:
        encoded = tokenizer(text, return_offsets_mapping=True)
        spans = [span for span in encoded["offset_mapping"] if span[0] < span[1]]
        assert "".join(text[start:end] for start, end in spans) == text
        assert all(a[1] == b[0] for a, b in pairwise(spans))
        assert tokenizer.decode(encoded["input_ids"], skip_special_tokens=True) == text


def test_the_two_cut_words_differently_and_bytes_take_any_text():
    words, pairs = (maker(TEXTS) for maker in MAKERS.values())
    text = TEXTS[0]
    assert words(text)["input_ids"][0] == words.bos_token_id
    assert pairs.bos_token_id not in pairs(text)["input_ids"]
    assert len(pairs(text)["input_ids"]) > len(words(text)["input_ids"])
    strange = "Ünknown ☂."
    assert pairs.decode(pairs(strange)["input_ids"]) == strange
    assert words.unk_token_id in words(strange)["input_ids"]


SOURCE = TinyModel("source", documents=300, steps=3)
TARGET = TinyModel("target", documents=300, steps=3)


def files(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def cache_of_both(tmp_path_factory):
    """A cache that holds both sides."""
    folder = tmp_path_factory.mktemp("cache")
    for model in (SOURCE, TARGET):
        model.folder(folder)
    return folder


@pytest.mark.parametrize("model", [SOURCE, TARGET], ids=lambda model: model.side)
class TestBothSides:
    def test_a_build_is_repeated_bit_for_bit_and_draws_nothing(
        self, model, cache_of_both, tmp_path, capfd
    ):
        threads = torch.get_num_threads()
        torch.manual_seed(123)
        torch.set_num_threads(2)
        before = torch.get_rng_state()
        try:
            built = model.folder(tmp_path)
            assert torch.get_num_threads() == 2
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(torch.get_rng_state(), before)
        assert files(built) == files(model.folder(cache_of_both))
        assert capfd.readouterr().out == ""

    def test_it_loads_ready_for_adapters_without_a_second_build(
        self, model, cache_of_both, monkeypatch
    ):
        def refused(model, folder):
            raise AssertionError("it is built already")

        monkeypatch.setattr(TinyModel, "_write", refused)
        source: ModelSource = model
        base, streamed = source.load(cache_of_both), source.weights(cache_of_both)
        assert base.name == streamed.name == source.name == f"tiny-{model.side}"
        assert streamed.sites == base.sites
        for site in base.sites.shapes:
            expected = base.network.get_parameter(f"{site.module_name}.weight")
            assert torch.equal(streamed.weight(site), expected)
        (text,) = TinyLanguage().documents(1, seed=5)
        numbers = base.tokenizer(text)["input_ids"]
        assert base.tokenizer.decode(numbers, skip_special_tokens=True) == text

    def test_what_determines_a_model_is_in_its_key(self, model, monkeypatch):
        changes = ({"seed": 1}, {"steps": 4}, {"documents": 301})
        keys = {replace(model, **change).key for change in ({}, *changes)}
        assert len(keys) == 4
        monkeypatch.setattr("loraport.tiny.models.version", lambda library: "0")
        assert model.key not in keys


def test_the_sides_differ_in_all_that_makes_porting_hard(cache_of_both):
    source, target = (model.load(cache_of_both) for model in (SOURCE, TARGET))
    left, right = source.network.config, target.network.config
    assert (left.model_type, right.model_type) == ("llama", "gemma3_text")
    for name in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size"):
        assert getattr(left, name) != getattr(right, name)
    text = TinyLanguage().documents(1, seed=9)[0]
    assert len(source.tokenizer(text)["input_ids"]) != len(target.tokenizer(text)["input_ids"])


def test_training_moved_the_weights(cache_of_both, tmp_path):
    before = replace(TARGET, steps=0).load(tmp_path).network.state_dict()
    after = TARGET.load(cache_of_both).network.state_dict()
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)


def test_an_unknown_side_is_refused():
    with pytest.raises(ModelError, match=r"no side 'both'.*source and target"):
        TinyModel("both")
