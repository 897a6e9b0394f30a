"""A LoRA that makes a wanted change of a target's residual stream, fitted from below upward."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..adapters import LoraAdapter, LowRank, Role, Site
from ..alignment.moments import PairedMoments
from ..alignment.reduced_rank import ReducedRank, reduced_rank_regression
from ..data.aligned_batch import AlignedBatch
from ..models.attach import attached
from ..models.base import BaseModel
from ..models.stream_norms import WriteNorm, read_gain
from .residual_stream import OutputMetric, Regression, ResidualStream

# An update that does less than the linearisation says is tried smaller, so many times halved.
_HALVINGS = 2


@dataclass(frozen=True)
class ResidualFitOptions:
    """How the LoRA is fitted.

    Attributes:
        roles: The sites that write to the residual stream: o, down.
        rank: Of the update of each site.
        strengths: Of the regression's penalty; the best on held-out tokens is taken.
        restraint: See :meth:`~loraport.mappers.residual_stream.OutputMetric.of`.
        answer_weight: How much the last aligned token of a text counts; others count 1.
    """

    roles: tuple[Role, ...]
    rank: int
    strengths: tuple[float, ...]
    restraint: float
    answer_weight: float


@dataclass(frozen=True, eq=False)
class WantedChange:
    """Texts, and the change of the target's residual stream that they shall meet with.

    Attributes:
        batches: The texts.
        behind: For each batch and layer the change as the next layer reads it, at the batch's
            aligned tokens.
    """

    batches: Sequence[AlignedBatch]
    behind: Sequence[Mapping[int, Float[Tensor, "_ width"]]]

    def streams(self, target: BaseModel, answer_weight: float) -> list[ResidualStream]:
        """Return the residual stream of each batch at the bottom of the target."""
        return [
            ResidualStream(target, batch, behind, answer_weight)
            for batch, behind in zip(self.batches, self.behind, strict=True)
        ]


class ResidualFit:
    """Fits site after site to what those below have left of the wanted change.

    What the changed stream already is behind a layer is measured, with all updates so far
    attached; a site takes what is missing, by reduced-rank regression from what its module reads.
    It is kept only where it brings the stream of held-out texts nearer to what is wanted.

    Args:
        target: The model to fit to.
        train: What the updates are fitted on.
        held_out: Other texts: they choose strengths and sizes, and shares are measured on them.
        options: How.

    Attributes:
        updates: What has been fitted so far.
        facts: For each layer what was found.
    """

    def __init__(
        self,
        target: BaseModel,
        train: WantedChange,
        held_out: WantedChange,
        options: ResidualFitOptions,
    ) -> None:
        self._target, self._options = target, options
        self._train = train.streams(target, options.answer_weight)
        self._held_out = held_out.streams(target, options.answer_weight)
        self.updates: dict[Site, LowRank] = {}
        self.facts: dict[int, dict[str, Any]] = {}

    def run(self, layers: Sequence[int], progress: Callable[[int, int], None]) -> None:
        """Fit the given layers; all up to the highest are passed."""
        for layer in range(max(layers) + 1):
            for stream in (*self._train, *self._held_out):
                stream.enter(layer)
            if layer in layers:
                self._fit_layer(layer)
                progress(sum(one <= layer for one in layers), len(layers))
            with self._attached(self.updates):
                for stream in (*self._train, *self._held_out):
                    stream.leave(layer)

    def _fit_layer(self, layer: int) -> None:
        share = before = self._share(layer, self.updates)
        sites: dict[str, Any] = {}
        for role in self._options.roles:
            site = Site(layer, role)
            update, fit = self._regressed(site)
            size, share = self._sized(site, update, share)
            if size > 0:
                self.updates[site] = LowRank(update.A, size * update.B)
            found = {"strength": fit.strength, "linear_share": fit.r2}
            sites[site.label] = {**found, "size": size, "share": share}
        wanted, stream = _total(s.wanted_and_stream(layer) for s in self._held_out)
        self.facts[layer] = {
            "wanted_norm": (wanted / stream) ** 0.5,
            "share_before": before,
            "share": share,
            "sites": sites,
        }

    def _regressed(self, site: Site) -> tuple[LowRank, ReducedRank]:
        network, options = self._target.network, self._options
        norm = WriteNorm.of(network, site)
        metric = OutputMetric.of(norm, read_gain(network, site.layer), options.restraint)
        with self._attached(self.updates):
            train, held_out = (
                _moments(stream.regression(site, metric) for stream in some)
                for some in (self._train, self._held_out)
            )
        fit = reduced_rank_regression(train, held_out, options.rank, options.strengths)
        b = fit.B / metric.weights.double()[:, None]
        return LowRank(fit.A.float(), b.float()), fit

    def _sized(self, site: Site, update: LowRank, share: float) -> tuple[float, float]:
        """Return the size at which an update does most, and the share that is then made."""
        best = 0.0
        for halvings in range(_HALVINGS + 1):
            size = 0.5**halvings
            made = self._share(site.layer, {**self.updates, site: update.scaled(size)})
            if made > share:
                best, share = size, made
        return best, share

    def _share(self, layer: int, updates: Mapping[Site, LowRank]) -> float:
        """Return which share of the wanted change is there on held-out texts."""
        with self._attached(updates):
            missing, wanted = _total(s.missing_and_wanted(layer) for s in self._held_out)
        return 1 - missing / wanted if wanted > 0 else 0.0

    def _attached(self, updates: Mapping[Site, LowRank]) -> Any:
        adapter = LoraAdapter(updates, self._target.name) if updates else None
        return attached(self._target.network, adapter)


def _moments(parts: Iterable[Regression]) -> PairedMoments:
    """Return the moments of all parts: products in float32, as are activations, sums in float64."""
    rows, sums = 0, list[Tensor]()
    for x, y in parts:
        rows += len(x)
        products = (x.sum(dim=0), y.sum(dim=0), x.mT @ x, y.mT @ y, x.mT @ y)
        if not sums:
            sums = [product.double() for product in products]
        else:
            for total, product in zip(sums, products, strict=True):
                total.add_(product)
    return PairedMoments(rows, *sums)


def _total(sizes: Iterable[Float[Tensor, " 2"]]) -> tuple[float, float]:
    first, second = torch.stack(list(sizes)).sum(dim=0).tolist()
    return first, second
