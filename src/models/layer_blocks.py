"""How much of two networks fits into memory at once when statistics are gathered."""

from collections.abc import Mapping, Sequence
from itertools import groupby

from .pair_statistics import LEAST_ROWS, TapPair, gram_entries
from .taps import Tap


def layer_blocks(
    pairs: Sequence[TapPair],
    widths: tuple[Mapping[Tap, int], Mapping[Tap, int]],
    budget_gb: float = 2.0,
) -> tuple[tuple[TapPair, ...], ...]:
    """Split pairs of taps by target layer into blocks whose statistics fit into a budget.

    Each block costs one more pass of both models, up to its deepest tap. A layer that is over the
    budget by itself is a block of its own: a layer is never split.

    Args:
        pairs: Source and target taps.
        widths: Of the source's taps and of the target's (:func:`~.taps.tap_widths`).
        budget_gb: Gigabytes (10^9 bytes) for the statistics of training and held-out text
            together, and the rows that wait to be multiplied.
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
    """Return what two :class:`~.pair_statistics.PairStatistics` of some pairs hold, in bytes.

    Two, as held-out text has its own; and one set of rows that wait.
    """
    read = [widths[side][tap] for side in (0, 1) for tap in {pair[side] for pair in pairs}]
    grams = sum(gram_entries(width) + width for width in read)
    crosses = sum(widths[0][x] * widths[1][y] for x, y in set(pairs))
    return 2 * 8 * (grams + crosses) + 4 * LEAST_ROWS * sum(read)
