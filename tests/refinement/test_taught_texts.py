from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from loraport.adapters import LoraAdapter
from loraport.exceptions import DataError
from loraport.models import BaseModel
from loraport.refinement import taught_texts as module
from loraport.refinement.base import Teacher
from loraport.refinement.chunk_likelihoods import ChunkTokens
from loraport.refinement.continuations import Continuation
from loraport.refinement.taught_texts import (
    TaughtText,
    kept_chunks,
    most_telling,
    taught_texts,
)

PROMPTS = ["the film is", "a plot", "the actor was never dull", "Answer : good"]


def text(*excess: float) -> TaughtText:
    """A text with a planted excess."""
    tokens = ChunkTokens(list(range(len(excess) + 1)), list(range(len(excess) + 1)))
    planted = torch.tensor(excess)
    return TaughtText(Continuation("a", str(excess), True), tokens, tokens, planted, planted, 0.0)


def test_chunks_with_the_highest_excess_are_kept():
    excess = torch.tensor([0.1, 3.0, -1.0, 2.0, 2.0])
    assert kept_chunks(excess, 0.4).tolist() == [False, True, False, True, False]
    assert kept_chunks(excess, 0.6).tolist() == [False, True, False, True, True]
    assert kept_chunks(excess, 1.0).all()
    assert kept_chunks(excess, 0.01).tolist() == [False, True, False, False, False]


def test_texts_with_the_highest_mean_excess_are_taken_in_their_order():
    texts = [text(1.0, 1.0), text(9.0, -9.0), text(0.5), text(3.0, 0.0)]
    assert most_telling(texts, 2) == [texts[0], texts[3]]
    assert most_telling(texts, 9) == texts


def test_excess_is_what_the_adapter_adds(
    pico_source: BaseModel, pico_target: BaseModel, random_adapter: Callable[..., LoraAdapter]
):
    adapter = random_adapter(pico_source)
    found = taught_texts(Teacher(pico_source, adapter), pico_target, PROMPTS, max_new_tokens=6)
    assert len(found.texts) + found.empty == 4
    assert len(found.texts) > 1
    assert [p for p in PROMPTS if p in {each.written.prompt for each in found.texts}] == [
        each.written.prompt for each in found.texts
    ]
    for each in found.texts:
        assert each.source.chunks == each.target.chunks == len(each.expected)
        assert float(each.excess.sum()) > 0, "it writes what it finds likely"
    idle = adapter.map(lambda update: replace(update, B=torch.zeros_like(update.B)))
    same = taught_texts(Teacher(pico_source, idle), pico_target, PROMPTS, max_new_tokens=6)
    assert max(float(each.excess.abs().max()) for each in same.texts) == 0


def planted(monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> None:
    def continuations(
        base: BaseModel, adapter: LoraAdapter, prompts: list[str], **_: object
    ) -> list[Continuation]:
        return [Continuation(*row, True) for row in zip(prompts, texts, strict=True)]

    monkeypatch.setattr(module, "continuations", continuations)


def test_a_teacher_of_whom_nothing_can_be_learned_is_refused(
    pico_source: BaseModel,
    pico_target: BaseModel,
    random_adapter: Callable[..., LoraAdapter],
    monkeypatch: pytest.MonkeyPatch,
):
    teacher = Teacher(pico_source, random_adapter(pico_source))
    planted(monkeypatch, ["", " ", "\n", ""])
    with pytest.raises(DataError, match=r"writes nothing behind any of 4 prompts.*template"):
        taught_texts(teacher, pico_target, PROMPTS)
    planted(monkeypatch, [" good", " good", "", " good"])
    with pytest.raises(DataError, match=r"writes ' good' behind each of 3 prompts"):
        taught_texts(teacher, pico_target, PROMPTS)
    planted(monkeypatch, [" good", " bad", "", " good"])
    found = taught_texts(teacher, pico_target, PROMPTS)
    assert (len(found.texts), found.empty, found.unaligned) == (3, 1, 0)


def test_likelihoods_are_kept_and_not_computed_again(
    pico_source: BaseModel,
    pico_target: BaseModel,
    random_adapter: Callable[..., LoraAdapter],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    teacher = Teacher(pico_source, random_adapter(pico_source))
    steps: list[str] = []

    def run() -> list[list[float]]:
        found = taught_texts(
            teacher,
            pico_target,
            PROMPTS,
            max_new_tokens=4,
            cache=tmp_path,
            progress=lambda step, *_: steps.append(step),
        )
        return [[*each.expected.tolist(), *each.excess.tolist()] for each in found.texts]

    first = run()
    assert list(dict.fromkeys(steps)) == [
        "the teacher writes",
        "the teacher reads what it wrote",
        "the source alone reads it",
    ]
    monkeypatch.setattr(module, "chunk_likelihoods", None)
    assert run() == first
