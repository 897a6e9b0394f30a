"""Similarity beyond what rows that are not paired would show.

Any measure of two high-dimensional representations is above zero by chance, and by how much
depends on rows, widths and spectra. So the rows of one side are permuted, and a score counts only
as far as it exceeds the 95th percentile of what that gives:
``s_cal = max(0, (s - tau) / (1 - tau))``. Source: arXiv 2602.14486.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

PERMUTATIONS = 200
LEVEL = 0.95


class CalibratedScore(NamedTuple):
    """A score, and what is left of it.

    Attributes:
        raw: As the measure gives it.
        threshold: What it exceeds in 5 % of permutations.
        calibrated: 0 for a raw score up to the threshold, 1 for a raw score of 1.
    """

    raw: float
    threshold: float
    calibrated: float


def row_orders(rows: int, permutations: int, seed: int) -> Int[Tensor, "permutations rows"]:
    """Return random orders of rows; the same seed gives the same ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(rows, generator=generator) for _ in range(permutations)])


def rescaled(
    score: Float[Tensor, "*shape"], threshold: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """Return ``max(0, (s - tau) / (1 - tau))``; 0 where the threshold is 1."""
    room = 1 - threshold
    return torch.where(room > 0, (score - threshold) / room, 0.0).clamp_min(0)


def calibrated(
    measure: Callable[[Tensor, Tensor], float],
    x: Float[Tensor, "rows x"],
    y: Float[Tensor, "rows y"],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> CalibratedScore:
    """Calibrate any measure of two matrices against permuted rows of the second.

    Args:
        measure: Takes two matrices with paired rows; 1 is the greatest value.
        x: Rows in one space.
        y: The same rows in another.
        permutations: How many times the rows are permuted; the measure runs once for each.
        seed: Draws the permutations.
    """
    raw = measure(x, y)
    orders = row_orders(len(y), permutations, seed)
    null = torch.tensor([measure(x, y[order]) for order in orders], dtype=torch.float64)
    threshold = null.quantile(LEVEL)
    score = rescaled(torch.tensor(raw, dtype=torch.float64), threshold)
    return CalibratedScore(raw, float(threshold), float(score))
