"""Cached activations of both models as a LightningDataModule, for mappers that train on them."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from ..adapters import Site
from ..alignment.linear_maps import LinearMap, Ridge, SplitMoments, TwoSidedRidge
from ..alignment.moments import PairedMoments
from ..data import AlignedBatch, TextCorpus
from ..models.capture import ActivationCache, PairedCapture
from ..models.hooks import SIDES, Tap, tap_widths
from ..store import Key
from .from_text import ModelPair, PairFrame, SitePair, input_pair

Rows = dict[str, Float[Tensor, "rows _"]]
"""Paired rows of activations by their labels, such as ``source.3.q.input``."""


class ActivationRows(LightningDataModule):
    """Runs both models over a corpus once, keeps what the taps give, and serves it in batches.

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
        self.open()

    def open(self) -> tuple[ActivationCache, ActivationCache]:
        """Return the caches of training and of held-out text, complete."""
        if not self._caches:
            splits: dict[str, DataLoader[AlignedBatch]] = {
                "train": self.corpus.train_dataloader(),
                "held_out": self.corpus.val_dataloader(),
            }
            self._caches = {name: self._filled(name, batches) for name, batches in splits.items()}
        return self._caches["train"], self._caches["held_out"]

    def all_rows(self, label: str, split: str, most: int) -> Float[Tensor, "rows _"]:
        """Return at most so many rows of one label, evenly spread over the split."""
        self.open()
        cache = self._caches[split]
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
        self.open()
        cache = self._caches[split]
        order = torch.arange(cache.rows)
        if shuffled:
            # The trainer's epoch, so that a training that was stopped goes on in the same order.
            epoch = 0 if self.trainer is None else self.trainer.current_epoch
            generator = torch.Generator().manual_seed(1_000_003 * self.seed + epoch)
            order = torch.randperm(cache.rows, generator=generator)
        rank, devices = self._place()
        mine = order[rank::devices][: cache.rows // devices]
        for places in torch.split(mine, self.batch_rows):
            yield {label: cache.read(label, _rising(places)) for label in cache.widths}

    def count(self, split: str) -> int:
        """Return how many batches of a split each device has."""
        self.open()
        share = self._caches[split].rows // self._place()[1]
        return -(-share // self.batch_rows)

    def _place(self) -> tuple[int, int]:
        """Return which device this is, and of how many."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _filled(self, name: str, loader: DataLoader[AlignedBatch]) -> ActivationCache:
        batches: list[AlignedBatch] = list(loader)
        rows = sum(len(batch.source_places) for batch in batches)
        widths = {
            tap.label_on(side): width
            for side, model, taps in zip(
                SIDES, (self.models.source, self.models.target), self.taps, strict=True
            )
            for tap, width in tap_widths(model.sites, taps).items()
        }
        key = Key.of(
            "activations",
            models=[self.models.source.fingerprint, self.models.target.fingerprint],
            device=self.models.source.network.device,
            corpus=self.corpus.content_hash(),
            split=name,
            widths=widths,
            rows=rows,
        )
        cache = ActivationCache(self.folder, key, widths, rows)
        if not cache.complete:
            capture = PairedCapture(self.models.source.network, self.models.target.network)
            cache.fill(capture, batches, *self.taps)
        return cache


class _Batches(IterableDataset[Rows]):
    """One pass over a split."""

    def __init__(self, data: ActivationRows, split: str, shuffled: bool) -> None:
        self.data, self.split, self.shuffled = data, split, shuffled

    def __iter__(self) -> Iterator[Rows]:
        return self.data.batches(self.split, self.shuffled)

    def __len__(self) -> int:
        return self.data.count(self.split)


def _rising(places: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """Return the places in rising order: a batch has no order, and a disk reads on more quickly."""
    return places.sort().values


# Projection heads: from one model's activations to another's.


class ProjectionHead(nn.Module):
    """``head(x) = M x + b + W2 gelu(W1 rmsnorm(x))``: a linear skip and a small MLP.

    The MLP starts at zero, so that a head begins as its skip.

    Args:
        width: Of what it takes.
        out: Of what it gives.
        hidden: Of the MLP; 0 leaves it out.
        generator: Draws ``W1``.
    """

    def __init__(self, width: int, out: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.skip = _blank(width, out)
        self.inner = _blank(width, hidden) if hidden else None
        self.outer = _blank(hidden, out, bias=False) if hidden else None
        nn.init.zeros_(self.skip.weight)
        nn.init.zeros_(self.skip.bias)
        if self.inner is not None and self.outer is not None:
            nn.init.normal_(self.inner.weight, std=width**-0.5, generator=generator)
            nn.init.zeros_(self.inner.bias)
            nn.init.zeros_(self.outer.weight)

    def start(self, matrix: Float[Tensor, "out in"], bias: Float[Tensor, " out"]) -> None:
        """Set the skip."""
        with torch.no_grad():
            self.skip.weight.copy_(matrix)
            self.skip.bias.copy_(bias)

    def forward(self, x: Float[Tensor, "*rows in"]) -> Float[Tensor, "*rows out"]:
        """Project rows."""
        projected: Tensor = self.skip(x)
        if self.inner is None or self.outer is None:
            return projected
        scaled = x * (x.square().mean(dim=-1, keepdim=True) + 1e-6).rsqrt()
        return projected + self.outer(nn.functional.gelu(self.inner(scaled)))


def _blank(width: int, out: int, *, bias: bool = True) -> nn.Linear:
    """Return a layer whose weights are still to be set.

    A usual one draws them from the global generator; one without memory draws nothing.
    """
    return nn.Linear(width, out, bias=bias, device="meta").to_empty(device="cpu")


# How much of held-out rows a head explains, added up batch by batch.


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """Sums over rows y and over what a head misses of them, ``e = y - head(x)``, in float64.

    Attributes:
        sums: The number of rows, ``sum |e|^2`` and ``sum |y|^2``.
        missed: ``sum e``.
        there: ``sum y``.
    """

    sums: Float[Tensor, " 3"]
    missed: Float[Tensor, " width"]
    there: Float[Tensor, " width"]

    @classmethod
    def of(
        cls, made: Float[Tensor, "rows width"], y: Float[Tensor, "rows width"]
    ) -> "Reconstruction":
        """Sum over the rows of a batch."""
        error, rows = (y - made).double(), y.double()
        sums = torch.stack([error.new_tensor(len(y)), error.square().sum(), rows.square().sum()])
        return cls(sums, error.sum(dim=0), rows.sum(dim=0))

    def __add__(self, other: "Reconstruction") -> "Reconstruction":
        return Reconstruction(
            self.sums + other.sums, self.missed + other.missed, self.there + other.there
        )

    def reduced(self, summed: Callable[[Tensor], Tensor]) -> "Reconstruction":
        """Return the sums over all devices, given what sums a tensor over them."""
        return Reconstruction(summed(self.sums), summed(self.missed), summed(self.there))

    def r2(self, mean: Float[Tensor, " width"]) -> float:
        """Return ``1 - sum |e|^2 / sum |y - m|^2``; 0 where nothing varies.

        Args:
            mean: m, of the rows that the head was fitted on.
        """
        n, missed, total = self.sums.tolist()
        m = mean.to(self.there)
        return _share(missed, total - 2 * float(m @ self.there) + n * float(m @ m))

    def centred_r2(self) -> float:
        """Return the same of differences, of which a constant error is no part."""
        n, missed, total = self.sums.tolist()
        missed -= float(self.missed @ self.missed) / n
        return _share(missed, total - float(self.there @ self.there) / n)


def _share(missed: float, there: float) -> float:
    return 1 - missed / there if there > 0 else 0.0


# The heads between one space of a model and its counterpart in another, and their losses.

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the ridge that a skip starts as."""

_TINY = 1e-12


class Losses(NamedTuple):
    """What heads are trained by, each relative to what there is to explain.

    Attributes:
        reconstruction: ``|head(x) - y|^2 / |y - mean|^2``, and the same of the head that leads
            back, where there is one.
        cycle: ``|back(head(x)) - x|^2 / |x - mean|^2``.
        behaviour: ``|J^T g_y - g_x|^2 / |g_x|^2``, J being the head's derivative; 0 without
            gradients.
    """

    reconstruction: Float[Tensor, ""]
    cycle: Float[Tensor, ""]
    behaviour: Float[Tensor, ""]


class HeadPair(nn.Module):
    """A head from one space to its counterpart in the other model, and one that leads back.

    Args:
        width: Of the space that the head starts in.
        out: Of its counterpart.
        hidden: Of each head's MLP.
        both: Whether there is a head that leads back.
        generator: Draws the MLPs.

    Attributes:
        x_mean: Of the rows that the skips were solved from; likewise ``y_mean``.
        x_power: Mean squared distance of those rows from their mean; likewise ``y_power``.
    """

    x_mean: Tensor
    y_mean: Tensor
    x_power: Tensor
    y_power: Tensor

    def __init__(
        self, width: int, out: int, hidden: int, both: bool, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.head = ProjectionHead(width, out, hidden, generator)
        self.back = ProjectionHead(out, width, hidden, generator) if both else None
        for name, size in (("x", width), ("y", out)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_power", torch.ones(()))

    def start(
        self, samples: SplitMoments, gradients: SplitMoments | None, weight: float
    ) -> LinearMap:
        """Set the skips by closed forms, and return the head's.

        Args:
            samples: Moments of x and y.
            gradients: Moments of the gradients with respect to x and y, where they are known.
            weight: Of the gradients beside the samples.
        """
        centred = samples.centred()
        found = (
            Ridge(STRENGTHS).forward(*centred)
            if gradients is None
            else TwoSidedRidge(weight).forward(centred, gradients)
        )
        _start(self.head, found.matrix, samples.train)
        if self.back is not None:
            back = Ridge(STRENGTHS).backward(*centred).matrix
            _start(self.back, back, samples.train.swapped())
        rows = max(samples.train.rows, 1)
        self.x_mean.copy_(samples.train.x_sum / rows)
        self.y_mean.copy_(samples.train.y_sum / rows)
        self.x_power.fill_(max(float(centred.train.xx.trace()) / rows, _TINY))
        self.y_power.fill_(max(float(centred.train.yy.trace()) / rows, _TINY))
        return found

    def losses(
        self,
        x: Float[Tensor, "rows x"],
        y: Float[Tensor, "rows y"],
        gradients: tuple[Float[Tensor, "rows x"], Float[Tensor, "rows y"]] | None,
    ) -> Losses:
        """Return the losses of a batch of paired rows.

        Args:
            x: Rows of the space that the head starts in.
            y: Rows of its counterpart.
            gradients: With respect to both, where they are known.
        """
        x = x.detach().requires_grad_(gradients is not None)
        made = self.head(x)
        zero = made.new_zeros(())
        cycle, behaviour = zero, zero
        reconstruction = _power(made - y) / self.y_power
        if self.back is not None:
            cycle = _power(self.back(made) - x) / self.x_power
            reconstruction = reconstruction + _power(self.back(y) - x) / self.x_power
        if gradients is not None:
            g_x, g_y = gradients
            (carried,) = torch.autograd.grad(made, x, g_y, create_graph=True)
            behaviour = _power(carried - g_x) / _power(g_x).clamp_min(1e-30)
        return Losses(reconstruction, cycle, behaviour)


def _start(head: ProjectionHead, matrix: Tensor, moments: PairedMoments) -> None:
    """Set a skip, with the bias that takes the one mean to the other."""
    mean_x, mean_y = (total / max(moments.rows, 1) for total in (moments.x_sum, moments.y_sum))
    head.start(matrix.float(), (mean_y - matrix @ mean_x).float())


def _power(rows: Float[Tensor, "rows width"]) -> Float[Tensor, ""]:
    return rows.square().sum(dim=1).mean()


# All projection heads of a pair of models: made, started, trained and found by their sites.

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


# How well heads reconstruct held-out text, before their training and after each epoch.


class HeadR2:
    """The R^2 of all heads on held-out text, defined as that of the linear mappers is.

    Args:
        linear: Of the skips that the heads started as, by space.
        trained: Of the heads.
    """

    def __init__(
        self, linear: Mapping[str, float] | None = None, trained: Mapping[str, float] | None = None
    ) -> None:
        self.linear, self.trained = dict(linear or {}), dict(trained or {})
        self._sums: dict[str, Reconstruction] = {}

    def begin(self) -> None:
        """Forget the rows of the epoch before."""
        self._sums = {}

    def add(self, heads: Heads, batch: Mapping[str, Tensor]) -> None:
        """Add a batch of held-out rows."""
        for label, found in heads.reconstructions(batch).items():
            self._sums[label] = self._sums[label] + found if label in self._sums else found

    def end(self, heads: Heads, summed: Callable[[Tensor], Tensor]) -> None:
        """Note what the rows say, given what sums a tensor over all devices."""
        sums = {label: found.reduced(summed) for label, found in self._sums.items()}
        self.trained = heads.r2(sums)

    def facts(self, pairs: Iterable[SitePair]) -> dict[str, Any]:
        """Return ``input_r2`` and ``output_r2`` of each pair of sites, and their means.

        Beside each stands, as ``linear_input_r2`` and ``linear_output_r2``, that of the linear
        map which the head started as.
        """
        fits: dict[str, dict[str, dict[str, float]]] = {}
        for source, target in pairs:
            found = {}
            for prefix, r2 in (("", self.trained), ("linear_", self.linear)):
                if r2:
                    found[f"{prefix}input_r2"] = r2[read_label(source, target)]
                    found[f"{prefix}output_r2"] = r2[written_label(source, target)]
            fits.setdefault(target.label, {})[source.label] = found
        every = [found for feeds in fits.values() for found in feeds.values()]
        means = {name: sum(found[name] for found in every) / len(every) for name in every[0]}
        return {"reconstruction": means, "fits": fits}

    def state(self) -> dict[str, Any]:
        """Return everything as plain data, which the constructor takes."""
        return {"linear": self.linear, "trained": self.trained}
