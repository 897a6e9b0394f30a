"""Which texts a student learns from: a choice among those of a pool, or texts the source writes."""

import hashlib
import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.corpora import check_split, cut_at_word, split_of
from ..data.prompts import PromptSpec
from ..data.tasks import in_turn
from ..exceptions import ConfigurationError
from ..models.generation import NucleusSampling
from ..models.loading import BaseModel
from ..store import Key, Store
from .base import NO_STORE, RefinementProgress, silent
from .teacher_generations import written

Distributions = Float[Tensor, "texts labels"]


class TextSelection(ABC):
    """Chooses texts by their words and by the teacher's answers to them."""

    @abstractmethod
    def choose(
        self, texts: Sequence[str], distributions: Distributions, count: int, seed: int
    ) -> list[int]:
        """Return the indices of at most ``count`` different texts of a pool, best first.

        ``distributions`` are the teacher's over the labels; a smaller pool is taken whole.
        """


def _shuffled(count: int, seed: int) -> list[int]:
    order = list(range(count))
    random.Random(f"texts {seed}").shuffle(order)
    return order


class RandomTexts(TextSelection):
    """A seeded draw."""

    def choose(
        self, texts: Sequence[str], distributions: Distributions, count: int, seed: int
    ) -> list[int]:
        """Return indices in a seeded order."""
        del distributions
        return _shuffled(len(texts), seed)[:count]


