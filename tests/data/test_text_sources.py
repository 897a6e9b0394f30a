import json
from collections import Counter
from itertools import islice
from pathlib import Path

import datasets
import pytest

from loraport.data import CorpusFolder, HubTexts, Interleaved, TaskPrompts, TextSource
from loraport.data.corpora import cut_at_word, encodable, split_of
from loraport.exceptions import ConfigurationError, DataError
from loraport.tiny.language import TinyLanguage, TinySentences, TinyTexts

ROWS = [f"row number {place}" for place in range(400)]


def write_rows(file: Path, texts: list[str]) -> Path:
    file.write_text("".join(json.dumps({"text": text, "kind": "x"}) + "\n" for text in texts))
    return file


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "train.txt").write_text("".join(f"train {place}\n" for place in range(300)))
    (tmp_path / "validation.txt").write_text("".join(f"held out {place}\n" for place in range(30)))
    (tmp_path / "sources.json").write_text("[]")
    write_rows(tmp_path / "diverse.jsonl", ROWS)
    return tmp_path


class Listed:
    def __init__(self, *texts: str) -> None:
        self.held = texts

    def texts(self, split):
        yield from (f"{split} {text}" for text in self.held)


def test_a_folder_gives_every_text_to_one_split(folder):
    corpus = CorpusFolder(folder)
    assert isinstance(corpus, TextSource)
    splits = {split: list(corpus.texts(split)) for split in ("train", "validation")}
    assert {text for text in splits["train"] if text.startswith("train")} == {
        f"train {place}" for place in range(300)
    }
    assert {text for text in splits["validation"] if text.startswith("held out")} == {
        f"held out {place}" for place in range(30)
    }
    rows = {split: {t for t in texts if t.startswith("row")} for split, texts in splits.items()}
    assert rows["train"] | rows["validation"] == set(ROWS)
    assert not rows["train"] & rows["validation"]
    assert 0.05 < len(rows["validation"]) / len(ROWS) < 0.16
    assert len(splits["train"]) + len(splits["validation"]) == 730


def test_the_first_texts_of_a_folder_are_of_all_files(folder):
    first = [text.split()[0] for text in CorpusFolder(folder).texts("train")][:100]
    # 300 of 660 texts are of train.txt: 45 of 100, with a standard deviation of 5.
    assert 25 < Counter(first)["train"] < 65


def test_the_order_of_a_folder_depends_on_the_seed_alone(folder):
    assert list(CorpusFolder(folder).texts("train")) == list(CorpusFolder(folder).texts("train"))
    assert list(CorpusFolder(folder).texts("train")) != list(
        CorpusFolder(folder, seed=1).texts("train")
    )


def test_a_row_is_in_the_same_split_in_whatever_file_and_order(tmp_path):
    one = CorpusFolder(write_rows(tmp_path / "one.jsonl", ROWS))
    other = CorpusFolder(write_rows(tmp_path / "other.jsonl", [*ROWS[::-1], "another"]), seed=4)
    assert set(one.texts("validation")) == set(other.texts("validation")) - {"another"}


def test_one_file_alone_is_split_by_its_texts(tmp_path):
    (tmp_path / "train.txt").write_text("\n".join([*ROWS, "", "  ", ROWS[0]]))
    for path in (tmp_path, tmp_path / "train.txt"):
        train, held_out = (list(CorpusFolder(path).texts(s)) for s in ("train", "validation"))
        assert set(train) | set(held_out) == set(ROWS)
        assert held_out
        assert not set(train) & set(held_out)


def test_texts_keep_line_separators_and_lose_lone_surrogates(tmp_path):
    text = "one\u2028two\r\nthree \U0001f642"
    rows = [json.dumps({"text": text}), json.dumps({"text": "broken \ud83d emoji"}), ""]
    (tmp_path / "a.jsonl").write_bytes("\r\n".join(rows).encode())
    corpus = CorpusFolder(tmp_path, validation_share=0.0)
    assert set(corpus.texts("train")) == {text, "broken ? emoji"}
    assert list(corpus.texts("validation")) == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": 3}', "no field"),
        (b'{"words": "x"}', "no field"),
        (b"[1]", "no field"),
        (b'{"text": ', "no JSON"),
        (b'{"text": "\xff"}', "not UTF-8"),
    ],
)
def test_a_row_without_a_text_is_refused(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"a\.jsonl, at byte 17,.*{reason}"):
        list(CorpusFolder(tmp_path).texts("train"))


