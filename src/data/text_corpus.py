"""The same texts as two models read them, with the tokens at which both have read the same."""

import hashlib
import json
import math
import random
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from lightning import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from transformers import PreTrainedTokenizerBase

from ..exceptions import ConfigurationError, DataError
from .corpora import TRAIN, VALIDATION, TextSource, cut_at_word, encodable
from .prompts import pad_token
from .token_alignment import EndChoice, TokenEndReader, TokenEnds, WordEnds, align


class TokenBatch(NamedTuple):
    """Texts as one model reads them, right padded: causal attention never sees the padding.

    The tokens begin with the tokenizer's own leading ones; the mask is 0 at padding.
    """

    input_ids: Int[Tensor, "texts tokens"]
    attention_mask: Int[Tensor, "texts tokens"]


class AlignedBatch(NamedTuple):
    """Texts for both models, and where their token ends coincide.

    Attributes:
        source: As the source model reads them.
        target: As the target model reads them.
        source_places: Of each aligned token its place in ``source.input_ids.flatten()``.
        target_places: The same in the target, token by token paired with ``source_places``.
        documents: Which document of the corpus each aligned token belongs to.
    """

    source: TokenBatch
    target: TokenBatch
    source_places: Int[Tensor, " anchors"]
    target_places: Int[Tensor, " anchors"]
    documents: Int[Tensor, " anchors"]


class AlignedText(NamedTuple):
    """A text's tokens and the places of aligned ones, of source and target, and its number."""

    ids: tuple[NDArray[np.int32], NDArray[np.int32]]
    places: tuple[NDArray[np.int32], NDArray[np.int32]]
    document: int


class AlignedBatches(Dataset[AlignedBatch]):
    """Batches of texts of like length in a seeded order, padded when they are asked for.

    A map, not a stream, so that each of several processes can take its own batches. A batch has
    at most ``batch_tokens`` on either side, padding included; a longer text goes alone.
    """

    def __init__(
        self,
        texts: Sequence[AlignedText],
        batch_tokens: int,
        padding: tuple[int, int],
        seed: str,
    ) -> None:
        self.texts, self.padding = texts, padding
        self.batches = list(_length_batches(texts, batch_tokens))
        random.Random(seed).shuffle(self.batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, item: int) -> AlignedBatch:
        texts = [self.texts[place] for place in self.batches[item]]
        source, target = (
            _padded([text.ids[side] for text in texts], self.padding[side]) for side in range(2)
        )
        widths = source.input_ids.shape[1], target.input_ids.shape[1]
        here, there = (
            _flat([text.places[side] for text in texts], widths[side]) for side in range(2)
        )
        documents = [np.full(len(text.places[0]), text.document) for text in texts]
        numbers = torch.from_numpy(np.concatenate(documents))
        return AlignedBatch(source, target, here, there, numbers)


