"""The linear map between the residual streams of two models behind a pair of layers.

Streams are taken as the next layer's norm reads them, each token divided by its size and each
channel multiplied by the norm's gain: a few channels and tokens are hundreds of times as large as
the others, and would be all that a map is fitted to.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from ..alignment.layer_pairing import LayerPairing
from ..alignment.linear_maps import LinearMap
from ..models.stream_norms import read_gain, sizes
from ..models.taps import Tap


@dataclass(frozen=True, eq=False)
class ResidualMap:
    """The map N of ``du_T ~ N du_S``, u being a stream as the norm behind the layer reads it.

    Attributes:
        source_layer: Behind which the source's stream is read.
        matrix: N, float32.
        strength: Of its ridge.
        r2: On held-out text, of the streams themselves, as they are read.
    """

    source_layer: int
    matrix: Float[Tensor, "target source"]
    strength: float
    r2: float

    @classmethod
    def of(cls, source_layer: int, found: LinearMap) -> "ResidualMap":
        """Keep a map in float32 on the CPU."""
        matrix = found.matrix.to("cpu", torch.float32).contiguous()
        return cls(source_layer, matrix, float(found.strength or 0.0), found.error.r2)

    def carried(self, change: Float[Tensor, "tokens source"]) -> Float[Tensor, "tokens target"]:
        """Return what a change of the source's stream is in the target's."""
        return change.float() @ self.matrix.to(change.device).mT

    def state(self) -> dict[str, Any]:
        """Return the map as plain data and a tensor."""
        return {
            "source_layer": self.source_layer,
            "matrix": self.matrix,
            "strength": self.strength,
            "r2": self.r2,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "ResidualMap":
        """Return the map that :meth:`state` describes."""
        return cls(**state)


def as_read(
    network: PreTrainedModel, stream: Float[Tensor, "tokens width"], layer: int
) -> Float[Tensor, "tokens width"]:
    """Return a residual stream as what follows a layer reads it."""
    return stream.float() / sizes(stream.float()) * read_gain(network, layer).float()


def change_as_read(
    network: PreTrainedModel,
    before: Float[Tensor, "tokens width"],
    after: Float[Tensor, "tokens width"],
    layer: int,
) -> Float[Tensor, "tokens width"]:
    """Return a change of a residual stream in the units of :func:`as_read` of what it was."""
    change = after.float() - before.float()
    return change / sizes(before.float()) * read_gain(network, layer).float()


def residual_taps(pairing: LayerPairing) -> dict[int, tuple[Tap, Tap]]:
    """Return where both streams are read, for each target layer that is fed.

    Of several layers that feed one the highest is taken: the stream behind it holds what the
    lower ones wrote.
    """
    deepest = {
        target: max(layer for layer, weight in feeds if weight != 0)
        for target, feeds in enumerate(pairing.feeds)
        if any(weight != 0 for _, weight in feeds)
    }
    return {t: (Tap.residual(s), Tap.residual(t)) for t, s in deepest.items()}
