"""A linear map that carries activations forward and gradients back.

Along directions in which activations vary, activations say what corresponds to what; along those
in which they hardly vary, but which an adapter may write to, only the effect does. If
``y_T = N y_S`` the chain rule gives ``g_S = N^T g_T`` for the gradients of one likelihood that
both models assign to the same text. The map of least ``|Y_T - Y_S N^T|^2 / |Y_T|^2 +
w |G_S - G_T N|^2 / |G_S|^2`` solves the Sylvester equation

    ``N C_y + w C_g N = R``,  ``C_y = Y_S^T Y_S``, ``C_g = G_T^T G_T``, each over its norm,

which is diagonal in the eigenvectors of both (Bartels and Stewart, Communications of the ACM 15,
1972, for symmetric matrices).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .linear_maps import HeldOutError, LinearMap, SplitMoments

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True)
class TwoSidedRidge:
    """Ridge regression on activations and on gradients at once.

    Attributes:
        weight: w, of the gradients; 0 is ridge regression on activations alone.
        strengths: Added to both spectra, as shares of their means; chosen by the held-out loss.
    """

    weight: float = 1.0
    strengths: Sequence[float] = STRENGTHS

    def forward(self, outputs: SplitMoments, gradients: SplitMoments) -> LinearMap:
        """Return N.

        Args:
            outputs: Moments of centred outputs, x of the source and y of the target.
            gradients: Moments of the gradients with respect to them, not centred.

        Raises:
            ValueError: there is no strength.
        """
        scale_y, scale_g = _scales(outputs, gradients, self.weight)
        y, g = outputs.train, gradients.train
        forward, reader = torch.linalg.eigh(scale_y * y.xx)
        back, writer = torch.linalg.eigh(scale_g * g.yy)
        wanted = writer.mT @ (scale_y * y.xy.mT + scale_g * g.xy.mT) @ reader
        best: tuple[float, float, Tensor] | None = None
        for strength in sorted(self.strengths, reverse=True):
            spectrum = _raised(forward, strength)[None] + _raised(back, strength)[:, None]
            matrix = writer @ (wanted / spectrum) @ reader.mT
            loss = scale_y * _missed(matrix, outputs) + scale_g * _missed_back(matrix, gradients)
            if best is None or loss < best[0]:
                best = loss, strength, matrix
        if best is None:
            raise ValueError("a ridge takes at least one strength")
        error = HeldOutError.of(best[2], outputs.train, outputs.held_out)
        return LinearMap(best[2], best[1], error)


def gradient_r2(matrix: Float[Tensor, "target source"], gradients: SplitMoments) -> float:
    """Return ``1 - |G_S - G_T N|^2 / |G_S|^2`` on held-out text; 0 where there is no gradient."""
    total = float(gradients.held_out.xx.trace())
    return 1 - _missed_back(matrix, gradients) / total if total > 0 else 0.0


def _scales(outputs: SplitMoments, gradients: SplitMoments, weight: float) -> tuple[float, float]:
    power_y = float(outputs.train.yy.trace())
    power_g = float(gradients.train.xx.trace())
    return (1 / power_y if power_y > 0 else 0.0), (weight / power_g if power_g > 0 else 0.0)


def _raised(spectrum: Float[Tensor, " d"], strength: float) -> Float[Tensor, " d"]:
    mean = float(spectrum.mean())
    # Where there is nothing to fit the map is zero, whatever is added.
    return spectrum.clamp_min(0) + (strength * mean if mean > 0 else 1e-12)


def _missed(matrix: Tensor, outputs: SplitMoments) -> float:
    held = outputs.held_out
    made = matrix @ held.xx
    return float(((made - 2 * held.xy.mT) * matrix).sum() + held.yy.trace())


def _missed_back(matrix: Tensor, gradients: SplitMoments) -> float:
    held = gradients.held_out
    made = held.yy @ matrix
    return float(((made - 2 * held.xy.mT) * matrix).sum() + held.xx.trace())
