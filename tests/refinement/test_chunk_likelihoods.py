from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from loraport.adapters import LoraAdapter
from loraport.models import BaseModel, attached
from loraport.refinement.chunk_likelihoods import (
    ChunkedText,
    ChunkReader,
    ChunkTokens,
    batch_chunk_likelihoods,
    chunk_likelihoods,
    chunk_sums,
    row_batches,
)
from loraport.refinement.continuations import Continuation


def planted(*pieces: str) -> PreTrainedTokenizerFast:
    """A tokenizer that knows just these pieces, and cuts a text into them."""
    vocabulary = {"<eos>": 0, **{piece: place + 1 for place, piece in enumerate(pieces)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<eos>"))
    cut = "|".join(sorted(pieces, key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(cut), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def chunked(
    source: PreTrainedTokenizerFast, target: PreTrainedTokenizerFast, *row: Any
) -> ChunkedText:
    return ChunkReader(source, target).read([Continuation(*row)])[0]


def test_chunks_lie_between_bytes_where_both_tokenizers_end_a_token():
    source, target = planted("ab", "cd", "é", "f", "gh"), planted("a", "b", "cdé", "fg", "h")
    found = chunked(source, target, "ab", "cdéfgh", True)
    # cdé is one chunk of two source tokens; fgh one of two and two; then the end.
    assert found.source == ChunkTokens([1, 2, 3, 4, 5, 0], [0, 2, 4, 5])
    assert found.target == ChunkTokens([1, 2, 3, 4, 5, 0], [1, 2, 4, 5])
    assert found.left_out == 0
    assert (found.source.chunks, found.source.predicted, found.target.predicted) == (3, 5, 4)
    open_end = chunked(source, target, "ab", "cdéfgh", False)
    assert open_end.source == ChunkTokens([1, 2, 3, 4, 5], [0, 2, 4])


def test_a_token_that_reaches_out_of_the_prompt_is_left_out():
    source, target = planted("a", "bc", "d", "e"), planted("a", "b", "c", "d", "e")
    found = chunked(source, target, "ab", "cde", False)
    assert found.source == ChunkTokens([1, 2, 3, 4], [1, 2, 3])
    assert found.target == ChunkTokens([1, 2, 3, 4, 5], [2, 3, 4])
    assert found.left_out == pytest.approx(1 / 3)
    none = chunked(planted("abc"), planted("a", "b", "c"), "ab", "c", False)
    assert none.source.chunks == none.target.chunks == 0
    assert none.left_out == 1


def test_an_empty_continuation_that_ended_has_one_chunk():
    found = chunked(planted("ab"), planted("a", "b"), "ab", "", True)
    assert found.source == ChunkTokens([1, 0], [0, 1])
    assert found.target == ChunkTokens([1, 2, 0], [1, 2])


ROWS = [
    Continuation("the film is", " truly very good ?", True),
    Continuation("a plot was", " never dull", False),
    Continuation("the actor :", " bad bad bad bad bad bad bad bad", True),
]


@pytest.mark.parametrize("side", ["pico_source", "pico_target"])
def test_chunks_add_up_to_the_likelihood_of_the_whole(
    side: str,
    request: pytest.FixtureRequest,
    pico_source: BaseModel,
    pico_target: BaseModel,
    random_adapter: Callable[..., LoraAdapter],
):
    base: BaseModel = request.getfixturevalue(side)
    texts = ChunkReader(pico_source.tokenizer, pico_target.tokenizer).read(ROWS)
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


def test_batches_hold_every_row_once_and_little_enough():
    rows = [ChunkTokens([1] * (5 + place), [place % 5, 4 + place]) for place in range(40)]
    batches = list(row_batches(rows, tokens=100))
    assert sorted(place for batch in batches for place in batch) == list(range(40))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(len(rows[p].input_ids) for p in batch) <= 100
    assert len(batches) < 20


def test_gradients_reach_an_input_of_the_network(pico_source: BaseModel, pico_target: BaseModel):
    rows = [
        text.target for text in ChunkReader(pico_source.tokenizer, pico_target.tokenizer).read(ROWS)
    ]
    weight = pico_target.network.get_parameter("model.layers.0.self_attn.v_proj.weight")
    weight.requires_grad_(True)
    try:
        batch_chunk_likelihoods(pico_target, rows).sum().backward()
        assert weight.grad is not None
        assert float(weight.grad.abs().sum()) > 0
    finally:
        weight.requires_grad_(False)
        weight.grad = None
