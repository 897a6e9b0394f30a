"""Paired statistics on disk, so that the base models run once over a corpus."""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..data.aligned_batch import AlignedBatch
from ..files import writing
from .pair_statistics import PairStatistics, TapPair
from .paired_capture import PairedCapture, Progress

# Raise it when the code changes what is kept or what comes out of it.
_FORMAT = 1
_PARTS = ("train", "held_out")


@dataclass
class RunningTotals:
    """Statistics of training and held-out text, as far as they have been gathered.

    Attributes:
        train: Statistics of the text that maps are fitted on.
        held_out: Statistics of the text that their strengths are chosen on.
        train_batches: How many batches are in ``train``.
        held_out_batches: How many are in ``held_out``.
        complete: Whether these are all.
    """

    train: PairStatistics
    held_out: PairStatistics
    train_batches: int = 0
    held_out_batches: int = 0
    complete: bool = False

    @classmethod
    def empty(cls, pairs: Sequence[TapPair]) -> "RunningTotals":
        """Return the totals before the first batch."""
        return cls(PairStatistics(pairs), PairStatistics(pairs))


class StatisticsStore:
    """Keeps running totals in a file under a key; one that is finished is never gathered again.

    A file appears whole, by a rename; what is damaged is gathered again.

    Args:
        folder: Where the files lie; None keeps nothing.
        seconds: The least time between two writings of one file, on the clock. It changes no
            bit of what comes out.
    """

    def __init__(self, folder: Path | None, *, seconds: float = 60.0) -> None:
        self._folder = folder
        self._seconds = seconds

    def gather(
        self,
        key: str,
        pairs: Sequence[TapPair],
        capture: PairedCapture,
        train: Iterable[AlignedBatch],
        held_out: Iterable[AlignedBatch],
        *,
        progress: Progress | None = None,
    ) -> RunningTotals:
        """Return the statistics of all batches, those that are kept and those still to be run.

        Args:
            key: Says all that the activations depend on, but not the pairs: both models, what is
                attached to them, and the batches.
            pairs: The taps whose activations are related.
            capture: Runs the models.
            train: The batches to fit on, in the order they always have.
            held_out: The batches to choose on.
            progress: Told how many batches are done, of both kinds together.

        Raises:
            OutputError: the disk is full, or the place forbidden.
        """
        totals = self.resume(key, pairs)
        if totals.complete:
            return totals
        saver = self.saver(key, totals)
        source_taps, target_taps = ({pair[side] for pair in totals.train.pairs} for side in (0, 1))
        for read in capture.run(train, source_taps, target_taps, skip=totals.train_batches):
            totals.train.add(read.source, read.target)
            totals.train_batches += 1
            saver.step(progress)
        totals.train.settle()
        for read in capture.run(held_out, source_taps, target_taps, skip=totals.held_out_batches):
            totals.held_out.add(read.source, read.target)
            totals.held_out_batches += 1
            saver.step(progress)
        totals.held_out.settle()
        totals.complete = True
        self.save(key, totals)
        return totals

    def resume(self, key: str, pairs: Sequence[TapPair]) -> RunningTotals:
        """Return what is kept under a key for these pairs; empty totals where that is nothing."""
        file = self._file(key, pairs)
        kept = None if file is None else _read(file, pairs)
        return RunningTotals.empty(pairs) if kept is None else kept

    def save(self, key: str, totals: RunningTotals) -> None:
        """Keep the totals, in place of what was kept before.

        Raises:
            OutputError: the disk is full, or the place forbidden.
        """
        file = self._file(key, totals.train.pairs)
        if file is not None:
            _write(file, totals)

    def saver(self, key: str, totals: RunningTotals) -> "Saver":
        """Return what keeps totals under a key from time to time, as they grow."""
        return Saver(self, key, totals)

    def _file(self, key: str, pairs: Sequence[TapPair]) -> Path | None:
        if self._folder is None:
            return None
        labels = sorted({f"{x.label} {y.label}" for x, y in pairs})
        content = "\n".join((str(_FORMAT), key, *labels))
        name = hashlib.sha256(content.encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.safetensors"


class Saver:
    """Keeps running totals from time to time."""

    def __init__(self, store: StatisticsStore, key: str, totals: RunningTotals) -> None:
        self._store, self._key, self._totals = store, key, totals
        self._saved = time.monotonic()

    def step(self, progress: Progress | None = None) -> None:
        """Note that a batch is done."""
        if time.monotonic() - self._saved >= self._store._seconds:
            self._store.save(self._key, self._totals)
            self._saved = time.monotonic()
        if progress is not None:
            progress(self._totals.train_batches + self._totals.held_out_batches)


def _read(file: Path, pairs: Sequence[TapPair]) -> RunningTotals | None:
    """Return what a file holds; None if it is not there or damaged."""
    try:
        with safe_open(file, framework="pt") as opened:
            state = json.loads(opened.metadata()["state"])
            # Copied out of the memory map, where they are aligned otherwise than what was
            # computed: products with them would not round alike.
            tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
        train, held_out = (
            PairStatistics.from_tensors(
                pairs,
                {
                    name.removeprefix(f"{part}."): tensor
                    for name, tensor in tensors.items()
                    if name.startswith(f"{part}.")
                },
            )
            for part in _PARTS
        )
        return RunningTotals(train, held_out, **state)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _write(file: Path, totals: RunningTotals) -> None:
    """Write the totals, whole or not at all, without a second copy of them in memory."""
    state = {
        "train_batches": totals.train_batches,
        "held_out_batches": totals.held_out_batches,
        "complete": totals.complete,
    }
    tensors = {
        f"{part}.{name}": tensor
        for part, statistics in zip(_PARTS, (totals.train, totals.held_out), strict=True)
        for name, tensor in statistics.tensors().items()
    }
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    with writing(file):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, unfinished, {"state": json.dumps(state)})
            unfinished.replace(file)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
