"""Moments of paired activations of two models, gathered batch by batch and kept on disk."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from ..alignment.moments import PairedMoments
from ..data.text_corpus import AlignedBatch
from ..exceptions import DataError
from ..store import Key, Store
from .capture import paired_readings, without_autocast
from .hooks import SIDES, Tap

TapPair = tuple[Tap, Tap]
"""Where the source model is read, and where the target model."""

# Fewer rows wait for the next batch: the float64 additions cost as much as a product of some
# hundred rows.
LEAST_ROWS = 1024
# More rows are multiplied in pieces, so that float32 sums over few.
_MOST_ROWS = 4096
# Rows of a Gram that are multiplied at once. The fewer, the less is computed below the diagonal;
# under 256 the products lose more speed than that saves.
SLAB = 256


class PairStatistics:
    """Sums, Grams and cross products of paired activations, for any number of pairs of taps.

    A tap that several pairs read is multiplied by itself once. Products are float32, whatever the
    precision of a trainer, their sums over batches float64. Of a Gram only the slabs right of the
    diagonal are computed and kept.
    The same batches in the same order give the same bits, also when the statistics were saved by
    :meth:`tensors` and restored in between. ``rows`` counts the pairs of tokens.
    """

    def __init__(self, pairs: Sequence[TapPair]) -> None:
        self.pairs: tuple[TapPair, ...] = tuple(dict.fromkeys(pairs))
        self.rows = 0
        self._names = {
            tap.label_on(side): (place, tap)
            for place, side in enumerate(SIDES)
            for tap in dict.fromkeys(pair[place] for pair in self.pairs)
        }
        self._crosses = {
            f"cross.{x}.{y}": (x, y)
            for x, y in ((x.label_on("source"), y.label_on("target")) for x, y in self.pairs)
        }
        self._totals: dict[str, Tensor] = {}
        self._waiting: dict[str, list[Tensor]] = {name: [] for name in self._names}
        self._waiting_rows = 0

    def add(
        self,
        source: Mapping[Tap, Float[Tensor, "rows _"]],
        target: Mapping[Tap, Float[Tensor, "rows _"]],
    ) -> None:
        """Take in a batch, whose rows are paired tokens; taps of no pair are passed over."""
        sides = (source, target)
        rows = 0
        for name, (side, tap) in self._names.items():
            activation = sides[side][tap]
            rows = len(activation)
            self._waiting[name].append(activation)
        self.rows += rows
        self._waiting_rows += rows
        if self._waiting_rows >= LEAST_ROWS:
            self.settle()

    def settle(self) -> None:
        """Add the rows that wait to the totals.

        When it is called decides where the float32 sums end, and with them the last bits.
        """
        if self._waiting_rows:
            waiting = {name: _joined(parts) for name, parts in self._waiting.items()}
            self._waiting = {name: [] for name in self._names}
            for first in range(0, self._waiting_rows, _MOST_ROWS):
                piece = {name: x[first : first + _MOST_ROWS] for name, x in waiting.items()}
                with without_autocast(next(iter(piece.values())).device):
                    self._multiply(piece)
            self._waiting_rows = 0

    def moments(self, source_tap: Tap, target_tap: Tap) -> PairedMoments:
        """Return the moments of a pair; DataError where no rows have come in."""
        if self.rows == 0:
            raise DataError(
                "the corpus has no token at which both models have read the same text, so that "
                "nothing relates their activations; give a corpus with more or longer texts"
            )
        self.settle()
        x, y = source_tap.label_on("source"), target_tap.label_on("target")
        return PairedMoments(
            self.rows,
            # Copies, which the next batch does not change.
            self._totals[f"sum.{x}"].clone(),
            self._totals[f"sum.{y}"].clone(),
            self._gram(x),
            self._gram(y),
            self._totals[f"cross.{x}.{y}"].clone(),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Return all that came in, also the rows that still wait; the next batch changes it."""
        waiting = {
            f"waiting.{name}": _joined(parts) for name, parts in self._waiting.items() if parts
        }
        return {"rows": torch.tensor(self.rows), **self._totals, **waiting}

    @classmethod
    def from_tensors(
        cls, pairs: Sequence[TapPair], tensors: Mapping[str, Tensor]
    ) -> "PairStatistics":
        """Return the statistics whose :meth:`tensors` are given; it goes on adding to them."""
        statistics = cls(pairs)
        statistics.rows = int(tensors["rows"])
        for name, tensor in tensors.items():
            if name.startswith("waiting."):
                statistics._waiting[name.removeprefix("waiting.")] = [tensor]
                statistics._waiting_rows = len(tensor)
            elif name != "rows":
                statistics._totals[name] = tensor
        return statistics

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> "PairStatistics":
        """Return the statistics of all devices together, by a sum of a tensor over the devices.

        It is called for the same tensors in the same order on each.
        """
        self.settle()
        together = PairStatistics(self.pairs)
        together.rows = int(reduce(torch.tensor(self.rows)))
        together._totals = {name: reduce(total) for name, total in self._totals.items()}
        return together

    def _multiply(self, rows: Mapping[str, Tensor]) -> None:
        """Add the products of some rows."""
        for name in self._names:
            x = rows[name]
            self._accumulate(f"sum.{name}", x.sum(dim=0))
            for first in _slabs(x.shape[1]):
                slab = x[:, first : first + SLAB].mT @ x[:, first:]
                self._accumulate(f"gram.{first}.{name}", slab)
        for name, (x_name, y_name) in self._crosses.items():
            self._accumulate(name, rows[x_name].mT @ rows[y_name])

    def _accumulate(self, name: str, product: Tensor) -> None:
        total = self._totals.get(name)
        # What was restored lies on the CPU, wherever the models compute.
        self._totals[name] = (
            product.double() if total is None else total.to(product.device).add_(product)
        )

    def _gram(self, name: str) -> Float[Tensor, "width width"]:
        """Return a whole Gram, exactly symmetric."""
        total = self._totals[f"sum.{name}"]
        gram = total.new_zeros(len(total), len(total))
        for first in _slabs(len(total)):
            gram[first : first + SLAB, first:] = self._totals[f"gram.{first}.{name}"]
        return gram.triu_().add_(gram.triu(1).mT)


