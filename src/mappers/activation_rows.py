"""Activations of both models on disk, as a LightningDataModule for mappers that train on them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ..data import AlignedBatch, TextCorpus
from ..models.capture import ActivationCache
from ..models.hooks import SIDES, Tap, tap_widths
from ..store import Key
from .from_text import ModelPair

Rows = dict[str, Float[Tensor, "rows _"]]
"""Paired rows of activations by their labels, such as ``source.3.q.input``."""


class ActivationRows(LightningDataModule):
    """Runs both models over a corpus once, keeps the taps' activations, and serves them in batches.

    A capture that is stopped goes on, and a finished one is never run again. Of several devices
    each sees other rows, equally many; up to as many rows as there are devices are left out.

    Args:
        corpus: The texts.
        models: The base models.
        taps: Where to read the source and the target.
        folder: Of the store in which the activations are kept.
        batch_rows: Tokens a batch.
        seed: Of the order of the training rows, which is another one each epoch.
    """

    def __init__(
        self,
        corpus: TextCorpus,
        models: ModelPair,
        taps: tuple[Sequence[Tap], Sequence[Tap]],
        folder: Path,
        batch_rows: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.corpus, self.models, self.taps = corpus, models, taps
        self.folder, self.batch_rows, self.seed = folder, batch_rows, seed
        self._caches: dict[str, ActivationCache] = {}

    def prepare_data(self) -> None:
        """Capture what is not there yet."""
        self.caches  # noqa: B018

    def setup(self, stage: str) -> None:
        """Open in every process what the first has captured, before models move to its device."""
        del stage
        self.caches  # noqa: B018

    @property
    def caches(self) -> dict[str, ActivationCache]:
        """The activations of ``train`` and of ``held_out`` text, complete."""
        if not self._caches:
            self._caches = {
                "train": self._filled("train", self.corpus.train_dataloader()),
                "held_out": self._filled("held_out", self.corpus.val_dataloader()),
            }
        return self._caches

    def all_rows(self, label: str, split: str, most: int) -> Float[Tensor, "rows _"]:
        """Return at most so many rows of one label, evenly spread over the split."""
        cache = self.caches[split]
        count = min(most, cache.rows)
        return cache.read(label, torch.arange(count) * cache.rows // count)

    def train_dataloader(self) -> DataLoader[Rows]:
        """Return shuffled batches of training rows."""
        return DataLoader(_Batches(self, "train", shuffled=True), batch_size=None)

    def val_dataloader(self) -> DataLoader[Rows]:
        """Return the held-out rows in batches."""
        return DataLoader(_Batches(self, "held_out", shuffled=False), batch_size=None)

    def batches(self, split: str, shuffled: bool) -> Iterator[Rows]:
        """Yield this device's share of all labels' rows, batch by batch."""
        cache = self.caches[split]
        order = torch.arange(cache.rows)
        if shuffled:
            # The trainer's epoch, so that a training that was stopped goes on in the same order.
            epoch = 0 if self.trainer is None else self.trainer.current_epoch
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
            order = torch.randperm(cache.rows, generator=generator)
        rank, devices = self._device()
        mine = order[rank::devices][: cache.rows // devices]
        for batch in torch.split(mine, self.batch_rows):
            # In rising order: a batch has no order, and a disk reads on more quickly.
            index = batch.sort().values
            yield {label: cache.read(label, index) for label in cache.widths}

    def count(self, split: str) -> int:
        """Return how many batches of a split each device has."""
        share = self.caches[split].rows // self._device()[1]
        return -(-share // self.batch_rows)

    def _device(self) -> tuple[int, int]:
        """Return which device this is, and of how many."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _filled(self, name: str, loader: DataLoader[AlignedBatch]) -> ActivationCache:
        batches: list[AlignedBatch] = list(loader)
        rows = sum(len(batch.source_places) for batch in batches)
        source, target = models = self.models.source, self.models.target
        widths = {
            tap.label_on(side): width
            for side, model, taps in zip(SIDES, models, self.taps, strict=True)
            for tap, width in tap_widths(model.sites, taps).items()
        }
        key = Key.of(
            "activations",
            models=[source.key_parts, target.key_parts],
            corpus=self.corpus.content_hash(),
            split=name,
            widths=widths,
            rows=rows,
        )
        cache = ActivationCache(self.folder, key, widths, rows)
        if not cache.complete:
            cache.fill(source.network, target.network, batches, self.taps)
        return cache


class _Batches(IterableDataset[Rows]):
    """One pass over a split."""

    def __init__(self, data: ActivationRows, split: str, shuffled: bool) -> None:
        self.data, self.split, self.shuffled = data, split, shuffled

    def __iter__(self) -> Iterator[Rows]:
        return self.data.batches(self.split, self.shuffled)

    def __len__(self) -> int:
        return self.data.count(self.split)
