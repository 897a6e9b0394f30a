"""Linear maps between two spaces, fitted from moments alone, and what they leave unexplained.

How they carry LoRA factors across: a map of inputs is fitted backwards, from the target's to
the source's, and without centring, since a LoRA has no bias that could hold an intercept; a map
of outputs forwards, and on centred samples, since it acts on differences. With ``x_S ~ M x_T``
and ``dy_T ~ N dy_S``, the update of the target is ``N dW_S M``.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .moments import PairedMoments
from .procrustes import best_scale, rotation

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)


class SplitMoments(NamedTuple):
    """Moments of the samples that a map is fitted on, and of those that it is measured on."""

    train: PairedMoments
    held_out: PairedMoments

    def centred(self) -> "SplitMoments":
        """Return both with the means of their samples taken away."""
        return SplitMoments(self.train.centred(), self.held_out.centred())


@dataclass(frozen=True, eq=False)
class HeldOutError:
    """What a map leaves unexplained of samples that it was not fitted on.

    Attributes:
        residual: ``E = mean (y - M x)(y - M x)^T``, float64.
        covariance: ``C = mean (y - m)(y - m)^T``, m being the mean of the samples that the map
            was fitted on (zero where they are centred). Against zero, the constant part of
            activations, which is most of them, would look like skill.
    """

    residual: Float[Tensor, "y y"]
    covariance: Float[Tensor, "y y"]

    @classmethod
    def of(
        cls, matrix: Float[Tensor, "y x"], train: PairedMoments, held_out: PairedMoments
    ) -> "HeldOutError":
        """Measure a map ``y ~ M x``.

        Args:
            matrix: M.
            train: What it was fitted on.
            held_out: Other samples, centred where ``train`` is.
        """
        n = max(held_out.rows, 1)
        cross = matrix @ held_out.xy
        residual = held_out.yy - cross - cross.mT + matrix @ held_out.xx @ matrix.mT
        mean = train.y_sum / max(train.rows, 1)
        shift = torch.outer(held_out.y_sum, mean)
        covariance = held_out.yy - shift - shift.mT + n * torch.outer(mean, mean)
        return cls(residual / n, covariance / n)

    @property
    def r2(self) -> float:
        """``1 - tr E / tr C``: 1 is exact, 0 as good as the mean; 0 where nothing varies."""
        return _share(float(self.residual.trace()), float(self.covariance.trace()))

    def restricted_r2(self, readers: Float[Tensor, "rank y"]) -> float:
        """Return the R^2 of ``A y``: of what an adapter with the factor A reads.

        ``1 - tr(A E A^T) / tr(A C A^T)``; 0 where what is read does not vary.
        """
        a = readers.to(self.residual)
        missed, there = (float(((a @ m) * a).sum()) for m in (self.residual, self.covariance))
        return _share(missed, there)


@dataclass(frozen=True, eq=False)
class LinearMap:
    """A map ``y ~ M x``.

    Attributes:
        matrix: M, float64.
        strength: Of the ridge that it was fitted with; None where there was none.
        error: On held-out samples.
    """

    matrix: Float[Tensor, "y x"]
    strength: float | None
    error: HeldOutError


class MapRule(ABC):
    """One way to fit linear maps between two spaces."""

    @abstractmethod
    def forward(self, train: PairedMoments, held_out: PairedMoments) -> LinearMap:
        """Return the map from x to y."""

    @abstractmethod
    def backward(self, train: PairedMoments, held_out: PairedMoments) -> LinearMap:
        """Return the map from y to x."""


@dataclass(frozen=True)
class Ridge(MapRule):
    """Ridge regression, its strength chosen by the error on held-out samples.

    Attributes:
        strengths: rho; the penalty is ``lambda = rho tr(X^T X) / d``, the same for samples of
            any scale and number. Of equally good ones the largest is taken.
    """

    strengths: Sequence[float] = STRENGTHS

    def forward(self, train: PairedMoments, held_out: PairedMoments) -> LinearMap:
        """Return ``Y^T X (X^T X + lambda I)^-1``.

        One eigendecomposition of ``X^T X`` serves all strengths: in its basis the penalty is
        diagonal, and the held-out error of a strength a quadratic form.

        Raises:
            ValueError: there is no strength.
        """
        values, basis = torch.linalg.eigh(train.xx)
        values = values.clamp_min(0)
        cross, seen = basis.mT @ train.xy, basis.mT @ held_out.xy
        gram = basis.mT @ held_out.xx @ basis
        trace = float(train.xx.trace())
        best: tuple[float, float, Tensor] | None = None
        for strength in sorted(self.strengths, reverse=True):
            # Where all samples are zero the map is zero, whatever is added.
            penalty = strength * trace / len(values) if trace > 0 else 1.0
            weights = cross / (values + penalty)[:, None]
            error = float((weights * (gram @ weights - 2 * seen)).sum())
            if best is None or error < best[0]:
                best = error, strength, weights
        if best is None:
            raise ValueError("a ridge takes at least one strength")
        matrix = (basis @ best[2]).mT
        return LinearMap(matrix, best[1], HeldOutError.of(matrix, train, held_out))

    def backward(self, train: PairedMoments, held_out: PairedMoments) -> LinearMap:
        """Return ``X^T Y (Y^T Y + lambda I)^-1``."""
        return self.forward(train.swapped(), held_out.swapped())


@dataclass(frozen=True)
class Rotated(MapRule):
    """Orthogonal Procrustes: a scaled isometry R, ``x R ~ y``, which serves both directions.

    Attributes:
        proper: Whether a reflection is undone.
        scaled: Whether each direction has its best multiple, ``c R^T`` and ``c' R``; else 1.
    """

    proper: bool = False
    scaled: bool = True

    def forward(self, train: PairedMoments, held_out: PairedMoments) -> LinearMap:
        """Return ``c R^T``, the map from x to y (in column convention)."""
        return self.along(rotation(train, proper=self.proper).matrix, train, held_out)

    def backward(self, train: PairedMoments, held_out: PairedMoments) -> LinearMap:
        """Return ``c' R``, the map from y to x, with the same R as :meth:`forward`."""
        matrix = rotation(train, proper=self.proper).matrix
        return self.along(matrix.mT, train.swapped(), held_out.swapped())

    def along(
        self, matrix: Float[Tensor, "x y"], train: PairedMoments, held_out: PairedMoments
    ) -> LinearMap:
        """Return the map from x to y that follows a given rotation of x onto y."""
        scale = best_scale(train, matrix) if self.scaled else 1.0
        mapped = scale * matrix.mT
        return LinearMap(mapped, None, HeldOutError.of(mapped, train, held_out))


def _share(missed: float, there: float) -> float:
    return 1 - missed / there if there > 0 else 0.0
