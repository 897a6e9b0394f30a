"""The tokenizers of the tiny pair, each made from documents: whole words, and byte-level BPE."""

import re
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

_SPECIAL = {
    "pad_token": "<pad>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
}
PAD, BOS, EOS, _UNKNOWN = range(len(_SPECIAL))
"""The special tokens' numbers in both tokenizers."""

# A word or a sign together with the space before it; a line break stands alone.
_PIECE = r" ?\w+|\n| ?[^\s\w]"


def _fast(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
        **_SPECIAL,
    )


def word_level(documents: Sequence[str]) -> PreTrainedTokenizerFast:
    """Return a tokenizer that knows the documents' words whole and begins a text with ``<bos>``.

    A word with the space before it is another token than at the start of a line. Words that are
    in no document become ``<unk>``.
    """
    pieces = sorted({piece for text in documents for piece in re.findall(_PIECE, text)})
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL.values(), *pieces])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), behavior="isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS)]
    )
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(list(_SPECIAL.values()))
    return _fast(tokenizer)


def byte_pairs(documents: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with so many tokens; it adds none to a text's start.

    256 of its tokens are single bytes, so that it can encode any text.

    Source: Sennrich, Haddow and Birch, 2016; on bytes: Radford et al., 2019.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(_SPECIAL.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    return _fast(tokenizer)
