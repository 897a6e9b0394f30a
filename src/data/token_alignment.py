"""Where the tokens of two tokenizers end at the same byte of a text.

Tokenizers cut a text at different places, so their tokens cannot be paired one by one. Where a
token of each ends at the same byte both models have read the same prefix, and as attention is
causal their states there describe the same text.

Source: byte-offset alignment as in GOLD (TRL) and at word ends in tokenkit.
"""

import json
import math
import unicodedata
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from copy import copy
from itertools import accumulate
from typing import Any, NamedTuple, Protocol, runtime_checkable

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from ..exceptions import ModelError

_JOINERS = "\u200c\u200d"


class TokenEnds(NamedTuple):
    """A text as one tokenizer reads it, with the tokenizer's own leading tokens.

    ``places`` maps each byte of the text, in UTF-8, at which a token ends, in ascending order, to
    the place of that token in ``input_ids``.
    """

    input_ids: Sequence[int]
    places: Mapping[int, int]


class TokenEndReader:
    """Reads texts with a tokenizer and finds where its tokens end.

    A token that ends inside a character, as the first pieces of an emoji do in byte-level BPE,
    ends nowhere; the last piece of the character ends where the character does. The tokenizer's
    own tokens (BOS, EOS) end nowhere either.

    Raises:
        ModelError: the tokenizer is not a fast one, and has no offsets.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise ModelError(
                f"the tokenizer {type(tokenizer).__name__} is no fast tokenizer, but aligning "
                "tokens takes the offsets that only fast tokenizers have; save the model with a "
                "tokenizer.json"
            )
        self._tokenizer = _untrimmed(tokenizer)

    def read(self, texts: Sequence[str]) -> list[TokenEnds]:
        """Return each text's tokens and where they end."""
        if not texts:
            return []
        read = self._tokenizer(
            list(texts), return_offsets_mapping=True, return_special_tokens_mask=True
        )
        parts = (read[name] for name in ("input_ids", "offset_mapping", "special_tokens_mask"))
        rows = zip(texts, *parts, strict=True)
        return [TokenEnds(ids, _places(text, spans, own)) for text, ids, spans, own in rows]


def _untrimmed(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a tokenizer whose offsets count white space to the tokens that hold it.

    Byte-level tokenizers may leave the spaces at a token's sides out of its offsets; a token of
    nothing but spaces then seems to end where it begins.
    """
    after = tokenizer.backend_tokenizer.post_processor
    if after is None or b'"trim_offsets":true' not in after.__getstate__():
        return tokenizer
    key_parts = json.loads(tokenizer.backend_tokenizer.to_str())
    _set_untrimmed(key_parts["post_processor"])
    untrimmed = copy(tokenizer)
    untrimmed._tokenizer = Tokenizer.from_str(json.dumps(key_parts))
    return untrimmed


def _set_untrimmed(post_processor: dict[str, Any]) -> None:
    if "trim_offsets" in post_processor:
        post_processor["trim_offsets"] = False
    for part in post_processor.get("processors", ()):
        _set_untrimmed(part)


def _places(text: str, spans: Sequence[tuple[int, int]], own: Sequence[int]) -> dict[int, int]:
    """Return the bytes at which tokens end, with the tokens' places.

    A token ends a character when no later token begins before the character's end: tokenizers
    give each piece of a character the whole character's offsets.
    """
    after = byte_ends(text)
    found = []
    earliest: float = math.inf
    for place in range(len(spans) - 1, -1, -1):
        start, end = spans[place]
        if own[place] or start == end:
            continue
        if end <= earliest:
            found.append((after[end], place))
        earliest = min(earliest, start)
    return dict(reversed(found))


def byte_ends(text: str) -> list[int]:
    """Return how many bytes of UTF-8 the first 0, 1, 2, ... characters of the text take."""
    return [0, *accumulate(len(character.encode()) for character in text)]


@runtime_checkable
class EndChoice(Protocol):
    """Which of the bytes at which both tokenizers end a token are taken."""

    def choose(self, text: str, ends: Sequence[int]) -> list[int]:
        """Return the chosen ones of ``ends``, which are bytes in ascending order."""
        ...


class AllEnds:
    """Every end that both tokenizers have."""

    def choose(self, text: str, ends: Sequence[int]) -> list[int]:
        """Return ``ends``."""
        return list(ends)


class WordEnds:
    """Ends at which no word goes on, and the last one: inside a word models expect its rest.

    A word goes on where a letter, a digit or an underscore is followed by another one, or
    anything by a combining mark or a joiner.
    """

    def choose(self, text: str, ends: Sequence[int]) -> list[int]:
        """Return the ends at word boundaries and the last end."""
        after = byte_ends(text)
        return [
            end for end in ends if end == ends[-1] or not _goes_on(text, bisect_left(after, end))
        ]


class LastEnd:
    """Only the last end of a text: where the model has read all of it."""

    def choose(self, text: str, ends: Sequence[int]) -> list[int]:
        """Return the last end."""
        return list(ends[-1:])


def _goes_on(text: str, place: int) -> bool:
    """Whether a word goes on behind the first ``place`` characters."""
    last, following = text[place - 1 : place], text[place : place + 1]
    if not following:
        return False
    if following in _JOINERS or unicodedata.category(following).startswith("M"):
        return True
    return _is_of_word(last) and _is_of_word(following)


def _is_of_word(character: str) -> bool:
    of_word = character.isalnum() or character == "_" or character in _JOINERS
    return of_word or unicodedata.category(character).startswith("M")


class AlignedEnds(NamedTuple):
    """Bytes of a text, in ascending order, and the places of both sides' tokens that end there."""

    ends: list[int]
    source_places: list[int]
    target_places: list[int]


def align(
    text: str, source: TokenEnds, target: TokenEnds, choice: EndChoice, skip: int = 0
) -> AlignedEnds:
    """Pair the tokens of both sides that end at the same byte, at those ends that are chosen.

    ``skip`` tokens at the start are left out on either side, the tokenizer's own among them:
    models keep there what belongs to no word.
    """
    common = [end for end in source.places if end in target.places]
    ends = [
        end
        for end in choice.choose(text, common)
        if source.places[end] >= skip and target.places[end] >= skip
    ]
    return AlignedEnds(
        ends, [source.places[end] for end in ends], [target.places[end] for end in ends]
    )
