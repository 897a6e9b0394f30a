"""All projection heads of a pair of models: made, started, trained and found by their sites."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..adapters import Site
from ..alignment.linear_maps import SplitMoments
from ..alignment.moments import PairedMoments
from ..models.taps import Tap
from .activation_rows import ActivationRows
from .fitted_maps import SitePair, input_pair
from .head_pair import HeadPair, Losses
from .pair_frame import PairFrame
from .reconstruction import Reconstruction

_START_ROWS = 20_000
"""Rows from which skips are solved at most; held-out rows, a quarter."""


class Space(NamedTuple):
    """A space of one model, its counterpart in the other, and the heads between them.

    Attributes:
        label: A name for reports.
        heads: From x to y, and back.
        x: The label of the rows that the head takes.
        y: The label of the rows that it gives.
        gradients: The labels of the gradients with respect to x and y; None without.
        read: Whether it is what modules read, which a head leads to as it is; what modules write
            matters only in its differences.
    """

    label: str
    heads: HeadPair
    x: str
    y: str
    gradients: tuple[str, str] | None
    read: bool


class Heads(nn.Module):
    """A reader for every pair of inputs, from the target's, and a writer for every pair of sites.

    Args:
        frame: The models and their sites.
        hidden: Of each head's MLP; 0 leaves it out.
        both: Whether each head has one that leads back.
        gradients: Whether writers are trained on gradients too.
        seed: Of the MLPs.

    Attributes:
        pairs: The pairs of sites.
        spaces: Every space once.
    """

    def __init__(
        self, frame: PairFrame, hidden: int, both: bool, gradients: bool, seed: int
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.pairs: list[SitePair] = [
            (source, target) for target, feeds in frame.feeds().items() for source, _ in feeds
        ]
        self._readers: dict[SitePair, HeadPair] = {}
        self._writers: dict[SitePair, HeadPair] = {}
        self.gradients = gradients
        for source, target in self.pairs:
            (out_s, in_s), (out_t, in_t) = frame.source.shapes[source], frame.target.shapes[target]
            shared = input_pair(source, target)
            if shared not in self._readers:
                self._readers[shared] = HeadPair(in_t, in_s, hidden, both, generator)
            self._writers[source, target] = HeadPair(out_s, out_t, hidden, both, generator)
        self.readers = nn.ModuleDict({_name(pair): head for pair, head in self._readers.items()})
        self.writers = nn.ModuleDict({_name(pair): head for pair, head in self._writers.items()})
        self.spaces = [*self._read_spaces(), *self._written_spaces()]

    def reader(self, source: Site, target: Site) -> HeadPair:
        """Return the heads between what two sites read; q, k and v share them."""
        return self._readers[input_pair(source, target)]

    def writer(self, source: Site, target: Site) -> HeadPair:
        """Return the heads between what two sites write."""
        return self._writers[source, target]

    def taps(self) -> tuple[list[Tap], list[Tap]]:
        """Return what is read of the source and of the target to train them."""
        taps: tuple[dict[Tap, None], dict[Tap, None]] = ({}, {})
        for pair in self.pairs:
            for place, site in enumerate(pair):
                taps[place][Tap.input(site)] = taps[place][Tap.output(site)] = None
                if self.gradients:
                    taps[place][Tap.gradient(site)] = None
        return list(taps[0]), list(taps[1])

    def start(self, rows: ActivationRows, weight: float) -> dict[str, float]:
        """Solve all skips, and return the held-out R^2 of each space's.

        Args:
            rows: Of the taps that :meth:`taps` names.
            weight: Of gradients beside activations.
        """
        found = {}
        for space in self.spaces:
            samples = _moments(rows, space.x, space.y)
            gradients = None if space.gradients is None else _moments(rows, *space.gradients)
            found[space.label] = space.heads.start(samples, gradients, weight).error.r2
        return found

    def losses(self, batch: Mapping[str, Tensor]) -> Losses:
        """Return the losses of a batch, means over the spaces."""
        parts = []
        for space in self.spaces:
            labels = space.gradients
            gradients = None if labels is None else (batch[labels[0]], batch[labels[1]])
            parts.append(space.heads.losses(batch[space.x], batch[space.y], gradients))
        return Losses(*(torch.stack(part).mean() for part in zip(*parts, strict=True)))

    def reconstructions(self, batch: Mapping[str, Tensor]) -> dict[str, Reconstruction]:
        """Return how much of a batch each space's head explains."""
        return {
            space.label: Reconstruction.of(space.heads.head(batch[space.x]), batch[space.y])
            for space in self.spaces
        }

    def r2(self, sums: Mapping[str, Reconstruction]) -> dict[str, float]:
        """Return the R^2 of each space, as that of a linear map is defined."""
        return {
            space.label: sums[space.label].r2(space.heads.y_mean)
            if space.read
            else sums[space.label].centred_r2()
            for space in self.spaces
        }

    def frozen(self) -> "Heads":
        """Return heads of the same weights, in the same memory, that take no gradient."""
        memo: dict[int, Any] = {
            id(weight): nn.Parameter(weight.detach(), requires_grad=False)
            for weight in self.parameters()
        }
        return copy.deepcopy(self, memo)

    def _read_spaces(self) -> Iterator[Space]:
        for (source, target), heads in self._readers.items():
            x, y = Tap.input(target).label_on("target"), Tap.input(source).label_on("source")
            yield Space(read_label(source, target), heads, x, y, None, read=True)

    def _written_spaces(self) -> Iterator[Space]:
        for (source, target), heads in self._writers.items():
            x, y = Tap.output(source).label_on("source"), Tap.output(target).label_on("target")
            towards = (
                Tap.gradient(source).label_on("source"),
                Tap.gradient(target).label_on("target"),
            )
            gradients = towards if self.gradients else None
            yield Space(written_label(source, target), heads, x, y, gradients, read=False)


def read_label(source: Site, target: Site) -> str:
    """Return the name of the space that two sites read."""
    source, target = input_pair(source, target)
    return f"{Tap.input(target).label_on('target')} > {Tap.input(source).label_on('source')}"


def written_label(source: Site, target: Site) -> str:
    """Return the name of the space that two sites write."""
    return f"{Tap.output(source).label_on('source')} > {Tap.output(target).label_on('target')}"


def _name(pair: SitePair) -> str:
    """Return a key for a module dictionary, which takes no dots."""
    return "-".join(site.label for site in pair).replace(".", "_")


def _moments(rows: ActivationRows, x: str, y: str) -> SplitMoments:
    train, held_out = (
        PairedMoments.of(*(rows.all_rows(label, split, most) for label in (x, y)))
        for split, most in (("train", _START_ROWS), ("held_out", _START_ROWS // 4))
    )
    return SplitMoments(train, held_out)
