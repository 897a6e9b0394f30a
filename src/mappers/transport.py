"""Linear transport: ridge regression between the two models' activations on the same text.

``transport`` fits both projections of a module on activations; ``adjoint_transport`` has the output
projections also carry the gradients of the text's likelihood back.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..adapters import Role, Site
from ..alignment.linear_maps import (
    STRENGTHS,
    HeldOutError,
    LinearMap,
    Ridge,
    SplitMoments,
    TwoSidedRidge,
)
from ..alignment.moments import PairedMoments
from ..exceptions import ConfigurationError
from ..models.architectures import HeadShape
from ..models.hooks import Tap
from ..models.statistics import TapPair
from .from_anchors import checked_strengths
from .linear_text import Gathered, LinearOptions, LinearTextMapper
from .unit_matching import log_frequencies

_TURNED = (Role.Q, Role.K)


class TransportMapper(LinearTextMapper):
    """Carries A and B by ridge regression between the two models' activations on text.

    ``A_T = A_S M`` with ``x_S ~ M x_T`` between module inputs, and ``B_T = N B_S`` with
    ``dy_T ~ N dy_S`` between centred outputs: the exact ridge minimiser of
    ``|dW_T x_T - N dW_S x_S|^2``.

    Args:
        strengths: Ridge strengths to choose among by held-out error, for the input and the
            output of each module, relative to the mean square of a coordinate.
        rope_blocks: Whether the outputs of q and k are mapped head by head, by one scaled rotation
            of each pair of dimensions that turn together (:class:`RopeBlocks`).
        options: See :class:`~loraport.mappers.linear_text.LinearTextMapper`.
    """

    name: ClassVar[str] = "transport"

    def __init__(
        self,
        *,
        strengths: Sequence[float] = STRENGTHS,
        rope_blocks: bool = False,
        **options: Unpack[LinearOptions],
    ) -> None:
        super().__init__(**options)
        self.ridge = Ridge(checked_strengths(strengths, finite=True))
        self.rope_blocks = rope_blocks
        self.save_hyperparameters(
            {"strengths": list(self.ridge.strengths), "rope_blocks": rope_blocks}
        )

    def fit_input(self, source: Site, target: Site, gathered: Gathered) -> LinearMap:
        """Return ``X_S^T X_T (X_T^T X_T + lambda I)^-1``."""
        return self.ridge.backward(*gathered.inputs(source, target))

    def fit_output(self, source: Site, target: Site, gathered: Gathered) -> LinearMap:
        """Return ``Y_T^T Y_S (Y_S^T Y_S + lambda I)^-1``, or rotations of pairs."""
        if not (self.rope_blocks and target.role in _TURNED):
            return self.ridge.forward(*gathered.outputs(source, target))
        moments = {
            role: gathered.outputs(Site(source.layer, role), Site(target.layer, role))
            for role in _TURNED
            if role in self.roles
        }
        one, other = (model.network.config for model in self.models)
        ours, theirs = HeadShape.of(one), HeadShape.of(other)
        known = log_frequencies(one, source.layer, ours.dims)
        wanted = log_frequencies(other, target.layer, theirs.dims)
        nearest = (wanted[:, None] - known).abs().argmin(dim=1)
        return RopeBlocks(ours, theirs, nearest).fit(target.role, moments)


class AdjointTransportMapper(LinearTextMapper):
    """Carries A by ridge regression on activations, and B by one on activations and gradients.

    ``A_T = A_S M`` with ``x_S ~ M x_T``, as :class:`TransportMapper` has it, and ``B_T = N B_S``
    with both ``dy_T ~ N dy_S`` and ``g_S ~ N^T g_T``. What an adapter writes need not lie where
    activations vary; what it does to the likelihood of a text is then what the two models have in
    common (:mod:`~loraport.models.capture`).

    Args:
        strengths: Ridge strengths to choose among by held-out error, for the input and the
            output of each module, relative to the mean square of a coordinate.
        behaviour: Weight of the gradients' error beside that of the outputs, each relative to
            what there is to explain; 0 is ridge regression on outputs alone.
        options: See :class:`~loraport.mappers.linear_text.LinearTextMapper`.
    """

    name: ClassVar[str] = "adjoint_transport"

    def __init__(
        self,
        *,
        strengths: Sequence[float] = STRENGTHS,
        behaviour: float = 1.0,
        **options: Unpack[LinearOptions],
    ) -> None:
        super().__init__(**options)
        if not 0 <= behaviour < math.inf:
            raise ConfigurationError(
                f"mapper.behaviour is {behaviour}; it takes a finite number from 0 on, such as 1"
            )
        self.ridge = Ridge(checked_strengths(strengths, finite=True))
        self.two_sided = TwoSidedRidge(behaviour, self.ridge.strengths)
        self.save_hyperparameters({"strengths": list(self.ridge.strengths), "behaviour": behaviour})

    def tap_pairs(self, source: Site, target: Site) -> tuple[TapPair, ...]:
        """Return also where the gradients are read."""
        gradients = Tap.gradient(source), Tap.gradient(target)
        return *super().tap_pairs(source, target), gradients

    def fit_input(self, source: Site, target: Site, gathered: Gathered) -> LinearMap:
        """Return ``X_S^T X_T (X_T^T X_T + lambda I)^-1``."""
        return self.ridge.backward(*gathered.inputs(source, target))

    def fit_output(self, source: Site, target: Site, gathered: Gathered) -> LinearMap:
        """Return the solution N of ``N C_y + w C_g N = R``."""
        outputs, gradients = (of(source, target) for of in (gathered.outputs, gathered.gradients))
        return self.two_sided.forward(outputs, gradients)


class _Turns(NamedTuple):
    """The best complex factor of every pair of dimensions between every two heads."""

    real: Float[Tensor, "pairs ours theirs"]
    imaginary: Float[Tensor, "pairs ours theirs"]
    explained: Float[Tensor, "ours theirs"]


@dataclass(frozen=True, eq=False)
class RopeBlocks:
    """Fits maps of queries and keys that commute with rotary embeddings.

    Two dimensions of a head turn together as a token moves on. Read as one complex number ``z``,
    the only linear maps that let it turn are ``w = c z``: blocks ``a I + b J``, one a pair and
    head. A map that mixes pairs of other frequencies changes what attention computes with distance.

    Each target group of heads is given the source group that explains most of the variance of
    its queries and keys together, and each query head the best head of that group. A pair of
    dimensions reads the source's pair of the nearest frequency, so that heads of other widths
    and models of other rotary bases have partners.

    Attributes:
        source: The source's heads; likewise ``target``.
        pairs: For each pair of the target's dimensions the source's of nearest frequency.
    """

    source: HeadShape
    target: HeadShape
    pairs: Int[Tensor, " target_pairs"]

    def fit(self, role: Role, moments: Mapping[Role, SplitMoments]) -> LinearMap:
        """Return the map of the outputs of Q or K, from moments of centred outputs.

        Given those of both, the heads are matched by both.
        """
        turns = {each: self._turns(each, part.train) for each, part in moments.items()}
        heads = self._partners(role, turns)
        train, held_out = moments[role]
        matrix = self._matrix(turns[role], heads, train)
        return LinearMap(matrix, None, HeldOutError.of(matrix, train, held_out))

    def _turns(self, role: Role, moments: PairedMoments) -> _Turns:
        ours, theirs = (
            shape.groups * shape.heads if role is Role.Q else shape.groups
            for shape in (self.source, self.target)
        )
        half, other = self.source.dims // 2, self.target.dims // 2
        blocks = moments.xy.reshape(ours, 2, half, theirs, 2, other)
        cross = blocks[:, :, self.pairs, :, :, torch.arange(other)]
        power = moments.xx.diagonal().reshape(ours, 2, half).sum(dim=1)[:, self.pairs].mT
        inverse = torch.where(power > 0, 1 / power, 0.0)[:, :, None]
        real = cross[:, :, 0, :, 0] + cross[:, :, 1, :, 1]
        imaginary = cross[:, :, 0, :, 1] - cross[:, :, 1, :, 0]
        total = float(moments.yy.trace())
        explained = ((real.square() + imaginary.square()) * inverse).sum(dim=0)
        share = explained / total if total > 0 else explained
        return _Turns(real * inverse, imaginary * inverse, share)

    def _partners(self, role: Role, turns: Mapping[Role, _Turns]) -> list[int]:
        """Return the source's head for each of the target's heads."""
        source, target = self.source, self.target
        score = torch.zeros(source.groups, target.groups, dtype=torch.float64)
        if Role.K in turns:
            score += turns[Role.K].explained
        if Role.Q in turns:
            within = turns[Role.Q].explained.reshape(
                source.groups, source.heads, target.groups, target.heads
            )
            score += within.amax(dim=1).sum(dim=2)
        groups: list[int] = score.argmax(dim=0).tolist()
        if role is Role.K:
            return groups
        best = within.argmax(dim=1)
        return [
            group * source.heads + int(best[group, index, head])
            for index, group in enumerate(groups)
            for head in range(target.heads)
        ]

    def _matrix(
        self, turns: _Turns, heads: list[int], moments: PairedMoments
    ) -> Float[Tensor, "target source"]:
        matrix = moments.xy.new_zeros(moments.xy.shape[::-1])
        half, other = self.source.dims // 2, self.target.dims // 2
        for theirs, ours in enumerate(heads):
            rows = theirs * self.target.dims + torch.arange(other)
            columns = ours * self.source.dims + self.pairs
            real, imaginary = turns.real[:, ours, theirs], turns.imaginary[:, ours, theirs]
            matrix[rows, columns] = matrix[rows + other, columns + half] = real
            matrix[rows, columns + half] = -imaginary
            matrix[rows + other, columns] = imaginary
        return matrix
