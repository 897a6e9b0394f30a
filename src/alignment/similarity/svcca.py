"""Canonical correlation of leading principal components, cross-validated.

Sources: Raghu et al., 2017 (SVCCA); Hotelling, 1936. As published it keeps components to 99 % of
the variance and correlates the rows that the directions were fitted on, which is near 1 for
noise with fewer than about ten rows a component. So the number of components is fixed here, the
directions are fitted on one half of the rows, and the other half is correlated.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .comparison import Layers, rows_of

# Relative to the mean variance: directions without variance correlate with nothing.
_RIDGE = 1e-9


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
    return float(Svcca(components).compare([x], [y]).matrix(torch.arange(len(x)))[0, 0])


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
    """Correlates the principal components of all layers of two models.

    Attributes:
        target: Scores of each target layer.
        source: Scores of each source layer.
    """

    target: Float[Tensor, "target rows components"]
    source: Float[Tensor, "source rows components"]

    @property
    def rows(self) -> int:
        """How many paired rows there are."""
        return self.target.shape[1]

    def matrix(self, order: Int[Tensor, " rows"]) -> Float[Tensor, "target source"]:
        """Return the mean correlations of all pairs, the target's rows taken in an order."""
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
