import random
import re

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from loraport.data import AllEnds, CorpusFolder, LastEnd, WordEnds
from loraport.data.token_alignment import TokenEndReader, TokenEnds, align
from loraport.exceptions import ModelError
from loraport.tiny.models import byte_pairs, word_level

PIECES = [
    *("the river", "Ferries leave at nine,", "don't", "naïve café", "3.14159 + 2,000"),
    *("snake_case", "🙂", "👩‍👩‍👧‍👦", "🇩🇪", "👍🏽", "漢字かな交じり文", "한국어 문장"),
    *("e\u0301a\u0308 n\u0303o", "नमस्ते दुनिया", "\r\n", "\n\n", "\t", "   ", "Привет, мир"),
    *("مرحبا بالعالم", "\u200b", "x\u00a0y", "𓀀𓀁"),
]
MERGED = ["the river 🙂", "🙂🙂🙂🙂", "漢字 漢字 漢字", "the the the river river", "naïve naïve"]


def paragraphs(count: int) -> list[str]:
    """Texts of pieces of many scripts, with or without spaces between them."""
    draw = random.Random(0)
    return [
        "".join(
            draw.choice(PIECES) + draw.choice(("", " ", " ")) for _ in range(draw.randint(1, 12))
        )
        for _ in range(count)
    ]


def character_fallback() -> PreTrainedTokenizerFast:
    """Like Gemma's: spaces as ``▁``, characters that it does not know as their bytes."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = sorted({*"▁abcdefghijklmnopqrstuvwxyz🙂漢\n", "re", "er", "ri"})
    tokens = ["<pad>", "<bos>", *fallback, *letters]
    vocabulary = {token: place for place, token in enumerate(tokens)}
    merges = [("r", "e"), ("e", "r"), ("r", "i")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>")


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    # Some merges cross from one character into the next, as in real byte-level vocabularies.
    return byte_pairs([*MERGED, *PIECES], 330)


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    return word_level(PIECES)


def bytes_behind(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Where tokens end by what they are made of, whatever offsets are told.

    For byte-level tokenizers and for those of Gemma's kind.
    """
    fallback = tokenizer.backend_tokenizer.model.byte_fallback
    ends, end = [], 0
    for token in tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"]):
        if token == tokenizer.bos_token:
            length = 0
        elif not fallback:
            length = len(token)  # one character a byte
        else:
            is_byte = re.fullmatch("<0x..>", token)
            length = 1 if is_byte else len(token.replace("▁", " ").encode())
        end += length
        ends.append(end)
    return ends


def test_ends_of_byte_level_tokens_are_those_of_their_bytes(byte_level):
    for text in paragraphs(100):
        (read,) = TokenEndReader(byte_level).read([text])
        boundaries = characters(text)
        true = {end: place for place, end in enumerate(bytes_behind(byte_level, text))}
        assert list(read.input_ids) == byte_level(text)["input_ids"]
        assert read.places == {end: place for end, place in true.items() if end in boundaries}
        assert list(read.places) == sorted(read.places)


def test_pieces_of_a_character_end_only_with_its_last(byte_level):
    text = "a\U00012000b"
    (read,) = TokenEndReader(byte_level).read([text])
    assert len(read.input_ids) == 6
    assert read.places == {1: 0, 5: 4, 6: 5}


def test_byte_fallback_ends_with_the_last_byte_and_bos_nowhere():
    (read,) = TokenEndReader(character_fallback()).read(["re 𓀀🙂\r\n"])
    # <bos> re ▁ <F0> <93> <80> <80> 🙂 <0D> \n
    assert read.places == {2: 1, 3: 2, 7: 6, 11: 7, 12: 8, 13: 9}


def test_trimmed_offsets_are_not_believed(byte_level):
    trimmed = Tokenizer.from_str(byte_level.backend_tokenizer.to_str())
    trimmed.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=trimmed)
    text = "a  b \n  c  "
    told = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    assert any(start == end for start, end in told)  # what the reader must not rely on
    (read,) = TokenEndReader(tokenizer).read([text])
    assert list(read.places) == bytes_behind(tokenizer, text)
    # The caller's tokenizer is as it was.
    assert tokenizer(text, return_offsets_mapping=True)["offset_mapping"] == told


