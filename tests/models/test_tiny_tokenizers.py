from itertools import pairwise

import pytest

from loraport.data.tiny_language import TinyLanguage
from loraport.models.tiny_tokenizers import byte_pairs, word_level

DOCUMENTS = TinyLanguage().documents(400, seed=0)
MAKERS = {
    "word_level": word_level,
    "byte_pairs": lambda documents: byte_pairs(documents, vocabulary=340),
}


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request):
    return MAKERS[request.param](DOCUMENTS)


def test_offsets_cover_a_text_exactly(tokenizer):
    for text in DOCUMENTS[:50]:
        encoded = tokenizer(text, return_offsets_mapping=True)
        begins = [int(number == tokenizer.bos_token_id) for number in encoded["input_ids"]]
        spans = [
            span for span, begin in zip(encoded["offset_mapping"], begins, strict=True) if not begin
        ]
        assert "".join(text[start:end] for start, end in spans) == text
        assert all(a[1] == b[0] for a, b in pairwise(spans))


def test_decoding_gives_the_text_back(tokenizer):
    for text in DOCUMENTS[:50]:
        numbers = tokenizer(text)["input_ids"]
        assert tokenizer.decode(numbers, skip_special_tokens=True) == text


def test_special_tokens_are_set_and_differ(tokenizer):
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert special == [0, 1, 2]


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_documents_give_the_same_tokenizer(name):
    first, second = (MAKERS[name](DOCUMENTS).backend_tokenizer.to_str() for _ in range(2))
    assert first == second


def test_the_two_cut_words_differently():
    words, pairs = (maker(DOCUMENTS) for maker in MAKERS.values())
    text = DOCUMENTS[0]
    assert words(text)["input_ids"][0] == words.bos_token_id
    assert pairs.bos_token_id not in pairs(text)["input_ids"]
    assert len(pairs(text)["input_ids"]) > len(words(text)["input_ids"])


def test_bytes_take_any_text_and_words_do_not():
    words, pairs = (maker(DOCUMENTS) for maker in MAKERS.values())
    strange = "Ünknown ☂."
    assert pairs.decode(pairs(strange)["input_ids"]) == strange
    assert words.unk_token_id in words(strange)["input_ids"]
