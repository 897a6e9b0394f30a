"""Maps between the principal components of the anchors: a ridge regression, and a residual MLP.

At each target site the anchors' updates, and those of the paired source site, have K leading
principal components. A mapper predicts an adapter's K target scores from its K source scores.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..adapters import Site
from ..alignment import PrincipalScores
from ..data import AnchorBatch
from ..exceptions import ConfigurationError
from .base import Report, check_least
from .from_anchors import (
    STRENGTHS,
    AnchorMapper,
    ClosedFormMapper,
    Coefficients,
    Grams,
    Inners,
    checked_strengths,
)
from .ridge import mean_squares, normalised_sum


class SiteComponents(NamedTuple):
    """The leading components of a target site and of the source site it is paired with."""

    source: PrincipalScores
    target: PrincipalScores


def fit_components(
    source: Grams, target: Grams, pairing: dict[Site, Site], components: int
) -> dict[Site, SiteComponents]:
    """Return the components of every target site.

    Raises:
        ConfigurationError: there are too few anchors for so many components, or none are asked.
    """
    anchors = next(iter(target.values())).shape[0]
    check_least(1, components=components)
    if components > anchors - 1:
        if anchors == 1:
            raise ConfigurationError(
                f"mapper.components is {components}, but there is one anchor to fit on, and "
                "components take at least 2; add anchors, or choose mapper=mean"
            )
        raise ConfigurationError(
            f"mapper.components is {components}, but {anchors} anchors span at most "
            f"{anchors - 1} components; set mapper.components={anchors - 1} or lower, or add "
            "anchors"
        )
    sources = {site: PrincipalScores.fit(source[site], components) for site in {*pairing.values()}}
    return {
        site: SiteComponents(sources[pairing[site]], PrincipalScores.fit(gram, components))
        for site, gram in target.items()
    }


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

    name: ClassVar[str] = "pca_ridge"

    def __init__(
        self, space: str = "delta", components: int = 8, strengths: Sequence[float] = STRENGTHS
    ) -> None:
        super().__init__(space)
        self.components, self.strengths = components, checked_strengths(strengths)
        self.save_hyperparameters({"components": components, "strengths": list(self.strengths)})

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


class _Frame(NamedTuple):
    """A site's components, turned so that all sites' coordinates mean the same."""

    pair: SiteComponents
    source_turn: Float[Tensor, "k k"]
    target_turn: Float[Tensor, "k k"]
    weights: Float[Tensor, " k"]  # shares of the target's variance, summing to 1


class PCAMLPMapper(AnchorMapper):
    """Predicts a site's K target scores from its K source scores: ``y = g * x + f(x)``.

    ``f`` is an MLP ``K -> width -> width -> K`` and ``g`` one gain a coordinate, both shared by
    all layers and modules. For that to make sense the coordinates must mean the same at every
    site, while signs and the order of principal components are accidents: whitened scores of
    every site and side are turned by the orthogonal matrix that brings the anchors nearest to
    the components of the source as a whole (Procrustes). The loss is the squared error of the
    update within the kept components, relative to their variance.

    Args:
        space: ``delta`` or ``factors``.
        components: K; fewer than the training anchors.
        width: Of the hidden layers.
        lr: Step size of AdamW.
        weight_decay: Of AdamW.
        dropout: Share of hidden units dropped in training.
        seed: Of the initial weights and of the dropout.

    Source: PCA coefficients mapped by an MLP shared over blocks, as in hypernetworks over
    adapters; the common frame is this project's.
    """

    name: ClassVar[str] = "pca_mlp"

    def __init__(
        self,
        space: str = "delta",
        components: int = 8,
        width: int = 64,
        lr: float = 3e-3,
        weight_decay: float = 1e-2,
        dropout: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(space)
        self.save_hyperparameters()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            last = nn.Linear(width, components)
            self.mlp = nn.Sequential(
                *(nn.Linear(components, width), nn.GELU(), nn.Dropout(dropout)),
                *(nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout)),
                last,
            )
        # Starts as the plain turn of one frame into the other.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.gain = nn.Parameter(torch.ones(components))

    def forward(self, scores: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
        """Return the target's coordinates for the source's."""
        return self.gain * scores + self.mlp(scores)

    def solve(self, source: Grams, target: Grams) -> None:
        """Take the components of every site and turn them into one frame."""
        k = self.hparams["components"]
        pairs = fit_components(source, target, self.source_site, k)
        reference = PrincipalScores.fit(normalised_sum(source, mean_squares(source)), k).scores
        self._frames = {
            site: _Frame(
                pair,
                _turn(pair.source.scores, reference),
                _turn(pair.target.scores, reference),
                pair.target.variances / pair.target.variances.sum().clamp_min(1e-300),
            )
            for site, pair in pairs.items()
        }

    def _coordinates(self, inner: Inners) -> Float[Tensor, "queries sites k"]:
        rows = [
            frame.pair.source.project(inner[self.source_site[site]]) @ frame.source_turn
            for site, frame in self._frames.items()
        ]
        return torch.stack(rows, dim=1).float()

    @torch.no_grad()
    def coefficients(self, inner: Inners) -> Coefficients:
        """Return the weights that give the predicted scores, for each site."""
        self.eval()
        predicted = self(self._coordinates(inner).to(self.device)).cpu().double()
        return {
            site: frame.pair.target.coefficients(predicted[:, place] @ frame.target_turn.mT)
            for place, (site, frame) in enumerate(self._frames.items())
        }

    def report(self) -> Report:
        """Add the components and the learned gains."""
        gains = [round(gain, 4) for gain in self.gain.tolist()]
        return super().report() | {"components": self.hparams["components"], "gains": gains}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        return torch.optim.AdamW(
            self.parameters(), lr=self.hparams["lr"], weight_decay=self.hparams["weight_decay"]
        )

    def on_fit_start(self) -> None:
        """Fit the frame on the training anchors, and look up every anchor's coordinates in it."""
        self.fit(self.data.training_anchors)
        every, fitted = self.data.anchors, self.anchors
        inner = self.inner(every.source, fitted.source)
        self._x = self._coordinates(inner).to(self.device)
        targets = self.inner(every.target, fitted.target)
        rows = [frame.pair.target.project(targets[site]) for site, frame in self._frames.items()]
        self._y = torch.stack(rows, dim=1).float().to(self.device)
        frames = self._frames.values()
        self._turns = torch.stack([f.target_turn for f in frames]).float().to(self.device)
        self._weights = torch.stack([f.weights for f in frames]).float().to(self.device)

    def _step(self, batch: AnchorBatch, stage: str) -> Tensor:
        predicted = self(self._x[batch.places])
        scores = torch.einsum("nsk,sjk->nsj", predicted, self._turns)
        loss = ((scores - self._y[batch.places]).square() * self._weights).sum(dim=-1).mean()
        self.log(f"{stage}/loss", loss, batch_size=len(batch.places), prog_bar=True, sync_dist=True)
        return loss

    def training_step(self, batch: AnchorBatch, batch_idx: int) -> Tensor:
        """Return the loss on some training anchors."""
        devices = [self.device] if self.device.type == "cuda" else []
        # Dropout draws from the global generator, on which no result may depend.
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.hparams["seed"] + self.global_step)
            return self._step(batch, "train")

    def validation_step(self, batch: AnchorBatch, batch_idx: int) -> Any:
        """Return the loss on the left-out anchors."""
        return self._step(batch, "val")


def _turn(scores: Float[Tensor, "n k"], reference: Float[Tensor, "n k"]) -> Float[Tensor, "k k"]:
    """Return the orthogonal matrix that brings scores nearest to the reference."""
    u, _, vt = torch.linalg.svd(scores.mT @ reference)
    return u @ vt
