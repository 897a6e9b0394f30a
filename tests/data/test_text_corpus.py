from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from lightning import Trainer

from loraport.data import AlignedBatch, AllEnds, LastEnd, TextCorpus, TextSource
from loraport.exceptions import ConfigurationError, DataError
from loraport.tiny.language import TinyLanguage, TinyTexts
from loraport.tiny.models import byte_pairs, word_level

SUFFIX = "\nYour verdict?\nAnswer:"


class Listed:
    """The same texts for training, and others for validation."""

    def __init__(self, texts: Sequence[str], held_out: Sequence[str] = ("held out " * 40,)) -> None:
        self.held = {"train": texts, "validation": held_out}
        self.given = 0

    def texts(self, split):
        for text in self.held[split]:
            self.given += 1
            yield text


@pytest.fixture(scope="module")
def tokenizers():
    """Byte-level pairs for the source; words behind a BOS for the target."""
    documents = TinyLanguage().documents(100, seed=0)
    return byte_pairs(documents, 400), word_level(documents)


@pytest.fixture(scope="module")
def documents():
    """Documents of the tiny language."""
    source = TinyTexts(documents=60)
    return Listed(list(source.texts("train")), list(source.texts("validation")))


@pytest.fixture
def corpus(tokenizers, documents):
    def make(texts: TextSource | None = None, **options) -> TextCorpus:
        given = {"tokens": 600, "held_out_tokens": 100, "batch_tokens": 400, **options}
        return TextCorpus(texts or documents, *tokenizers, **given)

    return make


def prefixes(batch: AlignedBatch, tokenizers) -> list[tuple[str, str]]:
    """What both models have read at each aligned token, by decoding."""
    found = []
    for here, there in zip(batch.source_places.tolist(), batch.target_places.tolist(), strict=True):
        read = []
        for tokens, place, tokenizer in zip(batch[:2], (here, there), tokenizers, strict=True):
            row, last = divmod(place, tokens.input_ids.shape[1])
            assert tokens.attention_mask[row, last] == 1
            ids = tokens.input_ids[row, : last + 1]
            read.append(tokenizer.decode(ids, skip_special_tokens=True))
        found.append((read[0], read[1]))
    return found


def test_both_models_have_read_the_same_at_every_aligned_token(corpus, tokenizers, documents):
    data = corpus(tokens=400)
    texts = list(documents.texts("train"))
    for batch in data.train_dataloader():
        pairs = prefixes(batch, tokenizers)
        assert all(here == there for here, there in pairs)
        for (prefix, _), document in zip(pairs, batch.documents.tolist(), strict=True):
            assert texts[document].startswith(prefix)


def test_batches_hold_what_was_asked_for_within_their_size(corpus):
    data = corpus()
    for loader, count in ((data.train_dataloader(), 600), (data.val_dataloader(), 100)):
        batches = list(loader)
        assert sum(len(batch.source_places) for batch in batches) == count
        for batch in batches:
            for tokens in batch[:2]:
                assert tokens.input_ids.numel() <= 400
                assert tokens.input_ids.dtype == torch.long
                # Right padded: no token follows padding.
                assert (tokens.attention_mask.diff(dim=1) <= 0).all()
                assert (tokens.input_ids[tokens.attention_mask == 0] == 0).all()
            assert len(batch.source_places) == len(batch.target_places) == len(batch.documents)
    assert (data.tokens, data.held_out_tokens) == (600, 100)
    masks = [batch.source.attention_mask for batch in data.train_dataloader()]
    assert sum(mask.numel() for mask in masks) < 1.15 * sum(int(mask.sum()) for mask in masks)
    widths = [mask.shape[1] for mask in masks]
    assert widths not in (sorted(widths), sorted(widths, reverse=True))


def test_a_text_that_is_longer_than_a_batch_goes_alone(corpus):
    data = corpus(Listed(["the kurans " * 50, "a drilon", "the drilon near a drilon"]), skip=0)
    data = corpus(data.texts, batch_tokens=20, skip=0, tokens=60)
    alone = [batch for batch in data.train_dataloader() if batch.source.input_ids.numel() > 20]
    assert [len(batch.source.input_ids) for batch in alone] == [1]


def test_first_tokens_are_never_aligned(corpus):
    for batch in corpus(skip=6, ends=AllEnds()).train_dataloader():
        for tokens, places in zip(batch[:2], batch[2:4], strict=True):
            assert int((places % tokens.input_ids.shape[1]).min()) >= 6


