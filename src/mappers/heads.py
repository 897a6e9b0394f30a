"""Projection heads between two models' activations, their losses, and how well they reconstruct.

In the order of this file: a head, a linear skip with a small MLP; a pair of heads between a space
of one model and its counterpart in the other, with their losses; the heads of all sites of two
models; and how much of held-out rows they explain.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..adapters import Site
from ..alignment.linear_maps import LinearMap, Ridge, SplitMoments, TwoSidedRidge
from ..alignment.moments import PairedMoments
from ..models.hooks import Tap
from .activation_rows import ActivationRows
from .from_text import PairFrame, SitePair, check_varies, input_pair


class ProjectionHead(nn.Module):
    """``head(x) = M x + b + W2 gelu(W1 rmsnorm(x))``: a linear skip and a small MLP.

    The MLP starts at zero, so that a head begins as its skip.
    ``hidden`` is the width of the MLP, 0 leaves it out; the generator draws ``W1``.
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


STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Of the ridge that a skip starts as."""

_TINY = 1e-12


class Losses(NamedTuple):
    """The losses of heads, each relative to what there is to explain.

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


class Space(NamedTuple):
    """A space of one model and its counterpart in the other.

    Attributes:
        x: The label of the rows that the head takes.
        y: The label of the rows that it gives.
        gradients: The labels of the gradients with respect to x and y; None without.
        is_input: Whether it holds module inputs, which count as they are; module outputs count
            only in their differences.
    """

    x: str
    y: str
    gradients: tuple[str, str] | None
    is_input: bool

    @property
    def label(self) -> str:
        """A name for reports."""
        return f"{self.x} > {self.y}"


def input_space(source: Site, target: Site) -> Space:
    """Return the space of two sites' inputs, from the target to the source."""
    x, y = Tap.input(target).label_on("target"), Tap.input(source).label_on("source")
    return Space(x, y, None, is_input=True)


def output_space(source: Site, target: Site, gradients: bool = False) -> Space:
    """Return the space of two sites' outputs, from the source to the target."""
    x, y = Tap.output(source).label_on("source"), Tap.output(target).label_on("target")
    g_x, g_y = Tap.gradient(source).label_on("source"), Tap.gradient(target).label_on("target")
    return Space(x, y, (g_x, g_y) if gradients else None, is_input=False)


