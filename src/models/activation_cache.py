"""Paired activations on disk, for what trains on them epoch after epoch."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.aligned_batch import AlignedBatch
from ..exceptions import ConfigurationError, DataError, OutputError
from ..files import write_whole, writing
from .paired_capture import PairedCapture, Progress
from .taps import Tap

_FORMAT = 1
_PROGRESS = "progress.json"
_BYTES = 2  # of a bfloat16


class ActivationCache:
    """Rows of bfloat16 in one file a label, written once from the first to the last.

    Rows are read through a memory map: what is read stays in the system's page cache, and not in
    the process. How far the writing has come is kept in a small file that is replaced after each
    batch lies on disk, so that a process that is stopped goes on from the last whole batch.

    Made by :meth:`create`, :meth:`open` or :meth:`resume`.

    Attributes:
        folder: Where the files lie.
        widths: How wide each label's rows are.
        rows: How many rows there will be.
        done: How many are written.
    """

    def __init__(self, folder: Path, widths: Mapping[str, int], rows: int, done: int) -> None:
        self.folder = folder
        self.widths = dict(widths)
        self.rows = rows
        self.done = done
        self._maps: dict[str, Tensor] = {}

    @classmethod
    def create(cls, folder: Path, widths: Mapping[str, int], rows: int) -> "ActivationCache":
        """Start a cache in a folder; what an earlier one has there is written over.

        Args:
            folder: Where the files shall lie.
            widths: How wide the rows of each label are, such as ``source.3.q.input``.
            rows: How many there will be of each.

        Raises:
            ConfigurationError: there is nothing to write.
            OutputError: the disk has too little room, or the place is forbidden.
        """
        if rows < 1 or not widths:
            raise ConfigurationError(
                f"the activations for {folder} have {rows} rows of {len(widths)} places, but a "
                "cache takes at least one of each; give a corpus with more text, or more modules"
            )
        cache = cls(folder, widths, rows, 0)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # The progress first: without it nothing counts as written.
            for old in (folder / _PROGRESS, *folder.glob("*.bf16")):
                old.unlink(missing_ok=True)
            cache._check_space()
            for label in widths:
                with cache._file(label).open("wb") as file:
                    file.truncate(cache._size(label))
        cache._note(0)
        return cache

    @classmethod
    def open(cls, folder: Path) -> "ActivationCache":
        """Open the cache in a folder, whether complete or not.

        Raises:
            DataError: there is none, or it is damaged.
        """
        try:
            kept = json.loads((folder / _PROGRESS).read_text(encoding="utf-8"))
            if kept["format"] != _FORMAT:
                raise ValueError(f"format {kept['format']}")
            cache = cls(folder, kept["widths"], kept["rows"], kept["done"])
            if any(cache._file(x).stat().st_size != cache._size(x) for x in cache.widths):
                raise ValueError("a file has not the size that it should")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder} holds no activations that can be read ({error}); remove the folder, "
                "and they are computed again"
            ) from error
        return cache

    @classmethod
    def resume(cls, folder: Path, widths: Mapping[str, int], rows: int) -> "ActivationCache":
        """Open the cache in a folder, or start it where none is there that fits.

        Raises:
            ConfigurationError: there is nothing to write.
            OutputError: the disk has too little room, or the place is forbidden.
        """
        try:
            kept = cls.open(folder)
        except DataError:
            return cls.create(folder, widths, rows)
        fits = kept.widths == dict(widths) and kept.rows == rows
        return kept if fits else cls.create(folder, widths, rows)

    @property
    def complete(self) -> bool:
        """Whether all rows are written."""
        return self.done == self.rows

    @property
    def bytes(self) -> int:
        """How large the files are together."""
        return sum(self._size(label) for label in self.widths)

    def fill(
        self,
        capture: PairedCapture,
        batches: Iterable[AlignedBatch],
        source_taps: Iterable[Tap],
        target_taps: Iterable[Tap],
        *,
        progress: Progress | None = None,
    ) -> None:
        """Write the rows that are not there yet; no model is run for those that are.

        Args:
            capture: Runs the models.
            batches: All of the texts, in the order they always have.
            source_taps: Read in the source model; their rows get the label ``tap.label_on``.
            target_taps: Read in the target model.
            progress: Told how many batches are done.

        Raises:
            ConfigurationError: they are not the batches that the cache was begun with.
            OutputError: the disk is full.
        """
        held = list(batches)
        ends = list(accumulate((len(batch.source_places) for batch in held), initial=0))
        if self.done not in ends or ends[-1] != self.rows:
            raise ConfigurationError(
                f"{self.folder} has {self.done} of {self.rows} rows, but the corpus has "
                f"{ends[-1]} in {len(held)} batches that do not end there; remove the folder if "
                "the corpus has changed"
            )
        skip = ends.index(self.done)
        if self.complete:
            return
        for read in capture.run(held, source_taps, target_taps, skip=skip, progress=progress):
            rows = {tap.label_on("source"): x for tap, x in read.source.items()}
            rows |= {tap.label_on("target"): x for tap, x in read.target.items()}
            self.write(self.done, rows)

    def write(self, row: int, batch: Mapping[str, Float[Tensor, "rows _"]]) -> None:
        """Write the next rows of all labels.

        Args:
            row: Which row they begin at; that behind the last that was written.
            batch: The rows of each label, equally many.

        Raises:
            ConfigurationError: they are not the next rows, or not all labels', or too many.
            OutputError: the disk is full.
        """
        (count,) = {len(rows) for rows in batch.values()}
        found = {label: rows.shape[1] for label, rows in batch.items()}
        if found != self.widths or row != self.done or row + count > self.rows:
            raise ConfigurationError(
                f"{self.folder} was given the rows {row} to {row + count} of {len(found)} places, "
                f"but takes rows from {self.done} to {self.rows} of the {len(self.widths)} places "
                "that it was made for; remove the folder if the corpus has changed"
            )
        with writing(self.folder):
            for label, rows in batch.items():
                content = rows.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16)
                with self._file(label).open("r+b") as file:
                    file.seek(row * self.widths[label] * _BYTES)
                    file.write(content.numpy().data)
                    file.flush()
                    os.fsync(file.fileno())
        self._note(row + count)

    def read(self, label: str, index: Int[Tensor, " rows"]) -> Float[Tensor, "rows width"]:
        """Return chosen rows of a label as float32; read them once all are written."""
        if label not in self._maps:
            shape = (self.rows, self.widths[label])
            mapped = np.memmap(self._file(label), np.int16, "c", shape=shape)
            self._maps[label] = torch.from_numpy(mapped)
        return self._maps[label].index_select(0, index).view(torch.bfloat16).float()

    def _file(self, label: str) -> Path:
        return self.folder / f"{label}.bf16"

    def _size(self, label: str) -> int:
        return self.rows * self.widths[label] * _BYTES

    def _note(self, done: int) -> None:
        """Keep how many rows are written."""
        kept = {"format": _FORMAT, "rows": self.rows, "widths": self.widths, "done": done}
        write_whole(self.folder / _PROGRESS, json.dumps(kept))
        self.done = done

    def _check_space(self) -> None:
        """Refuse to start what does not fit on the disk."""
        free = shutil.disk_usage(self.folder).free
        if self.bytes > free:
            raise OutputError(
                f"{self.folder} needs {self.bytes / 1e9:.1f} GB for {self.rows} rows of "
                f"{len(self.widths)} places, but its disk has {free / 1e9:.1f} GB free; take "
                "fewer tokens or modules, or name a folder on another disk"
            )
