"""How much of held-out rows a head explains, added up batch by batch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Sums over rows y and over what a head misses of them, ``e = y - head(x)``, in float64.

    Attributes:
        sums: The number of rows, ``sum |e|^2`` and ``sum |y|^2``.
        missed: ``sum e``.
        there: ``sum y``.
    """

    sums: Float[Tensor, " 3"]
    missed: Float[Tensor, " width"]
    there: Float[Tensor, " width"]

    @classmethod
    def of(
        cls, made: Float[Tensor, "rows width"], y: Float[Tensor, "rows width"]
    ) -> "Reconstruction":
        """Sum over the rows of a batch."""
        error, rows = (y - made).double(), y.double()
        sums = torch.stack([error.new_tensor(len(y)), error.square().sum(), rows.square().sum()])
        return cls(sums, error.sum(dim=0), rows.sum(dim=0))

    def __add__(self, other: "Reconstruction") -> "Reconstruction":
        return Reconstruction(
            self.sums + other.sums, self.missed + other.missed, self.there + other.there
        )

    def reduced(self, summed: Callable[[Tensor], Tensor]) -> "Reconstruction":
        """Return the sums over all devices, given what sums a tensor over them."""
        return Reconstruction(summed(self.sums), summed(self.missed), summed(self.there))

    def r2(self, mean: Float[Tensor, " width"]) -> float:
        """Return ``1 - sum |e|^2 / sum |y - m|^2``; 0 where nothing varies.

        Args:
            mean: m, of the rows that the head was fitted on.
        """
        n, missed, total = self.sums.tolist()
        m = mean.to(self.there)
        return _share(missed, total - 2 * float(m @ self.there) + n * float(m @ m))

    def centred_r2(self) -> float:
        """Return the same of differences, of which a constant error is no part."""
        n, missed, total = self.sums.tolist()
        missed -= float(self.missed @ self.missed) / n
        return _share(missed, total - float(self.there @ self.there) / n)


def _share(missed: float, there: float) -> float:
    return 1 - missed / there if there > 0 else 0.0
