"""Which texts of a pool a student learns from."""

import random
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from ..exceptions import ConfigurationError

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
