"""Transport of LoRA factors along linear maps that ridge regression finds, never formed.

With ``x_S = M x_T`` between module inputs and ``dy_T = N dy_S`` between changes of module
outputs, the update ``B_S A_S`` of one model is ``N B_S A_S M`` in the other: ``A_T = A_S M`` and
``B_T = N B_S``, of the same rank and scale, equivariant under any change of gauge of the
factors. M is fitted without an intercept: a LoRA has no bias that could hold one, so that the
mean has to be a direction like others. N acts on changes: centre the outputs of both models.

Source: ridge regression, Hoerl and Kennard 1970, in primal and dual form; for a given M this is
the exact minimiser of ``sum_t |D_T x_t - N D_S x_S|^2 + lambda |D_T|^2``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Choice(NamedTuple):
    """A ridge strength, and how well it predicts samples that were held out.

    Attributes:
        strength: rho, without unit.
        r2: ``1 - sum |y - predicted|^2 / sum |y - mean|^2`` on the held-out samples, the mean
            being that of the others: 1 is exact, 0 as good as the mean alone, below 0 worse.
            Against zero instead of the mean, the constant part of activations, which is most of
            them, would look like skill. 0 where the samples do not vary.
    """

    strength: float
    r2: float


@dataclass(frozen=True, eq=False)
class RidgeDesign:
    """Samples that others are regressed on, with the Gram matrix of the smaller side.

    A strength rho stands for the penalty ``lambda = rho tr(X^T X) / d``: the same for samples of
    any scale and number.

    Attributes:
        samples: X, in float64.
        gram: ``X^T X`` where there are at least as many samples as dimensions, else ``X X^T``.
    """

    samples: Float[Tensor, "n d"]
    gram: Float[Tensor, "k k"]

    @classmethod
    def of(cls, samples: Float[Tensor, "n d"]) -> "RidgeDesign":
        """Take the Gram matrix of the samples' smaller side, in float64."""
        x = samples.double()
        return cls(x, x @ x.mT if x.shape[0] < x.shape[1] else x.mT @ x)

    @property
    def dual(self) -> bool:
        """Whether there are fewer samples than dimensions."""
        return self.samples.shape[0] < self.samples.shape[1]

    def weights(self, outputs: Float[Tensor, "n k"], strength: float) -> Float[Tensor, "d k"]:
        """Return ``(X^T X + lambda I)^-1 X^T Y``: the regression of outputs on the samples."""
        factor, y = self._factor(strength), outputs.double()
        if self.dual:
            return self.samples.mT @ torch.cholesky_solve(y, factor)
        return torch.cholesky_solve(self.samples.mT @ y, factor)

    def responses(self, directions: Float[Tensor, "d k"], strength: float) -> Float[Tensor, "n k"]:
        """Return ``X (X^T X + lambda I)^-1 D``, the transpose of what :meth:`weights` applies.

        ``Y^T responses(D)`` is the fitted map from x to y, applied to the directions D.
        """
        factor, d = self._factor(strength), directions.double()
        if self.dual:
            return torch.cholesky_solve(self.samples @ d, factor)
        return self.samples @ torch.cholesky_solve(d, factor)

    def _factor(self, strength: float) -> Float[Tensor, "k k"]:
        """Return the Cholesky factor of the penalised Gram matrix."""
        trace = float(self.gram.trace())
        # Where all samples are zero the map is zero, whatever is added.
        penalty = strength * trace / self.samples.shape[1] if trace > 0 else 1.0
        penalised = self.gram.clone()
        penalised.diagonal().add_(penalty)
        return torch.linalg.cholesky(penalised)


@dataclass(frozen=True, eq=False)
class HeldOutRidge:
    """A design whose strength is chosen by the error on samples that are left out of the fit.

    Everything that is regressed on the same samples shares their factorisations.

    Attributes:
        design: All samples; the final fit uses them all.
        held_out: Which of them the choice is made on.
        smoothers: For each strength the matrix that turns the outputs of the other samples into
            predictions at the held-out ones.
    """

    design: RidgeDesign
    held_out: Bool[Tensor, " n"]
    smoothers: Mapping[float, Float[Tensor, "held rest"]]

    @classmethod
    def of(
        cls,
        samples: Float[Tensor, "n d"],
        held_out: Bool[Tensor, " n"],
        strengths: Sequence[float],
    ) -> "HeldOutRidge":
        """Factorise the samples that are not held out, once for each strength."""
        design = RidgeDesign.of(samples)
        held, rest = design.samples[held_out], RidgeDesign.of(design.samples[~held_out])
        smoothers = {s: rest.responses(held.mT, s).mT for s in strengths}
        return cls(design, held_out, smoothers)

    def choose(self, outputs: Float[Tensor, "n k"]) -> Choice:
        """Return the strength of least held-out error; of equals the largest."""
        y = outputs.double()
        held, rest = y[self.held_out], y[~self.held_out]
        errors = {s: float((held - m @ rest).square().sum()) for s, m in self.smoothers.items()}
        best = min(errors, key=lambda s: (errors[s], -s))
        total = float((held - rest.mean(dim=0)).square().sum())
        return Choice(best, 1 - errors[best] / total if total > 0 else 0.0)


def transported_reader(
    a: Float[Tensor, "rank source"],
    source_inputs: Float[Tensor, "n source"],
    target_inputs: RidgeDesign,
    strength: float,
) -> Float[Tensor, "rank target"]:
    """Return ``A_T = A_S M``: the code ``A_S x_S`` regressed on the target's inputs.

    Args:
        a: The factor A of the source's update.
        source_inputs: Inputs of the source's module, row by row paired with the target's.
        target_inputs: Inputs of the target's module.
        strength: Of the ridge regression.

    Returns:
        The factor in the dtype of ``a``.
    """
    code = source_inputs.double() @ a.double().mT
    return target_inputs.weights(code, strength).mT.to(a.dtype)


def transported_writer(
    b: Float[Tensor, "source rank"],
    source_outputs: RidgeDesign,
    target_outputs: Float[Tensor, "n target"],
    strength: float,
) -> Float[Tensor, "target rank"]:
    """Return ``B_T = N B_S = Y_T^T Y_S (Y_S^T Y_S + lambda I)^-1 B_S``.

    Args:
        b: The factor B of the source's update.
        source_outputs: Centred outputs of the source's module.
        target_outputs: Centred outputs of the target's module, row by row paired with them.
        strength: Of the ridge regression.

    Returns:
        The factor in the dtype of ``b``.
    """
    return (target_outputs.double().mT @ source_outputs.responses(b, strength)).to(b.dtype)
