"""Moments of paired activations of two models, gathered batch by batch."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..alignment.moments import PairedMoments
from ..exceptions import DataError
from .taps import SIDES, Tap

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

    A tap that several pairs read is multiplied by itself once. Products are float32, their sums
    over batches float64. Of a Gram only the slabs right of the diagonal are computed and kept.
    The same batches in the same order give the same bits, also when the statistics were saved by
    :meth:`tensors` and restored in between.

    Args:
        pairs: The taps whose activations are related; all their rows are paired tokens.

    Attributes:
        pairs: The same, each once.
        rows: How many pairs of tokens came in.
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
        """Take in a batch; taps that no pair names are passed over.

        Args:
            source: What the source model's taps gave, a row a token.
            target: What the target model's gave for the tokens that the source's are paired with.
        """
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
                self._multiply(piece)
            self._waiting_rows = 0

    def moments(self, source_tap: Tap, target_tap: Tap) -> PairedMoments:
        """Return the moments of a pair: x is the source's activation, y the target's.

        Raises:
            DataError: no rows have come in.
        """
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
        """Return everything that came in, for a file: also the rows that still wait.

        They are the sums themselves, which the next batch changes.
        """
        waiting = {
            f"waiting.{name}": _joined(parts) for name, parts in self._waiting.items() if parts
        }
        return {"rows": torch.tensor(self.rows), **self._totals, **waiting}

    @classmethod
    def from_tensors(
        cls, pairs: Sequence[TapPair], tensors: Mapping[str, Tensor]
    ) -> "PairStatistics":
        """Return the statistics whose :meth:`tensors` are given; it goes on adding to them.

        Raises:
            ValueError: they are those of other pairs.
        """
        statistics = cls(pairs)
        statistics.rows = int(tensors["rows"])
        for name, tensor in tensors.items():
            if name.startswith("waiting."):
                statistics._waiting[name.removeprefix("waiting.")] = [tensor]
                statistics._waiting_rows = len(tensor)
            elif name != "rows":
                statistics._totals[name] = tensor
        if statistics.rows > statistics._waiting_rows:
            known = {name for name in statistics._totals if not name.startswith("gram.")}
            if known != {*(f"sum.{name}" for name in statistics._names), *statistics._crosses}:
                raise ValueError("the tensors are those of other pairs of taps")
        return statistics

    def reduced(self, reduce: Callable[[Tensor], Tensor]) -> "PairStatistics":
        """Return the statistics of all devices together.

        Args:
            reduce: Gives the sum of a tensor over the devices; it is called for the same tensors
                in the same order on each.
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
    """Return the first rows of a Gram's slabs."""
    return range(0, width, SLAB)


def _joined(parts: Sequence[Tensor]) -> Float[Tensor, "rows width"]:
    """Return float32 rows below one another; a single part is not copied."""
    return parts[0].float() if len(parts) == 1 else torch.cat([part.float() for part in parts])
