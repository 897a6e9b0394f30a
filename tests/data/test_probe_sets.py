import re
from itertools import pairwise

import pytest

from loraport.data import ComputationalGates, CorpusSentences, SemanticPrimes, Sentences
from loraport.data.probe_sets import ProbeSet
from loraport.exceptions import ConfigurationError, DataError


class Numbered:
    def texts(self, split):
        yield from (f"{split} {place}" for place in range(10 if split == "validation" else 500))


class Nothing:
    def texts(self, split):
        yield from ()


SETS = [SemanticPrimes(), ComputationalGates(), Sentences(), CorpusSentences(Numbered(), 4)]


@pytest.mark.parametrize("probes", SETS, ids=lambda probes: probes.name)
def test_both_splits_are_the_same_distinct_texts(probes):
    assert isinstance(probes, ProbeSet)
    texts = list(probes.texts("train"))
    assert texts == list(probes.texts("validation"))
    assert all(text == text.strip() and text for text in texts)
    with pytest.raises(DataError, match="'test'"):
        list(probes.texts("test"))


def test_each_language_has_65_primes():
    exponents = SemanticPrimes().exponents
    assert {"english", "spanish", "french", "german", "russian", "chinese"} <= set(exponents)
    assert all(len(words) == len(set(words)) == 65 for words in exponents.values())
    primes = list(zip(exponents["english"], exponents["german"], strict=True))
    assert {("I", "ich"), ("die", "sterben"), ("inside", "innen"), ("like", "wie")} <= set(primes)


def test_primes_of_some_languages():
    words = list(SemanticPrimes(["german", "english"]).texts("train"))
    assert len(words) == 130
    assert words[0] == "ich"
    assert words[65] == "I"
    assert len(list(SemanticPrimes().texts("train"))) == 65 * len(SemanticPrimes().exponents)


@pytest.mark.parametrize("languages", [["latin"], []])
def test_languages_without_exponents_are_refused(languages):
    with pytest.raises(ConfigurationError, match="english, spanish"):
        SemanticPrimes(languages)


def test_gates_are_many_and_right_about_numbers():
    probes = list(ComputationalGates().texts("train"))
    assert len(set(probes)) == len(probes) >= 60
    checked = 0
    for probe in probes:
        if re.fullmatch(r"[\d\s+*/%()-]+ = [\d\s/]+", probe):
            left, right = probe.split(" = ")
            assert eval(left) == eval(right), probe
            checked += 1
        if re.fullmatch(r"(len|sum|sorted|\[|\")[^=]+ == [^=]+", probe):
            assert eval(probe), probe
            checked += 1
    assert checked >= 10


def test_functions_among_the_gates_compile():
    functions = [probe for probe in ComputationalGates().texts("train") if probe[:4] == "def "]
    assert len(functions) >= 5
    scope: dict[str, object] = {}
    for function in functions:
        exec(function, scope)
    assert eval("factorial(5), clamp(9, 0, 4), reverse('ab')", scope) == (120, 4, "ba")


def test_sentences_have_a_broad_vocabulary():
    texts = list(Sentences().texts("train"))
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    assert len(set(texts)) == len(texts) >= 250
    assert sum(map(len, words)) >= 5000
    assert len({word for row in words for word in row}) >= 2000
    # No template: no two neighbours begin with the same two words.
    assert all(here[:2] != there[:2] for here, there in pairwise(words))


def test_corpus_sentences_are_the_first_held_out_texts():
    assert list(CorpusSentences(Numbered(), 4).texts("train")) == [
        f"validation {place}" for place in range(4)
    ]
    assert len(list(CorpusSentences(Numbered()).texts("train"))) == 10


def test_corpus_sentences_need_a_corpus_and_a_count():
    with pytest.raises(DataError, match="probes=sentences"):
        list(CorpusSentences(Nothing()).texts("train"))
    with pytest.raises(ConfigurationError, match=r"probes\.count=0"):
        CorpusSentences(Numbered(), 0)
