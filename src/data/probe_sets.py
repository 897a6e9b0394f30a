"""Probe sets: fixed short texts on which two models are compared."""

import json
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from importlib.resources import files
from itertools import chain, islice
from typing import Protocol, runtime_checkable

from ..exceptions import ConfigurationError, DataError
from .corpora import VALIDATION, TextSource, check_split


@runtime_checkable
class ProbeSet(TextSource, Protocol):
    """A source whose splits hold the same texts: nothing is learned from them."""

    @property
    def name(self) -> str:
        """What the set is called in reports."""
        ...


class _SameInBothSplits:
    """What probe sets have in common."""

    def texts(self, split: str) -> Iterator[str]:
        """Yield the probes, the same for both splits.

        Raises:
            DataError: there is no such split, or there is nothing to probe with.
        """
        check_split(split)
        yield from self._probes()

    @abstractmethod
    def _probes(self) -> Iterable[str]: ...


class SemanticPrimes(_SameInBothSplits):
    """The exponents of the 65 semantic primes of Natural Semantic Metalanguage.

    Primes are the meanings that, as its authors found, every language has a word for, so that
    they are the same texts in every language. Where a prime has several exponents
    (``DON'T WANT``, ``OTHER~ELSE``) one stands for it.

    Source: Goddard and Wierzbicka, chart of 65 primes.

    Args:
        languages: Whose exponents are read, one language after the other; None for all.

    Raises:
        ConfigurationError: a language is not there, or none is named.
    """

    name = "primes"

    def __init__(self, languages: Sequence[str] | None = None) -> None:
        self.languages = tuple(self.exponents) if languages is None else tuple(languages)
        unknown = [language for language in self.languages if language not in self.exponents]
        if unknown or not self.languages:
            raise ConfigurationError(
                f"the semantic primes are asked for in {list(self.languages)}, but they are there "
                f"in {', '.join(self.exponents)}; correct probes.languages"
            )

    @cached_property
    def exponents(self) -> dict[str, tuple[str, ...]]:
        """The exponents of each language, in the same order of primes."""
        rows = json.loads(_packaged("primes.json"))
        return {language: tuple(words) for language, words in rows.items()}

    def _probes(self) -> Iterable[str]:
        return chain.from_iterable(self.exponents[language] for language in self.languages)


class ComputationalGates(_SameInBothSplits):
    """Short pieces of code and logic: truth tables, arithmetic, functions, patterns, queries."""

    name = "gates"

    def _probes(self) -> list[str]:
        probes: list[str] = json.loads(_packaged("gates.json"))
        return probes


class Sentences(_SameInBothSplits):
    """Short English texts of many kinds, such as news, recipes, dialogues and instructions."""

    name = "sentences"

    def _probes(self) -> list[str]:
        return _packaged("sentences.txt").splitlines()


class CorpusSentences(_SameInBothSplits):
    """The first held-out texts of a corpus.

    Args:
        texts: The corpus.
        count: How many of its texts.

    Raises:
        ConfigurationError: the count is not positive.
    """

    name = "corpus"

    def __init__(self, texts: TextSource, count: int = 300) -> None:
        if count < 1:
            raise ConfigurationError(f"probes.count={count}, but it takes at least 1")
        self.corpus, self.count = texts, count

    def _probes(self) -> list[str]:
        probes = list(islice(self.corpus.texts(VALIDATION), self.count))
        if not probes:
            raise DataError(
                "the corpus has no validation text to probe with; set paths.corpus to a larger "
                "one, or take probes=sentences"
            )
        return probes


def _packaged(file: str) -> str:
    return (files(__package__) / "probes" / file).read_text(encoding="utf-8")
