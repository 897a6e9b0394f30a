"""How similar the layers of two models are on the same rows: CKA, shared neighbours, RSA and SVCCA.

A measure compares all layers of one model with all layers of another. What does not depend on the
pairing of rows is computed once a layer, so that many permutations of the rows are cheap
(:mod:`loraport.alignment.coverage`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from scipy.stats import rankdata
from torch import Tensor

from .ridge import centred

Layers = Sequence[Tensor]
"""One matrix (rows x width) a layer; the i-th row of every layer is of the same token."""

Comparison = Callable[[Int[Tensor, " rows"]], Float[Tensor, "target source"]]
"""The measure of all pairs of layers with the target's rows taken in an order, the same for all
layers; ``arange`` is the true pairing."""


class LayerMeasure(ABC):
    """A measure of how similar two representations are; its greatest value is 1.

    Attributes:
        name: In reports.
    """

    name: ClassVar[str]

    @abstractmethod
    def compare(self, target: Layers, source: Layers) -> Comparison:
        """Compute what each layer contributes.

        Raises:
            ValueError: the layers have different numbers of rows, or too few.
        """


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


class _Relational(LayerMeasure):
    """The cosine between relations of rows: symmetric n x n matrices, one a layer.

    Permuting rows permutes the rows and columns of a relation, so that all pairs of layers cost
    one gather and one matrix product a permutation.
    """

    least_rows: ClassVar[int]

    @abstractmethod
    def relation(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows rows"]:
        """Return the relation of the rows; its diagonal is not used."""

    def compare(self, target: Layers, source: Layers) -> Comparison:
        """Compute the relation of each layer."""
        rows = rows_of(target, source, self.least_rows)
        i, j = torch.triu_indices(rows, rows, 1)

        def unit(layer: Tensor) -> Tensor:
            """Of norm 1 above the diagonal, float32."""
            relation = self.relation(layer)
            norm = float(relation[i, j].norm())
            return (relation / norm if norm > 0 else torch.zeros_like(relation)).float()

        # Whole relations of the target, whose entries are gathered; of the source the upper half.
        targets = torch.stack([unit(layer).flatten() for layer in target], dim=1)
        sources = torch.stack([unit(layer)[i, j] for layer in source], dim=1)

        def cosines(order: Int[Tensor, " rows"]) -> Float[Tensor, "target source"]:
            entries = targets.index_select(0, order[i] * rows + order[j])
            return (entries.mT @ sources).double()

        return cosines


# Centred kernel alignment, debiased: ``CKA = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`` with Gram
# matrices K and L of paired rows. Sources: Kornblith et al., 2019, for CKA; Song et al., 2012,
# eq. 5, for the unbiased HSIC, which divides by n - 3.

_LEAST_ROWS = 4


def linear_gram(x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows rows"]:
    """Return the inner products of the rows about their mean, float64."""
    about_mean = x.double() - x.double().mean(dim=0)
    return about_mean @ about_mean.mT


def u_centred(gram: Float[Tensor, "rows rows"]) -> Float[Tensor, "rows rows"]:
    """Centre a Gram matrix so that inner products of two of them are unbiased.

    The diagonal is zero and so is every row sum; ``sum(K L) / (n (n - 3))`` of two such matrices
    is Song's estimate (Szekely and Rizzo, 2014).
    """
    n = len(gram)
    hollow = gram - torch.diag(gram.diagonal())
    rows = hollow.sum(dim=0)
    whole = float(rows.sum()) / ((n - 1) * (n - 2))
    result = hollow - rows[:, None] / (n - 2) - rows / (n - 2) + whole
    return result - torch.diag(result.diagonal())


@dataclass(frozen=True)
class LinearCka(_Relational):
    """Debiased linear CKA: about 0 for independent representations, 1 for a rotation."""

    name = "linear_cka"
    least_rows = _LEAST_ROWS

    def relation(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows rows"]:
        """Return the U-centred Gram matrix."""
        return u_centred(linear_gram(x))


@dataclass(frozen=True)
class RbfCka(_Relational):
    """Debiased CKA with the kernel ``exp(-|x_i - x_j|^2 / (2 sigma^2))``.

    Attributes:
        bandwidth: ``sigma`` relative to the median distance of a layer's rows, so that it means
            the same whatever the scale and width of a space; from 2 on the kernel is nearly
            linear (Alvarez, 2021).
    """

    bandwidth: float = 1.0
    name = "rbf_cka"
    least_rows = _LEAST_ROWS

    def relation(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows rows"]:
        """Return the U-centred kernel matrix."""
        inner, bandwidth = linear_gram(x), self.bandwidth
        squared = (inner.diagonal()[:, None] + inner.diagonal() - 2 * inner).clamp_min(0)
        i, j = torch.triu_indices(len(x), len(x), 1)
        median = float(squared[i, j].median())
        if median <= 0:  # more than half of the pairs are the same rows: a constant kernel
            return u_centred(torch.ones_like(squared))
        return u_centred(torch.exp(-squared / (2 * bandwidth**2 * median)))


@dataclass(frozen=True)
class Rsa(_Relational):
    """Representational similarity analysis: whether two spaces rank the same rows as different.

    Spearman's correlation of dissimilarities. The dissimilarity of two rows is 1 minus their
    correlation over dimensions; a row without variance correlates with none. Source:
    Kriegeskorte, Mur and Bandettini, 2008.
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


