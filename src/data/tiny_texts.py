"""Documents of the tiny language as a source of texts, for the tiny pair."""

import random
from collections.abc import Iterator

from .text_source import check_split, split_of
from .tiny_language import TinyLanguage

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
        """Yield the split's documents.

        Raises:
            DataError: there is no such split.
        """
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
        """Yield sentences of the split.

        Raises:
            DataError: there is no such split.
        """
        check_split(split)
        draw = random.Random(f"sentences {self.language.seed} {self.seed} {split}")
        while True:
            sentence = self.language.sentence(draw)
            if split_of(sentence) == split:
                yield sentence
