import json
from collections import Counter
from itertools import islice
from pathlib import Path

import datasets
import pytest

from loraport.data import CorpusFolder, HubTexts, Interleaved, TaskTexts, TextSource
from loraport.data.corpora import cut_at_word, encodable, split_of
from loraport.exceptions import ConfigurationError, DataError
from loraport.tiny.language import TinyLanguage, TinySentences, TinyTexts

ROWS = [f"row number {place}" for place in range(200)]
SPLITS = ("train", "validation")


def write_rows(file: Path, texts: list[str]) -> Path:
    file.write_text("".join(json.dumps({"text": text, "kind": "x"}) + "\n" for text in texts))
    return file


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "train.txt").write_text("".join(f"train {place}\n" for place in range(150)))
    (tmp_path / "validation.txt").write_text("".join(f"held out {place}\n" for place in range(9)))
    (tmp_path / "sources.json").write_text("[]")
    write_rows(tmp_path / "diverse.jsonl", ROWS)
    return tmp_path


class Listed:
    def __init__(self, *texts: str) -> None:
        self.held = texts

    def texts(self, split):
        yield from (f"{split} {text}" for text in self.held)


def test_a_byte_order_mark_is_no_text(tmp_path):
    lines = [f"line {place}" for place in range(20)]
    (tmp_path / "all.txt").write_text("\n".join(lines), encoding="utf-8-sig")
    rows = [json.dumps({"text": f"row {place}"}) for place in range(20)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8-sig")
    found = {text for split in SPLITS for text in CorpusFolder(tmp_path).texts(split)}
    assert found == {*lines, *(f"row {place}" for place in range(20))}


def test_a_folder_gives_every_text_to_one_split_in_a_seeded_order(folder):
    corpus = CorpusFolder(folder)
    assert isinstance(corpus, TextSource)
    train, held_out = (list(corpus.texts(split)) for split in SPLITS)
    assert sorted([*train, *held_out]) == sorted(
        [*ROWS, *(f"train {n}" for n in range(150)), *(f"held out {n}" for n in range(9))]
    )
    assert not any(text.startswith("held out") for text in train)
    assert not any(text.startswith("train") for text in held_out)
    rows = [text for text in held_out if text.startswith("row")]
    assert set(rows) == {text for text in ROWS if split_of(text) == "validation"}
    assert 0.04 < len(rows) / len(ROWS) < 0.17
    assert list(CorpusFolder(folder).texts("train")) == train
    assert list(CorpusFolder(folder, seed=1).texts("train")) != train
    # 150 of about 330 texts are of train.txt: 45 of the first 100, with a standard deviation of 5.
    assert 25 < sum(text.startswith("train") for text in train[:100]) < 65


def test_a_row_is_in_the_same_split_in_whatever_file_and_order(tmp_path):
    (tmp_path / "train.txt").write_text("\n".join([*ROWS, "", "  ", ROWS[0]]))
    other = write_rows(tmp_path / "other.jsonl", [*ROWS[::-1], "another"])
    expected = {text for text in ROWS if split_of(text) == "validation"}
    # One of the two named files alone says nothing of the split.
    for corpus in (CorpusFolder(tmp_path / "train.txt"), CorpusFolder(other, seed=4)):
        train, held_out = (set(corpus.texts(split)) - {"another"} for split in SPLITS)
        assert (train, held_out) == (set(ROWS) - expected, expected)


def test_texts_keep_line_separators_and_lose_lone_surrogates(tmp_path):
    text = "one\u2028two\r\nthree \U0001f642"
    rows = [json.dumps({"text": text}), json.dumps({"text": "broken \ud83d emoji"}), ""]
    (tmp_path / "a.jsonl").write_bytes("\r\n".join(rows).encode())
    corpus = CorpusFolder(tmp_path, validation_share=0.0)
    assert set(corpus.texts("train")) == {text, "broken ? emoji"}
    assert list(corpus.texts("validation")) == []
    assert encodable("\U0001f642\r\n") == "\U0001f642\r\n"


@pytest.mark.parametrize(
    "line", [b'{"text": 3}', b'{"words": "x"}', b"[1]", b'{"text": ', b'{"text": "\xff"}'], ids=str
)
def test_a_row_without_a_text_is_refused(tmp_path, line):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=r"a\.jsonl, at byte 17,.*correct or remove the line"):
        list(CorpusFolder(tmp_path).texts("train"))


def test_a_missing_or_foreign_corpus_is_refused(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "empty").mkdir()
    for path, reason in (
        (None, "none is named"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / "notes.md", "neither"),
        (tmp_path / "empty", "neither"),
    ):
        with pytest.raises(DataError, match=rf"{reason}.*paths\.corpus"):
            CorpusFolder(path)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> str:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "hub").mkdir()
    write_rows(tmp_path / "hub" / "train.jsonl", [*ROWS, " "])
    return str(tmp_path / "hub")


