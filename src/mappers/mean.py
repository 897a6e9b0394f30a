"""The mean of the anchors' target adapters: the control that every mapper must beat."""

import torch

from .anchor_mapper import Coefficients, Grams, Inners
from .closed_form import ClosedFormMapper


class MeanMapper(ClosedFormMapper):
    """Predicts the same adapter for every task: ``1/n sum_i target_i``. The source is ignored.

    Args:
        space: ``delta`` averages the updates, ``factors`` A and B apart.
    """

    def solve(self, source: Grams, target: Grams) -> None:
        """Remember the target's sites; there is nothing to choose."""
        self._sites = list(target)

    def coefficients(self, inner: Inners) -> Coefficients:
        """Return ``1/n`` for every anchor at every site."""
        uniform = next(torch.full_like(rows, 1 / rows.shape[1]) for rows in inner.values())
        return {site: uniform for site in self._sites}
