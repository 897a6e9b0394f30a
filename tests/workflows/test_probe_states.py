from collections import Counter

import pytest
import torch

from loraport.data.text_corpus import TextCorpus
from loraport.models import BaseModel
from loraport.models.activations import activations
from loraport.models.taps import Tap
from loraport.workflows.probe_states import chosen_rows, read_probe_states

SENTENCES = [
    f"the {noun} was truly {word} and the {other} is never {end}"
    for noun in ("film", "plot", "actor", "scene")
    for other in ("plot", "scene", "film")
    for word in ("good", "bad", "dull")
    for end in ("neutral", "very good")
]


class Texts:
    """The sentences, in both splits."""

    name = "texts"

    def texts(self, split: str):
        yield from SENTENCES


@pytest.fixture(scope="module")
def corpus(pico_source: BaseModel, pico_target: BaseModel) -> TextCorpus:
    return TextCorpus(
        Texts(), pico_source.tokenizer, pico_target.tokenizer, tokens=400, skip=2, batch_tokens=600
    )


def choose(source, target, documents, **options):
    given = {"rows": 100, "per_token": 2, "seed": 0} | options
    rows = (torch.tensor(row) for row in (source, target, documents))
    return chosen_rows(*rows, **given)


class TestChosenRows:
    def test_no_token_is_taken_more_often_than_allowed(self):
        chosen = choose([1, 1, 1, 1, 2], [8, 8, 8, 9, 8], range(5))
        assert chosen[:3].sum() == 2
        assert chosen[3:].all()

    def test_other_texts_come_before_more_of_the_same(self):
        documents = [place // 10 for place in range(100)]
        chosen = choose(range(100), range(100), documents, rows=20)
        counts = Counter(torch.tensor(documents)[chosen].tolist())
        assert set(counts.values()) == {2}

    def test_never_more_rows_than_asked_for_and_all_if_there_are_fewer(self):
        assert choose(range(9), range(9), [0] * 9, rows=4).sum() == 4
        assert choose(range(9), range(9), [0] * 9).sum() == 9

    def test_the_seed_decides(self):
        one, again, other = (
            choose(range(50), range(50), range(50), rows=9, seed=seed) for seed in (1, 1, 2)
        )
        assert torch.equal(one, again)
        assert not torch.equal(one, other)


def test_states_are_those_of_the_models_at_the_same_words(
    pico_source: BaseModel, pico_target: BaseModel, corpus: TextCorpus
):
    states = read_probe_states(
        pico_source,
        pico_target,
        corpus,
        rows=40,
        per_token=8,
        seed=0,
        progress=lambda what, done, total: None,
    )
    assert states.rows == len(states.tokens) <= 40
    assert states.aligned == corpus.tokens
    assert [layer.shape for layer in states.source] == [(states.rows, 32)] * 2
    assert [layer.shape for layer in states.target] == [(states.rows, 48)] * 3
    assert max(Counter(states.tokens.tolist()).values()) <= 16
    # Every row is among the aligned ones, computed batch by batch on their own.
    last = Tap.residual(2)
    everything = torch.cat(
        [
            activations(pico_target.network, batch.target, batch.target_places, [last])[last]
            for batch in corpus.train_dataloader()
        ]
    )
    away = states.target[2][:, None] - everything
    nearest = away.norm(dim=-1).amin(dim=1)
    assert nearest.max() < 1e-3
