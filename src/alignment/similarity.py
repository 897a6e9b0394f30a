"""How similar two representations of the same rows are: CKA, shared neighbours, RSA and SVCCA.

Each measure is a function of two matrices with paired rows, and a class that compares all layers of
one model with all layers of another. What does not depend on the pairing is computed once per
layer, so that many permutations of the rows are cheap (:mod:`loraport.alignment.coverage`).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from scipy.stats import rankdata
from torch import Tensor

from .ridge import centred

Layers = Sequence[Tensor]
"""One matrix (rows x width) a layer; the i-th row of every layer is of the same token."""


@runtime_checkable
class LayerComparison(Protocol):
    """A measure prepared for the layers of two models."""

    @property
    def rows(self) -> int:
        """The number of paired rows."""
        ...

    def matrix(self, order: Int[Tensor, " rows"]) -> Float[Tensor, "target source"]:
        """Return the measure of all pairs of layers with the target's rows taken in ``order``.

        The order is the same for all layers; ``arange`` is the true pairing.
        """
        ...


@runtime_checkable
class LayerMeasure(Protocol):
    """A measure of how similar two representations are; its greatest value is 1."""

    @property
    def name(self) -> str:
        """The name in reports."""
        ...

    def compare(self, target: Layers, source: Layers) -> LayerComparison:
        """Compute what each layer contributes.

        Raises:
            ValueError: the layers have different numbers of rows, or too few.
        """
        ...


def _of_pair(measure: LayerMeasure, x: Tensor, y: Tensor) -> float:
    return float(measure.compare([x], [y]).matrix(torch.arange(len(x))))


def rows_of(target: Layers, source: Layers, least: int) -> int:
    """Return the number of rows that all layers have.

    Raises:
        ValueError: there is no layer, they have different numbers of rows, or fewer than
            ``least``.
    """
    counts = {len(layer) for layer in (*target, *source)}
    if not target or not source or len(counts) > 1:
        raise ValueError(f"layers are compared on the same rows; these have {sorted(counts)}")
    (rows,) = counts
    if rows < least:
        raise ValueError(f"{rows} rows are too few to compare layers on; it takes {least}")
    return rows


# Measures by how rows relate to one another: CKA and RSA are cosines of n x n matrices.


@dataclass(frozen=True, eq=False)
class RelationalComparison:
    """Cosines between relations: symmetric matrices of unit norm above their diagonal.

    Permuting rows permutes the rows and columns of a relation, so that all pairs of layers cost
    one gather and one matrix product for each permutation.

    Attributes:
        rows: The number of related rows.
        target: Entry (i, j) of every target layer's relation in row ``i * rows + j``, float32.
        source: Entries above the diagonal of every source layer's relation.
    """

    rows: int
    target: Float[Tensor, "entries target"]
    source: Float[Tensor, "above source"]

    def matrix(self, order: Int[Tensor, " rows"]) -> Float[Tensor, "target source"]:
        """Return the cosines of all pairs of layers with the target's rows in ``order``."""
        i, j = torch.triu_indices(self.rows, self.rows, 1)
        entries = self.target.index_select(0, order[i] * self.rows + order[j])
        return (entries.mT @ self.source).double()


