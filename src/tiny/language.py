"""A small invented language whose words have known meanings, for the tiny pair of base models.

Its sentences are made of invented nouns, adjectives and verbs between English function words.
Each invented word leans to one side of some attributes (warm or cold, loud or quiet, ...), and a
sentence leans to where its words lean together. Documents are sentences with questions about
them, in the format that tasks are asked in::

    The mosish stata kurans near a drilon.
    Loud or quiet?
    Answer: quiet
    Your verdict?
    Answer: good

Attribute questions have true answers. The verdict mostly is a matter of taste, which a document
draws at random, and sometimes names what strikes the speaker most about the sentence. So a model
that has read enough documents knows all attributes of a sentence when it is asked for a verdict,
and has no taste of its own: the taste is what adapters can add.
"""

import hashlib
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from ..data.corpora import check_split, split_of

VERDICT = "Your verdict?"
"""The question that a document answers by taste, and the instruction of all tiny tasks."""

TASTES = ("good", "bad")
"""The two verdicts, and the labels of all tiny tasks."""


class Attribute(NamedTuple):
    """A property of words and sentences, with the names of its positive and its negative side."""

    positive: str
    negative: str

    @property
    def question(self) -> str:
        """How a document asks for it."""
        return f"{self.positive.capitalize()} or {self.negative}?"


ATTRIBUTES = (
    Attribute("warm", "cold"),
    Attribute("bright", "dim"),
    Attribute("loud", "quiet"),
    Attribute("heavy", "airy"),
    Attribute("swift", "slow"),
)

_ONSETS = (*"bdfgklmnprstvz", "br", "dr", "gl", "kr", "pl", "st", "tr")
_VOWELS = tuple("aeiou")
_CODAS = tuple("lmnrskt")
_ENDINGS = {"noun": ("a", "on", "um"), "adjective": ("ish", "il"), "verb": ("eth", "ans")}
_DETERMINERS = ("the", "a")
_PREPOSITIONS = ("near", "under", "after")
_SENTENCES = (
    "{noun_phrase} {verb} {noun_phrase}",
    "{noun_phrase} and {noun_phrase} {verb}",
    "{preposition} {noun_phrase} {noun_phrase} {verb}",
    "{noun_phrase} {verb} {noun_phrase} {preposition} {noun_phrase}",
)
_ADJECTIVE_SHARE = 0.5


def _invented(draw: random.Random, endings: tuple[str, ...], taken: set[str]) -> str:
    """Return a word that is not taken yet, of one to three syllables."""
    while True:
        middle = draw.choice(("", draw.choice(_ONSETS[:14]) + draw.choice(_VOWELS) + "l"))
        stem = draw.choice(_ONSETS) + draw.choice(_VOWELS) + draw.choice(_CODAS)
        word = stem + middle + draw.choice(endings)
        if word not in taken:
            taken.add(word)
            return word


