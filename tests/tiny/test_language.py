import math
import random
from dataclasses import replace
from itertools import permutations

import pytest

from loraport.data.prompts import PromptSpec
from loraport.data.tasks import PromptTemplate, Task
from loraport.tiny.language import ATTRIBUTES, TASTES, VERDICT, TinyLanguage


@pytest.fixture(scope="module")
def language():
    return TinyLanguage()


@pytest.fixture(scope="module")
def documents(language):
    return language.documents(1500, seed=1)


def answers(document):
    """Return the sentence of a document, and its questions with their answers, in order."""
    text, *lines = document.split("\n")
    replies = [line.removeprefix("Answer: ") for line in lines[1::2]]
    return text, list(zip(lines[::2], replies, strict=True))


def test_every_word_leans_to_as_many_attributes_as_asked_for():
    lexicon = TinyLanguage(leanings=3).lexicon
    assert len(lexicon) == 24 + 16 + 16
    assert {len(meaning) for meaning in lexicon.values()} == {len(ATTRIBUTES)}
    assert {sum(map(abs, meaning)) for meaning in lexicon.values()} == {3}
    shared = lexicon.keys() & TinyLanguage(seed=1).lexicon.keys()
    assert len(shared) < len(lexicon) / 2, "another seed has other words"


def test_meaning_adds_up_over_the_invented_words(language):
    noun, verb = language.words["noun"][0], language.words["verb"][0]
    sums = tuple(
        2 * a + b for a, b in zip(language.lexicon[noun], language.lexicon[verb], strict=True)
    )
    assert language.meaning(f"{noun.capitalize()} and a {noun} {verb}.") == sums
    assert language.meaning("The and under.") == (0,) * len(ATTRIBUTES)


def test_sentences_are_made_of_words_of_the_language(language):
    draw = random.Random(3)
    functional = {"the", "a", "and", "near", "under", "after"}
    lengths = set()
    for _ in range(500):
        text = language.sentence(draw)
        assert text[0].isupper()
        assert text.endswith(".")
        words = text[:-1].lower().split()
        invented = [word for word in words if word in language.lexicon]
        assert set(words) - set(invented) <= functional
        lengths.add(len(invented))
    assert lengths <= set(range(3, 8))
    assert len(lengths) >= 4


def test_documents_depend_on_their_seed_alone(language, documents):
    random.seed(99)
    assert TinyLanguage().documents(50, seed=1) == documents[:50]
    assert language.documents(50, seed=2) != documents[:50]


def test_attributes_are_answered_truly(language, documents):
    asked = {attribute.question: place for place, attribute in enumerate(ATTRIBUTES)}
    true = wrong = 0
    for document in documents:
        text, replies = answers(document)
        for question, answer in replies:
            if question == VERDICT:
                continue
            leaning = language.meaning(text)[asked[question]]
            assert leaning != 0
            attribute = ATTRIBUTES[asked[question]]
            assert answer in attribute
            right = answer == (attribute.positive if leaning > 0 else attribute.negative)
            true, wrong = true + right, wrong + (not right)
    # A leaning of one unit, the least, is answered truly with probability 1 / (1 + exp(-4)).
    assert wrong > 0
    assert true / (true + wrong) > 1 / (1 + math.exp(-4))


def test_a_language_that_is_certain_never_errs():
    language = TinyLanguage(certainty=20.0, taste_share=0.0)
    for document in language.documents(300, seed=0):
        text, replies = answers(document)
        meaning = language.meaning(text)
        strongest = max(map(abs, meaning))
        striking = {
            attribute.positive if leaning > 0 else attribute.negative
            for attribute, leaning in zip(ATTRIBUTES, meaning, strict=True)
            if abs(leaning) == strongest and leaning
        }
        if striking:
            assert dict(replies)[VERDICT] in striking


def test_taste_knows_nothing_of_the_sentence(language, documents):
    tastes = [
        (language.meaning(text), 1 if verdict == TASTES[0] else -1)
        for text, verdict in ((t, dict(r)[VERDICT]) for t, r in map(answers, documents))
        if verdict in TASTES
    ]
    assert 0.6 < len(tastes) / len(documents) < 0.8
    for place in range(len(ATTRIBUTES)):
        products = [meaning[place] * taste for meaning, taste in tastes]
        spread = math.sqrt(sum(product**2 for product in products))
        assert abs(sum(products)) < 4 * spread


def test_a_verdict_is_asked_for_as_tasks_ask(language, documents):
    task = Task(name="t", instruction=VERDICT, labels=TASTES, train=(), test=())
    first = [
        document
        for document in documents
        if document.startswith(PromptSpec.of(task, PromptTemplate()).ask(document.split("\n")[0]))
    ]
    assert 0.5 < len(first) / len(documents) < 0.75


def test_no_label_and_no_attribute_is_part_of_another():
    names = [*TASTES, *(side for attribute in ATTRIBUTES for side in attribute)]
    assert [(a, b) for a, b in permutations(names, 2) if a in b] == []


def test_fingerprint_tells_languages_apart(language):
    assert language.fingerprint() == TinyLanguage().fingerprint()
    for change in ({"seed": 1}, {"nouns": 25}, {"taste_share": 0.71}):
        assert replace(language, **change).fingerprint() != language.fingerprint()
