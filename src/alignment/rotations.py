"""How well a rotation carries one layer's activations into another's, layer by layer.

Spaces of different widths are compared in their leading principal components. Source of the
rotation: Schonemann, 1966.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

# Components a row: with more, any two clouds of points can be turned into one another.
_ROWS_A_COMPONENT = 4


@dataclass(frozen=True, eq=False)
class PrincipalRotation:
    """The rotation between the leading principal components of two spaces.

    Attributes:
        x_mean: Mean of the one space.
        y_mean: Mean of the other.
        rotation: The best partial isometry about the means: ``y ~ scale * x @ rotation``.
        scale: The best factor with it.
    """

    x_mean: Float[Tensor, " x"]
    y_mean: Float[Tensor, " y"]
    rotation: Float[Tensor, "x y"]
    scale: float

    @classmethod
    def fit(
        cls, x: Float[Tensor, "rows x"], y: Float[Tensor, "rows y"], components: int
    ) -> "PrincipalRotation":
        """Turn the components of one space into those of the other with least squared error.

        Raises:
            ValueError: rows or dimensions are fewer than the components.
        """
        if min(*x.shape, *y.shape) < components or components < 1:
            raise ValueError(
                f"matrices of {tuple(x.shape)} and {tuple(y.shape)} have no {components} components"
            )
        x, y = x.double(), y.double()
        x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
        one, other = _basis(x - x_mean, components), _basis(y - y_mean, components)
        u, s, vh = torch.linalg.svd(((x - x_mean) @ one).mT @ ((y - y_mean) @ other))
        energy = float(((x - x_mean) @ one).square().sum())
        scale = float(s.sum()) / energy if energy > 0 else 0.0
        return cls(x_mean, y_mean, one @ (u @ vh) @ other.mT, scale)

    def __call__(self, x: Float[Tensor, "rows x"]) -> Float[Tensor, "rows y"]:
        """Carry rows of the one space to the other."""
        return self.y_mean + self.scale * (x.double() - self.x_mean) @ self.rotation


@dataclass(frozen=True, eq=False)
class RotationErrors:
    """How far rows are from where a rotation that has not seen them puts them.

    Attributes:
        errors: ``|y - R(x)|`` of each row, relative to the root mean square of ``|y - mean|``:
            1 for a rotation that is no better than the mean.
    """

    errors: Float[Tensor, " rows"]

    @property
    def mean(self) -> float:
        """The mean error."""
        return float(self.errors.mean())

    @property
    def greatest(self) -> float:
        """The error of the row that fits worst."""
        return float(self.errors.max())


def usable_components(x: Float[Tensor, "rows x"], y: Float[Tensor, "rows y"]) -> int:
    """Return how many components a rotation can be trusted with: a quarter of a half of rows."""
    return max(1, min(x.shape[1], y.shape[1], len(x) // 2 // _ROWS_A_COMPONENT))


def rotation_errors(
    x: Float[Tensor, "rows x"], y: Float[Tensor, "rows y"], components: int | None = None
) -> RotationErrors:
    """Carry each half of the rows by the rotation that is fitted on the other half.

    Args:
        x: Paired rows in the source.
        y: The same rows in the target.
        components: Principal components that are turned; None for as many as rows allow.

    Raises:
        ValueError: rows or dimensions are fewer than the components.
    """
    k = usable_components(x, y) if components is None else components
    half = len(x) // 2
    folds = ((slice(None, half), slice(half, None)), (slice(half, None), slice(None, half)))
    found = [
        y[held_out].double() - PrincipalRotation.fit(x[fitted], y[fitted], k)(x[held_out])
        for held_out, fitted in folds
    ]
    size = (y.double() - y.double().mean(dim=0)).square().sum(dim=1).mean().sqrt()
    distances = torch.cat(found).norm(dim=1)
    return RotationErrors(distances / size if float(size) > 0 else distances)


def rotation_roughness(rotations: Sequence[PrincipalRotation]) -> Float[Tensor, " steps"]:
    """Return how much the rotation changes from each target layer to the next.

    ``1 - <R_t, R_t+1> / sqrt(k_t k_t+1)`` with partial isometries of rank k: 0 if they are the
    same, 1 if they have nothing in common. All layers of one model share the coordinates of its
    residual stream, so that rotations of different layers can be compared at all.

    Args:
        rotations: Of consecutive target layers, each from the source layer it is paired with.
    """
    matrices = [fit.rotation / fit.rotation.norm() for fit in rotations]
    changes = [1 - float((here * after).sum()) for here, after in pairwise(matrices)]
    return torch.tensor(changes, dtype=torch.float64)


@dataclass(frozen=True)
class AnchorCoverage:
    """How much of a space a set of anchors spans.

    Attributes:
        variance: Share of the activations' variance about the anchors' mean that lies in the
            span of the anchors about theirs.
        dimensions: Dimensions of that span, as a share of the width.
    """

    variance: float
    dimensions: float


def anchor_coverage(
    anchors: Float[Tensor, "anchors width"], activations: Float[Tensor, "rows width"]
) -> AnchorCoverage:
    """Return how much of what a layer does is seen by a map that knows only the anchors."""
    anchors, activations = anchors.double(), activations.double()
    mean = anchors.mean(dim=0)
    _, s, vh = torch.linalg.svd(anchors - mean, full_matrices=False)
    tolerance = max(anchors.shape) * torch.finfo(torch.float64).eps
    span = vh[s > tolerance * s[:1]]
    about = activations - mean
    energy = float(about.square().sum())
    held = float((about @ span.mT).square().sum())
    return AnchorCoverage(
        variance=held / energy if energy > 0 else 1.0,
        dimensions=len(span) / anchors.shape[1],
    )


def _basis(
    about_mean: Float[Tensor, "rows width"], components: int
) -> Float[Tensor, "width components"]:
    _, _, vh = torch.linalg.svd(about_mean, full_matrices=False)
    return vh[:components].mT