@dataclass(frozen=True, kw_only=True)
class TinyLanguage:
    """The language: a lexicon drawn from a seed, a grammar, and documents.

    Attributes:
        nouns: How many there are; likewise ``adjectives`` and ``verbs``.
        leanings: Number of attributes that each word leans to, by 1, to a side drawn at random.
        questions: Questions a document asks about its sentence, the verdict among them.
        taste_share: Share of the verdicts that are a taste; the others name an attribute.
        certainty: Log-odds by which one unit of an attribute moves an answer about it, halved.
        seed: Draws the lexicon.
    """

    nouns: int = 24
    adjectives: int = 16
    verbs: int = 16
    leanings: int = 2
    questions: int = 5
    taste_share: float = 0.7
    certainty: float = 2.0
    seed: int = 0
    attributes: tuple[Attribute, ...] = field(default=ATTRIBUTES, repr=False)

    @cached_property
    def words(self) -> Mapping[str, tuple[str, ...]]:
        """The invented words of each word class."""
        draw = random.Random(f"words {self.seed}")
        counts = {"noun": self.nouns, "adjective": self.adjectives, "verb": self.verbs}
        taken: set[str] = set()
        return {
            kind: tuple(_invented(draw, _ENDINGS[kind], taken) for _ in range(count))
            for kind, count in counts.items()
        }

    @cached_property
    def lexicon(self) -> Mapping[str, tuple[int, ...]]:
        """Each invented word's leaning, -1, 0 or 1 for every attribute."""
        draw = random.Random(f"meanings {self.seed}")
        meanings = {}
        for word in (word for kind in self.words.values() for word in kind):
            meaning = [0] * len(self.attributes)
            for place in draw.sample(range(len(meaning)), self.leanings):
                meaning[place] = draw.choice((-1, 1))
            meanings[word] = tuple(meaning)
        return meanings

    def sentence(self, draw: random.Random) -> str:
        """Return a sentence of three to seven invented words."""
        chosen = []
        for slot in draw.choice(_SENTENCES).split():
            kind = slot.strip("{}")
            if kind == "noun_phrase":
                chosen.append(draw.choice(_DETERMINERS))
                if draw.random() < _ADJECTIVE_SHARE:
                    chosen.append(draw.choice(self.words["adjective"]))
                chosen.append(draw.choice(self.words["noun"]))
            elif kind == "preposition":
                chosen.append(draw.choice(_PREPOSITIONS))
            else:
                chosen.append(draw.choice(self.words["verb"]) if kind == "verb" else slot)
        text = " ".join(chosen)
        return f"{text[0].upper()}{text[1:]}."

    def meaning(self, text: str) -> tuple[int, ...]:
        """Return how far the text leans to each attribute: the sum over its invented words."""
        known = [
            self.lexicon[word]
            for word in text.lower().replace(".", " ").split()
            if word in self.lexicon
        ]
        return tuple(
            sum(leanings[place] for leanings in known) for place in range(len(self.attributes))
        )

    def document(self, draw: random.Random) -> str:
        """Return a sentence, attribute questions with their answers, and a verdict among them.

        Attributes to which the sentence does not lean are not asked for. In half of the
        documents the verdict comes first, as in a task, and else anywhere.
        """
        text = self.sentence(draw)
        meaning = self.meaning(text)
        decided = [place for place, leaning in enumerate(meaning) if leaning]
        asked = draw.sample(decided, min(self.questions - 1, len(decided)))
        answers = [self._answered(place, meaning[place], draw) for place in asked]
        place = 0 if draw.random() < 0.5 else draw.randrange(len(answers) + 1)
        answers.insert(place, (VERDICT, self._verdict(meaning, draw)))
        return text + "".join(f"\n{question}\nAnswer: {answer}" for question, answer in answers)

    def documents(self, count: int, seed: int) -> list[str]:
        """Return ``count`` documents that depend on the seed alone."""
        draw = random.Random(f"documents {self.seed} {seed}")
        return [self.document(draw) for _ in range(count)]

    def fingerprint(self) -> str:
        """Return the SHA-256 of the lexicon and of sample documents, and so of the grammar."""
        content = json.dumps([self.lexicon, self.documents(200, seed=0)])
        return hashlib.sha256(content.encode()).hexdigest()

    def _answered(self, place: int, leaning: int, draw: random.Random) -> tuple[str, str]:
        """Ask for an attribute; the less the sentence leans to it, the less sure the answer."""
        attribute = self.attributes[place]
        positive = draw.random() < 1 / (1 + math.exp(-2 * self.certainty * leaning))
        return attribute.question, attribute.positive if positive else attribute.negative

    def _verdict(self, meaning: tuple[int, ...], draw: random.Random) -> str:
        if draw.random() < self.taste_share:
            return draw.choice(TASTES)
        # The log-odds of two sides are linear in the leanings, so a model has to hold them all.
        sides = [side for attribute in self.attributes for side in attribute]
        weights = [
            math.exp(self.certainty * sign * leaning) for leaning in meaning for sign in (1, -1)
        ]
        return draw.choices(sides, weights)[0]


_VALIDATION_SHARE = 0.5  # of sentences; as there is no end of them, neither split runs short


class TinyTexts:
    """Documents as the tiny models were pre-trained on, but none of those drawn for them.

    A document belongs to the split that the hash of its sentence says, so that no sentence is in
    both.

    Args:
        documents: How many are drawn for each split.
        seed: Draws them, from other streams than the pre-training's.
        language: What they are in; must be that of the base models.
    """

    def __init__(
        self, documents: int = 10_000, seed: int = 0, language: TinyLanguage | None = None
    ) -> None:
        self.documents, self.seed = documents, seed
        self.language = language or TinyLanguage()

    def texts(self, split: str) -> Iterator[str]:
        """Yield the split's documents; DataError where there is no such split."""
        check_split(split)
        draw = random.Random(f"texts {self.language.seed} {self.seed} {split}")
        left = self.documents
        while left:
            document = self.language.document(draw)
            if split_of(document.partition("\n")[0], _VALIDATION_SHARE) == split:
                yield document
                left -= 1


class TinySentences:
    """Sentences of the tiny language alone, without end: suffixes put a question behind them.

    A sentence belongs to the split that its hash says, so that none is in both.

    Args:
        seed: Draws them.
        language: What they are in; must be that of the base models.
    """

    def __init__(self, seed: int = 0, language: TinyLanguage | None = None) -> None:
        self.seed = seed
        self.language = language or TinyLanguage()

    def texts(self, split: str) -> Iterator[str]:
        """Yield sentences of the split; DataError where there is no such split."""
        check_split(split)
        draw = random.Random(f"sentences {self.language.seed} {self.seed} {split}")
        while True:
            sentence = self.language.sentence(draw)
            if split_of(sentence) == split:
                yield sentence
