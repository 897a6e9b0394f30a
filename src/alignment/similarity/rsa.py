"""Representational similarity analysis: do two spaces rank the same pairs of rows as different.

Source: Kriegeskorte, Mur and Bandettini, 2008.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from .comparison import Layers, RelationalComparison, rows_of

_LEAST_ROWS = 3


def dissimilarities(x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows rows"]:
    """Return 1 minus the correlation between rows over their dimensions, float64.

    A row without variance correlates with none.
    """
    about_mean = x.double() - x.double().mean(dim=1, keepdim=True)
    unit = torch.nn.functional.normalize(about_mean, dim=1)
    return 1 - unit @ unit.mT


def rsa(x: Float[Tensor, "rows x"], y: Float[Tensor, "rows y"]) -> float:
    """Return Spearman's correlation of the two dissimilarity matrices above their diagonals.

    Raises:
        ValueError: there are fewer than 3 rows.
    """
    return float(Rsa().compare([x], [y]).matrix(torch.arange(len(x)))[0, 0])


def _ranks(x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows rows"]:
    """Ranks of dissimilarities about their mean, symmetric; equal ones share their mean rank."""
    n = len(x)
    i, j = torch.triu_indices(n, n, 1)
    ranks = torch.from_numpy(rankdata(dissimilarities(x)[i, j].numpy()))
    relation = torch.zeros(n, n, dtype=torch.float64)
    relation[i, j] = ranks - ranks.mean()
    return relation + relation.mT


@dataclass(frozen=True)
class Rsa:
    """Spearman's correlation of dissimilarities between all layers of two models."""

    name = "rsa"

    def compare(self, target: Layers, source: Layers) -> RelationalComparison:
        """Precompute the ranks of each layer's dissimilarities."""
        rows_of(target, source, _LEAST_ROWS)
        return RelationalComparison.of(
            [_ranks(layer) for layer in target], [_ranks(layer) for layer in source]
        )