def _length_batches(texts: Sequence[AlignedText], tokens: int) -> Iterator[list[int]]:
    """Yield the places of texts in batches of like length, longest first."""
    lengths = [max(map(len, text.ids)) for text in texts]
    order = sorted(range(len(texts)), key=lambda place: (-lengths[place], place))
    while order:
        count = max(1, tokens // lengths[order[0]])
        yield order[:count]
        order = order[count:]


def _padded(rows: Sequence[NDArray[np.int32]], padding: int) -> TokenBatch:
    tokens = [torch.from_numpy(row).long() for row in rows]
    ids = pad_sequence(tokens, batch_first=True, padding_value=padding)
    return TokenBatch(ids, pad_sequence([torch.ones_like(row) for row in tokens], batch_first=True))


def _int32(numbers: Sequence[int]) -> NDArray[np.int32]:
    return np.array(numbers, dtype=np.int32)


def _flat(places: Sequence[NDArray[np.int32]], width: int) -> Int[Tensor, " anchors"]:
    """Return the places within rows of a width as places in the flattened batch."""
    rows = [row * width + of_row.astype(np.int64) for row, of_row in enumerate(places)]
    return torch.from_numpy(np.concatenate(rows))


_LEAST = 32  # aligned tokens; with fewer a corpus is a mistake
_TEXTS_AT_ONCE = 64


class _Reading(NamedTuple):
    """The texts of a split, and how many ends the source has and shares with the target."""

    texts: list[AlignedText]
    source_ends: int
    common_ends: int

    @property
    def tokens(self) -> int:
        return sum(len(text.places[0]) for text in self.texts)


class TextCorpus(LightningDataModule):
    """The same texts for two models, with the tokens that end at the same byte.

    Training and held-out texts are different documents. Texts are read when the first batch is
    asked for, until there are enough aligned tokens; what is kept of them are tokens. The
    batches and their order depend on the arguments alone; of k processes each takes every k-th,
    and some take their first ones again where the batches do not divide.

    Args:
        texts: Where texts come from.
        source_tokenizer: A fast one.
        target_tokenizer: A fast one.
        tokens: Aligned tokens to gather for training.
        held_out_tokens: Aligned tokens to gather of other documents.
        batch_tokens: Tokens a batch at most on either side, padding included.
        skip: So many tokens at the start of each text are never aligned, on either side.
        max_chars: A text is cut at the last word boundary before so many characters.
        ends: Which common ends are taken; None: :class:`WordEnds`.
        suffixes: Put behind some of the texts, in turn, such as an instruction and ``Answer:``,
            so that the place where an answer starts is among the aligned ones.
        suffix_share: Share of the texts that get one.
        seed: Of which texts get a suffix, and of the order of the batches.

    Raises:
        ConfigurationError: a number is out of its range.
        ModelError: a tokenizer is not a fast one.
    """

    def __init__(
        self,
        texts: TextSource,
        source_tokenizer: PreTrainedTokenizerBase,
        target_tokenizer: PreTrainedTokenizerBase,
        *,
        tokens: int = 20_000,
        held_out_tokens: int = 4_000,
        batch_tokens: int = 4_096,
        skip: int = 4,
        max_chars: int = 600,
        ends: EndChoice | None = None,
        suffixes: Sequence[str] = (),
        suffix_share: float = 0.5,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value, least, most in (
            ("tokens", tokens, 1, math.inf),
            ("held_out_tokens", held_out_tokens, 1, math.inf),
            ("batch_tokens", batch_tokens, 1, math.inf),
            ("max_chars", max_chars, 1, math.inf),
            ("skip", skip, 0, math.inf),
            ("suffix_share", suffix_share, 0, 1),
        ):
            if not least <= value <= most:
                limit = f"at least {least}" if most == math.inf else f"{least} to {most}"
                raise ConfigurationError(f"data.{name}={value}, but it takes {limit}")
        self.texts = texts
        self.asked = {TRAIN: tokens, VALIDATION: held_out_tokens}
        self.batch_tokens, self.skip, self.max_chars = batch_tokens, skip, max_chars
        self.ends = ends or WordEnds()
        self.suffixes, self.suffix_share, self.seed = tuple(suffixes), suffix_share, seed
        self._readers = TokenEndReader(source_tokenizer), TokenEndReader(target_tokenizer)
        self._padding = pad_token(source_tokenizer), pad_token(target_tokenizer)

    def train_dataloader(self) -> DataLoader[AlignedBatch]:
        """Return the training texts in batches, always in the same order."""
        return self._loader(TRAIN, self._train)

    def val_dataloader(self) -> DataLoader[AlignedBatch]:
        """Return the held-out texts in batches, always in the same order."""
        return self._loader(VALIDATION, self._held_out)

    @property
    def tokens(self) -> int:
        """Aligned tokens gathered for training; fewer than asked for where there are fewer."""
        return self._train.tokens

    @property
    def held_out_tokens(self) -> int:
        """Aligned tokens gathered of held-out documents."""
        return self._held_out.tokens

    @property
    def aligned_share(self) -> float:
        """Share of the source's token ends at which a target token ends too, chosen or not."""
        return self._train.common_ends / self._train.source_ends

    def content_hash(self) -> str:
        """Return the SHA-256 of all batches: tokens, places, documents and their order."""
        content = hashlib.sha256()
        for split, reading in ((TRAIN, self._train), (VALIDATION, self._held_out)):
            batches = self._batches(split, reading)
            content.update(json.dumps([split, self._padding, batches.batches]).encode())
            for text in reading.texts:
                for part in (*text.ids, *text.places):
                    content.update(len(part).to_bytes(8, "little") + part.tobytes())
                content.update(text.document.to_bytes(8, "little"))
        return content.hexdigest()

    @cached_property
    def _train(self) -> _Reading:
        return self._read(TRAIN)

    @cached_property
    def _held_out(self) -> _Reading:
        return self._read(VALIDATION)

    def _batches(self, split: str, reading: _Reading) -> AlignedBatches:
        return AlignedBatches(
            reading.texts, self.batch_tokens, self._padding, f"batches {self.seed} {split}"
        )

    def _loader(self, split: str, reading: _Reading) -> DataLoader[AlignedBatch]:
        batches = self._batches(split, reading)
        if self.trainer is None or self.trainer.world_size == 1:
            return DataLoader(batches, batch_size=None)
        # Lightning's own sampler would shuffle them.
        sampler = DistributedSampler[AlignedBatch](
            batches, self.trainer.world_size, self.trainer.global_rank, shuffle=False
        )
        return DataLoader(batches, batch_size=None, sampler=sampler)

    def _read(self, split: str) -> _Reading:
        """Read and align texts until there are enough aligned tokens or no texts are left."""
        missing = self.asked[split]
        texts: list[AlignedText] = []
        source_ends = common_ends = 0
        for number, (text, source, target) in enumerate(self._tokenised(split)):
            aligned = align(text, source, target, self.ends, self.skip)
            source_ends += len(source.places)
            common_ends += len(source.places.keys() & target.places.keys())
            if not aligned.ends:
                continue
            ids = _int32(source.input_ids), _int32(target.input_ids)
            places = _int32(aligned.source_places), _int32(aligned.target_places)
            texts.append(AlignedText(ids, (places[0][:missing], places[1][:missing]), number))
            missing -= len(texts[-1].places[0])
            if missing == 0:
                break
        asked = self.asked[split]
        if asked - missing < min(asked, _LEAST):
            raise DataError(
                f"the corpus has {asked - missing} aligned tokens for {split}, but statistics take "
                f"at least {min(asked, _LEAST)}; give more or longer texts, set paths.corpus to "
                "another corpus, or lower data.skip"
            )
        return _Reading(texts, source_ends, common_ends)

    def _tokenised(self, split: str) -> Iterator[tuple[str, TokenEnds, TokenEnds]]:
        texts = self._prepared(split)
        while some := list(islice(texts, _TEXTS_AT_ONCE)):
            yield from zip(some, *(reader.read(some) for reader in self._readers), strict=True)

    def _prepared(self, split: str) -> Iterator[str]:
        """Yield the texts, cut, some of them with a suffix."""
        draw = random.Random(f"suffixes {self.seed} {split}")
        given = 0
        for text in self.texts.texts(split):
            cut = cut_at_word(encodable(text), self.max_chars)
            if self.suffixes and draw.random() < self.suffix_share:
                cut += self.suffixes[given % len(self.suffixes)]
                given += 1
            if cut:
                yield cut