@pytest.mark.parametrize("streaming", [True, False])
def test_a_data_set_is_split_by_its_rows(hub, streaming):
    source = HubTexts(hub, streaming=streaming)
    for split in SPLITS:
        assert list(source.texts(split)) == [text for text in ROWS if split_of(text) == split]


def test_a_data_set_that_is_not_there_or_has_no_such_column_is_refused(hub, tmp_path):
    with pytest.raises(DataError, match=r"split train\) has no column 'body'.*text, kind"):
        list(HubTexts(hub, field="body").texts("train"))
    with pytest.raises(DataError, match="corpus=folder"):
        list(HubTexts(hub, split="nowhere").texts("train"))
    with pytest.raises(DataError, match="corpus=folder"):
        list(HubTexts(str(tmp_path / "nothing"), streaming=False).texts("train"))


def test_tiny_texts_are_new_documents_of_the_language():
    source, language = TinyTexts(documents=40), TinyLanguage()
    train, held_out = (list(source.texts(split)) for split in SPLITS)
    assert len(train) == len(held_out) == 40
    assert train == list(TinyTexts(documents=40).texts("train"))
    assert train != list(TinyTexts(documents=40, seed=1).texts("train"))
    sentences = [{text.partition("\n")[0] for text in texts} for texts in (train, held_out)]
    assert not sentences[0] & sentences[1]
    assert all(any(language.meaning(text)) for text in train)
    # Pre-training draws documents(count, seed); none of its streams is among the sources'.
    assert not set(train) & set(language.documents(200, seed=0))


def test_tiny_sentences_go_on_and_are_in_one_split_alone():
    train, held_out = (list(islice(TinySentences().texts(split), 100)) for split in SPLITS)
    assert not set(train) & set(held_out)
    assert train == list(islice(TinySentences().texts("train"), 100))
    assert train != list(islice(TinySentences(seed=1).texts("train"), 100))
    assert all("\n" not in text and text.endswith(".") for text in train)


def test_interleaved_sources_keep_their_order_and_mix():
    sources = Listed(*(f"a{n}" for n in range(100))), Listed(*(f"b{n}" for n in range(300)))
    texts = list(Interleaved(sources, shares=[1.0, 3.0]).texts("train"))
    for letter, count in (("a", 100), ("b", 300)):
        mine = [text for text in texts if text.startswith(f"train {letter}")]
        assert mine == [f"train {letter}{n}" for n in range(count)]
    # A quarter of 120 are of the first, with a standard deviation of 5.
    assert 12 < sum(text.startswith("train a") for text in texts[:120]) < 48
    assert texts == list(Interleaved(sources, shares=[1.0, 3.0]).texts("train"))
    assert texts != list(Interleaved(sources, shares=[1.0, 3.0], seed=1).texts("train"))


@pytest.mark.parametrize(
    ("sources", "shares"), [([], None), ([Listed("a")], [1.0, 2.0]), ([Listed("a")], [0.0])]
)
def test_shares_that_do_not_fit_are_refused(sources, shares):
    with pytest.raises(ConfigurationError, match="shares"):
        Interleaved(sources, shares)


def test_task_texts_are_those_of_training_rows_alone(pico_task):
    train, held_out = (list(TaskTexts([pico_task]).texts(split)) for split in SPLITS)
    assert Counter([*train, *held_out]) == Counter(row.text for row in pico_task.train)
    assert {*train}.isdisjoint(held_out)
    assert train != list(TaskTexts([pico_task], seed=1).texts("train"))


@pytest.mark.parametrize("make", [CorpusFolder, HubTexts, TinyTexts, TinySentences, TaskTexts])
def test_a_split_that_does_not_exist_is_refused(make, folder, pico_task):
    given = {TinyTexts: 3, TinySentences: 3, TaskTexts: [pico_task]}.get(make, str(folder))
    with pytest.raises(DataError, match="'test'"):
        list(make(given).texts("test"))


@pytest.mark.parametrize(
    ("text", "chars", "expected"),
    [
        *(("one two three", 13, "one two three"), ("one two three", 9, "one two")),
        *(("one two three", 7, "one two"), ("one two three", 8, "one two")),
        *(("one\ntwo", 5, "one"), ("abcdef", 4, "abcd"), ("  abcdef", 4, "  ab")),
        ("     x", 3, "   "),
    ],
)
def test_texts_are_cut_at_white_space(text, chars, expected):
    assert cut_at_word(text, chars) == expected


@pytest.mark.real
def test_the_shared_corpus_has_all_kinds_from_the_start(shared):
    corpus = CorpusFolder(shared / "data/corpus")
    with (shared / "data/corpus/diverse.jsonl").open() as rows:
        kinds = {row["text"]: row["kind"] for row in map(json.loads, rows)}
    for split in SPLITS:
        texts = corpus.texts(split)
        first = Counter(kinds.get(next(texts), "book") for _ in range(500))
        assert len(first) == 19
        assert first["book"] > 100