def gram_entries(width: int) -> int:
    """Return how many entries of a Gram are computed and kept.

    >>> gram_entries(SLAB) == SLAB**2, gram_entries(2 * SLAB) == 3 * SLAB**2
    (True, True)
    """
    return sum(min(SLAB, width - first) * (width - first) for first in _slabs(width))


def _slabs(width: int) -> range:
    return range(0, width, SLAB)


def _joined(parts: Sequence[Tensor]) -> Float[Tensor, "rows width"]:
    """Return float32 rows below one another; a single part is not copied."""
    return parts[0].float() if len(parts) == 1 else torch.cat([part.float() for part in parts])


@dataclass
class RunningTotals:
    """Statistics of the text that maps are fitted on, and of that which strengths are chosen on.

    They are kept under ``key``, as far as they have been gathered.
    """

    key: object
    train: PairStatistics
    held_out: PairStatistics
    train_batches: int = 0
    held_out_batches: int = 0
    complete: bool = False

    @classmethod
    def empty(cls, key: object, pairs: Sequence[TapPair]) -> "RunningTotals":
        """Return the totals before the first batch."""
        return cls(key, PairStatistics(pairs), PairStatistics(pairs))


class StatisticsStore:
    """Keeps running totals under a key, so that the base models run once over a corpus.

    Args:
        cache: Folder of the :class:`~loraport.store.Store`; None keeps nothing.
        seconds: The least time between two writings of one entry, on the clock. It changes no
            bit of what comes out.
    """

    def __init__(self, cache: Path | None, *, seconds: float = 60.0) -> None:
        self._store = Store(cache)
        self._seconds = seconds
        self._saved = time.monotonic()

    def gather(
        self,
        key: object,
        pairs: Sequence[TapPair],
        source: PreTrainedModel,
        target: PreTrainedModel,
        train: Iterable[AlignedBatch],
        held_out: Iterable[AlignedBatch],
        *,
        progress: Callable[[int], None] = lambda done: None,
    ) -> RunningTotals:
        """Return the statistics of all batches, those that are kept and those still to be run.

        Args:
            key: All that the activations depend on beside the pairs: both models, their dtype and
                device, what is attached to them, and the batches.
            pairs: The taps whose activations are related.
            source: The source model.
            target: The target model.
            train: The batches to fit on, in the order they always have.
            held_out: The batches to choose on.
            progress: Called with the number of finished batches, of both kinds together.
        """
        totals = self.resume(key, pairs)
        if totals.complete:
            return totals
        taps = ({pair[0] for pair in totals.train.pairs}, {pair[1] for pair in totals.train.pairs})
        for read in paired_readings(
            source, target, islice(train, totals.train_batches, None), taps
        ):
            totals.train.add(*read)
            totals.train_batches += 1
            self.step(totals)
            progress(totals.train_batches)
        totals.train.settle()
        for read in paired_readings(
            source, target, islice(held_out, totals.held_out_batches, None), taps
        ):
            totals.held_out.add(*read)
            totals.held_out_batches += 1
            self.step(totals)
            progress(totals.train_batches + totals.held_out_batches)
        totals.held_out.settle()
        totals.complete = True
        self.save(totals)
        return totals

    def resume(self, key: object, pairs: Sequence[TapPair]) -> RunningTotals:
        """Return what is kept under a key for these pairs; empty totals where that is nothing.

        Raises:
            OutputError: they could not be kept.
        """
        self._saved = time.monotonic()
        kept = self._store.get_tensors(_key(key, pairs))
        if kept is None:
            self._store.check_writable(_key(key, pairs))
            return RunningTotals.empty(key, pairs)
        tensors, state = kept
        split: dict[str, dict[str, Tensor]] = {"train": {}, "held_out": {}}
        for name, tensor in tensors.items():
            part, _, own = name.partition(".")
            split[part][own] = tensor
        train, held_out = (PairStatistics.from_tensors(pairs, part) for part in split.values())
        return RunningTotals(key, train, held_out, **state)

    def step(self, totals: RunningTotals) -> None:
        """Note that the totals have grown by a batch; they are kept from time to time."""
        if time.monotonic() - self._saved >= self._seconds:
            self.save(totals)
            self._saved = time.monotonic()

    def save(self, totals: RunningTotals) -> None:
        """Keep the totals in place of what was kept before; OutputError where the disk is full."""
        tensors = {
            f"{part}.{name}": tensor
            for part, statistics in (("train", totals.train), ("held_out", totals.held_out))
            for name, tensor in statistics.tensors().items()
        }
        state = {
            "train_batches": totals.train_batches,
            "held_out_batches": totals.held_out_batches,
            "complete": totals.complete,
        }
        self._store.put_tensors(_key(totals.key, totals.train.pairs), tensors, state)


