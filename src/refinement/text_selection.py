"""Which texts of a pool a student learns from."""

import hashlib
import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.corpora import check_split, cut_at_word, split_of
from ..data.prompts import PromptSpec
from ..exceptions import ConfigurationError
from ..models.generation import NucleusSampling
from ..models.loading import BaseModel
from .base import RefinementProgress, cache_folder, in_shards, silent
from .teacher_generations import written

_STARTS, _ITERATIONS = 4, 50  # of k-means


class TextSelection(ABC):
    """Chooses texts by what they say and by what the teacher answers to them."""

    @abstractmethod
    def choose(
        self,
        texts: Sequence[str],
        distributions: Float[Tensor, "texts labels"],
        count: int,
        seed: int,
    ) -> list[int]:
        """Return the places of at most ``count`` different texts, best first.

        Args:
            texts: The pool.
            distributions: The teacher's answers.
            count: How many are wanted; a smaller pool is taken whole.
            seed: Of every draw.
        """


class RandomTexts(TextSelection):
    """Any texts."""

    def choose(
        self,
        texts: Sequence[str],
        distributions: Float[Tensor, "texts labels"],
        count: int,
        seed: int,
    ) -> list[int]:
        """Return the places of a seeded draw."""
        del distributions
        places = list(range(len(texts)))
        random.Random(f"texts {seed}").shuffle(places)
        return places[:count]


