from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerFast

from loraport.exceptions import ModelError
from loraport.mappers.shared_tokens import MINIMUM, shared_tokens
from loraport.models.weights import StreamedWeights

WORDS = [f"word{place}" for place in range(20)]


def byte_level(tokens: list[str]) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<s>", *alphabet, *tokens])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = ByteLevel()
    return tokenizer


def sentencepiece(tokens: list[str]) -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", *tokens])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def words(tokens: list[str]) -> Tokenizer:
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", *tokens])}
    return Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))


@pytest.fixture
def model(tmp_path: Path, pico_source):
    def make(name: str, tokenizer: Tokenizer) -> StreamedWeights:
        folder = tmp_path / name
        tokenizer.add_special_tokens(["<s>", "<pad>"])
        network = pico_source.network
        network.config.save_pretrained(folder)
        network.save_pretrained(folder)
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")
        fast.save_pretrained(folder)
        opened = StreamedWeights.open(folder, name)
        opened.config.vocab_size = len(fast)
        return opened

    return make


def strings(source, target, limit=1000) -> list[tuple[str, str]]:
    ours, theirs = shared_tokens(source, target, limit)
    return list(
        zip(
            source.tokenizer.convert_ids_to_tokens(ours.tolist()),
            target.tokenizer.convert_ids_to_tokens(theirs.tolist()),
            strict=True,
        )
    )


def test_conventions_of_the_leading_space_are_brought_together(model):
    one = model("bytes", byte_level([*WORDS, *(f"Ġ{w}" for w in WORDS), "Ã©lan", "only"]))
    other = model("pieces", sentencepiece(["other", *(f"▁{w}" for w in WORDS), "élan"]))
    third = model("words", words([*(f" {w}" for w in WORDS[::-1]), "élan", "third"]))
    assert strings(one, other) == [*((f"Ġ{w}", f"▁{w}") for w in WORDS), ("Ã©lan", "élan")]
    assert strings(third, other) == [*((f" {w}", f"▁{w}") for w in WORDS[::-1]), ("élan", "élan")]
    assert strings(one, third)[-1] == ("Ã©lan", "élan")


def test_special_tokens_and_single_bytes_are_left_out(model):
    one = model("bytes", byte_level(["<0x41>", *WORDS]))
    other = model("pieces", sentencepiece(["<0x41>", *WORDS, "A"]))
    assert strings(one, other) == [("A", "A"), *((w, w) for w in WORDS)]


def test_same_tokenizer_shares_every_string(model):
    one, other = (model(name, byte_level(WORDS)) for name in ("one", "other"))
    ours, theirs = shared_tokens(one, other, 1000)
    assert torch.equal(ours, theirs)
    assert ours.tolist() == list(range(1, 1 + 256 + len(WORDS)))


def test_tokens_without_an_embedding_are_left_out(model):
    one, other = (model(name, byte_level(WORDS)) for name in ("one", "other"))
    other.config.vocab_size = 100
    assert shared_tokens(one, other, 1000)[1].tolist() == list(range(1, 100))


def test_fewer_are_spread_evenly_and_always_the_same(model):
    one, other = (model(name, byte_level(WORDS)) for name in ("one", "other"))
    ours = shared_tokens(one, other, 20)[0].tolist()
    assert ours == shared_tokens(one, other, 20)[0].tolist()
    assert len(ours) == 20
    steps = {after - before for before, after in pairwise(ours)}
    assert steps <= {13, 14}


def test_too_few_shared_strings_are_refused_with_their_number(model):
    one = model("bytes", byte_level(["Ġaa", "Ġbb"]))
    other = model("pieces", sentencepiece(["▁aa", "▁bb", "cc"]))
    with pytest.raises(ModelError, match=rf"of bytes .* of pieces .* share 2 .*takes {MINIMUM}"):
        shared_tokens(one, other, 1000)