@dataclass(frozen=True)
class MutualKnn(LayerMeasure):
    """Mean share of a row's nearest neighbours that it has in both of two layers.

    Independent spaces give ``neighbours / (rows - 1)`` on average.

    Attributes:
        neighbours: k.
        union: Whether to divide by all different neighbours of a row (Jaccard) and not by k.
    """

    neighbours: int = 10
    name = "mutual_knn"
    union: ClassVar[bool] = False

    def compare(self, target: Layers, source: Layers) -> Comparison:
        """Find the neighbours in every layer.

        Pairs of a row and its neighbour are the columns of a sparse matrix, so that counting what
        all pairs of layers share is one sparse product, whatever the number of rows.
        """
        rows = rows_of(target, source, self.neighbours + 1)
        k = self.neighbours
        row, neighbour = torch.cat([nearest(x, k).nonzero().mT for x in target], dim=1)
        near = [nearest(x, k).flatten().nonzero()[:, 0] for x in source]
        columns = np.repeat(np.arange(len(source)), [len(pairs) for pairs in near])
        members = csr_matrix(
            (np.ones(len(columns), dtype=np.int32), (torch.cat(near).numpy(), columns)),
            shape=(rows * rows, len(source)),
        )

        def overlap(order: Int[Tensor, " rows"]) -> Float[Tensor, "target source"]:
            position = order.argsort()
            pairs = (position[row] * rows + position[neighbour]).numpy()
            starts = np.arange(0, len(pairs) + 1, k)
            chosen = csr_matrix(
                (np.ones(len(pairs), dtype=np.int32), pairs, starts),
                shape=(len(starts) - 1, rows * rows),
            )
            common = torch.from_numpy((chosen @ members).toarray()).double()
            most = 2 * self.neighbours - common if self.union else self.neighbours
            return (common / most).reshape(-1, rows, len(source)).mean(dim=1)

        return overlap


@dataclass(frozen=True)
class Jaccard(MutualKnn):
    """Mean of ``|A and B| / |A or B|`` of a row's nearest neighbours A and B in two layers."""

    name = "jaccard"
    union: ClassVar[bool] = True


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


@dataclass(frozen=True)
class Svcca(LayerMeasure):
    """Cross-validated mean canonical correlation.

    Components are taken on all rows, as they know nothing of the pairing; canonical directions on
    either half of the rows, first and last, and correlated on the other.

    Attributes:
        components: Principal components kept of each layer.
    """

    components: int = 10
    name = "svcca"

    def compare(self, target: Layers, source: Layers) -> Comparison:
        """Precompute the principal components of each layer."""
        rows = rows_of(target, source, 4 * self.components)
        targets, sources = (
            torch.stack([principal_scores(layer, self.components) for layer in layers])
            for layers in (target, source)
        )
        first, last = slice(None, rows // 2), slice(rows // 2, None)

        def correlations(order: Int[Tensor, " rows"]) -> Float[Tensor, "target source"]:
            x = targets[:, order]
            there, back = _canonical(x, sources, first, last), _canonical(x, sources, last, first)
            return (there + back) / 2

        return correlations


def _canonical(
    target: Float[Tensor, "target rows c"],
    source: Float[Tensor, "source rows c"],
    fitted: slice,
    held_out: slice,
) -> Float[Tensor, "target source"]:
    """Return the mean correlation of held-out rows along directions fitted on the others."""
    x, y = _whitened(target, fitted), _whitened(source, fitted)
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
    about_mean = scores - scores[:, fitted].mean(dim=1, keepdim=True)
    gram = about_mean[:, fitted].mT @ about_mean[:, fitted]
    values, vectors = torch.linalg.eigh(gram)
    floor = _RIDGE * values.mean(dim=1, keepdim=True)
    inverse = torch.where(values > floor, values.clamp_min(0).rsqrt(), 0.0)
    return about_mean @ (vectors * inverse[:, None])


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
        """Summarise a layer of two rows or more."""
        n, x = len(x), x.double()
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