class HeadPair(nn.Module):
    """A head from a space to its counterpart in the other model, and one that leads back.

    ``width`` is that of x, ``out`` that of y, ``hidden`` that of each head's MLP; without ``both``
    no head leads back.

    Attributes:
        x_mean: Of the rows that the skips were solved from; likewise ``y_mean``.
        x_power: Mean squared distance of those rows from their mean; likewise ``y_power``.
    """

    x_mean: Tensor
    y_mean: Tensor
    x_power: Tensor
    y_power: Tensor

    def __init__(
        self,
        space: Space,
        width: int,
        out: int,
        hidden: int,
        both: bool,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.space = space
        self.head = ProjectionHead(width, out, hidden, generator)
        self.back = ProjectionHead(out, width, hidden, generator) if both else None
        for name, size in (("x", width), ("y", out)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_power", torch.ones(()))

    def start(
        self, samples: SplitMoments, gradients: SplitMoments | None, weight: float
    ) -> LinearMap:
        """Set the skips by closed forms, and return the head's.

        Moments of the gradients with respect to x and y count by their weight, where given.
        """
        check_varies(samples.train, self.space.label)
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

    def losses(self, batch: Mapping[str, Tensor]) -> Losses:
        """Return the losses of a batch of paired rows, given by their labels."""
        x, y, labels = batch[self.space.x], batch[self.space.y], self.space.gradients
        x = x.detach().requires_grad_(labels is not None)
        made = self.head(x)
        zero = made.new_zeros(())
        cycle, behaviour = zero, zero
        reconstruction = _power(made - y) / self.y_power
        if self.back is not None:
            cycle = _power(self.back(made) - x) / self.x_power
            reconstruction = reconstruction + _power(self.back(y) - x) / self.x_power
        if labels is not None:
            g_x, g_y = (batch[label] for label in labels)
            (carried,) = torch.autograd.grad(made, x, g_y, create_graph=True)
            behaviour = _power(carried - g_x) / _power(g_x).clamp_min(1e-30)
        return Losses(reconstruction, cycle, behaviour)


def _start(head: ProjectionHead, matrix: Tensor, moments: PairedMoments) -> None:
    """Set a skip, with the bias that takes the one mean to the other."""
    mean_x, mean_y = (total / max(moments.rows, 1) for total in (moments.x_sum, moments.y_sum))
    head.start(matrix.float(), (mean_y - matrix @ mean_x).float())


def _power(rows: Float[Tensor, "rows width"]) -> Float[Tensor, ""]:
    return rows.square().sum(dim=1).mean()


_START_ROWS = 20_000
"""Rows from which skips are solved at most; held-out rows, a quarter."""


class Heads(nn.Module):
    """Input projections, from the target's inputs to the source's, and output projections back.

    q, k and v share an input projection; every pair of sites has an output projection.

    Args:
        frame: The models and their sites.
        hidden: Of each head's MLP; 0 leaves it out.
        both: Whether each head has one that leads back.
        gradients: Whether output projections are trained on gradients too.
        seed: Of the MLPs.

    Attributes:
        pairs: The pairs of sites.
        by_space: The heads of each space, by its label: first those of inputs.
    """

    def __init__(
        self, frame: PairFrame, hidden: int, both: bool, gradients: bool, seed: int
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.pairs: list[SitePair] = frame.site_pairs()
        self.gradients = gradients
        inputs: dict[SitePair, HeadPair] = {}
        outputs: dict[SitePair, HeadPair] = {}
        for source, target in self.pairs:
            (out_s, in_s), (out_t, in_t) = frame.source.shapes[source], frame.target.shapes[target]
            shared = input_pair(source, target)
            if shared not in inputs:
                space = input_space(*shared)
                inputs[shared] = HeadPair(space, in_t, in_s, hidden, both, generator)
            space = output_space(source, target, gradients)
            outputs[source, target] = HeadPair(space, out_s, out_t, hidden, both, generator)
        self.input_projections, self.output_projections = (
            nn.ModuleDict({_name(pair): heads for pair, heads in side.items()})
            for side in (inputs, outputs)
        )
        self.by_space = {
            heads.space.label: heads for heads in (*inputs.values(), *outputs.values())
        }

    def input_heads(self, source: Site, target: Site) -> HeadPair:
        """Return the heads between the inputs of two sites; q, k and v share them."""
        return self.by_space[input_space(source, target).label]

    def output_heads(self, source: Site, target: Site) -> HeadPair:
        """Return the heads between the outputs of two sites."""
        return self.by_space[output_space(source, target).label]

    def taps(self) -> tuple[list[Tap], list[Tap]]:
        """Return which taps of the source and of the target the training needs."""
        kinds = (Tap.input, Tap.output, *([Tap.gradient] if self.gradients else []))
        source, target = (
            list(dict.fromkeys(kind(site) for site in sites for kind in kinds))
            for sites in zip(*self.pairs, strict=True)
        )
        return source, target

    def start(self, rows: ActivationRows, weight: float) -> dict[str, float]:
        """Solve all skips from rows of the taps, and return the held-out R^2 of each space's.

        ``weight`` is that of gradients beside activations.
        """
        found = {}
        for label, heads in self.by_space.items():
            space = heads.space
            samples = _moments(rows, space.x, space.y)
            gradients = None if space.gradients is None else _moments(rows, *space.gradients)
            found[label] = heads.start(samples, gradients, weight).error.r2
        return found

    def losses(self, batch: Mapping[str, Tensor]) -> Losses:
        """Return the losses of a batch, means over the spaces."""
        parts = [heads.losses(batch) for heads in self.by_space.values()]
        return Losses(*(torch.stack(part).mean() for part in zip(*parts, strict=True)))

    def frozen(self) -> "Heads":
        """Return heads of the same weights, in the same memory, that take no gradient."""
        memo: dict[int, Any] = {
            id(weight): nn.Parameter(weight.detach(), requires_grad=False)
            for weight in self.parameters()
        }
        return copy.deepcopy(self, memo)


def _name(pair: SitePair) -> str:
    """Return a key for a module dictionary, which takes no dots."""
    return "-".join(site.label for site in pair).replace(".", "_")


def _moments(rows: ActivationRows, x: str, y: str) -> SplitMoments:
    train, held_out = (
        PairedMoments.of(*(rows.all_rows(label, split, most) for label in (x, y)))
        for split, most in (("train", _START_ROWS), ("held_out", _START_ROWS // 4))
    )
    return SplitMoments(train, held_out)


def reconstruction_sums(
    made: Float[Tensor, "rows width"], y: Float[Tensor, "rows width"]
) -> Float[Tensor, " sums"]:
    """Return sums over rows y and over what a head misses of them, ``e = y - made``, in float64.

    ``n, sum |e|^2, sum |y|^2, sum e, sum y`` as one vector: those of batches and devices add up.
    """
    error, rows = (y - made).double(), y.double()
    totals = torch.stack([error.new_tensor(len(y)), error.square().sum(), rows.square().sum()])
    return torch.cat([totals, error.sum(dim=0), rows.sum(dim=0)])


def reconstruction_r2(
    sums: Float[Tensor, " sums"], mean: Float[Tensor, " width"] | None = None
) -> float:
    """Return ``1 - sum |e|^2 / sum |y - m|^2``; 0 where nothing varies.

    Args:
        sums: As of :func:`reconstruction_sums`.
        mean: m, of the rows that the head was fitted on. None: only differences count, of which
            a constant error is no part.
    """
    n, missed, total = sums[:3].tolist()
    error, rows = sums[3:].chunk(2)
    if mean is None:
        missed -= float(error @ error) / n
        total = total - float(rows @ rows) / n
    else:
        m = mean.to(rows)
        total = total - 2 * float(m @ rows) + n * float(m @ m)
    return 1 - missed / total if total > 0 else 0.0


class HeadR2:
    """The R^2 of all heads on held-out text, defined as that of the linear mappers is.

    By space: of the skips that the heads started as, and of the heads.
    """

    def __init__(
        self, linear: Mapping[str, float] | None = None, trained: Mapping[str, float] | None = None
    ) -> None:
        self.linear, self.trained = dict(linear or {}), dict(trained or {})
        self._sums: dict[str, Tensor] = {}

    def begin(self) -> None:
        """Forget the rows of the epoch before."""
        self._sums = {}

    def add(self, heads: Heads, batch: Mapping[str, Tensor]) -> None:
        """Add a batch of held-out rows."""
        for label, pair in heads.by_space.items():
            part = reconstruction_sums(pair.head(batch[pair.space.x]), batch[pair.space.y])
            self._sums[label] = self._sums[label] + part if label in self._sums else part

    def end(self, heads: Heads, summed: Callable[[Tensor], Tensor]) -> None:
        """Compute the R^2 of the rows; ``summed`` sums a tensor over all devices."""
        for label, pair in heads.by_space.items():
            mean = pair.y_mean if pair.space.is_input else None
            self.trained[label] = reconstruction_r2(summed(self._sums[label]), mean)

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
                    found[f"{prefix}input_r2"] = r2[input_space(source, target).label]
                    found[f"{prefix}output_r2"] = r2[output_space(source, target).label]
            fits.setdefault(target.label, {})[source.label] = found
        every = [found for feeds in fits.values() for found in feeds.values()]
        means = {name: sum(found[name] for found in every) / len(every) for name in every[0]}
        return {"reconstruction": means, "fits": fits}

    def state(self) -> dict[str, Any]:
        """Return everything as plain data, which the constructor takes."""
        return {"linear": self.linear, "trained": self.trained}
