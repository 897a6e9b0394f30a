"""How many nearest neighbours a row has in common in two spaces.

Of all measures here these stay above chance between independently trained models most reliably,
as they compare what is near and not the whole geometry. Sources: Huh et al., 2024 (the platonic
representation hypothesis), for mutual k-NN; calibrated: arXiv 2602.14486.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor

from .comparison import Layers, rows_of

# Entries beyond this quantile of a row's absolute values are clamped, as in Huh et al.
_QUANTILE = 0.95


def prepared(x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    """Clamp outlying entries and divide each row by its norm, float32.

    A few rogue dimensions of a residual stream else decide alone which rows are near. Entries
    are clamped to the rows' mean 0.95 quantile of absolute values.
    """
    x = x.float()
    limit = float(torch.quantile(x.abs(), _QUANTILE, dim=1).mean())
    return torch.nn.functional.normalize(x.clamp(-limit, limit), dim=1)


def nearest(x: Float[Tensor, "rows width"], neighbours: int) -> Bool[Tensor, "rows rows"]:
    """Return which rows are among the nearest of each row, by cosine; never itself.

    Of equally near rows the first ones are taken.

    Raises:
        ValueError: there are not more rows than neighbours.
    """
    if not 0 < neighbours < len(x):
        raise ValueError(f"{len(x)} rows have no {neighbours} neighbours each")
    unit = prepared(x)
    cosine = (unit @ unit.mT).fill_diagonal_(-torch.inf)
    least = cosine.topk(neighbours, dim=1).values[:, -1:]
    nearer, equal = cosine > least, cosine == least
    left = neighbours - nearer.sum(dim=1, keepdim=True)
    return nearer | (equal & (equal.cumsum(dim=1) <= left))


def mutual_knn(
    x: Float[Tensor, "rows x"], y: Float[Tensor, "rows y"], neighbours: int = 10
) -> float:
    """Return the mean share of a row's nearest neighbours that it has in both spaces.

    Independent spaces give ``neighbours / (rows - 1)`` on average.

    Raises:
        ValueError: there are not more rows than neighbours.
    """
    return float(_common(x, y, neighbours).mean()) / neighbours


def jaccard(x: Float[Tensor, "rows x"], y: Float[Tensor, "rows y"], neighbours: int = 10) -> float:
    """Return the mean of ``|A and B| / |A or B|`` of the nearest neighbours in both spaces.

    Raises:
        ValueError: there are not more rows than neighbours.
    """
    common = _common(x, y, neighbours)
    return float((common / (2 * neighbours - common)).mean())


def _common(
    x: Float[Tensor, "rows x"], y: Float[Tensor, "rows y"], neighbours: int
) -> Float[Tensor, " rows"]:
    return (nearest(x, neighbours) & nearest(y, neighbours)).sum(dim=1).double()


@dataclass(frozen=True, eq=False)
class NeighbourComparison:
    """Nearest neighbours that layers of two models have in common.

    Pairs of a row and its neighbour are the columns of a sparse matrix, so that counting what
    all pairs of layers share is one sparse product, whatever the number of rows.

    Attributes:
        rows: How many rows there are.
        neighbours: How many neighbours each row has.
        union: Divide by all different neighbours (Jaccard) and not by the neighbours of one.
        target: The row and the neighbour of each pair, layer after layer.
        source: 1 where a pair is in a layer: (rows * rows) x layers.
    """

    rows: int
    neighbours: int
    union: bool
    target: Int[Tensor, "2 pairs"]
    source: csr_matrix

    @classmethod
    def of(
        cls, target: Layers, source: Layers, neighbours: int, union: bool
    ) -> "NeighbourComparison":
        """Find the neighbours in every layer."""
        rows = rows_of(target, source, neighbours + 1)
        pairs = torch.cat([nearest(layer, neighbours).nonzero().mT for layer in target], dim=1)
        members = _stacked([nearest(layer, neighbours) for layer in source])
        return cls(rows, neighbours, union, pairs, members)

    def matrix(self, order: Int[Tensor, " rows"]) -> Float[Tensor, "target source"]:
        """Return the overlap of all pairs of layers, the target's rows taken in an order."""
        place = order.argsort()
        row, neighbour = place[self.target[0]], place[self.target[1]]
        pairs = (row * self.rows + neighbour).numpy()
        starts = np.arange(0, len(pairs) + 1, self.neighbours)
        shape = (len(starts) - 1, self.rows * self.rows)
        chosen = csr_matrix((np.ones(len(pairs), dtype=np.int32), pairs, starts), shape=shape)
        common = torch.from_numpy((chosen @ self.source).toarray()).double()
        most = 2 * self.neighbours - common if self.union else self.neighbours
        return (common / most).reshape(-1, self.rows, common.shape[1]).mean(dim=1)


def _stacked(layers: Sequence[Bool[Tensor, "rows rows"]]) -> csr_matrix:
    places = [layer.flatten().nonzero()[:, 0].numpy() for layer in layers]
    columns = np.repeat(np.arange(len(layers)), [len(p) for p in places])
    ones = np.ones(len(columns), dtype=np.int32)
    shape = (layers[0].numel(), len(layers))
    return csr_matrix((ones, (np.concatenate(places), columns)), shape=shape)


@dataclass(frozen=True)
class MutualKnn:
    """Mutual k-NN between all layers of two models.

    Attributes:
        neighbours: k.
    """

    neighbours: int = 10
    name = "mutual_knn"

    def compare(self, target: Layers, source: Layers) -> NeighbourComparison:
        """Find the neighbours in every layer."""
        return NeighbourComparison.of(target, source, self.neighbours, union=False)


@dataclass(frozen=True)
class Jaccard:
    """Jaccard overlap of nearest neighbours between all layers of two models.

    Attributes:
        neighbours: k.
    """

    neighbours: int = 10
    name = "jaccard"

    def compare(self, target: Layers, source: Layers) -> NeighbourComparison:
        """Find the neighbours in every layer."""
        return NeighbourComparison.of(target, source, self.neighbours, union=True)
