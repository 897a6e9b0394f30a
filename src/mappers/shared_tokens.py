"""Strings that are tokens of both models: the only points that two vocabularies share."""

import re
from functools import cache

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..exceptions import ModelError
from ..models.weights import StreamedWeights

MINIMUM = 16
"""Fewer shared strings say nothing about how the coordinates of two models correspond."""

_SENTENCEPIECE_SPACE = "▁"
# A byte that sentencepiece falls back to: it stands for a part of a character, not for a string.
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def shared_tokens(
    source: StreamedWeights, target: StreamedWeights, limit: int
) -> tuple[Int[Tensor, " shared"], Int[Tensor, " shared"]]:
    """Return the ids, in the source and in the target, of strings that are tokens of both.

    A token stands for the text that it decodes to inside a sentence, so that ``Ġfilm`` of
    byte-level tokenizers and ``▁film`` of sentencepiece are both " film", unlike ``film``.
    Special tokens, single bytes of sentencepiece and tokens without an embedding are left out.

    Args:
        source: One model.
        target: The other one.
        limit: How many to return at most; of more, every n-th in the order of the source's ids,
            which is about that of how often they occur.

    Raises:
        ModelError: fewer than :data:`MINIMUM` strings are shared.
    """
    ours, theirs = _texts(source), _texts(target)
    pairs = sorted((token, theirs[text]) for text, token in ours.items() if text in theirs)
    if len(pairs) < MINIMUM:
        raise ModelError(
            f"the tokenizers of {source.name} ({len(ours)} strings) and of {target.name} "
            f"({len(theirs)} strings) share {len(pairs)} strings, but it takes {MINIMUM} or more "
            "to see how the two models' embeddings correspond; choose models whose tokenizers "
            "have more in common, or a mapper that does without, such as mapper=cross_lora"
        )
    if len(pairs) > limit:
        pairs = [pairs[place * len(pairs) // limit] for place in range(limit)]
    ids = torch.tensor(pairs, dtype=torch.long)
    return ids[:, 0], ids[:, 1]


def _texts(model: StreamedWeights) -> dict[bytes, int]:
    """Return the id of each string that is a token; the lowest where there are several."""
    tokenizer = model.tokenizer
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    embedded = int(model.config.vocab_size)
    texts: dict[bytes, int] = {}
    decoder = _decoder(tokenizer)
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if number in special or number >= embedded:
            continue
        text = _text(token, decoder)
        if text:
            texts.setdefault(text, number)
    return texts


def _decoder(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """Return what the tokenizer's decoder consists of, as JSON; empty where it has none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # A tokenizer that transformers runs by sentencepiece itself.
        return _SENTENCEPIECE_SPACE.encode()
    return b"" if backend.decoder is None else backend.decoder.__getstate__()


def _text(token: str, decoder: bytes) -> bytes:
    """Return the bytes that a token stands for; none where it is no string."""
    if b'"ByteLevel"' in decoder:
        alphabet = _byte_alphabet()
        # A token that was added by hand may hold signs which are not in the alphabet.
        known = all(sign in alphabet for sign in token)
        return bytes(alphabet[sign] for sign in token) if known else token.encode()
    if _SENTENCEPIECE_SPACE.encode() in decoder:
        return b"" if _BYTE.fullmatch(token) else token.replace(_SENTENCEPIECE_SPACE, " ").encode()
    return token.encode()


@cache
def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each sign of byte-level tokenizers stands for.

    Printable bytes stand for themselves, the others for signs from 256 on in their order.
    Source: Radford et al., 2019, ``bytes_to_unicode`` in the code of GPT-2.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(hidden)
    }
