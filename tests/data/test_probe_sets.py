import re
from itertools import pairwise

import pytest

from loraport.data import ComputationalGates, CorpusSentences, SemanticPrimes, Sentences
from loraport.data.probe_sets import ProbeSet
from loraport.exceptions import ConfigurationError, DataError


class Numbered:
    def __init__(self, count=10):
        self.count = count

    def texts(self, split):
        yield from (f"{split} {place}" for place in range(self.count))


SETS = [SemanticPrimes(), ComputationalGates(), Sentences(), CorpusSentences(Numbered(), 4)]


@pytest.mark.parametrize("probes", SETS, ids=lambda probes: probes.name)
def test_both_splits_are_the_same_texts(probes):
    assert isinstance(probes, ProbeSet)
    texts = list(probes.texts("train"))
    assert texts == list(probes.texts("validation"))
    assert all(text == text.strip() and text for text in texts)
    with pytest.raises(DataError, match="'test'"):
        list(probes.texts("test"))


def test_each_language_has_65_primes_and_those_asked_for_are_read():
    exponents = SemanticPrimes().exponents
    assert {"english", "spanish", "french", "german", "russian", "chinese"} <= set(exponents)
    assert all(len(words) == len(set(words)) == 65 for words in exponents.values())
    primes = list(zip(exponents["english"], exponents["german"], strict=True))
    assert {("I", "ich"), ("die", "sterben"), ("inside", "innen"), ("like", "wie")} <= set(primes)
    both = list(SemanticPrimes(["german", "english"]).texts("train"))
    assert both == [*exponents["german"], *exponents["english"]]
    for languages in (["latin"], []):
        with pytest.raises(ConfigurationError, match="english, spanish"):
            SemanticPrimes(languages)


def test_gates_are_right_about_numbers_and_their_functions_compile():
    probes = list(ComputationalGates().texts("train"))
    assert len(set(probes)) == len(probes) >= 60
    sums = [probe for probe in probes if re.fullmatch(r"[\d\s+*/%()-]+ = [\d\s/]+", probe)]
    truths = [p for p in probes if re.fullmatch(r"(len|sum|sorted|\[|\")[^=]+ == [^=]+", p)]
    assert len(sums) + len(truths) >= 10
    for probe in sums:
        left, right = probe.split(" = ")
        assert eval(left) == eval(right), probe
    assert all(eval(probe) for probe in truths)
    scope: dict[str, object] = {}
    for function in [probe for probe in probes if probe[:4] == "def "]:
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
    assert list(CorpusSentences(Numbered(), 2).texts("train")) == ["validation 0", "validation 1"]
    assert len(list(CorpusSentences(Numbered()).texts("train"))) == 10
    with pytest.raises(DataError, match="probes=sentences"):
        list(CorpusSentences(Numbered(0)).texts("train"))
    with pytest.raises(ConfigurationError, match=r"probes\.count=0"):
        CorpusSentences(Numbered(), 0)
