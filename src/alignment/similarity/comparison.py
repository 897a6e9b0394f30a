"""What compares all layers of one model with all layers of another on the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

Layers = Sequence[Tensor]
"""One matrix (rows x width) a layer; the i-th row of every layer is of the same token."""


@runtime_checkable
class LayerComparison(Protocol):
    """A measure between two models' layers; what no pairing of rows changes is computed once."""

    @property
    def rows(self) -> int:
        """How many paired rows there are."""
        ...

    def matrix(self, order: Int[Tensor, " rows"]) -> Float[Tensor, "target source"]:
        """Return the measure of all pairs of layers, the target's rows taken in an order.

        The same order holds for all layers; ``arange`` is the true pairing.
        """
        ...


@runtime_checkable
class LayerMeasure(Protocol):
    """A measure of how alike two representations are; 1 is the greatest value it takes."""

    @property
    def name(self) -> str:
        """The name in reports."""
        ...

    def compare(self, target: Layers, source: Layers) -> LayerComparison:
        """Precompute what each layer contributes.

        Raises:
            ValueError: the layers have different numbers of rows, or too few.
        """
        ...


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


@dataclass(frozen=True, eq=False)
class RelationalComparison:
    """Compares layers by how their rows relate to one another: a cosine of n x n matrices.

    Whatever the width of a layer, it is turned into one symmetric matrix without diagonal, of
    unit norm above it; permuting the rows permutes rows and columns of that matrix, so that a
    permutation of all pairs of layers costs one gather and one matrix product.

    Attributes:
        rows: How many rows were related.
        target: Entry (i, j) of every target layer's relation in row ``i * rows + j``, float32.
        source: Entries above the diagonal of every source layer's relation.
    """

    rows: int
    target: Float[Tensor, "entries target"]
    source: Float[Tensor, "above source"]

    @classmethod
    def of(
        cls,
        target: Sequence[Float[Tensor, "rows rows"]],
        source: Sequence[Float[Tensor, "rows rows"]],
    ) -> "RelationalComparison":
        """Take symmetric relations of the layers; their diagonals are not used."""
        rows = len(target[0])
        i, j = torch.triu_indices(rows, rows, 1)
        return cls(
            rows,
            torch.stack([_unit(layer, i, j).flatten() for layer in target], dim=1),
            torch.stack([_unit(layer, i, j)[i, j] for layer in source], dim=1),
        )

    def matrix(self, order: Int[Tensor, " rows"]) -> Float[Tensor, "target source"]:
        """Return the cosines of all pairs of layers, the target's rows taken in an order."""
        i, j = torch.triu_indices(self.rows, self.rows, 1)
        entries = self.target.index_select(0, order[i] * self.rows + order[j])
        return (entries.mT @ self.source).double()


def _unit(
    relation: Float[Tensor, "rows rows"], i: Int[Tensor, " above"], j: Int[Tensor, " above"]
) -> Float[Tensor, "rows rows"]:
    norm = float(relation[i, j].norm())
    return (relation / norm if norm > 0 else torch.zeros_like(relation)).float()
