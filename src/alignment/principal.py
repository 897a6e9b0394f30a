"""Principal components from a Gram matrix."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .ridge import affine, centred, centred_query


@dataclass(frozen=True, eq=False)
class PrincipalScores:
    """Whitened principal component scores of points that are known by their inner products.

    Attributes:
        gram: ``<x_i, x_j>``.
        directions: Leading eigenvectors of the centred Gram matrix, as columns; a column of
            zeros where there are fewer directions than were asked for.
        variances: Their eigenvalues divided by n: the variance along each component.
    """

    gram: Float[Tensor, "n n"]
    directions: Float[Tensor, "n k"]
    variances: Float[Tensor, " k"]

    @classmethod
    def fit(cls, gram: Float[Tensor, "n n"], components: int) -> "PrincipalScores":
        """Keep the leading components.

        Each eigenvector's largest entry is made positive. At most n - 1 components exist.

        Raises:
            ValueError: more components are asked for than n - 1.
        """
        n = gram.shape[0]
        if components > n - 1:
            raise ValueError(f"{n} points have at most {n - 1} components, not {components}")
        values, vectors = torch.linalg.eigh(centred(gram))
        values, vectors = values.flip(0)[:components], vectors.flip(1)[:, :components]
        # Without variance an eigenvector is any vector of the null space: rounding would choose.
        usable = values > 1e-12 * values[:1].clamp_min(0)
        peaks = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
        signs = torch.where(peaks < 0, -1.0, 1.0).to(vectors)
        return cls(gram, vectors * signs * usable, values * usable / n)

    @property
    def scores(self) -> Float[Tensor, "n k"]:
        """The scores of the fitted points: mean 0 and variance 1 where there is any."""
        return self.directions * len(self.gram) ** 0.5

    def project(self, inner: Float[Tensor, "queries n"]) -> Float[Tensor, "queries k"]:
        """Return the whitened scores of new points from their inner products ``<x, x_i>``."""
        inverse = torch.where(self.variances > 0, 1 / self.variances, 0.0)
        return centred_query(self.gram, inner) @ self.directions * inverse / len(self.gram) ** 0.5

    def coefficients(self, scores: Float[Tensor, "queries k"]) -> Float[Tensor, "queries n"]:
        """Return ``c`` so that ``sum_i c_i x_i`` is the point with the given scores."""
        return affine(scores @ self.directions.mT / len(self.gram) ** 0.5)
