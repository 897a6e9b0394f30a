"""A layer in a few numbers that do not depend on its coordinates.

Sources: participation ratio, as in Gao et al.,
2017; anisotropy, Ethayarajh, 2019.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..ridge import centred


@dataclass(frozen=True, eq=False)
class LayerFingerprint:
    """A summary of a layer's activations that any rotation of its space leaves alone.

    Attributes:
        norm: Mean length of a row.
        anisotropy: Mean cosine between two different rows; 0 if directions are spread evenly.
        dimensions: Participation ratio of the variances: how many directions carry the layer.
        distances: Mean distance of each row to the others, relative to the mean of all.
    """

    norm: float
    anisotropy: float
    dimensions: float
    distances: Float[Tensor, " rows"]

    @classmethod
    def of(cls, x: Float[Tensor, "rows width"]) -> "LayerFingerprint":
        """Summarise a layer.

        Raises:
            ValueError: there are fewer than two rows.
        """
        n = len(x)
        if n < 2:
            raise ValueError(f"{n} rows are too few for the fingerprint of a layer")
        x = x.double()
        unit = torch.nn.functional.normalize(x, dim=1)
        cosines = unit @ unit.mT
        gram = centred(x @ x.mT)
        energy = float(gram.square().sum())
        distances = torch.cdist(x, x).sum(dim=1) / (n - 1)
        mean = float(distances.mean())
        return cls(
            norm=float(x.norm(dim=1).mean()),
            anisotropy=float((cosines.sum() - cosines.trace()) / (n * (n - 1))),
            dimensions=float(gram.trace()) ** 2 / energy if energy > 0 else 0.0,
            distances=distances / mean if mean > 0 else distances,
        )
