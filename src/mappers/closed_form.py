"""Closed-form mappers as LightningModules: one epoch that gathers, then a solution."""

from typing import Any

import torch
from torch import Tensor

from ..adapters import AdapterStack
from ..data import AdapterBatch, AnchorSet
from .anchor_mapper import AnchorMapper


class ClosedFormMapper(AnchorMapper):
    """An anchor mapper without gradient steps.

    ``training_step`` gathers the pairs of each batch; at the end of the epoch all devices
    exchange theirs, and each of them fits on the whole.
    """

    def __init__(self, space: str = "delta") -> None:
        super().__init__(space)
        self.automatic_optimization = False
        self._gathered: list[AdapterBatch] = []

    def configure_optimizers(self) -> None:
        """There is nothing to descend."""

    def training_step(self, batch: AdapterBatch, batch_idx: int) -> None:
        """Gather the pairs of the batch."""
        self._gathered.append(batch)

    def on_train_epoch_end(self) -> None:
        """Fit on all pairs that were gathered."""
        batch = _joined(self._gathered)
        if self.trainer.world_size > 1:
            batch = AdapterBatch(*_flat(self.all_gather(tuple(batch))))
        # In the anchors' order, without the copies that a distributed sampler pads with.
        rows = {place: row for row, place in enumerate(batch.places.tolist())}
        places = sorted(rows)
        order = [rows[place] for place in places]
        known: AnchorSet = self.trainer.datamodule.anchors
        self.fit(
            AnchorSet(
                tuple(known.names[place] for place in places),
                AdapterStack.from_tensors(batch.source).select(order),
                AdapterStack.from_tensors(batch.target).select(order),
                known.source_base,
                known.target_base,
            )
        )
        self._gathered = []


def _joined(batches: list[AdapterBatch]) -> AdapterBatch:
    first = batches[0]
    return AdapterBatch(
        torch.cat([batch.places for batch in batches]).cpu(),
        {name: torch.cat([batch.source[name] for batch in batches]).cpu() for name in first.source},
        {name: torch.cat([batch.target[name] for batch in batches]).cpu() for name in first.target},
    )


def _flat(gathered: Any) -> Any:
    """Join the leading axis of devices with that of pairs, in a nest of tensors."""
    if isinstance(gathered, Tensor):
        return gathered.flatten(0, 1).cpu()
    if isinstance(gathered, dict):
        return {name: _flat(value) for name, value in gathered.items()}
    return tuple(_flat(value) for value in gathered)
