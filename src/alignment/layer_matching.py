"""Which source layers feed each target layer, and with what weights.

A pairing takes the calibrated similarity of all target and source layers. Where that is zero
everywhere there is nothing to decide by, and layers are paired by relative depth.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor


def relative_depth(source_layers: int, target_layers: int) -> tuple[int, ...]:
    """Return the source layer at the same relative depth, for each target layer.

    The first layers are paired, and so are the last: ``round(t (S - 1) / (T - 1))``, halves up.

    >>> relative_depth(5, 3)
    (0, 2, 4)
    >>> relative_depth(3, 5)
    (0, 1, 1, 2, 2)
    """
    if target_layers == 1:
        return (source_layers - 1,)
    steps, last = target_layers - 1, source_layers - 1
    return tuple((2 * layer * last + steps) // (2 * steps) for layer in range(target_layers))


@dataclass(frozen=True)
class LayerPairing:
    """The source layers that feed each target layer.

    Attributes:
        source_layers: How many layers the source has.
        feeds: For each target layer, source layers with their weights; an update of the target
            layer is the weighted sum of what those layers' updates become.
    """

    source_layers: int
    feeds: tuple[tuple[tuple[int, float], ...], ...]

    @classmethod
    def one_to_one(cls, source_layers: int, layers: tuple[int, ...]) -> "LayerPairing":
        """Return the pairing in which each target layer is fed by one source layer alone."""
        return cls(source_layers, tuple(((layer, 1.0),) for layer in layers))

    @property
    def dropped(self) -> tuple[int, ...]:
        """The source layers that feed no target layer."""
        used = {layer for feeds in self.feeds for layer, _ in feeds}
        return tuple(layer for layer in range(self.source_layers) if layer not in used)

    def matrix(self) -> Float[Tensor, "target source"]:
        """Return the weights as a matrix, zero where a layer does not feed another."""
        weights = torch.zeros(len(self.feeds), self.source_layers)
        for target, feeds in enumerate(self.feeds):
            for source, weight in feeds:
                weights[target, source] = weight
        return weights


class Pairing(Protocol):
    """A way to pair layers."""

    def pair(self, similarity: Float[Tensor, "target source"]) -> LayerPairing:
        """Pair the layers of two models."""
        ...


@dataclass(frozen=True)
class RelativeDepth:
    """Feeds each target layer by the source layer at the same relative depth."""

    def pair(self, similarity: Float[Tensor, "target source"]) -> LayerPairing:
        """Pair by the numbers of layers; similarities are not used."""
        target, source = similarity.shape
        return LayerPairing.one_to_one(source, relative_depth(source, target))


@dataclass(frozen=True)
class Spread:
    """Shares each source layer equally among the target layers nearest in relative depth.

    Unlike the other pairings it drops no source layer, and none counts twice.

    Attributes:
        targets: How many target layers share one source layer.
    """

    targets: int = 2

    def pair(self, similarity: Float[Tensor, "target source"]) -> LayerPairing:
        """Pair by the numbers of layers; similarities are not used."""
        target, source = similarity.shape
        share = min(self.targets, target)
        feeds: list[list[tuple[int, float]]] = [[] for _ in range(target)]
        for layer in range(source):
            # Differences in depth, times both numbers of steps: of whole numbers ties are exact.
            away = (torch.arange(target) * (source - 1) - layer * (target - 1)).abs()
            for near in away.argsort(stable=True)[:share].tolist():
                feeds[near].append((layer, 1 / share))
        return LayerPairing(source, tuple(map(tuple, feeds)))


@dataclass(frozen=True)
class Monotone:
    """Feeds each target layer by one source layer; deeper ones never by shallower ones.

    The sum of similarities is greatest, by dynamic programming: time warping (Sakoe and Chiba,
    1978), whose warping path may not run along one source layer for nothing. A source layer
    feeds as many target layers as there are more of those, and each further one costs.

    Attributes:
        repeat_penalty: What a repetition beyond that costs, relative to the greatest similarity.
        depth_prior: Likewise, what a distance of a whole model's depth from the same relative
            depth costs; small, so that it decides between layers that are nearly equal.
    """

    repeat_penalty: float = 0.25
    depth_prior: float = 0.05

    def pair(self, similarity: Float[Tensor, "target source"]) -> LayerPairing:
        """Pair layers in order."""
        target, source = similarity.shape
        gain = _gain(similarity, self.depth_prior)
        if gain is None:
            return RelativeDepth().pair(similarity)
        penalty = self.repeat_penalty * float(similarity.max())
        path = _monotone_path(gain.tolist(), math.ceil(target / source), penalty, onto=False)
        return LayerPairing.one_to_one(source, path)


@dataclass(frozen=True)
class ManyToOne:
    """Every source layer feeds exactly one target layer, in order.

    Where the source is deeper, it falls into as many segments as the target has layers, each
    feeding one; where the target is deeper, each source layer feeds a different target layer,
    and the others get nothing. The sum of similarities is greatest, by dynamic programming.

    Attributes:
        repeat_penalty: What each layer of a segment costs beyond the mean length of segments,
            relative to the greatest similarity: else the one target layer that resembles all
            source layers most would be fed by most of them.
        depth_prior: As in :class:`Monotone`.
    """

    repeat_penalty: float = 0.25
    depth_prior: float = 0.05

    def pair(self, similarity: Float[Tensor, "target source"]) -> LayerPairing:
        """Give every source layer a target layer."""
        target, source = similarity.shape
        gain = _gain(similarity, self.depth_prior)
        if gain is None:
            gain = -_away(target, source).square()
        deeper = source > target
        penalty = self.repeat_penalty * float(similarity.max()) if deeper else math.inf
        fed = _monotone_path(gain.mT.tolist(), math.ceil(source / target), penalty, onto=deeper)
        # Each in full: the residual stream sums what layers write, too.
        feeds = (tuple((s, 1.0) for s in range(source) if fed[s] == t) for t in range(target))
        return LayerPairing(source, tuple(feeds))


def _away(target: int, source: int) -> Float[Tensor, "target source"]:
    """Return the distance of source and target layers as a share of a model's depth."""
    depth = torch.linspace(0, 1, source) if source > 1 else torch.full((1,), 0.5)
    # A single target layer is paired with the last one, as in relative_depth.
    wanted = torch.linspace(0, 1, target) if target > 1 else torch.ones(1)
    return (depth.double() - wanted.double()[:, None]).abs()


