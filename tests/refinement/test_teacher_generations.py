from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from loraport.adapters import LoraAdapter
from loraport.exceptions import DataError
from loraport.models import BaseModel, attached
from loraport.refinement import teacher_generations as module
from loraport.refinement.base import DistillationInputs, Teacher
from loraport.refinement.teacher_generations import (
    ChunkedText,
    ChunkTokens,
    Continuation,
    TeacherGeneration,
    chunk_likelihoods,
    chunk_sums,
    chunked,
    continuations,
    highest_excess,
    kept_chunks,
    teacher_generations,
    written,
)
from loraport.store import Store

PROMPTS = ["the film is", "a", "the plot was never dull ?", "Answer : good", "an actor is"]


def test_prompts_keep_their_order_and_the_adapter_matters(pico_source, random_adapter):
    adapter = random_adapter(pico_source)
    found = continuations(pico_source, adapter, PROMPTS, max_new_tokens=6)
    assert [each.prompt for each in found] == PROMPTS
    single = [continuations(pico_source, adapter, [p], max_new_tokens=6)[0] for p in PROMPTS]
    assert found == single
    assert found != continuations(pico_source, None, PROMPTS, max_new_tokens=6)
    assert continuations(pico_source, adapter, []) == []


class Planned:
    """Chooses planned tokens."""

    def __init__(self, *steps: list[int]) -> None:
        self.steps = list(steps)

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.steps.pop(0))


def test_text_is_what_stands_behind_the_prompt(pico_source, pico_target):
    words, end = pico_source.tokenizer, pico_source.tokenizer.eos_token_id
    prompt = words("the film")["input_ids"]
    good, is_ = words("good is")["input_ids"]
    plan = Planned([is_, end, is_], [end, end, good])
    rows = written(pico_source, [prompt] * 3, max_new_tokens=2, choice=plan)
    assert rows == [(" is", True), ("", True), (" is good", False)]
    # A character of two bytes, of which the second no longer fits.
    pieces = pico_target.tokenizer("é", add_special_tokens=False)["input_ids"]
    plan = Planned([pieces[0]], [pieces[1]], [pieces[0]])
    start = pico_target.tokenizer("a")["input_ids"]
    assert written(pico_target, [start], max_new_tokens=3, choice=plan) == [("é", False)]