def test_a_missing_or_foreign_corpus_is_refused(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "empty").mkdir()
    for path, reason in (
        (None, "none is named"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / "notes.md", "neither"),
        (tmp_path / "empty", "holds neither"),
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
    train, held_out = list(source.texts("train")), list(source.texts("validation"))
    assert train == [text for text in ROWS if split_of(text) == "train"]
    assert held_out == [text for text in ROWS if split_of(text) == "validation"]
    assert held_out


def test_a_data_set_that_is_not_there_or_has_no_such_column_is_refused(hub, tmp_path):
    with pytest.raises(DataError, match=r"'body'.*text, kind.*corpus\.field"):
        list(HubTexts(hub, field="body").texts("train"))
    with pytest.raises(DataError, match="corpus=folder"):
        list(HubTexts(hub, split="nowhere").texts("train"))
    with pytest.raises(DataError, match="corpus=folder"):
        list(HubTexts(str(tmp_path / "nothing"), streaming=False).texts("train"))


def test_tiny_texts_are_new_documents_of_the_language():
    source = TinyTexts(documents=500)
    train, held_out = list(source.texts("train")), list(source.texts("validation"))
    assert len(train) == len(held_out) == 500
    assert train == list(TinyTexts(documents=500).texts("train"))
    assert train != list(TinyTexts(documents=500, seed=1).texts("train"))
    sentences = [{text.partition("\n")[0] for text in texts} for texts in (train, held_out)]
    assert not sentences[0] & sentences[1]
    language = TinyLanguage()
    assert all(any(language.meaning(text)) for text in train[:50])
    # Pre-training draws documents(count, seed); none of its streams is among the sources'.
    assert not set(train) & set(language.documents(2000, seed=0))


def test_tiny_sentences_go_on_and_are_in_one_split_alone():
    train, held_out = (list(islice(TinySentences().texts(s), 300)) for s in ("train", "validation"))
    assert not set(train) & set(held_out)
    assert train == list(islice(TinySentences().texts("train"), 300))
    assert train != list(islice(TinySentences(seed=1).texts("train"), 300))
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


def test_task_prompts_are_training_rows_as_they_are_asked(pico_task, template):
    source = TaskPrompts([pico_task], template)
    prompts = [*source.texts("train"), *source.texts("validation")]
    asked = Counter(template.ask(pico_task, row.text) for row in pico_task.train)
    assert Counter(prompts) == asked
    only_test = {row.text for row in pico_task.test} - {row.text for row in pico_task.train}
    assert only_test
    assert not {template.ask(pico_task, text) for text in only_test} & set(prompts)
    assert not set(source.texts("train")) & set(source.texts("validation"))


@pytest.mark.parametrize("make", [CorpusFolder, HubTexts, TinyTexts, TinySentences, TaskPrompts])
def test_a_split_that_does_not_exist_is_refused(make, folder, pico_task):
    given = {TinyTexts: 3, TinySentences: 3, TaskPrompts: [pico_task]}.get(make, str(folder))
    with pytest.raises(DataError, match="'test'"):
        list(make(given).texts("test"))


def test_texts_are_cut_at_white_space():
    assert cut_at_word("one two three", 13) == "one two three"
    assert cut_at_word("one two three", 9) == "one two"
    assert cut_at_word("one two three", 7) == "one two"
    assert cut_at_word("one two three", 8) == "one two"
    assert cut_at_word("one\ntwo", 5) == "one"
    assert cut_at_word("abcdef", 4) == "abcd"
    assert cut_at_word("  abcdef", 4) == "  ab"
    assert cut_at_word("     x", 3) == "   "


def test_lone_surrogates_become_question_marks():
    assert encodable("a\ud800b") == "a?b"
    assert encodable("\U0001f642\r\n") == "\U0001f642\r\n"


@pytest.mark.real
def test_the_shared_corpus_has_all_kinds_from_the_start(shared):
    corpus = CorpusFolder(shared / "data/corpus")
    with (shared / "data/corpus/diverse.jsonl").open() as rows:
        kinds = {row["text"]: row["kind"] for row in map(json.loads, rows)}
    for split in ("train", "validation"):
        texts = corpus.texts(split)
        first = Counter(kinds.get(next(texts), "book") for _ in range(500))
        assert len(first) == 19
        assert first["book"] > 100
