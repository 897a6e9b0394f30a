"""How alike the units of an axis are in two networks, judged by their weights."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class UnitSimilarity:
    """Inner products between the weights of source units and of target units.

    Attributes:
        inner: ``<w_i, w_j>`` of each source unit i and target unit j.
        source_squared: ``<w_i, w_i>`` of each source unit.
        target_squared: ``<w_j, w_j>`` of each target unit.
    """

    inner: Float[Tensor, "source target"]
    source_squared: Float[Tensor, " source"]
    target_squared: Float[Tensor, " target"]

    @classmethod
    def of(
        cls, source: Float[Tensor, "source width"], target: Float[Tensor, "target width"]
    ) -> "UnitSimilarity":
        """Compare the rows of two matrices, each divided by its Frobenius norm.

        So a sum over matrices, which differ in scale, weighs each of them alike.
        """
        tiny = torch.finfo(source.dtype).tiny
        one = source / torch.linalg.norm(source).clamp_min(tiny)
        other = target / torch.linalg.norm(target).clamp_min(tiny)
        return cls(one @ other.mT, one.square().sum(dim=1), other.square().sum(dim=1))

    def __add__(self, other: "UnitSimilarity") -> "UnitSimilarity":
        """Return the similarity of units that have the weights of both."""
        return UnitSimilarity(
            self.inner + other.inner,
            self.source_squared + other.source_squared,
            self.target_squared + other.target_squared,
        )

    def block(self, source: slice, target: slice) -> "UnitSimilarity":
        """Return the similarity of some of the source units with some of the target units."""
        return UnitSimilarity(
            self.inner[source, target], self.source_squared[source], self.target_squared[target]
        )

    @property
    def cosine(self) -> Float[Tensor, "source target"]:
        """The cosine between the weights of two units; 0 where one has none."""
        norms = (self.source_squared[:, None] * self.target_squared).sqrt()
        return torch.where(norms > 0, self.inner / norms, 0.0)
