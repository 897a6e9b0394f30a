"""Probe sets: fixed short texts on which two models are compared."""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.resources import files
from itertools import islice
from typing import Protocol, runtime_checkable

from ..exceptions import ConfigurationError, DataError
from .corpora import VALIDATION, TextSource, check_split

_FOLDER = "probes"


@runtime_checkable
class ProbeSet(TextSource, Protocol):
    """A source whose splits hold the same texts: nothing is learned from them."""

    @property
    def name(self) -> str:
        """What the set is called in reports."""
        ...


def _packaged(file: str) -> str:
    return (files(__package__) / _FOLDER / file).read_text(encoding="utf-8")


class SemanticPrimes:
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

    def texts(self, split: str) -> Iterator[str]:
        """Yield the exponents, the same for both splits.

        Raises:
            DataError: there is no such split.
        """
        check_split(split)
        for language in self.languages:
            yield from self.exponents[language]


class ComputationalGates:
    """Short pieces of code and logic: truth tables, arithmetic, functions, patterns, queries."""

    name = "gates"

    def texts(self, split: str) -> Iterator[str]:
        """Yield the probes, the same for both splits.

        Raises:
            DataError: there is no such split.
        """
        check_split(split)
        yield from json.loads(_packaged("gates.json"))


class Sentences:
    """Short English texts of many kinds, such as news, recipes, dialogues and instructions."""

    name = "sentences"

    def texts(self, split: str) -> Iterator[str]:
        """Yield the texts, the same for both splits.

        Raises:
            DataError: there is no such split.
        """
        check_split(split)
        yield from _packaged("sentences.txt").splitlines()


class CorpusSentences:
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

    def texts(self, split: str) -> Iterator[str]:
        """Yield the probes, the same for both splits.

        Raises:
            DataError: there is no such split, or the corpus has no held-out text.
        """
        check_split(split)
        found = False
        for text in islice(self.corpus.texts(VALIDATION), self.count):
            found = True
            yield text
        if not found:
            raise DataError(
                "the corpus has no validation text to probe with; set paths.corpus to a larger "
                "one, or take probes=sentences"
            )
