"""Gathering statistics of both models in one epoch over text, which a stopped fit goes on with."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..data.aligned_batch import AlignedBatch
from ..models.pair_statistics import PairStatistics, TapPair
from ..models.statistics_store import RunningTotals
from .corpus_mapper import CorpusMapper


class GatheringMapper(CorpusMapper):
    """A mapper without gradient steps, which solves from statistics at the end of an epoch.

    With a store, a fit that was stopped goes on where it was, and statistics that are complete
    are not gathered again. All arguments are those of the class that it is mixed into.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False
        # Nothing is learnt in it: DistributedDataParallel refuses a module without a parameter.
        self.unused = nn.Parameter(torch.zeros(()))
        self._take_up_empty()

    @abstractmethod
    def gather(self, statistics: PairStatistics, batch: AlignedBatch) -> None:
        """Add what both models hold at a batch's tokens to the statistics."""

    def configure_optimizers(self) -> None:
        """There is nothing to descend."""

    def take_up(self, pairs: Sequence[TapPair]) -> None:
        """Begin an epoch with what was gathered for these taps before."""
        key = self._key()
        self._totals = self.store.resume(key, pairs)
        self._saver = self.store.saver(key, self._totals)

    def training_step(self, batch: AlignedBatch, batch_idx: int) -> None:
        """Add a batch to the statistics that maps are fitted on."""
        if batch_idx >= self._totals.train_batches:
            self.gather(self._totals.train, batch)
            self._totals.train_batches += 1
            self._saver.step()

    def on_validation_start(self) -> None:
        """End the sums over training text where they always end."""
        self._totals.train.settle()

    def validation_step(self, batch: AlignedBatch, batch_idx: int) -> None:
        """Add a batch to the statistics that maps are chosen and measured on."""
        if self.trainer.sanity_checking or batch_idx < self._totals.held_out_batches:
            return
        self.gather(self._totals.held_out, batch)
        self._totals.held_out_batches += 1
        self._saver.step()

    def gathered(self) -> tuple[PairStatistics, PairStatistics]:
        """End the epoch: keep its statistics, and return those of all devices.

        Returns:
            Of the text to fit on, and of that to measure on.
        """
        totals = self._totals
        totals.held_out.settle()
        if not totals.complete:
            totals.complete = True
            self.store.save(self._key(), totals)
        self._take_up_empty()
        return totals.train.reduced(self._sum), totals.held_out.reduced(self._sum)

    def _take_up_empty(self) -> None:
        self._totals = RunningTotals.empty(())
        self._saver = self.store.saver("", self._totals)

    def _key(self) -> str:
        """Return what this device's statistics depend on."""
        trainer = self.trainer
        share = f"{trainer.global_rank} of {trainer.world_size}"
        batches = f"{trainer.num_training_batches} {trainer.num_val_batches}"
        return f"{self.content_key()} {share} {batches}"

    def _sum(self, tensor: Tensor) -> Tensor:
        reduced: Any = self.trainer.strategy.reduce(tensor, reduce_op="sum")
        return torch.as_tensor(reduced)
