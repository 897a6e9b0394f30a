"""Which rows make which batch: shuffled, and yet of like length."""

from collections.abc import Sequence

import torch

WINDOW = 8  # batches; sorting more pads less, but the batches become alike


def shuffled_batches(
    lengths: Sequence[int], batch_size: int, generator: torch.Generator
) -> list[list[int]]:
    """Return the places of the rows of every batch of one epoch.

    Shuffled rows are taken in windows of a few batches, sorted by length within the window and
    cut into batches, and the batches are shuffled. That pads little more than sorting all rows
    would, and leaves the batches nearly as mixed as random ones.

    Args:
        lengths: Tokens of each row.
        batch_size: Rows a batch; the last cut may have fewer.
        generator: Of the shuffles; nothing else decides the order of rows of one length.
    """
    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    width = WINDOW * batch_size
    order = [
        place
        for start in range(0, len(shuffled), width)
        for place in sorted(shuffled[start : start + width], key=lambda place: lengths[place])
    ]
    cut = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [cut[place] for place in torch.randperm(len(cut), generator=generator).tolist()]


def seeded_batches(
    lengths: Sequence[int], *, batch_size: int, epochs: int, seed: int
) -> list[list[int]]:
    """Return the batches of several epochs, each a new shuffle; see :func:`shuffled_batches`."""
    generator = torch.Generator().manual_seed(seed)
    return [
        batch for _ in range(epochs) for batch in shuffled_batches(lengths, batch_size, generator)
    ]