def test_the_choice_of_ends_decides(corpus, tokenizers):
    counts = {}
    for name, ends in {"words": None, "all": AllEnds(), "last": LastEnd()}.items():
        data = corpus(Listed(["the drilonzz kurans"] * 50), ends=ends, skip=0)
        counts[name] = data.tokens
    assert counts["last"] == 50
    assert counts["words"] == counts["all"] == 150  # the target has whole words only
    for batch in corpus(ends=LastEnd(), tokens=40, held_out_tokens=40).train_dataloader():
        assert len({*batch.documents.tolist()}) == len(batch.documents)


def test_reading_stops_when_there_are_enough_and_fewer_are_reported(corpus):
    source = Listed(["The drilon kurans near a drilon."] * 1000)
    list(corpus(source, tokens=100).train_dataloader())
    assert source.given < 200
    assert 32 <= corpus(Listed(["The drilon kurans near a drilon."] * 20)).tokens < 600


def test_suffixes_come_in_turn_and_their_end_is_aligned(corpus, tokenizers):
    texts = Listed([f"the drilon kurans near a drilon {n}" for n in range(200)], ["the a " * 99])
    data = corpus(texts, suffixes=[SUFFIX, " Yes?"], suffix_share=0.6, skip=2, tokens=100_000)
    last: dict[int, str] = {}
    for batch in data.train_dataloader():
        for (prefix, _), document in zip(
            prefixes(batch, (tokenizers[0], tokenizers[0])), batch.documents.tolist(), strict=True
        ):
            last[document] = max(last.get(document, ""), prefix, key=len)
    asked = [document for document, text in last.items() if text.endswith(SUFFIX)]
    yes = [document for document, text in last.items() if text.endswith(" Yes?")]
    assert len(last) == 200
    assert abs(len(asked) - len(yes)) <= 1
    assert 90 < len(asked) + len(yes) < 150
    merged = sorted([*asked, *yes])
    assert merged[::2] == sorted(asked)


def test_long_texts_are_cut(corpus):
    data = corpus(Listed(["the drilon kurans " * 500]), max_chars=100, skip=0, tokens=17)
    (batch,) = data.train_dataloader()
    assert batch.target.input_ids.shape == (1, 18)  # <bos> and the words of 100 characters


def test_the_share_of_aligned_ends(corpus, tokenizers):
    data = corpus(Listed(["the qqqq"] * 40), skip=0)
    pieces = tokenizers[0]("the qqqq")["input_ids"]
    assert len(pieces) > 2  # of which the target shares the ends of the two words
    assert data.aligned_share == pytest.approx(2 / len(pieces))


def test_the_hash_tells_what_the_batches_tell(corpus, tokenizers, documents):
    same = corpus().content_hash()
    assert corpus().content_hash() == same
    others = {
        "texts": corpus(Listed(documents.held["validation"], documents.held["train"])),
        "tokens": corpus(tokens=599),
        "held_out_tokens": corpus(held_out_tokens=99),
        "batch_tokens": corpus(batch_tokens=300),
        "skip": corpus(skip=5),
        "ends": corpus(ends=LastEnd()),
        "suffixes": corpus(suffixes=[SUFFIX]),
        "seed": corpus(seed=1),
        "max_chars": corpus(max_chars=60),
        "swapped": TextCorpus(
            documents, *tokenizers[::-1], tokens=600, held_out_tokens=100, batch_tokens=400
        ),
    }
    hashes = [data.content_hash() for data in others.values()]
    assert len({same, *hashes}) == 1 + len(others)


def test_of_two_processes_each_takes_every_second_batch(corpus):
    whole = [batch.source.input_ids for batch in corpus(batch_tokens=200).train_dataloader()]
    assert len(whole) >= 4
    for rank in range(2):
        data = corpus(batch_tokens=200)
        data.trainer = cast(Trainer, SimpleNamespace(world_size=2, global_rank=rank))
        mine = [batch.source.input_ids for batch in data.train_dataloader()]
        assert len(mine) == (len(whole) + 1) // 2
        expected = [*whole, whole[0]][rank::2]
        assert all(map(torch.equal, mine, expected))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_corpus_with_hardly_a_text_is_refused(corpus, split):
    enough = ["the drilon near a drilon"] * 100
    data = corpus(Listed([] if split == "train" else enough, enough if split == "train" else []))
    loaders = {"train": data.train_dataloader, "validation": data.val_dataloader}
    with pytest.raises(DataError, match=rf"0 aligned tokens for {split}.*paths\.corpus"):
        loaders[split]()
    loaders["validation" if split == "train" else "train"]()


@pytest.mark.parametrize(
    "option",
    [
        *({name: 0} for name in ("tokens", "held_out_tokens", "batch_tokens", "max_chars")),
        *({"skip": -1}, {"suffix_share": 1.5}),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(corpus, option):
    (name,) = option
    with pytest.raises(ConfigurationError, match=rf"data\.{name}="):
        corpus(**option)
