"""Ridge regression from source adapters to target adapters, for all sites at once or site by site.

Source: dual ridge with ``lambda = rho tr(G) / n``; :mod:`~loraport.alignment.ridge`.
"""

from collections.abc import Sequence
from statistics import median
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..adapters import Site
from ..alignment import choose_strength, ridge_coefficients
from .base import Report
from .from_anchors import (
    STRENGTHS,
    ClosedFormMapper,
    Coefficients,
    Grams,
    Inners,
    checked_strengths,
)


class GlobalRidgeMapper(ClosedFormMapper):
    """Dual ridge regression from whole source adapters to whole target adapters.

    Inner products are summed over sites, each divided by its anchors' mean squared norm, since
    the largest modules would drown the others. One set of coefficients serves all sites.

    Args:
        space: ``delta`` or ``factors``.
        strengths: Ridge strengths to choose among, relative to the mean variance of the
            anchors; the one of least leave-one-out error is taken. Infinity is the mean adapter.
    """

    name: ClassVar[str] = "global_ridge"

    def __init__(self, space: str = "delta", strengths: Sequence[float] = STRENGTHS) -> None:
        super().__init__(space)
        self.strengths = checked_strengths(strengths)
        self.save_hyperparameters({"strengths": list(self.strengths)})

    def solve(self, source: Grams, target: Grams) -> None:
        """Choose the strength by leave-one-out on the normalised sum of all sites."""
        self._sites = list(target)
        self._norms = mean_squares(source)
        self._total = normalised_sum(source, self._norms)
        goal = normalised_sum(target, mean_squares(target))
        self.strength, self.relative_loo = choose_strength(self._total, goal, self.strengths)

    def coefficients(self, inner: Inners) -> Coefficients:
        """Return the same ridge coefficients for every site."""
        rows = ridge_coefficients(self._total, normalised_sum(inner, self._norms), self.strength)
        return {site: rows for site in self._sites}

    def report(self) -> Report:
        """Add the strength, and its leave-one-out error relative to the mean adapter's."""
        chosen = {"strength": self.strength, "loo_error_relative_to_mean": self.relative_loo}
        return super().report() | chosen


def mean_squares(grams: Grams) -> dict[Site, float]:
    """Return the mean squared norm of the anchors at each site."""
    return {site: float(gram.diagonal().mean()) or 1.0 for site, gram in grams.items()}


def normalised_sum(inner: Inners, norms: dict[Site, float]) -> Float[Tensor, "queries anchors"]:
    """Return the mean over sites of inner products, each site divided by its norm."""
    # In a fixed order: a sum of floats depends on it.
    sites = sorted(inner, key=lambda site: site.sort_key)
    total = inner[sites[0]] / norms[sites[0]]
    for site in sites[1:]:
        total = total + inner[site] / norms[site]
    return total / len(sites)


class PerTensorRidgeMapper(ClosedFormMapper):
    """Dual ridge regression of each target site on the source site at its relative depth.

    Args:
        space: ``delta`` or ``factors``.
        strengths: Ridge strengths to choose among, for each site by leave-one-out; infinity is
            the mean adapter.
    """

    name: ClassVar[str] = "pertensor_ridge"

    def __init__(self, space: str = "delta", strengths: Sequence[float] = STRENGTHS) -> None:
        super().__init__(space)
        self.strengths = checked_strengths(strengths)
        self.save_hyperparameters({"strengths": list(self.strengths)})

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