class _Relational(ABC):
    """A measure that is the cosine between one relation for each layer."""

    least_rows: ClassVar[int]

    @abstractmethod
    def relation(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows rows"]:
        """Return the relation of the rows; its diagonal is not used."""

    def compare(self, target: Layers, source: Layers) -> RelationalComparison:
        """Compute the relation of each layer."""
        rows = rows_of(target, source, self.least_rows)
        i, j = torch.triu_indices(rows, rows, 1)

        def unit(layer: Tensor) -> Tensor:
            relation = self.relation(layer)
            norm = float(relation[i, j].norm())
            return (relation / norm if norm > 0 else torch.zeros_like(relation)).float()

        return RelationalComparison(
            rows,
            torch.stack([unit(layer).flatten() for layer in target], dim=1),
            torch.stack([unit(layer)[i, j] for layer in source], dim=1),
        )


# Centred kernel alignment, debiased: ``CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`` with Gram
# matrices K and L of paired rows. Sources: Kornblith et al., 2019, for CKA; Song et al., 2012,
# eq. 5, for the unbiased HSIC; Nguyen, Raghu and Kornblith, 2021, eq. 3, for minibatches.

# The unbiased HSIC divides by n - 3.
_LEAST_ROWS = 4


def linear_gram(x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows rows"]:
    """Return the inner products of the rows about their mean, float64."""
    about_mean = x.double() - x.double().mean(dim=0)
    return about_mean @ about_mean.mT


def rbf_gram(x: Float[Tensor, "rows width"], bandwidth: float) -> Float[Tensor, "rows rows"]:
    """Return ``exp(-|x_i - x_j|^2 / (2 sigma^2))``, float64.

    Args:
        x: Paired rows.
        bandwidth: ``sigma`` relative to the median distance of two rows, so that it means the
            same whatever the scale and width of a space; from 2 on the kernel is nearly linear
            (Alvarez, 2021).
    """
    inner = linear_gram(x)
    squared = (inner.diagonal()[:, None] + inner.diagonal() - 2 * inner).clamp_min(0)
    i, j = torch.triu_indices(len(x), len(x), 1)
    median = float(squared[i, j].median())
    return torch.exp(-squared / (2 * bandwidth**2 * median)) if median > 0 else squared * 0 + 1


def unbiased_hsic(k: Float[Tensor, "rows rows"], l: Float[Tensor, "rows rows"]) -> float:  # noqa: E741
    """Return the unbiased estimate of HSIC from two Gram matrices (Song et al., 2012, eq. 5).

    Raises:
        ValueError: there are fewer than 4 rows.
    """
    n = len(k)
    return float((u_centred(k) * u_centred(l)).sum()) / (n * (n - 3))


def u_centred(gram: Float[Tensor, "rows rows"]) -> Float[Tensor, "rows rows"]:
    """Centre a Gram matrix so that inner products of two of them are unbiased.

    The diagonal is zero and so is every row sum; ``sum(K L) / (n (n - 3))`` of two such matrices
    is Song's estimate (Szekely and Rizzo, 2014).

    Raises:
        ValueError: there are fewer than 4 rows.
    """
    n = len(gram)
    if n < _LEAST_ROWS:
        raise ValueError(f"{n} rows are too few for an unbiased HSIC; it takes {_LEAST_ROWS}")
    hollow = gram - torch.diag(gram.diagonal())
    rows = hollow.sum(dim=0)
    whole = float(rows.sum()) / ((n - 1) * (n - 2))
    result = hollow - rows[:, None] / (n - 2) - rows / (n - 2) + whole
    return result - torch.diag(result.diagonal())


def linear_cka(x: Float[Tensor, "rows x"], y: Float[Tensor, "rows y"]) -> float:
    """Return debiased linear CKA: about 0 for independent representations, 1 for a rotation.

    Raises:
        ValueError: there are fewer than 4 rows.
    """
    return minibatch_cka([(x, y)])


def rbf_cka(
    x: Float[Tensor, "rows x"], y: Float[Tensor, "rows y"], bandwidth: float = 1.0
) -> float:
    """Return debiased CKA with a Gaussian kernel; the bandwidth is that of :func:`rbf_gram`.

    Raises:
        ValueError: there are fewer than 4 rows.
    """
    return _cka([(rbf_gram(x, bandwidth), rbf_gram(y, bandwidth))])


def minibatch_cka(batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return debiased linear CKA of paired rows in batches, never all in memory at once.

    Raises:
        ValueError: a batch has fewer than 4 rows.
    """
    return _cka((linear_gram(x), linear_gram(y)) for x, y in batches)


def _cka(grams: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The three HSICs are summed over batches before they are divided."""
    both = one = other = 0.0
    for k, l in grams:  # noqa: E741
        both += unbiased_hsic(k, l)
        one += unbiased_hsic(k, k)
        other += unbiased_hsic(l, l)
    return both / math.sqrt(one * other) if one > 0 and other > 0 else 0.0


@dataclass(frozen=True)
class LinearCka(_Relational):
    """Debiased linear CKA between all layers of two models."""

    name = "linear_cka"
    least_rows = _LEAST_ROWS

    def relation(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows rows"]:
        """Return the U-centred Gram matrix."""
        return u_centred(linear_gram(x))


@dataclass(frozen=True)
class RbfCka(_Relational):
    """Debiased CKA with a Gaussian kernel between all layers of two models.

    Attributes:
        bandwidth: Relative to the median distance of each layer's rows.
    """

    bandwidth: float = 1.0
    name = "rbf_cka"
    least_rows = _LEAST_ROWS

    def relation(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows rows"]:
        """Return the U-centred kernel matrix."""
        return u_centred(rbf_gram(x, self.bandwidth))


# Representational similarity analysis: whether two spaces rank the same pairs of rows as
# different. Source: Kriegeskorte, Mur and Bandettini, 2008.


@dataclass(frozen=True)
class Rsa(_Relational):
    """Spearman's correlation of dissimilarities between all layers of two models.

    The dissimilarity of two rows is 1 minus their correlation over dimensions; a row without
    variance correlates with none.
    """

    name = "rsa"
    least_rows = 3

    def relation(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows rows"]:
        """Return the ranks of the dissimilarities about their mean; equal ones share a rank."""
        n = len(x)
        i, j = torch.triu_indices(n, n, 1)
        about_mean = x.double() - x.double().mean(dim=1, keepdim=True)
        unit = torch.nn.functional.normalize(about_mean, dim=1)
        dissimilarity = 1 - unit @ unit.mT
        ranks = torch.from_numpy(rankdata(dissimilarity[i, j].numpy()))
        relation = torch.zeros(n, n, dtype=torch.float64)
        relation[i, j] = ranks - ranks.mean()
        return relation + relation.mT


def rsa(x: Float[Tensor, "rows x"], y: Float[Tensor, "rows y"]) -> float:
    """Return Spearman's correlation of the two dissimilarity matrices above their diagonals.

    Raises:
        ValueError: there are fewer than 3 rows.
    """
    return _of_pair(Rsa(), x, y)


# How many nearest neighbours a row has in common in two spaces. Between independently trained
# models these measures stay above chance most reliably, as they compare what is near and not the
# whole geometry. Source: mutual k-NN, Huh et al., 2024 (the platonic representation hypothesis).

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

    def matrix(self, order: Int[Tensor, " rows"]) -> Float[Tensor, "target source"]:
        """Return the overlap of all pairs of layers with the target's rows in ``order``."""
        position = order.argsort()
        row, neighbour = position[self.target[0]], position[self.target[1]]
        pairs = (row * self.rows + neighbour).numpy()
        starts = np.arange(0, len(pairs) + 1, self.neighbours)
        shape = (len(starts) - 1, self.rows * self.rows)
        chosen = csr_matrix((np.ones(len(pairs), dtype=np.int32), pairs, starts), shape=shape)
        common = torch.from_numpy((chosen @ self.source).toarray()).double()
        most = 2 * self.neighbours - common if self.union else self.neighbours
        return (common / most).reshape(-1, self.rows, common.shape[1]).mean(dim=1)


@dataclass(frozen=True)
class MutualKnn:
    """Mean share of a row's nearest neighbours that it has in both of two layers.

    Independent spaces give ``neighbours / (rows - 1)`` on average.

    Attributes:
        neighbours: k.
    """

    neighbours: int = 10
    name = "mutual_knn"
    union: ClassVar[bool] = False

    def compare(self, target: Layers, source: Layers) -> NeighbourComparison:
        """Find the neighbours in every layer."""
        rows = rows_of(target, source, self.neighbours + 1)
        pairs = torch.cat([nearest(layer, self.neighbours).nonzero().mT for layer in target], dim=1)
        near = [nearest(layer, self.neighbours).flatten().nonzero()[:, 0] for layer in source]
        columns = np.repeat(np.arange(len(source)), [len(pair) for pair in near])
        ones = np.ones(len(columns), dtype=np.int32)
        members = (ones, (torch.cat(near).numpy(), columns))
        return NeighbourComparison(
            rows,
            self.neighbours,
            self.union,
            pairs,
            csr_matrix(members, shape=(rows * rows, len(source))),
        )


@dataclass(frozen=True)
class Jaccard(MutualKnn):
    """Mean of ``|A and B| / |A or B|`` of a row's nearest neighbours A and B in two layers."""

    name = "jaccard"
    union: ClassVar[bool] = True


def mutual_knn(
    x: Float[Tensor, "rows x"], y: Float[Tensor, "rows y"], neighbours: int = 10
) -> float:
    """Return :class:`MutualKnn` of two spaces.

    Raises:
        ValueError: there are not more rows than neighbours.
    """
    return _of_pair(MutualKnn(neighbours), x, y)


def jaccard(x: Float[Tensor, "rows x"], y: Float[Tensor, "rows y"], neighbours: int = 10) -> float:
    """Return :class:`Jaccard` of two spaces.

    Raises:
        ValueError: there are not more rows than neighbours.
    """
    return _of_pair(Jaccard(neighbours), x, y)


# Canonical correlation of leading principal components, cross-validated. Sources: Raghu et al.,
# 2017 (SVCCA); Hotelling, 1936. As published it keeps components to 99 % of the variance and
# correlates the rows that the directions were fitted on, which is near 1 for noise with fewer than
# about ten rows a component. So the number of components is fixed here, the directions are fitted
# on one half of the rows, and the other half is correlated.

# Relative to the mean variance: directions without variance correlate with nothing.
_RIDGE = 1e-9


def principal_scores(
    x: Float[Tensor, "rows width"], components: int
) -> Float[Tensor, "rows components"]:
    """Return the scores on the leading principal components, float64, together of unit norm.

    Raises:
        ValueError: there are fewer dimensions than components.
    """
    if min(x.shape) < components:
        raise ValueError(f"a matrix of {tuple(x.shape)} has no {components} components")
    about_mean = x.double() - x.double().mean(dim=0)
    u, s, _ = torch.linalg.svd(about_mean, full_matrices=False)
    norm = float(s[:components].norm())
    return u[:, :components] * (s[:components] / norm if norm > 0 else s[:components])


@dataclass(frozen=True, eq=False)
class CanonicalComparison:
    """Principal component scores of the layers of two models, correlated."""

    target: Float[Tensor, "target rows components"]
    source: Float[Tensor, "source rows components"]

    @property
    def rows(self) -> int:
        """How many paired rows there are."""
        return self.target.shape[1]

    def matrix(self, order: Int[Tensor, " rows"]) -> Float[Tensor, "target source"]:
        """Return the mean correlations of all pairs with the target's rows in ``order``."""
        target, half = self.target[:, order], self.rows // 2
        first, last = slice(None, half), slice(half, None)
        return (self._held_out(target, first, last) + self._held_out(target, last, first)) / 2

    def _held_out(
        self, target: Float[Tensor, "target rows components"], fitted: slice, held_out: slice
    ) -> Float[Tensor, "target source"]:
        x, y = _whitened(target, fitted), _whitened(self.source, fitted)
        cross = torch.einsum("tnc,snd->tscd", x[:, fitted], y[:, fitted])
        u, _, vh = torch.linalg.svd(cross)
        a, b = _centred(x[:, held_out]), _centred(y[:, held_out])
        v = vh.mT
        both = torch.einsum("tnc,snd->tscd", a, b)
        covariance = (u * (both @ v)).sum(dim=-2)
        one = (u * ((a.mT @ a)[:, None] @ u)).sum(dim=-2)
        other = (v * ((b.mT @ b) @ v)).sum(dim=-2)
        scale = (one * other).sqrt()
        return torch.where(scale > 0, covariance / scale, 0.0).mean(dim=-1)


def _centred(scores: Float[Tensor, "layers n c"]) -> Float[Tensor, "layers n c"]:
    return scores - scores.mean(dim=1, keepdim=True)


def _whitened(
    scores: Float[Tensor, "layers rows c"], fitted: slice
) -> Float[Tensor, "layers rows c"]:
    """Linear maps of all rows, after which the fitted ones are uncorrelated, of mean 0."""
    mean = scores[:, fitted].mean(dim=1, keepdim=True)
    about_mean = scores - mean
    gram = about_mean[:, fitted].mT @ about_mean[:, fitted]
    values, vectors = torch.linalg.eigh(gram)
    floor = _RIDGE * values.mean(dim=1, keepdim=True)
    inverse = torch.where(values > floor, values.clamp_min(0).rsqrt(), 0.0)
    return about_mean @ (vectors * inverse[:, None])


@dataclass(frozen=True)
class Svcca:
    """Cross-validated mean canonical correlation between all layers of two models.

    Attributes:
        components: Principal components kept of each layer.
    """

    components: int = 10
    name = "svcca"

    def compare(self, target: Layers, source: Layers) -> CanonicalComparison:
        """Precompute the principal components of each layer."""
        rows_of(target, source, 4 * self.components)
        return CanonicalComparison(
            torch.stack([principal_scores(layer, self.components) for layer in target]),
            torch.stack([principal_scores(layer, self.components) for layer in source]),
        )


def svcca(x: Float[Tensor, "rows x"], y: Float[Tensor, "rows y"], components: int = 10) -> float:
    """Return the mean canonical correlation of held-out rows.

    Components are taken on all rows, as they know nothing of the pairing; canonical directions
    on either half of the rows, first and last, and correlated on the other.

    Args:
        x: Paired rows.
        y: The same rows in another space.
        components: Principal components kept of each space.

    Raises:
        ValueError: there are fewer than four rows a component, or fewer dimensions than
            components.
    """
    return _of_pair(Svcca(components), x, y)


@dataclass(frozen=True, eq=False)
class LayerFingerprint:
    """A summary of a layer's activations that does not change when its space is rotated.

    Sources: participation ratio, as in Gao et al., 2017; anisotropy, Ethayarajh, 2019.

    Attributes:
        norm: Mean length of a row.
        anisotropy: Mean cosine between two different rows; 0 if directions are spread evenly.
        dimensions: Participation ratio of the variances: how many directions carry the layer.
        distances: Mean distance of each row to the others, relative to the mean of all.
    """

    norm: float
    anisotropy: float
    dimensions: float
    distances: Float[Tensor, " rows"]

    @classmethod
    def of(cls, x: Float[Tensor, "rows width"]) -> "LayerFingerprint":
        """Summarise a layer.

        Raises:
            ValueError: there are fewer than two rows.
        """
        n = len(x)
        if n < 2:
            raise ValueError(f"{n} rows are too few for the fingerprint of a layer")
        x = x.double()
        unit = torch.nn.functional.normalize(x, dim=1)
        cosines = unit @ unit.mT
        gram = centred(x @ x.mT)
        energy = float(gram.square().sum())
        distances = torch.cdist(x, x).sum(dim=1) / (n - 1)
        mean = float(distances.mean())
        return cls(
            norm=float(x.norm(dim=1).mean()),
            anisotropy=float((cosines.sum() - cosines.trace()) / (n * (n - 1))),
            dimensions=float(gram.trace()) ** 2 / energy if energy > 0 else 0.0,
            distances=distances / mean if mean > 0 else distances,
        )
