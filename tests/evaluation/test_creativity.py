import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from loraport.evaluation.creativity import BETWEEN_SAMPLES, Creativity, distinct, self_bleu, words
from loraport.evaluation.suite import Suite
from loraport.exceptions import ConfigurationError, DataError
from loraport.models import BaseModel

SAMPLES = {
    "a story": ["the dog ran home", "the dog ran home", "the dog ran home"],
    "a name": ["one two three four", "five six seven eight", "nine ten"],
}


def written(folder: Path, lines: list[object]) -> Path:
    file = folder / "creativity" / "prompts.jsonl"
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    return folder


def prompts_in(folder: Path) -> Path:
    return written(folder, [{"id": "1", "prompt": prompt} for prompt in SAMPLES])


def test_planned_samples_are_measured(tmp_path, pico_target, plan_answers):
    suite = Creativity(suites=prompts_in(tmp_path), samples=3)
    assert isinstance(suite, Suite)
    batches = plan_answers(pico_target, SAMPLES)
    score = suite.score(pico_target)
    assert batches == [6]
    rows = {name: dict(zip(suite.prompts(), row.tolist(), strict=True)) for name, row in
            score.rows.items()}  # fmt: skip
    assert rows["distinct_1"] == {"a story": 4 / 12, "a name": 1.0}
    assert rows["distinct_2"] == {"a story": 3 / 9, "a name": 1.0}
    assert rows["self_bleu"] == pytest.approx({"a story": 1.0, "a name": 0.0})
    assert rows["mean_words"] == pytest.approx({"a story": 4.0, "a name": 10 / 3})
    every = [sample for samples in SAMPLES.values() for sample in samples]
    assert score.whole["whole_distinct_1"] == distinct(every, 1) == 14 / 22
    assert score.whole["whole_self_bleu"] == pytest.approx(self_bleu(every))
    assert set(suite.metrics) | {"chat_template"} == {*score.rows, *score.whole}
    place = suite.prompts().index("a name")
    assert score.answers[place] == BETWEEN_SAMPLES.join(SAMPLES["a name"])


def test_one_seed_gives_the_same_score(tmp_path: Path, pico_target: BaseModel):
    folder = prompts_in(tmp_path)

    def score(seed: int) -> tuple[str, ...]:
        suite = Creativity(suites=folder, samples=2, max_new_tokens=6, seed=seed)
        return tuple(sorted(suite.score(pico_target).answers))

    assert score(0) == score(0)
    assert score(0) != score(1)


def test_the_hash_knows_prompts_and_settings(tmp_path: Path):
    folder = prompts_in(tmp_path)
    options: list[dict[str, Any]] = [
        {},
        {"count": 1},
        {"samples": 3},
        {"temperature": 0.7},
        {"top_p": 0.5},
    ]
    options += [{"max_new_tokens": 9}, {"chat": "plain"}, {"seed": 3}, {"batch_rows": 2}]
    hashes = [Creativity(suites=folder, **each).content_hash() for each in options]
    assert len(set(hashes)) == len(options)
    assert Creativity(suites=folder).content_hash() == hashes[0]


def test_bad_input(tmp_path: Path):
    folder = prompts_in(tmp_path)
    with pytest.raises(DataError, match=r"count=3, but there are 2 different"):
        Creativity(suites=folder, count=3)
    bad: dict[str, Any] = {"samples": 1, "temperature": 0.0, "top_p": 1.5}
    with pytest.raises(
        ConfigurationError, match=r"samples is 1, .*temperature is 0\.0, .*top_p is 1\.5"
    ):
        Creativity(suites=folder, **bad)
    with pytest.raises(DataError, match=r"line 1.*prompt is empty"):
        Creativity(suites=written(tmp_path, [{"prompt": " "}]))


@pytest.mark.real
def test_shared_prompts(shared: Path):
    assert len(Creativity(suites=shared / "data").prompts()) == 100


def test_words_and_marks():
    assert words("The cat's hat; THE end.") == ["the", "cat's", "hat", ";", "the", "end", "."]
    assert words("") == []


def test_distinct_counts_ngrams_of_all_texts_together():
    # 7 words of which 4 differ; pairs a-b, b-a, a-b, c-d, d-c do not run into the next text.
    texts = ["a b a b", "c d c"]
    assert distinct(texts, 1) == 4 / 7
    assert distinct(texts, 2) == 4 / 5
    assert distinct(texts, 3) == 1.0
    assert math.isnan(distinct(["a b"], 3))
    assert math.isnan(distinct([], 1))


def random_texts(seed: int) -> list[str]:
    draw = random.Random(seed)
    return [
        " ".join(draw.choices(["red", "fox", "runs", "home", "late", "."], k=draw.randint(1, 14)))
        for _ in range(draw.randint(2, 9))
    ]


@pytest.mark.parametrize("seed", range(12))
def test_self_bleu_is_that_of_nltk(seed: int):
    bleu = pytest.importorskip("nltk.translate.bleu_score")
    texts = random_texts(seed)
    split = [words(text) for text in texts]
    scores = [
        bleu.sentence_bleu(
            split[:place] + split[place + 1 :],
            each,
            smoothing_function=bleu.SmoothingFunction().method1,
        )
        for place, each in enumerate(split)
    ]
    assert self_bleu(texts) == pytest.approx(sum(scores) / len(scores), abs=1e-12)


def test_self_bleu_at_its_ends():
    long = "one two three four five"
    assert self_bleu([long] * 3) == pytest.approx(1.0)
    assert self_bleu([long, "six seven eight nine ten"]) == 0.0
    assert math.isnan(self_bleu([long]))
    assert self_bleu(["", long, long]) == pytest.approx(2 / 3)
    assert self_bleu(["", ""]) == 0.0
