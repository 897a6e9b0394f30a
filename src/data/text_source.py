"""What every source of texts can do, and how its texts are split and cut."""

import hashlib
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from ..exceptions import DataError

TRAIN, VALIDATION = SPLITS = ("train", "validation")
"""The splits of every source: what is learned from, and other documents to choose and stop by."""

VALIDATION_SHARE = 0.1
"""The share of documents that is validation where a source does not say itself which are."""


@runtime_checkable
class TextSource(Protocol):
    """Anything that texts can be read from, always the same ones in the same order."""

    def texts(self, split: str) -> Iterator[str]:
        """Yield the texts of ``train`` or ``validation``; no document is in both.

        Raises:
            DataError: there is no such split, or what the texts are in cannot be read.
        """
        ...


def check_split(split: str) -> None:
    """Refuse a split that no source has.

    Raises:
        DataError: naming the split and the ones that there are.
    """
    if split not in SPLITS:
        raise DataError(f"texts have no split {split!r}, but {' and '.join(SPLITS)}; ask for one")


def split_of(document: str, validation_share: float = VALIDATION_SHARE) -> str:
    """Return the split of a document by its SHA-256: the same wherever and whenever it occurs."""
    digest = hashlib.sha256(document.encode()).digest()
    drawn = int.from_bytes(digest[:8], "big") / 2**64
    return VALIDATION if drawn < validation_share else TRAIN


def cut_at_word(text: str, chars: int) -> str:
    """Cut the text at the last white space before so many characters, or there if it has none.

    >>> cut_at_word("one two three", 9)
    'one two'
    """
    if len(text) <= chars:
        return text
    if text[chars].isspace():
        return text[:chars].rstrip() or text[:chars]
    head = text[:chars]
    word = len(head) - len(head.split()[-1]) if head.split() and not head[-1].isspace() else chars
    return head[:word].rstrip() or head


def encodable(text: str) -> str:
    """Return the text with ``?`` for lone surrogates, which no tokenizer takes."""
    return text.encode(errors="replace").decode()
