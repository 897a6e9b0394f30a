"""Randomised against full singular value decompositions, on one weight of each shape."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from loraport.adapters import Site
from loraport.alignment import TruncatedSvd, randomised_svd
from loraport.models import StreamedWeights

from .setting import Elapsed, stopwatch

# out x in x min(out, in) up to which a full decomposition is run: a minute or so.
FULL_WORK = 8192 * 3072 * 3072
ENERGY = 0.9


@dataclass(frozen=True)
class Sample:
    """One weight of a shape: seconds of both decompositions, and how far they agree.

    Attributes:
        out, in_: The shape.
        sites: How many weights of both models have it.
        ours: Seconds of the randomised decomposition, on the clock and of all cores' work.
        full: Those of the full one.
        run: Whether that was measured; False where it is scaled from another shape's.
        directions: Singular vectors that hold 90 % of the energy.
        cosine: Of the largest principal angle between the subspaces that these span.
    """

    out: int
    in_: int
    sites: int
    ours: Elapsed
    full: Elapsed
    run: bool = True
    directions: int = 0
    cosine: float = float("nan")

    @property
    def work(self) -> int:
        """What the time of a full decomposition goes with."""
        return self.out * self.in_ * min(self.out, self.in_)


def least_cosine(one: Tensor, other: Tensor) -> float:
    """Return the cosine of the largest principal angle between two orthonormal bases."""
    return float(torch.linalg.svdvals(one.double().mT @ other.double()).min())


def compared(sample: Sample, matrix: Tensor, ours: TruncatedSvd) -> Sample:
    """Run the full decomposition, and compare the subspaces of the leading energy."""
    with stopwatch() as full:
        u, s, vh = torch.linalg.svd(matrix.float(), full_matrices=False)
    share = s.double().square().cumsum(0) / s.double().square().sum()
    count = int((share < ENERGY).sum()) + 1
    cosine = min(
        least_cosine(u[:, :count], ours.U[:, :count]),
        least_cosine(vh[:count].mT, ours.V[:, :count]),
    )
    return replace(sample, full=full, directions=count, cosine=cosine)


def samples(folder: Path, rank: int, threads: int) -> list[Sample]:
    """Decompose one weight of each distinct shape in both ways; runs in a new process."""
    torch.set_num_threads(threads)
    counts: Counter[tuple[int, int]] = Counter()
    places: dict[tuple[int, int], tuple[StreamedWeights, Site]] = {}
    for side in ("source", "target"):
        weights = StreamedWeights.open(folder / side, side)
        for site, size in weights.sites.shapes.items():
            counts[size] += 1
            places[size] = weights, site
    done: list[Sample] = []
    for (out, in_), (weights, site) in sorted(places.items()):
        matrix = weights.weight(site)
        randomised_svd(matrix, rank)  # What is slow the first time is no part of a transfer.
        with stopwatch() as elapsed:
            ours = randomised_svd(matrix, rank)
        sample = Sample(out, in_, counts[out, in_], elapsed, Elapsed())
        if sample.work <= FULL_WORK:
            done.append(compared(sample, matrix, ours))
        else:
            done.append(replace(sample, run=False))
    largest = max((sample for sample in done if sample.run), key=lambda sample: sample.work)
    return [sample if sample.run else scaled(sample, largest) for sample in done]


def scaled(sample: Sample, measured: Sample) -> Sample:
    """Extrapolate the full decomposition from another shape's."""
    times = sample.work / measured.work
    return replace(sample, full=Elapsed(measured.full.wall * times, measured.full.cpu * times))