def _gain(
    similarity: Float[Tensor, "target source"], depth_prior: float
) -> Float[Tensor, "target source"] | None:
    """Return similarity less the mean of its row's and column's means, less the depth prior.

    None where no layers are similar. Without the means, a layer that resembles all others would
    attract them: CSLS (Conneau et al., 2018, eq. 3) with all layers as neighbours.
    """
    greatest = float(similarity.max())
    if greatest <= 0:
        return None
    s = similarity.double()
    usual = (s.mean(dim=0) + s.mean(dim=1, keepdim=True)) / 2
    return s - usual - depth_prior * greatest * _away(*similarity.shape)


def _monotone_path(
    gain: list[list[float]], free: int, penalty: float, onto: bool
) -> tuple[int, ...]:
    """Return the non-decreasing path of greatest gain, a column for each row (Viterbi).

    The state is (column, how many rows in succession it has been taken for), the count stopping at
    ``free``: a further repetition costs the penalty, which infinity forbids, and leaves the count
    there. With ``onto`` every column must be on the path; there are more rows than columns then.
    """
    columns, counts = range(len(gain[0])), range(free)
    first = [0] if onto else columns
    value = [
        [g if c == 0 and s in first else -math.inf for c in counts] for s, g in enumerate(gain[0])
    ]
    back: list[list[list[tuple[int, int]]]] = []
    for row in gain[1:]:
        reached, came = [], []
        left = (-math.inf, (0, 0))
        for s in columns:
            # Either a column before is left, or the count in this one goes on.
            options = [left, *((value[s][c - 1], (s, c - 1)) for c in counts if c > 0)]
            options[-1] = max(options[-1], (value[s][free - 1] - penalty, (s, free - 1)))
            reached.append([v + row[s] for v, _ in options])
            came.append([previous for _, previous in options])
            here = max((value[s][c], (s, c)) for c in counts)
            left = here if onto else max(left, here)
        value = reached
        back.append(came)
    last = [len(gain[0]) - 1] if onto else columns
    state = max((value[s][c], (s, c)) for s in last for c in counts)[1]
    path = [state[0]]
    for came in reversed(back):
        state = came[state[0]][state[1]]
        path.append(state[0])
    return tuple(reversed(path))
