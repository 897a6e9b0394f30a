"""What is kept of two models' representations, so that others can be compared with them later."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from ..alignment.similarity import LayerFingerprint
from ..alignment.similarity.neighbours import nearest
from ..files import write_whole
from .probe_states import ProbeStates


def write_fingerprints(states: ProbeStates, neighbours: int, path: Path) -> Path:
    """Write each layer's fingerprint as safetensors, and return the path.

    For the layer ``l`` of a side there are ``side.l.neighbours``, the nearest rows of each row
    in no order; ``side.l.distances``, each row's mean distance to the others relative to the mean
    of all; and ``side.l.summary``, which is norm, anisotropy and dimensions. Nothing of it depends
    on the coordinates of a space, so that any third model that has read the same probes can be
    compared by it. ``tokens`` and ``documents`` say what the rows are.

    Raises:
        OutputError: the file cannot be written.
    """
    tensors = dict(_tensors(states, neighbours))
    return write_whole(path, save(tensors))


def _tensors(states: ProbeStates, neighbours: int) -> Iterator[tuple[str, Tensor]]:
    yield "tokens", states.tokens.contiguous()
    yield "documents", states.documents.contiguous()
    for side, layers in (("source", states.source), ("target", states.target)):
        for place, layer in enumerate(layers):
            found = LayerFingerprint.of(layer)
            near = nearest(layer, neighbours).nonzero()[:, 1].view(-1, neighbours)
            summary = (found.norm, found.anisotropy, found.dimensions)
            yield f"{side}.{place}.neighbours", near.int()
            yield f"{side}.{place}.distances", found.distances.float()
            yield f"{side}.{place}.summary", torch.tensor(summary)