class DiverseTexts(TextSelection):
    """Texts about different things: the clusters of a k-means on TF-IDF in turn.

    Args:
        clusters: How many; a pool of fewer than twice as many texts has half as many as texts.
    """

    def __init__(self, clusters: int = 16) -> None:
        if clusters < 1:
            raise ConfigurationError(f"clusters={clusters}, but it takes at least one")
        self.clusters = clusters

    def choose(
        self,
        texts: Sequence[str],
        distributions: Float[Tensor, "texts labels"],
        count: int,
        seed: int,
    ) -> list[int]:
        """Return places of one cluster after the other, within each in a seeded order."""
        order = RandomTexts().choose(texts, distributions, len(texts), seed)
        clusters = min(self.clusters, len(texts) // 2)
        if clusters < 2:
            return order[:count]
        found = _clusters([texts[place] for place in order], clusters, seed)
        queues: dict[int, list[int]] = {}
        for place, cluster in zip(order, found, strict=True):
            queues.setdefault(cluster, []).append(place)
        return _in_turn(list(queues.values()), count)


class BalancedTexts(TextSelection):
    """As many texts of each label that the teacher gives, and of those the ones it is surest of.

    A label that has too few is taken whole, and the others fill up.

    Args:
        confident_share: Of each label's texts only this share is taken, the most confident, as
            long as there are enough; 1 takes any.
        within: Chooses among the texts of one label.

    Raises:
        ConfigurationError: the share is not above 0 and at most 1.
    """

    def __init__(self, confident_share: float = 1.0, within: TextSelection | None = None) -> None:
        if not 0 < confident_share <= 1:
            raise ConfigurationError(
                f"confident_share={confident_share}, but it takes a share above 0 and at most 1"
            )
        self.confident_share = confident_share
        self.within = RandomTexts() if within is None else within

    def choose(
        self,
        texts: Sequence[str],
        distributions: Float[Tensor, "texts labels"],
        count: int,
        seed: int,
    ) -> list[int]:
        """Return places of one label after the other."""
        confidences, tops = distributions.max(dim=1)
        queues = []
        for label in range(distributions.shape[1]):
            places = (tops == label).nonzero()[:, 0].tolist()
            surest = sorted(places, key=lambda place: -float(confidences[place]))
            fair = -(-count // distributions.shape[1])
            surest = surest[: max(fair, round(self.confident_share * len(places)))]
            if surest:
                chosen = self.within.choose(
                    [texts[place] for place in surest], distributions[surest], len(surest), seed
                )
                queues.append([surest[place] for place in chosen])
        return _in_turn(queues, count)


def _in_turn(queues: Sequence[Sequence[int]], count: int) -> list[int]:
    """Return ``count`` entries, one of each queue after the other; empty ones are passed over."""
    turns = max(map(len, queues), default=0)
    taken = [queue[turn] for turn in range(turns) for queue in queues if turn < len(queue)]
    return taken[:count]


def _clusters(texts: Sequence[str], clusters: int, seed: int) -> list[int]:
    """Return the cluster of each text."""
    # Imported here: it takes a second, which other selections need not wait for.
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Words, and other characters where there are none, so that no text is without a token.
    vectors = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+|[^\w\s]").fit_transform(texts)
    means = KMeans(clusters, n_init=_STARTS, max_iter=_ITERATIONS, random_state=seed)
    with warnings.catch_warnings():
        # Fewer different texts than clusters: some stay empty, which does no harm.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return [int(cluster) for cluster in means.fit_predict(vectors)]


# Texts that a model writes itself, for where there is no corpus.

_ROWS = 16  # of a portion
_LEAST_WORDS = 3
_PORTION_FACTOR = 3  # so many portions more than needed are tried, before it is given up

_REQUEST = (
    'Write {kind} about which one could ask: "{question}" Write only the text itself, in one or '
    "two sentences."
)
_KINDS = (
    *("a short text", "a sentence from a news report", "a question that somebody asks a friend"),
    *("a line of a customer's review", "a sentence out of a novel", "a message in a forum"),
    *("a sentence of an encyclopedia", "a question about a fact", "a note in a diary"),
    *("a sentence about science", "a sentence about sport", "a sentence about a place"),
    *("a line of a dialogue", "an opinion about a film", "a request to a company"),
    "a sentence about a person",
)
_OPENINGS = (
    *("The", "When", "I", "What is", "In the", "She", "There was", "How", "This is", "My"),
    *("Who", "A new", "After", "It was", "Where", "People"),
)


class WrittenTexts:
    """Inputs for an adapter that its own base model writes: no data are needed.

    A model with a chat template is asked for texts of many kinds about which the question could
    be asked; any other goes on behind common openings of sentences. The adapter is not attached:
    it answers, and does not ask. Which texts come depends on the arguments alone.

    Args:
        base: The source model.
        question: What the adapter is asked.
        count: Texts of both splits together; fewer where the model repeats itself.
        cache: Folder in which they are kept; None keeps nothing.
        seed: Of the draws.
        max_new_tokens: Tokens a draw at most.
        text_chars: A text is cut at the last word before so many characters.
        progress: Is told how far the writing is.

    Raises:
        ConfigurationError: a number is below 1.

    Source: synthetic inputs as in Trans-LoRA (Wang et al., 2024, arXiv 2405.17258), without its
    examples and its discriminator.
    """

    def __init__(
        self,
        base: BaseModel,
        question: PromptSpec,
        *,
        count: int = 256,
        cache: Path | None = None,
        seed: int = 0,
        max_new_tokens: int = 48,
        text_chars: int = 300,
        progress: RefinementProgress = silent,
    ) -> None:
        counts = {"count": count, "max_new_tokens": max_new_tokens, "text_chars": text_chars}
        for name, number in counts.items():
            if number < 1:
                raise ConfigurationError(f"{name}={number}, but written texts take at least 1")
        self.base, self.question, self.count, self.seed = base, question, count, seed
        self.max_new_tokens, self.text_chars = max_new_tokens, text_chars
        self._cache, self._progress = cache, progress

    def texts(self, split: str) -> Iterator[str]:
        """Yield the split's texts, in the order they were written.

        Raises:
            DataError: there is no such split.
            OutputError: the cache cannot be written.
        """
        check_split(split)
        yield from (text for text in self._all if split_of(text) == split)

    def prompts(self) -> list[str]:
        """Return what the model reads, each for one draw of a portion."""
        if not self.base.tokenizer.chat_template:
            return [_OPENINGS[row % len(_OPENINGS)] for row in range(_ROWS)]
        question = " ".join(self.question.prompt.replace("{text}", " ").split())
        asked = [_REQUEST.format(kind=kind, question=question) for kind in _KINDS]
        return [
            str(
                self.base.tokenizer.apply_chat_template(
                    [{"role": "user", "content": request}],
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )
            for request in asked
        ]

    @cached_property
    def _all(self) -> list[str]:
        prompts = self.prompts()
        chat = bool(self.base.tokenizer.chat_template)
        # A chat template writes the tokenizer's leading tokens itself.
        tokens = self.base.tokenizer(prompts, add_special_tokens=not chat)["input_ids"]
        openings = ["" if chat else prompt for prompt in prompts]
        found: dict[str, None] = {}
        most = _PORTION_FACTOR * -(-self.count // len(prompts))
        for portion in range(most):
            if len(found) >= self.count:
                break
            self._progress("the source writes texts", len(found), self.count)
            for opening, text in zip(openings, self._portion(tokens, portion), strict=True):
                found |= dict.fromkeys(self._lines(opening + text))
        self._progress("the source writes texts", self.count, self.count)
        return list(found)[: self.count]

    def _portion(self, tokens: Sequence[Sequence[int]], portion: int) -> list[str]:
        """Return what the model writes behind each prompt in one portion of draws."""
        seed = int.from_bytes(hashlib.sha256(f"{self.seed} {portion}".encode()).digest()[:7])

        def work(rows: Sequence[Sequence[int]]) -> list[str]:
            choice = NucleusSampling(torch.Generator().manual_seed(seed))
            drawn = written(self.base, rows, max_new_tokens=self.max_new_tokens, choice=choice)
            return [text for text, _ in drawn]

        key_parts = [self.base.fingerprint, str(self.base.network.dtype), tokens, seed]
        folder = cache_folder(self._cache, "written_texts", [*key_parts, self.max_new_tokens])
        (texts,) = in_shards(folder, [tokens], work, step="", progress=silent)
        return texts

    def _lines(self, written_text: str) -> Iterator[str]:
        """Yield what can stand as a text: lines of some words, cut, without marks around them."""
        for line in written_text.splitlines():
            text = cut_at_word(line.strip(" \t-*\"'“”"), self.text_chars)
            if len(text.split()) >= _LEAST_WORDS:
                yield text