def test_a_stopped_run_goes_on_and_a_finished_one_runs_no_model(
    pico_source, random_adapter, monkeypatch, tmp_path
):
    monkeypatch.setattr(module, "_SHARD", 2)
    adapter, calls = random_adapter(pico_source), 0

    def counted(*args: Any, **options: Any) -> list[tuple[str, bool]]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return written(*args, **options)

    def run(adapter: LoraAdapter = adapter, tokens: int = 4) -> list[Continuation]:
        return continuations(
            pico_source, adapter, PROMPTS, max_new_tokens=tokens, store=Store(tmp_path)
        )

    expected = continuations(pico_source, adapter, PROMPTS, max_new_tokens=4)
    monkeypatch.setattr(module, "written", counted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert run() == run() == expected
    assert calls == 4, "one shard before it was stopped, the one it was stopped in, two after"
    run(random_adapter(pico_source, seed=1))
    run(tokens=5)
    assert calls == 4 + 3 + 3


def planted(*pieces: str) -> PreTrainedTokenizerFast:
    """A tokenizer that knows just these pieces, and cuts a text into them."""
    vocabulary = {"<eos>": 0, **{piece: place + 1 for place, piece in enumerate(pieces)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    cut = "|".join(sorted(pieces, key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(cut), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def cut(source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast, *row: Any) -> ChunkedText:
    return chunked([Continuation(*row)], source, target)[0]


def test_chunks_lie_between_bytes_where_both_tokenizers_end_a_token():
    source, target = planted("ab", "cd", "é", "f", "gh"), planted("a", "b", "cdé", "fg", "h")
    found = cut(source, target, "ab", "cdéfgh", True)
    # cdé is one chunk of two source tokens; fgh one of two and two; then the end.
    assert found.source == ChunkTokens([1, 2, 3, 4, 5, 0], [0, 2, 4, 5])
    assert found.target == ChunkTokens([1, 2, 3, 4, 5, 0], [1, 2, 4, 5])
    assert found.left_out == 0
    assert (found.source.chunks, found.source.predicted, found.target.predicted) == (3, 5, 4)
    open_end = cut(source, target, "ab", "cdéfgh", False)
    assert open_end.source == ChunkTokens([1, 2, 3, 4, 5], [0, 2, 4])


def test_a_token_that_reaches_out_of_the_prompt_is_left_out():
    source, target = planted("a", "bc", "d", "e"), planted("a", "b", "c", "d", "e")
    found = cut(source, target, "ab", "cde", False)
    assert found.source == ChunkTokens([1, 2, 3, 4], [1, 2, 3])
    assert found.target == ChunkTokens([1, 2, 3, 4, 5], [2, 3, 4])
    assert found.left_out == pytest.approx(1 / 3)
    none = cut(planted("abc"), planted("a", "b", "c"), "ab", "c", False)
    assert none.source.chunks == none.target.chunks == 0
    assert none.left_out == 1
    empty = cut(planted("ab"), planted("a", "b"), "ab", "", True)
    assert (empty.source, empty.target) == (
        ChunkTokens([1, 0], [0, 1]),
        ChunkTokens([1, 2, 0], [1, 2]),
    )


ROWS = [
    Continuation("the film is", " truly very good ?", True),
    Continuation("a plot was", " never dull", False),
    Continuation("the actor :", " bad bad bad bad bad bad bad bad", True),
]


@pytest.mark.parametrize("side", ["pico_source", "pico_target"])
def test_chunks_add_up_to_the_likelihood_of_the_whole(
    side, request, pico_source, pico_target, random_adapter
):
    base: BaseModel = request.getfixturevalue(side)
    texts = chunked(ROWS, pico_source.tokenizer, pico_target.tokenizer)
    rows = [text.source if side == "pico_source" else text.target for text in texts]
    assert [row.chunks for row in rows] == [5, 2, 9]
    with attached(base.network, random_adapter(base)):
        found = chunk_likelihoods(base, rows)
        for row, written, sums in zip(rows, ROWS, found, strict=True):
            ids = base.tokenizer(written.prompt + written.text)["input_ids"]
            if written.ended:
                ids = [*ids, base.tokenizer.eos_token_id]
            with torch.inference_mode():
                steps = base.network(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            each = steps.gather(1, torch.tensor(ids)[1:, None])[:, 0]
            prompt = len(base.tokenizer(written.prompt)["input_ids"])
            assert float(sums.sum()) == pytest.approx(float(each[prompt - 1 :].sum()), abs=1e-3)
            single = [each[start:end].sum() for start, end in pairwise(row.bounds)]
            torch.testing.assert_close(sums, torch.stack(single), atol=1e-4, rtol=1e-4)


def test_sums_are_differentiable_and_padding_counts_nothing():
    rows = [ChunkTokens([3, 4, 5, 6], [0, 1, 3]), ChunkTokens([3, 4], [0, 1])]
    tokens = torch.tensor([[1.0, 2.0, 4.0], [9.0, 9.0, 5.0]], requires_grad=True)
    sums = chunk_sums(tokens, rows)
    assert sums.tolist() == [[1, 6], [5, 0]]
    (sums * torch.tensor([[1.0, 10.0], [100.0, 1000.0]])).sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.tolist() == [[1, 10, 10], [0, 0, 100]]


def text(*excess: float) -> TeacherGeneration:
    """A text with a planted excess."""
    tokens = ChunkTokens(list(range(len(excess) + 1)), list(range(len(excess) + 1)))
    planted = torch.tensor(excess)
    chunks = ChunkedText(tokens, tokens, 0.0)
    return TeacherGeneration(Continuation("a", str(excess), True), chunks, planted, planted)


def test_chunks_with_the_highest_excess_are_kept():
    excess = torch.tensor([0.1, 3.0, -1.0, 2.0, 2.0])
    assert kept_chunks(excess, 0.4).tolist() == [False, True, False, True, False]
    assert kept_chunks(excess, 0.6).tolist() == [False, True, False, True, True]
    assert kept_chunks(excess, 1.0).all()
    assert kept_chunks(excess, 0.01).tolist() == [False, True, False, False, False]


def test_texts_with_the_highest_mean_excess_are_taken_in_their_order():
    texts = [text(1.0, 1.0), text(9.0, -9.0), text(0.5), text(3.0, 0.0)]
    assert highest_excess(texts, 2) == [texts[0], texts[3]]
    assert highest_excess(texts, 9) == texts


@pytest.fixture
def data(
    pico_source: BaseModel, pico_target: BaseModel, random_adapter: Callable[..., LoraAdapter]
) -> DistillationInputs:
    return DistillationInputs(Teacher(pico_source, random_adapter(pico_source)), pico_target)


def test_excess_is_what_the_adapter_adds(data):
    found = teacher_generations(data, PROMPTS, 6)
    assert len(found.texts) + found.empty == len(PROMPTS)
    assert len(found.texts) > 1
    written = [each.written.prompt for each in found.texts]
    assert written == [prompt for prompt in PROMPTS if prompt in written]
    for each in found.texts:
        assert each.chunks.source.chunks == each.chunks.target.chunks == len(each.expected)
    total = sum(float(each.excess.sum()) for each in found.texts)
    assert total > 0, "it writes what it finds likely"
    idle = data.teacher.adapter.map(lambda update: replace(update, B=torch.zeros_like(update.B)))
    same = teacher_generations(replace(data, teacher=Teacher(data.teacher.base, idle)), PROMPTS, 6)
    assert max(float(each.excess.abs().max()) for each in same.texts) == 0


def plant_texts(monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> None:
    def continuations(
        base: BaseModel, adapter: LoraAdapter, prompts: list[str], **_: object
    ) -> list[Continuation]:
        return [Continuation(*row, True) for row in zip(prompts, texts, strict=True)]

    monkeypatch.setattr(module, "continuations", continuations)


def test_a_teacher_of_whom_nothing_can_be_learned_is_refused(data, monkeypatch):
    plant_texts(monkeypatch, ["", " ", "\n", ""])
    with pytest.raises(DataError, match=r"writes nothing after any of 4 prompts.*template"):
        teacher_generations(data, PROMPTS[:4], 6)
    plant_texts(monkeypatch, [" good", " good", "", " good"])
    with pytest.raises(DataError, match=r"writes ' good' after each of 3 prompts"):
        teacher_generations(data, PROMPTS[:4], 6)
    plant_texts(monkeypatch, [" good", " bad", "", " good"])
    found = teacher_generations(data, PROMPTS[:4], 6)
    assert (len(found.texts), found.empty, found.unaligned) == (3, 1, 0)


def test_likelihoods_are_kept_and_not_computed_again(data, monkeypatch, tmp_path):
    steps: list[str] = []

    def run() -> list[list[float]]:
        kept = replace(data, store=Store(tmp_path), progress=lambda step, *_: steps.append(step))
        found = teacher_generations(kept, PROMPTS, 4)
        return [[*each.expected.tolist(), *each.excess.tolist()] for each in found.texts]

    first = run()
    assert list(dict.fromkeys(steps)) == [
        "the teacher writes",
        "the teacher reads what it wrote",
        "the source alone reads it",
    ]
    monkeypatch.setattr(module, "chunk_likelihoods", None)
    assert run() == first