def _key(key: object, pairs: Sequence[TapPair]) -> Key:
    labels = sorted({(x.label, y.label) for x, y in pairs})
    return Key.of("statistics", activations=key, pairs=labels)


def layer_blocks(
    pairs: Sequence[TapPair],
    widths: tuple[Mapping[Tap, int], Mapping[Tap, int]],
    budget_gb: float = 2.0,
) -> tuple[tuple[TapPair, ...], ...]:
    """Split pairs of taps by target layer into blocks whose statistics fit into a budget.

    Each block costs one more pass of both models, up to its deepest tap. A layer that is over the
    budget by itself is a block of its own: a layer is never split.

    The budget, in 10^9 bytes, is for what :func:`statistics_bytes` counts.
    """
    ordered = sorted(dict.fromkeys(pairs), key=lambda pair: pair[1].layer)
    blocks: list[tuple[TapPair, ...]] = []
    for _, group in groupby(ordered, key=lambda pair: pair[1].layer):
        layer = tuple(group)
        joined = (*blocks[-1], *layer) if blocks else layer
        if blocks and statistics_bytes(joined, widths) <= budget_gb * 1e9:
            blocks[-1] = joined
        else:
            blocks.append(layer)
    return tuple(blocks)


def statistics_bytes(
    pairs: Sequence[TapPair], widths: tuple[Mapping[Tap, int], Mapping[Tap, int]]
) -> int:
    """Return what the statistics of training and held-out text hold, and the rows that wait."""
    read = [widths[side][tap] for side in (0, 1) for tap in {pair[side] for pair in pairs}]
    grams = sum(gram_entries(width) + width for width in read)
    crosses = sum(widths[0][x] * widths[1][y] for x, y in set(pairs))
    return 2 * 8 * (grams + crosses) + 4 * LEAST_ROWS * sum(read)
