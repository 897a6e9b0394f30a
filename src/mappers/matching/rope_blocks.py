"""Maps of queries and keys that commute with rotary embeddings: scaled rotations of their pairs.

Two dimensions of a head turn together as a token moves on. Read as one complex number ``z``, the
only linear maps that let it turn are ``w = c z``: blocks ``a I + b J``, one a pair and head. A
map that mixes pairs of other frequencies changes what attention computes with distance.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...adapters import Role
from ...alignment.linear_maps import HeldOutError, LinearMap, SplitMoments
from ...alignment.moments import PairedMoments
from .head_axes import HeadShape


class _Turns(NamedTuple):
    """The best complex factor of every pair of dimensions between every two heads."""

    real: Float[Tensor, "pairs ours theirs"]
    imaginary: Float[Tensor, "pairs ours theirs"]
    explained: Float[Tensor, "ours theirs"]


@dataclass(frozen=True, eq=False)
class RopeBlocks:
    """Fits the maps of queries and keys of two layers, from the source's to the target's.

    Each target group of heads is given the source group that explains most of the variance of
    its queries and keys together, and each query head the best head of that group. A pair of
    dimensions reads the source's pair of the nearest frequency, so that heads of other widths
    and models of other rotary bases have partners.

    Attributes:
        source: The source's heads.
        target: The target's heads.
        pairs: For each pair of the target's dimensions the source's, as of
            :func:`nearest_frequencies`.
    """

    source: HeadShape
    target: HeadShape
    pairs: Int[Tensor, " target_pairs"]

    def fit(self, role: Role, moments: Mapping[Role, SplitMoments]) -> LinearMap:
        """Return the map of a role's outputs.

        Args:
            role: Q or K.
            moments: Of the centred outputs, x the source's; of both Q and K the heads are
                matched by both.
        """
        turns = {known: self._turns(known, part.train) for known, part in moments.items()}
        heads = self._partners(role, turns)
        train, held_out = moments[role]
        matrix = self._matrix(turns[role], heads, train)
        return LinearMap(matrix, None, HeldOutError.of(matrix, train, held_out))

    def _turns(self, role: Role, moments: PairedMoments) -> _Turns:
        ours, theirs = (_count(shape, role) for shape in (self.source, self.target))
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
            group * source.heads + int(best[group, place, head])
            for place, group in enumerate(groups)
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


def nearest_frequencies(
    source: Float[Tensor, " source_pairs"], target: Float[Tensor, " target_pairs"]
) -> Int[Tensor, " target_pairs"]:
    """Return the source's pair of nearest frequency for each of the target's.

    Args:
        source: Logarithms of the frequencies of the source's pairs.
        target: Those of the target's.
    """
    return (target[:, None] - source).abs().argmin(dim=1)


def _count(shape: HeadShape, role: Role) -> int:
    """Return how many heads a role has."""
    return shape.groups * shape.heads if role is Role.Q else shape.groups
