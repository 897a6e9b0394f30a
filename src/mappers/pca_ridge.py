"""A linear map between the leading principal components of both sides."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..alignment import PrincipalScores
from .anchor_mapper import Coefficients, Grams, Inners
from .base import Report
from .closed_form import ClosedFormMapper
from .components import SiteComponents, fit_components
from .global_ridge import mean_squares
from .strengths import STRENGTHS, checked_strengths


class PCARidgeMapper(ClosedFormMapper):
    """Ridge regression of a site's K target scores on its K source scores, K x K for each site.

    The source scores keep their variances, so that a strength shrinks the weak components most;
    on whitened ones it would shrink all alike.

    Args:
        space: ``delta`` or ``factors``.
        components: K, kept components of each side; fewer than anchors.
        strengths: Ridge strengths to choose among, one for all sites. The choice is made by
            leaving out each anchor in turn and taking the components again without it: the
            closed form would have seen the anchor in its components.
    """

    def __init__(
        self,
        space: str = "delta",
        components: int = 8,
        strengths: Sequence[float] = STRENGTHS,
    ) -> None:
        super().__init__(space)
        self.components, self.strengths = components, checked_strengths(strengths)
        self.save_hyperparameters(
            {"space": space, "components": components, "strengths": list(self.strengths)}
        )

    def solve(self, source: Grams, target: Grams) -> None:
        """Take the components of every site, and choose the strength."""
        self._sites = fit_components(source, target, self.source_site, self.components)
        errors = self._loo_errors(source, target)
        self.strength = min(self.strengths, key=lambda s: (errors[s], -s))
        mean = errors[math.inf]
        self.relative_loo = errors[self.strength] / mean if mean > 0 else 1.0

    def coefficients(self, inner: Inners) -> Coefficients:
        """Return the weights that give the predicted scores, for each site."""
        return {
            site: _coefficients(pair, inner[self.source_site[site]], self.strength)
            for site, pair in self._sites.items()
        }

    def _loo_errors(self, source: Grams, target: Grams) -> dict[float, float]:
        """Return each strength's leave-one-out error, and the mean adapter's under infinity.

        The mean over sites, each in units of its mean squared norm.
        """
        tried, norms = (*self.strengths, math.inf), mean_squares(target)
        total = torch.zeros(len(tried), dtype=torch.float64)
        for site, partner in self.source_site.items():
            errors = leave_one_out(source[partner], target[site], self.components, tried)
            total += errors.mean(dim=1) / norms[site]
        return dict(zip(tried, (total / len(norms)).tolist(), strict=True))

    def report(self) -> Report:
        """Add the components, the strength and its error relative to the mean adapter's."""
        return super().report() | {
            "components": self.components,
            "strength": self.strength,
            "loo_error_relative_to_mean": self.relative_loo,
        }


def _coefficients(
    pair: SiteComponents, inner: Float[Tensor, "queries n"], strength: float
) -> Float[Tensor, "queries n"]:
    """Return ridge coefficients with ``lambda = strength * sum of variances``, as in alignment.

    Scores of different components are orthogonal, so that the regression is one division.
    """
    source, n = pair.source, len(pair.source.gram)
    penalised = source.variances * n + strength * source.variances.sum()
    shrunk = torch.where(source.variances > 0, source.variances / penalised, 0.0)
    cross = source.scores.mT @ pair.target.scores
    return pair.target.coefficients(source.project(inner) * shrunk @ cross)


def leave_one_out(
    source: Float[Tensor, "n n"],
    target: Float[Tensor, "n n"],
    components: int,
    strengths: Sequence[float],
) -> Float[Tensor, "strengths n"]:
    """Return the squared error of each point, predicted from the others' components alone."""
    n = len(source)
    kept = min(components, n - 2)
    errors = []
    for left_out in range(n):
        others = [place for place in range(n) if place != left_out]
        known = target[others][:, others]
        pair = SiteComponents(
            PrincipalScores.fit(source[others][:, others], kept), PrincipalScores.fit(known, kept)
        )
        inner = source[left_out, others][None]
        c = torch.cat([_coefficients(pair, inner, strength) for strength in strengths])
        own = target[left_out, left_out] - 2 * c @ target[left_out, others]
        errors.append(own + ((c @ known) * c).sum(dim=1))
    return torch.stack(errors, dim=1)
