"""Closed-form mappers as LightningModules: one epoch that gathers, then a solution."""

from typing import Any

import torch
from torch import nn

from ..data import AnchorBatch
from .anchor_mapper import AnchorMapper


class ClosedFormMapper(AnchorMapper):
    """An anchor mapper without gradient steps.

    ``training_step`` notes which anchors it was given; at the end of the epoch all devices
    exchange their notes, and each of them fits on the whole.
    """

    def __init__(self, space: str = "delta") -> None:
        super().__init__(space)
        self.automatic_optimization = False
        self._seen: list[AnchorBatch] = []
        # Nothing is learnt in it: DistributedDataParallel refuses a module without a parameter.
        self.unused = nn.Parameter(torch.zeros(()))

    def configure_optimizers(self) -> None:
        """There is nothing to descend."""

    def training_step(self, batch: AnchorBatch, batch_idx: int) -> None:
        """Note the anchors of the batch."""
        self._seen.append(batch)

    def on_train_epoch_end(self) -> None:
        """Fit on all anchors that were seen on any device."""
        places = torch.cat([batch.places for batch in self._seen])
        gathered: Any = self.all_gather(places)
        # In the anchors' order, without the copies that a distributed sampler pads with.
        self.fit(self.data.anchors.select(gathered.flatten().unique().tolist()))
        self._seen = []
