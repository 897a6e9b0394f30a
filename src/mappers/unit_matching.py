"""Which units of two base models correspond, judged by their weights alone.

The story of a match, in the order of this file:

1. The residual streams are matched first. Their only common points are the strings that are tokens
   of both models (:func:`shared_tokens`): dimensions correspond whose embeddings of these strings
   correlate (:func:`residual_axis`).
2. Every other axis lies inside a block between an input projection (q, k, v, gate, up), whose rows
   are the units, and an output projection (o, down), whose columns are; with the residual streams
   matched the units of two models can be compared (:func:`site_similarity`).
3. The units of an MLP are matched by gate, up and down together (:func:`mlp_axis`).
4. In attention, dimensions of queries and keys stay with their rotary frequency
   (:func:`rope_plan`). Query heads and value dimensions are matched in turn within each pair of
   groups (:class:`CoordinateDescent`), then the groups by what that reached (:func:`head_axes`).
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PretrainedConfig
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ..adapters import Role, Site
from ..alignment.permutations import Aligner, AxisPlan, UnitSimilarity, best_assignment
from ..exceptions import ModelError
from ..models.architectures import HeadShape, rope_theta
from ..models.streaming import StreamedWeights
from .base import BasePair

MINIMUM = 16
"""Fewer shared strings say nothing about how the coordinates of two models correspond."""

_SENTENCEPIECE_SPACE = "▁"
_BYTE_OF_SIGN = {sign: byte for byte, sign in bytes_to_unicode().items()}
# A byte that sentencepiece falls back to: it stands for a part of a character, not for a string.
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def shared_tokens(
    source: StreamedWeights, target: StreamedWeights, limit: int
) -> tuple[Int[Tensor, " shared"], Int[Tensor, " shared"]]:
    """Return the ids, in the source and in the target, of strings that are tokens of both.

    A token stands for the text that it decodes to inside a sentence, so that ``Ġfilm`` of
    byte-level tokenizers and ``▁film`` of sentencepiece are both " film", unlike ``film``.
    Special tokens, single bytes of sentencepiece and tokens without an embedding are left out.

    Args:
        source: One model.
        target: The other one.
        limit: Of more, every n-th is taken in the order of the source's ids, which is about that
            of how often they occur.

    Raises:
        ModelError: fewer than :data:`MINIMUM` strings are shared.
    """
    ours, theirs = _texts(source), _texts(target)
    pairs = sorted((token, theirs[text]) for text, token in ours.items() if text in theirs)
    if len(pairs) < MINIMUM:
        raise ModelError(
            f"the tokenizers of {source.name} ({len(ours)} strings) and of {target.name} "
            f"({len(theirs)} strings) share {len(pairs)} strings, but it takes {MINIMUM} or more "
            "to see how the two models' embeddings correspond; choose models whose tokenizers "
            "have more in common, or a mapper that does without, such as mapper=cross_lora"
        )
    if len(pairs) > limit:
        pairs = [pairs[i * len(pairs) // limit] for i in range(limit)]
    ids = torch.tensor(pairs, dtype=torch.long)
    return ids[:, 0], ids[:, 1]


def _texts(model: StreamedWeights) -> dict[bytes, int]:
    """Return the id of each string that is a token; the lowest where there are several."""
    tokenizer = model.tokenizer
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    embedded = int(model.config.vocab_size)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # A tokenizer that transformers runs by sentencepiece itself.
        decoder = _SENTENCEPIECE_SPACE.encode()
    else:  # What the decoder consists of, as JSON.
        decoder = b"" if backend.decoder is None else backend.decoder.__getstate__()
    texts: dict[bytes, int] = {}
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if number not in special and number < embedded and (text := _text(token, decoder)):
            texts.setdefault(text, number)
    return texts


def _text(token: str, decoder: bytes) -> bytes:
    """Return the bytes that a token stands for; none where it is no string."""
    if b'"ByteLevel"' in decoder:
        # A token that was added by hand may hold signs which are not in the alphabet.
        known = all(sign in _BYTE_OF_SIGN for sign in token)
        return bytes(_BYTE_OF_SIGN[sign] for sign in token) if known else token.encode()
    if _SENTENCEPIECE_SPACE.encode() in decoder:
        return b"" if _BYTE.fullmatch(token) else token.replace(_SENTENCEPIECE_SPACE, " ").encode()
    return token.encode()


class Axis(NamedTuple):
    """A plan for the units of an axis, with its statistics and how it was reached."""

    plan: AxisPlan
    facts: Mapping[str, float | int]


def residual_axis(pair: BasePair, tokens: int, align: Aligner) -> Axis:
    """Match the dimensions by how the embeddings of at most so many shared tokens correlate.

    With an RMSNorm's gain in front of every input projection, the symmetries of a residual stream
    are the signed permutations: dimensions are matched by the absolute value of their correlation,
    and a pair that is correlated negatively gets the sign -1.

    Raises:
        ModelError: the tokenizers share too few strings.
    """
    ours, theirs = shared_tokens(pair.source, pair.target, tokens)
    one = _standardised(pair.source.embedding()[ours].to(pair.device))
    other = _standardised(pair.target.embedding()[theirs].to(pair.device))
    correlation = one.mT @ other
    similarity = UnitSimilarity(
        correlation.abs(), one.square().sum(dim=0), other.square().sum(dim=0)
    )
    plan = align(similarity)
    signs = torch.where(correlation < 0, -1.0, 1.0)
    facts = {"shared_tokens": len(ours), **plan.statistics(similarity)}
    return Axis(AxisPlan(plan.joint * signs), facts)


def _standardised(embedding: Float[Tensor, "tokens width"]) -> Float[Tensor, "tokens width"]:
    """Return the columns without their means and at norm 1; 0 where a column is constant."""
    centred = embedding.float() - embedding.float().mean(dim=0)
    norms = torch.linalg.norm(centred, dim=0)
    return torch.where(norms > 0, centred / norms, 0.0)


OUTPUT_PROJECTIONS = (Role.O, Role.DOWN)
"""The roles that write the residual stream; the others read it behind an RMSNorm."""
MLP = (Role.GATE, Role.UP, Role.DOWN)
ATTENTION = (Role.Q, Role.K, Role.V, Role.O)


def site_similarity(
    pair: BasePair, source: Site, target: Site, residual: AxisPlan
) -> UnitSimilarity:
    """Compare the units inside two blocks by the weights of a module of one role in each.

    The units are the rows of an input projection, with the gain of the RMSNorm in front folded
    in, or the columns of an output projection. The source's weights are carried over to the
    target's residual stream first.

    Raises:
        ModelError: a weight cannot be read.
    """
    theirs = _units(pair.target, target, pair.device)
    return UnitSimilarity.of(residual.input(_units(pair.source, source, pair.device)), theirs)


def _units(
    model: StreamedWeights, site: Site, device: torch.device
) -> Float[Tensor, "units width"]:
    weight = model.weight(site).to(device, torch.float32)
    gain = model.input_gain(site)
    return weight.mT if gain is None else weight * gain.to(device)


def mlp_axis(similarity: Mapping[Role, UnitSimilarity], align: Aligner) -> Axis:
    """Match the units of two MLPs: one permutation, without signs, as the gate is no odd function.

    The similarities are of the rows of gate and up, and of the columns of down.
    """
    whole = similarity[Role.GATE] + similarity[Role.UP] + similarity[Role.DOWN]
    plan = align(whole)
    objective = float((plan.weights * whole.inner).sum())
    return Axis(plan, plan.statistics(whole) | {"objective": objective})


def rope_plan(
    source: Float[Tensor, " source_pairs"], target: Float[Tensor, " target_pairs"]
) -> AxisPlan:
    """Match the dimensions of a head of queries and keys under rotary position embeddings.

    The i-th and the (i + dims / 2)-th dimension turn together at the i-th frequency, so that a
    permutation across frequencies would change what attention computes: each pair is matched
    to one of about its own frequency. Heads of the same width are matched dimension by
    dimension, whatever their base frequencies.

    Both arguments are logarithms of frequencies (:func:`log_frequencies`).
    """
    # Squares, under which the best assignment between two lists of one length keeps their order.
    gaps = (source[:, None] - target).square()
    pairs = best_assignment(-gaps)
    return AxisPlan(torch.kron(torch.eye(2), pairs))


def log_frequencies(config: PretrainedConfig, layer: int, dims: int) -> Float[Tensor, " pairs"]:
    """Return the logarithms of a layer's rotary frequencies, ``-(2 i / dims) log(theta)``.

    What stretches frequencies for long contexts is left out; ``dims`` is the width of a head.
    """
    steps = torch.arange(dims // 2, dtype=torch.float64)
    return -2 * steps / dims * math.log(rope_theta(config, layer))


_TOLERANCE = 1e-12


@dataclass(frozen=True, eq=False)
class GroupPair:
    """A group of the source and one of the target: a key-value head each, with query heads.

    Attributes:
        q: Similarity of the rows of the query heads, head by head.
        k: Of the rows of the keys.
        v: Of the rows of the values.
        o: Of the columns that read what the query heads attended to, head by head.
        rope: Which dimensions of queries and keys correspond.
    """

    q: UnitSimilarity
    k: UnitSimilarity
    v: UnitSimilarity
    o: UnitSimilarity
    rope: AxisPlan

    def of_heads(self, dims: AxisPlan) -> UnitSimilarity:
        """Return the similarity of the query heads, given the matching of value dimensions."""
        inner = torch.einsum("isjt,st->ij", self._by_head(self.q), self.rope.weights)
        inner += torch.einsum("isjt,st->ij", self._by_head(self.o), dims.weights)
        ours, theirs = self.k.inner.shape
        return UnitSimilarity(
            inner,
            (self.q.source_squared + self.o.source_squared).view(-1, ours).sum(dim=1),
            (self.q.target_squared + self.o.target_squared).view(-1, theirs).sum(dim=1),
        )

    def of_dims(self, heads: AxisPlan) -> UnitSimilarity:
        """Return the similarity of the value dimensions, given the matching of query heads."""
        ours, theirs = self.v.inner.shape
        read = UnitSimilarity(
            torch.einsum("isjt,ij->st", self._by_head(self.o), heads.weights),
            self.o.source_squared.view(-1, ours).sum(dim=0),
            self.o.target_squared.view(-1, theirs).sum(dim=0),
        )
        return self.v + read

    def value(self, heads: AxisPlan, dims: AxisPlan) -> float:
        """Return the sum of inner products over everything that is matched."""
        keys = (self.rope.weights * self.k.inner).sum()
        values = (dims.weights * self.v.inner).sum()
        return float(keys + values + (heads.weights * self.of_heads(dims).inner).sum())

    def squared(self) -> tuple[float, float]:
        """Return the squared norms of all weights of the source's and of the target's group."""
        parts = (self.q, self.k, self.v, self.o)
        return (
            sum(float(part.source_squared.sum()) for part in parts),
            sum(float(part.target_squared.sum()) for part in parts),
        )

    def _by_head(self, rows: UnitSimilarity) -> Float[Tensor, "heads dims heads_ dims_"]:
        ours, theirs = self.k.inner.shape
        return rows.inner.reshape(-1, ours, rows.inner.shape[1] // theirs, theirs)


class GroupFit(NamedTuple):
    """Which query heads and value dimensions of a pair of groups correspond.

    ``value`` is the sum of inner products over everything that is matched, reached in sweep
    ``sweeps``.
    """

    heads: AxisPlan
    dims: AxisPlan
    value: float
    sweeps: int


@dataclass(frozen=True, eq=False)
class CoordinateDescent:
    """Matches heads and value dimensions in turn, each given the other, until nothing is gained.

    Source: weight matching, Ainsworth, Hayase and Srinivasa, 2023 (Git Re-Basin), algorithm 1.

    Attributes:
        align: Makes a plan of a similarity.
        sweeps: How often both are matched anew at most.
        generator: Draws which comes first in each sweep.
    """

    align: Aligner
    sweeps: int
    generator: torch.Generator

    def fit(self, pair: GroupPair) -> GroupFit:
        """Return the matchings of a pair of groups, beginning with those in stored order."""
        device = pair.k.inner.device
        ours, theirs = pair.k.inner.shape
        counts = pair.q.inner.shape[0] // ours, pair.q.inner.shape[1] // theirs
        heads, dims = (
            AxisPlan(torch.eye(*shape, device=device)) for shape in (counts, (ours, theirs))
        )
        best = GroupFit(heads, dims, -float("inf"), 0)
        for sweep in range(1, self.sweeps + 1):
            heads, dims = best.heads, best.dims
            for coordinate in torch.randperm(2, generator=self.generator).tolist():
                if coordinate == 0:
                    heads = self.align(pair.of_heads(dims))
                else:
                    dims = self.align(pair.of_dims(heads))
            value = pair.value(heads, dims)
            if value <= best.value + _TOLERANCE:
                break
            best = GroupFit(heads, dims, value, sweep)
        return best


def head_axes(
    similarity: Mapping[Role, UnitSimilarity],
    source: HeadShape,
    target: HeadShape,
    rope: AxisPlan,
    descent: CoordinateDescent,
) -> dict[Role, Axis]:
    """Match the groups of two attention blocks, then heads and dimensions within the groups.

    The exact symmetries of attention with rotary embeddings are permutations of the groups, of
    the query heads within a group, and any change of basis of a group's values; the dimensions
    of queries and keys stay with their frequency. Within every pair of groups, heads and value
    dimensions are matched in turn; what that reaches is the similarity of the two groups.

    Args:
        similarity: Of the rows of q, k and v and of the columns of o.
        source: The source's heads.
        target: The target's heads.
        rope: Which dimensions of queries and keys correspond.
        descent: Matches heads and value dimensions within a pair of groups.

    Returns:
        The axis that q, k and v write inside the block, and that o reads.
    """

    def group_pair(ours: int, theirs: int) -> GroupPair:
        q, k, v, o = (
            similarity[role].block(source.rows(role, ours), target.rows(role, theirs))
            for role in ATTENTION
        )
        return GroupPair(q, k, v, o, rope)

    pairs = [[group_pair(i, j) for j in range(target.groups)] for i in range(source.groups)]
    fits = [[descent.fit(pair) for pair in row] for row in pairs]
    groups = UnitSimilarity(
        torch.tensor([[fit.value for fit in row] for row in fits]),
        torch.tensor([row[0].squared()[0] for row in pairs]),
        torch.tensor([pair.squared()[1] for pair in pairs[0]]),
    )
    weights = descent.align(groups).weights
    facts = {
        "objective": float((weights * groups.inner).sum()),
        "sweeps": max(fit.sweeps for row in fits for fit in row),
    }

    def axis(role: Role, block: Callable[[GroupFit], Tensor]) -> Axis:
        """The plan of all rows: each pair of groups' own, by the weight of the pair."""
        rows = [
            torch.cat([weight * block(fit) for weight, fit in zip(line, row, strict=True)], dim=1)
            for line, row in zip(weights.tolist(), fits, strict=True)
        ]
        plan = AxisPlan(torch.cat(rows))
        return Axis(plan, plan.statistics(similarity[role]) | facts)

    return {
        Role.Q: axis(Role.Q, lambda fit: torch.kron(fit.heads.weights, rope.weights)),
        Role.K: axis(Role.K, lambda fit: rope.weights),
        Role.V: axis(Role.V, lambda fit: fit.dims.weights),
        Role.O: axis(Role.O, lambda fit: torch.kron(fit.heads.weights, fit.dims.weights)),
    }
