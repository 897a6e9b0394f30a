"""The residual stream of a target model on a batch of texts, while an adapter is fitted to it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..adapters import Site
from ..data.aligned_batch import AlignedBatch
from ..models.base import BaseModel
from ..models.layer_steps import LayerSteps
from ..models.stream_norms import WriteNorm, read_gain, sizes


class Regression(NamedTuple):
    """Samples whose linear map is the update of a site, up to :attr:`OutputMetric.weights`.

    Attributes:
        x: What the site's module reads.
        y: How its output shall change.
    """

    x: Float[Tensor, "tokens in"]
    y: Float[Tensor, "tokens width"]


@dataclass(frozen=True, eq=False)
class OutputMetric:
    """How far the channels of a module's output shall change, and how much each one counts.

    An output change ``z``, divided by the sizes of output and stream, is read by the next layer
    as ``d g z``, for the gains ``g`` with which the stream is written and ``d`` with which it is
    read. Where ``w`` shall be read it costs ``sum_j (d_j g_j z_j - w_j)^2 + m z_j^2``, which is,
    but for a constant, ``sum_j c_j^2 (z_j - s_j w_j)^2`` with ``c_j^2 = g_j^2 d_j^2 + m`` and
    ``s_j = g_j d_j / c_j^2``.
    Without m, channels whose gain is near zero would change without bound, and all others with
    them through the norm.

    Attributes:
        norm: What follows the module.
        weights: c.
        slopes: s.
    """

    norm: WriteNorm
    weights: Float[Tensor, " width"]
    slopes: Float[Tensor, " width"]

    @classmethod
    def of(cls, norm: WriteNorm, read: Float[Tensor, " width"], restraint: float) -> "OutputMetric":
        """Return the metric whose m is ``restraint`` times the mean of ``g^2 d^2``."""
        both = norm.gain * read
        squares = both.square()
        total = squares + restraint * squares.mean()
        return cls(norm, total.sqrt(), both / total)


class ResidualStream:
    """A batch on its way up through the target, layer by layer: as it is, and changed.

    Changes are measured as the next layer reads them: its norm divides each token by its size
    and multiplies each channel by its gain.

    Args:
        target: The target; whenever the changed stream is asked for, what has been fitted so far
            is attached to it.
        batch: The texts.
        wanted: The change of the stream behind each layer as it is read there, at the aligned
            tokens.
        answer_weight: How much the last aligned token of a text counts; others count 1.
    """

    def __init__(
        self,
        target: BaseModel,
        batch: AlignedBatch,
        wanted: Mapping[int, Float[Tensor, "tokens width"]],
        answer_weight: float,
    ) -> None:
        self._network, device = target.network, target.network.device
        self._steps = LayerSteps(target.network, batch.target)
        self._places = batch.target_places.to(device)
        self._wanted = {layer: change.to(device) for layer, change in wanted.items()}
        self._counts = _counts(batch.documents, answer_weight).to(device)
        # The base's stream behind the layer, and the changed one in front of it.
        self._base = self._changed = self._steps.first

    def enter(self, layer: int) -> None:
        """Go on to a layer, without anything attached; from the lowest to the highest."""
        self._base = self._steps.step(layer, self._base)

    def leave(self, layer: int) -> None:
        """Take what is attached to the layer as settled."""
        self._changed = self._steps.step(layer, self._changed)

    def missing_and_wanted(self, layer: int) -> Float[Tensor, " 2"]:
        """Return the squared norms of the change that is missing and of the one that is wanted."""
        missing = self._missing(self._steps.step(layer, self._changed), layer)
        return torch.stack([self._squared(x) for x in (missing, self._wanted[layer])])

    def wanted_and_stream(self, layer: int) -> Float[Tensor, " 2"]:
        """Return the squared norms of the change that is wanted and of the stream itself."""
        stream = self._read(self._at(self._base), layer)
        return torch.stack([self._squared(x) for x in (self._wanted[layer], stream)])

    def regression(self, site: Site, metric: OutputMetric) -> Regression:
        """Return the samples by which a site makes what is missing, linearised at each token."""
        x, y, out = self._steps.watched(site, self._changed)
        x, y = self._at(x), self._at(y)
        change = metric.norm.tangential(self._missing(out, site.layer) * metric.slopes, y)
        by = metric.norm.radius(y) * sizes(self._at(self._base))
        return Regression(x / by * self._counts, change * metric.weights * self._counts)

    def _missing(
        self, out: Float[Tensor, "texts positions width"], layer: int
    ) -> Float[Tensor, "tokens width"]:
        made = self._at(out) - self._at(self._base)
        return self._wanted[layer] - self._read(made, layer)

    def _read(
        self, change: Float[Tensor, "tokens width"], layer: int
    ) -> Float[Tensor, "tokens width"]:
        return change / sizes(self._at(self._base)) * read_gain(self._network, layer)

    def _squared(self, read: Float[Tensor, "tokens width"]) -> Float[Tensor, ""]:
        return (read * self._counts).double().square().sum()

    def _at(self, stream: Float[Tensor, "texts positions width"]) -> Float[Tensor, "tokens width"]:
        return stream.flatten(0, 1).index_select(0, self._places).float()


def _counts(documents: Int[Tensor, " tokens"], answer_weight: float) -> Float[Tensor, "tokens 1"]:
    last = torch.ones(len(documents), dtype=torch.bool)
    last[:-1] = documents[1:] != documents[:-1]
    # Residuals are squared, and with them what they are multiplied by.
    return torch.where(last, answer_weight**0.5, 1.0)[:, None]