class DiverseTexts(TextSelection):
    """Texts on different subjects: a k-means on TF-IDF, whose clusters are drawn from in turn.

    Args:
        clusters: How many; a pool of fewer than twice as many texts has half as many as texts.

    Raises:
        ConfigurationError: the number is below 1.
    """

    def __init__(self, clusters: int = 16) -> None:
        if clusters < 1:
            raise ConfigurationError(f"clusters={clusters}, but it takes at least one")
        self.clusters = clusters

    def choose(
        self, texts: Sequence[str], distributions: Distributions, count: int, seed: int
    ) -> list[int]:
        """Return indices of one cluster after the other, in each in a seeded order."""
        del distributions
        order = _shuffled(len(texts), seed)
        clusters = min(self.clusters, len(texts) // 2)
        if clusters < 2:
            return order[:count]
        # Imported here: it takes a second, which other selections need not wait for.
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.feature_extraction.text import TfidfVectorizer

        # Words, and other characters where there are none, so that no text is without a token.
        features = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+|[^\w\s]")
        vectors = features.fit_transform([texts[index] for index in order])
        means = KMeans(clusters, n_init=4, max_iter=50, random_state=seed)
        with warnings.catch_warnings():
            # Fewer different texts than clusters: some stay empty, which does no harm.
            warnings.simplefilter("ignore", ConvergenceWarning)
            assigned = means.fit_predict(vectors).tolist()
        queues: dict[int, list[int]] = {}
        for index, cluster in zip(order, assigned, strict=True):
            queues.setdefault(cluster, []).append(index)
        return list(islice(in_turn(queues.values()), count))


class BalancedTexts(TextSelection):
    """As many texts of each label that the teacher gives.

    A label that has too few is taken whole, and the others fill up.

    Args:
        confident_share: Of each label's texts only this share is taken, the most confident, as
            long as there are enough; 1 takes any.
        within: Chooses among the texts of one label; by default at random.

    Raises:
        ConfigurationError: the share is not above 0 and at most 1.
    """

    def __init__(self, confident_share: float = 1.0, within: TextSelection | None = None) -> None:
        if not 0 < confident_share <= 1:
            raise ConfigurationError(
                f"confident_share={confident_share}, but it takes a share above 0 and at most 1"
            )
        self.confident_share = confident_share
        self.within = within or RandomTexts()

    def choose(
        self, texts: Sequence[str], distributions: Distributions, count: int, seed: int
    ) -> list[int]:
        """Return indices of one label after the other."""
        confidences, tops = distributions.max(dim=1)
        labels = distributions.shape[1]
        equal_part = -(-count // labels)
        queues = []
        for label in range(labels):
            own = (tops == label).nonzero()[:, 0].tolist()
            surest = sorted(own, key=lambda index: -float(confidences[index]))
            surest = surest[: max(equal_part, round(self.confident_share * len(own)))]
            if surest:
                chosen = self.within.choose(
                    [texts[index] for index in surest], distributions[surest], len(surest), seed
                )
                queues.append([surest[index] for index in chosen])
        return list(islice(in_turn(queues), count))


# Texts that a model writes itself, where there is no corpus.

_BATCH = 16  # prompts
_LEAST_WORDS = 3
_MAX_NEW_TOKENS = 48
_TEXT_CHARS = 300
_PATIENCE = 3  # draws at most, in multiples of those that would do if all were of use

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


@dataclass
class WrittenTexts:
    """Inputs for an adapter that its own base model writes: no data are needed.

    A model with a chat template is asked for texts of many kinds about which the prompt could be
    asked; any other continues common openings of sentences. The adapter is not attached: it is
    made to answer, not to write inputs. The texts depend on the attributes alone.

    Attributes:
        base: The source model.
        prompt_spec: The prompt of the adapter's task.
        count: Texts of both splits together; fewer where the model repeats itself.
        store: Keeps the texts.
        seed: Of the draws.
        progress: Called with the number of texts that are written.

    Source: synthetic inputs as in Trans-LoRA (Wang et al., 2024, arXiv 2405.17258), without its
    examples and its discriminator.
    """

    base: BaseModel
    prompt_spec: PromptSpec
    count: int = 256
    store: Store = NO_STORE
    seed: int = 0
    progress: RefinementProgress = silent

    def texts(self, split: str) -> Iterator[str]:
        """Yield the split's texts, in the order they were written."""
        check_split(split)
        yield from (text for text in self._all if split_of(text) == split)

    def prompts(self) -> list[str]:
        """Return what the model reads, each for one draw of a batch."""
        if not self.base.tokenizer.chat_template:
            return [_OPENINGS[row % len(_OPENINGS)] for row in range(_BATCH)]
        question = " ".join(self.prompt_spec.prompt.replace("{text}", " ").split())
        return [
            str(
                self.base.tokenizer.apply_chat_template(
                    [{"role": "user", "content": _REQUEST.format(kind=kind, question=question)}],
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )
            for kind in _KINDS
        ]

    @cached_property
    def _all(self) -> list[str]:
        prompts = self.prompts()
        chat = bool(self.base.tokenizer.chat_template)
        # A chat template writes the tokenizer's leading tokens itself.
        tokens = self.base.tokenizer(prompts, add_special_tokens=not chat)["input_ids"]
        # An opening is part of the text; a request is not.
        openings = ["" if chat else prompt for prompt in prompts]
        texts: dict[str, None] = {}
        for batch in range(_PATIENCE * -(-self.count // len(prompts))):
            if len(texts) >= self.count:
                break
            self.progress("the source writes texts", len(texts), self.count)
            for opening, text in zip(openings, self._drawn(tokens, batch), strict=True):
                texts |= dict.fromkeys(self._lines(opening + text))
        self.progress("the source writes texts", self.count, self.count)
        return list(texts)[: self.count]

    def _drawn(self, tokens: Sequence[Sequence[int]], batch: int) -> list[str]:
        """Return one draw after each prompt."""
        seed = int.from_bytes(hashlib.sha256(f"{self.seed} {batch}".encode()).digest()[:7])
        key = Key.of(
            "written_texts",
            model=self.base.key_parts,
            prompts=tokens,
            seed=seed,
            max_new_tokens=_MAX_NEW_TOKENS,
        )

        def drawn() -> list[str]:
            choice = NucleusSampling(torch.Generator().manual_seed(seed))
            rows = written(self.base, tokens, max_new_tokens=_MAX_NEW_TOKENS, choice=choice)
            return [text for text, _ in rows]

        texts: list[str] = self.store.made(key, drawn)
        return texts

    def _lines(self, drawn: str) -> Iterator[str]:
        """Yield what can serve as a text: lines of some words, cut, without marks around them."""
        for line in drawn.splitlines():
            text = cut_at_word(line.strip(" \t-*\"'“”"), _TEXT_CHARS)
            if len(text.split()) >= _LEAST_WORDS:
                yield text
