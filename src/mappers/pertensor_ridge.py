"""One ridge regression for each target site."""

from collections.abc import Sequence
from statistics import median

from ..adapters import Site
from ..alignment import choose_strength, ridge_coefficients
from .anchor_mapper import Coefficients, Grams, Inners
from .base import Report
from .closed_form import ClosedFormMapper
from .strengths import STRENGTHS, checked_strengths


class PerTensorRidgeMapper(ClosedFormMapper):
    """Dual ridge regression of each target site on the source site at its relative depth.

    Args:
        space: ``delta`` or ``factors``.
        strengths: Ridge strengths to choose among, for each site by leave-one-out; infinity is
            the mean adapter.
    """

    def __init__(self, space: str = "delta", strengths: Sequence[float] = STRENGTHS) -> None:
        super().__init__(space)
        self.strengths = checked_strengths(strengths)
        self.save_hyperparameters({"space": space, "strengths": list(self.strengths)})

    def solve(self, source: Grams, target: Grams) -> None:
        """Choose a strength for each target site."""
        self._source = source
        self.chosen: dict[Site, tuple[float, float]] = {
            site: choose_strength(source[self.source_site[site]], gram, self.strengths)
            for site, gram in target.items()
        }

    def coefficients(self, inner: Inners) -> Coefficients:
        """Return each site's own ridge coefficients."""
        return {
            site: ridge_coefficients(self._source[partner], inner[partner], self.chosen[site][0])
            for site, partner in self.source_site.items()
        }

    def report(self) -> Report:
        """Add the strengths, and their leave-one-out errors relative to the mean adapter's."""
        strengths = {site.label: strength for site, (strength, _) in self.chosen.items()}
        errors = [error for _, error in self.chosen.values()]
        return super().report() | {
            "strengths": strengths,
            "strength": median(strengths.values()),
            "loo_error_relative_to_mean": sum(errors) / len(errors),
        }
