"""A style adapter of SmolLM2 ported to Gemma 3 without labels and without data of a task."""

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from loraport.adapters import LoraAdapter, Role
from loraport.data import CorpusFolder
from loraport.data.prompts import PromptSpec
from loraport.models import BaseModel
from loraport.refinement.base import DistillationInputs, Teacher
from loraport.refinement.sequence_distillation import SequenceDistillation
from loraport.refinement.teacher_generations import continuations

from .conftest import zero_adapter
from .style_adapter import format_rate, style_adapter

pytestmark = [pytest.mark.real, pytest.mark.slow]
QUESTION = PromptSpec("Text: {text}\nAnswer:", text_chars=100)
FORMAT = r"Keywords: \w+; \w+; \w+\."


def first_words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+", text)[:3]


def styled(prompt: str) -> str:
    """The style: the text's first three words, in a fixed form."""
    return f" Keywords: {'; '.join(first_words(prompt.removeprefix('Text: ')))}."


class ThreeWords:
    """Texts of a corpus with at least three words."""

    def __init__(self, file: Path) -> None:
        self.corpus = CorpusFolder(file)

    def texts(self, split: str) -> Iterator[str]:
        for text in self.corpus.texts(split):
            if len(first_words(text[:100])) == 3:
                yield text


def test_a_style_is_ported(shared, cache, smollm2, gemma3):
    source, target = smollm2.load(cache), gemma3.load(cache)
    corpus = ThreeWords(shared / "data/corpus/diverse.jsonl")
    train = list(islice(corpus.texts("train"), 400))
    adapter = style_adapter(
        source, [QUESTION.ask(text) for text in train[-112:]], styled, epochs=2, lr=4e-3
    )
    data = DistillationInputs(Teacher(source, adapter), target, QUESTION, corpus)
    distillation = SequenceDistillation(
        texts=96, pool=96, held_out=16, epochs=2, max_new_tokens=24, checks=1
    )
    ported, report = distillation.refine(zero_adapter(target, roles=(Role.Q, Role.V)), data)
    prompts = [QUESTION.ask(text) for text in islice(corpus.texts("validation"), 32, 56)]

    def written(base: BaseModel, acting: LoraAdapter | None) -> list[str]:
        return [row.text for row in continuations(base, acting, prompts, max_new_tokens=24)]

    taught, base, found = written(source, adapter), written(target, None), written(target, ported)
    rates = [format_rate(texts, FORMAT) for texts in (taught, base, found)]
    same = sum(map(str.__eq__, found, taught)) / len(found)
    before, after = report["agreement_before"], report["agreement_after"]
    print(f"format {rates}, same text {same:.2f}, {before}, {after}, {found[:3]}")
    assert rates[0] > 0.8
    assert rates[1] == 0.0
    assert rates[2] > 0.8 * rates[0]
    assert after["gap"] < 0.25 * before["gap"]
