"""Linear maps between two spaces, fitted from moments alone, and what they leave unexplained.

How they carry LoRA factors across: a map of inputs is fitted backwards, from the target's to
the source's, and without centring, since a LoRA has no bias that could hold an intercept; a map
of outputs forwards, and on centred samples, since it acts on differences. With ``x_S ~ M x_T``
and ``dy_T ~ N dy_S``, the update of the target is ``N dW_S M``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from .moments import PairedMoments
from .procrustes import best_scale, rotation
from .svd import largest_entry_signs

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
STRENGTHS_TWO_SIDED = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


class SplitMoments(NamedTuple):
    """Moments of the samples that a map is fitted on, and of those that it is measured on."""

    train: PairedMoments
    held_out: PairedMoments

    def centred(self) -> "SplitMoments":
        """Return both with the means of their samples taken away."""
        return SplitMoments(self.train.centred(), self.held_out.centred())


def _share(missed: float, total: float) -> float:
    return 1 - missed / total if total > 0 else 0.0


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
        """Measure a map on other samples than it was fitted on, centred where those are."""
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
        """Return the R^2 of ``A y``, what an adapter with the input projection A uses of y.

        ``1 - tr(A E A^T) / tr(A C A^T)``; 0 where what is read does not vary.
        """
        a = readers.to(self.residual)
        missed, total = (float(((a @ m) * a).sum()) for m in (self.residual, self.covariance))
        return _share(missed, total)


@dataclass(frozen=True, eq=False)
class LinearMap:
    """A map ``y ~ M x``.

    Attributes:
        matrix: M, float64.
        strength: Of its ridge; None without one.
        error: On held-out samples.
        gradient_r2: Of held-out gradients that it carries back; None where there are none.
    """

    matrix: Float[Tensor, "y x"]
    strength: float | None
    error: HeldOutError
    gradient_r2: float | None = None


@dataclass(frozen=True)
class Ridge:
    """Ridge regression, its strength chosen by the error on held-out samples.

    Attributes:
        strengths: rho; the penalty is ``lambda = rho tr(X^T X) / d``, the same for samples of
            any scale and number. Of equally good ones the largest is taken.
    """

    strengths: Sequence[float] = STRENGTHS

    def forward(self, train: PairedMoments, held_out: PairedMoments) -> LinearMap:
        """Return ``Y^T X (X^T X + lambda I)^-1``."""
        # One eigendecomposition of X^T X serves all strengths: in its basis the penalty is
        # diagonal, and the held-out error of a strength a quadratic form.
        values, basis = torch.linalg.eigh(train.xx)
        values = values.clamp_min(0)
        cross, seen = basis.mT @ train.xy, basis.mT @ held_out.xy
        gram = basis.mT @ held_out.xx @ basis
        trace = float(train.xx.trace())

        def fit(strength: float) -> tuple[float, float, Tensor]:
            # Where all samples are zero the map is zero, whatever is added.
            penalty = strength * trace / len(values) if trace > 0 else 1.0
            weights = cross / (values + penalty)[:, None]
            return float((weights * (gram @ weights - 2 * seen)).sum()), strength, weights

        fits = map(fit, sorted(self.strengths, reverse=True))
        _, strength, weights = min(fits, key=lambda found: found[0])
        matrix = (basis @ weights).mT
        return LinearMap(matrix, strength, HeldOutError.of(matrix, train, held_out))

    def backward(self, train: PairedMoments, held_out: PairedMoments) -> LinearMap:
        """Return ``X^T Y (Y^T Y + lambda I)^-1``."""
        return self.forward(train.swapped(), held_out.swapped())


@dataclass(frozen=True)
class Rotated:
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


class ReducedRank(NamedTuple):
    """The linear map ``x -> B (A x)``, as a LoRA update holds it, float64.

    Attributes:
        A: Input projection.
        B: Output projection; its columns are orthonormal, unused ones are zero.
        strength: Of its ridge.
        r2: Share of the held-out ``sum |y|^2`` that the map explains; at or below 0 it predicts no
            better than no map at all.
    """

    A: Float[Tensor, "rank x"]
    B: Float[Tensor, "y rank"]
    strength: float
    r2: float


def reduced_rank_regression(
    train: PairedMoments, held_out: PairedMoments, rank: int, strengths: Sequence[float]
) -> ReducedRank:
    """Return the map of at most ``rank`` that explains most of the held-out samples.

    For each strength it minimises ``sum |y - B A x|^2 + lambda |B A|^2`` over the training samples,
    ``lambda = strength * tr(X^T X) / x``. Nothing is centred: a LoRA has no intercept. With
    ``X^T X + lambda I = L L^T`` and the SVD ``L^-1 X^T Y = U S V^T`` the minimum is ``B = V_r``,
    ``A = S_r U_r^T L^-1``. Of equally good strengths the largest is taken. Source: reduced-rank
    regression, Izenman, Journal of Multivariate Analysis 5, 1975; its ridge form is that of samples
    to which ``sqrt(lambda) I`` was added, with outputs of zero.

    Args:
        train: Moments of the samples to fit.
        held_out: Moments of other samples, which choose the strength.
        rank: Of the map; where ``x`` or ``y`` has fewer dimensions the rest is zero.
        strengths: Not negative; 0 takes an ``X`` of full rank.

    Raises:
        ValueError: ``X^T X + lambda I`` is singular.
    """
    fits = []
    total = float(held_out.yy.trace())
    for strength in strengths:
        a, b = _fit(train, rank, strength)
        # 1 - sum |y - B A x|^2 / sum |y|^2, without a y x x matrix.
        shared = float(((a @ held_out.xy) * b.mT).sum())
        power = float(((a @ held_out.xx @ a.mT) * (b.mT @ b)).sum())
        fits.append(ReducedRank(a, b, strength, (2 * shared - power) / total if total > 0 else 0.0))
    return max(fits, key=lambda fit: (fit.r2, fit.strength))


def _fit(moments: PairedMoments, rank: int, strength: float) -> tuple[Tensor, Tensor]:
    gram = moments.xx.clone()
    gram.diagonal().add_(strength * float(gram.trace()) / len(gram))
    lower, failed = torch.linalg.cholesky_ex(gram)
    if int(failed):
        raise ValueError(
            f"X^T X of width {len(gram)} is singular at strength {strength}; a strength above 0 "
            "makes it regular"
        )
    whitened = torch.linalg.solve_triangular(lower, moments.xy, upper=False)
    # Right singular vectors by the Gram matrix: x is often far wider than y, as in down_proj.
    values, vectors = torch.linalg.eigh(whitened.mT @ whitened)
    kept = min(rank, *whitened.shape)
    v = vectors.flip(1)[:, :kept] * (values.flip(0)[:kept] > 0)
    v = v * largest_entry_signs(v)
    a, b = gram.new_zeros(rank, len(gram)), gram.new_zeros(len(vectors), rank)
    a[:kept] = torch.linalg.solve_triangular(lower.mT, whitened @ v, upper=True).mT
    b[:, :kept] = v
    return a, b


@dataclass(frozen=True)
class TwoSidedRidge:
    """Ridge regression on activations forward and on gradients backward at once.

    Along directions in which activations vary, they determine the map; along directions in which
    they hardly vary, but which an adapter may write to, only gradients do. If ``y_T = N y_S`` the
    chain rule gives ``g_S = N^T g_T`` for the gradients of one likelihood that both models assign
    to the same text. The map of least ``|Y_T - Y_S N^T|^2 / |Y_T|^2 + w |G_S - G_T N|^2 / |G_S|^2``
    solves the Sylvester equation

        ``N C_y + w C_g N = R``,  ``C_y = Y_S^T Y_S``, ``C_g = G_T^T G_T``, each over its norm,

    which is diagonal in the eigenvectors of both (Bartels and Stewart, Communications of the ACM
    15, 1972, for symmetric matrices).

    Attributes:
        weight: w, of the gradients; 0 is ridge regression on activations alone.
        strengths: Added to both spectra, as shares of their means; chosen by the held-out loss.
    """

    weight: float = 1.0
    strengths: Sequence[float] = STRENGTHS_TWO_SIDED

    def forward(self, outputs: SplitMoments, gradients: SplitMoments) -> LinearMap:
        """Return N from moments of centred outputs, and of the gradients as they are."""
        y, g = outputs.train, gradients.train
        power_y, power_g = float(y.yy.trace()), float(g.xx.trace())
        scale_y = 1 / power_y if power_y > 0 else 0.0
        scale_g = self.weight / power_g if power_g > 0 else 0.0
        forward, reader = torch.linalg.eigh(scale_y * y.xx)
        back, writer = torch.linalg.eigh(scale_g * g.yy)
        wanted = writer.mT @ (scale_y * y.xy.mT + scale_g * g.xy.mT) @ reader

        def fit(strength: float) -> tuple[float, float, Tensor]:
            spectrum = _raised(forward, strength)[None] + _raised(back, strength)[:, None]
            matrix = writer @ (wanted / spectrum) @ reader.mT
            missed = _missed(matrix, outputs.held_out)
            missed_back = _missed(matrix.mT, gradients.held_out.swapped())
            return scale_y * missed + scale_g * missed_back, strength, matrix

        fits = map(fit, sorted(self.strengths, reverse=True))
        _, strength, matrix = min(fits, key=lambda found: found[0])
        error = HeldOutError.of(matrix, y, outputs.held_out)
        return LinearMap(matrix, strength, error, gradient_r2(matrix, gradients))


def gradient_r2(matrix: Float[Tensor, "target source"], gradients: SplitMoments) -> float:
    """Return ``1 - |G_S - G_T N|^2 / |G_S|^2`` on held-out text; 0 where there is no gradient."""
    held_out = gradients.held_out.swapped()
    return _share(_missed(matrix.mT, held_out), float(held_out.yy.trace()))


def _raised(spectrum: Float[Tensor, " d"], strength: float) -> Float[Tensor, " d"]:
    mean = float(spectrum.mean())
    # Where there is nothing to fit the map is zero, whatever is added.
    return spectrum.clamp_min(0) + (strength * mean if mean > 0 else 1e-12)


def _missed(matrix: Float[Tensor, "y x"], moments: PairedMoments) -> float:
    """Return ``sum |y - M x|^2``."""
    return float(((matrix @ moments.xx - 2 * moments.xy.mT) * matrix).sum() + moments.yy.trace())