def test_a_tokenizer_without_offsets_is_refused(byte_level, monkeypatch):
    monkeypatch.setattr(type(byte_level), "is_fast", False)
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        TokenEndReader(byte_level)


def test_paired_tokens_end_at_the_same_byte(byte_level):
    texts, tokenizers = paragraphs(300), (byte_level, character_fallback())
    readings = [TokenEndReader(tokenizer).read(texts) for tokenizer in tokenizers]
    for text, source, target in zip(texts, *readings, strict=True):
        here, there = (bytes_behind(tokenizer, text) for tokenizer in tokenizers)
        # Common to both and at the end of a character, or it would not decode.
        common = sorted({*here} & {*there} & {*characters(text)})
        for choice in (AllEnds(), WordEnds(), LastEnd()):
            found = align(text, source, target, choice)
            assert [here[place] for place in found.source_places] == found.ends
            assert [there[place] for place in found.target_places] == found.ends
            assert found.ends == choice.choose(text, common) != []


def characters(text: str) -> list[int]:
    """The bytes at which characters end."""
    return [len(text[:place].encode()) for place in range(1, len(text) + 1)]


def test_whole_words_pair_with_the_last_byte_of_each(byte_level, words):
    text = "the river leave naïve 🙂 the"
    source, target = (TokenEndReader(side).read([text])[0] for side in (words, byte_level))
    found = align(text, source, target, AllEnds())
    assert found.ends == [len(text[:n].encode()) for n in (3, 9, 15, 21, 23, 27)]
    assert found.source_places == [1, 2, 3, 4, 5, 6]  # behind <bos>


def test_word_ends_are_where_no_word_goes_on():
    text = "The cat's e\u0301tude, 3_a 👩\u200d👧."
    chosen = [text.encode()[:end].decode() for end in WordEnds().choose(text, characters(text))]
    heads = ["The", "The ", "The cat", "The cat'", "The cat's", "The cat's "]
    heads += ["The cat's e\u0301tude", "The cat's e\u0301tude,", "The cat's e\u0301tude, "]
    heads += ["The cat's e\u0301tude, 3_a", "The cat's e\u0301tude, 3_a "]
    assert chosen[: len(heads)] == heads
    # Not between the two emoji of a family, which a joiner makes one.
    assert text[: text.index("👩") + 1] not in chosen
    assert chosen[-1] == text


def test_the_last_common_end_is_always_taken():
    for choice in (WordEnds(), LastEnd()):
        assert choice.choose("undone", [2, 4]) == [4]
        assert choice.choose("undone", []) == []
    assert AllEnds().choose("undone", [2, 4]) == [2, 4]


def test_first_tokens_of_either_side_are_dropped_even_the_last_end():
    source = TokenEnds([5] * 4, {1: 0, 2: 1, 3: 2, 4: 3})
    target = TokenEnds([7] * 4, {1: 1, 3: 2, 4: 3})
    assert align("abcd", source, target, AllEnds()) == ([1, 3, 4], [0, 2, 3], [1, 2, 3])
    assert align("abcd", source, target, AllEnds(), skip=3) == ([4], [3], [3])
    assert align("abcd", source, target, LastEnd(), skip=4) == ([], [], [])
    # The source alone has read enough at the first end.
    assert align("abcd", target, source, AllEnds(), skip=1).ends == [3, 4]


@pytest.mark.real
def test_ends_of_smollm2_and_gemma3_align(shared, cache, smollm2, gemma3):
    folders = smollm2.folder(cache), gemma3.folder(cache)
    smollm, gemma = (AutoTokenizer.from_pretrained(folder) for folder in folders)
    corpus = CorpusFolder(shared / "data/corpus").texts("train")
    english = [next(corpus) for _ in range(1500)]
    for texts, least in ((english, 0.9), (paragraphs(1000), 0.0)):
        readings = [TokenEndReader(side).read(texts) for side in (smollm, gemma)]
        ends = common = 0
        for text, source, target in zip(texts, *readings, strict=True):
            found = align(text, source, target, AllEnds())
            here, there = bytes_behind(smollm, text), bytes_behind(gemma, text)
            assert [here[place] for place in found.source_places] == found.ends
            assert [there[place] for place in found.target_places] == found.ends
            common += len(found.ends)
            ends += len(source.places)
        assert common >= least * ends
        print(f"{common / ends:.1%} of {ends} ends in {len(texts)} texts align")
