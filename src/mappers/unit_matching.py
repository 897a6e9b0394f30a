"""Strings that are tokens of both models: the only points that two vocabularies share."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from operator import add

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ..adapters import Role, Site
from ..alignment.permutations import Aligner, AxisPlan, UnitSimilarity, best_assignment
from ..exceptions import ModelError
from ..models.architectures import HeadShape, rope_theta
from ..models.streaming import StreamedWeights
from .base import BasePair

MINIMUM = 16
"""Fewer shared strings say nothing about how the coordinates of two models correspond."""

_SENTENCEPIECE_SPACE = "▁"
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
        limit: How many to return at most; of more, every n-th in the order of the source's ids,
            which is about that of how often they occur.

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
        pairs = [pairs[place * len(pairs) // limit] for place in range(limit)]
    ids = torch.tensor(pairs, dtype=torch.long)
    return ids[:, 0], ids[:, 1]


def _texts(model: StreamedWeights) -> dict[bytes, int]:
    """Return the id of each string that is a token; the lowest where there are several."""
    tokenizer = model.tokenizer
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    embedded = int(model.config.vocab_size)
    texts: dict[bytes, int] = {}
    decoder = _decoder(tokenizer)
    for token, number in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if number in special or number >= embedded:
            continue
        text = _text(token, decoder)
        if text:
            texts.setdefault(text, number)
    return texts


def _decoder(tokenizer: PreTrainedTokenizerBase) -> bytes:
    """Return what the tokenizer's decoder consists of, as JSON; empty where it has none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # A tokenizer that transformers runs by sentencepiece itself.
        return _SENTENCEPIECE_SPACE.encode()
    return b"" if backend.decoder is None else backend.decoder.__getstate__()


def _text(token: str, decoder: bytes) -> bytes:
    """Return the bytes that a token stands for; none where it is no string."""
    if b'"ByteLevel"' in decoder:
        alphabet = _byte_alphabet()
        # A token that was added by hand may hold signs which are not in the alphabet.
        known = all(sign in alphabet for sign in token)
        return bytes(alphabet[sign] for sign in token) if known else token.encode()
    if _SENTENCEPIECE_SPACE.encode() in decoder:
        return b"" if _BYTE.fullmatch(token) else token.replace(_SENTENCEPIECE_SPACE, " ").encode()
    return token.encode()


@cache
def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each sign of byte-level tokenizers stands for.

    Printable bytes stand for themselves, the others for signs from 256 on in their order.
    Source: Radford et al., 2019, ``bytes_to_unicode`` in the code of GPT-2.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(hidden)
    }


# An axis of a network on which units of the source and of the target have been matched.


@dataclass(frozen=True, eq=False)
class Axis:
    """A plan, and what there is to tell about it.

    Attributes:
        plan: Which units correspond.
        facts: The plan's statistics and how it was reached, for the report.
    """

    plan: AxisPlan
    facts: Mapping[str, float | int]


# How alike the units of two modules are that a base pair's residual streams surround.

WRITERS = (Role.O, Role.DOWN)
"""The roles that write the residual stream; the others read it behind an RMSNorm."""


def site_similarity(
    pair: BasePair, source: Site, target: Site, residual: AxisPlan
) -> UnitSimilarity:
    """Compare the units inside two blocks by one module's weights.

    The units are the rows of a weight that reads the residual stream, with the gain of the
    RMSNorm in front folded in, or the columns of one that writes it. The source's weights are
    carried over to the target's residual stream first.

    Args:
        pair: The base models.
        source: A module of the source.
        target: The module of the same role in the target.
        residual: Which of the two residual streams' dimensions correspond.

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


# Which dimensions of two residual streams correspond, seen in the embeddings of shared tokens.


def residual_axis(pair: BasePair, tokens: int, align: Aligner) -> Axis:
    """Match the dimensions by how the embeddings of shared tokens correlate.

    With an RMSNorm's gain in front of every reader, the symmetries of a residual stream are the
    signed permutations: dimensions are matched by the absolute value of their correlation, and a
    pair that is correlated negatively gets the sign -1.

    Args:
        pair: The base models.
        tokens: How many shared tokens to use at most.
        align: Makes a plan of the absolute correlations.

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


# How the heads and value dimensions inside one group of attention heads match another's.

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


@dataclass(frozen=True, eq=False)
class GroupFit:
    """What coordinate descent reached for a pair of groups.

    Attributes:
        heads: Which query heads correspond.
        dims: Which dimensions of the values correspond.
        value: The sum of inner products over everything that is matched.
        sweeps: In which sweep that was reached.
    """

    heads: AxisPlan
    dims: AxisPlan
    value: float
    sweeps: int


@dataclass(frozen=True, eq=False)
class CoordinateDescent:
    """Matches heads and value dimensions in turn, each given the other, until nothing is won.

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
        heads = AxisPlan.leading(
            pair.q.inner.shape[0] // ours, pair.q.inner.shape[1] // theirs, device
        )
        best = GroupFit(heads, AxisPlan.leading(ours, theirs, device), -float("inf"), 0)
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


# Which groups, heads and head dimensions of two attention blocks correspond.


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
    pairs = [
        [_group_pair(similarity, source, i, target, j, rope) for j in range(target.groups)]
        for i in range(source.groups)
    ]
    fits = [[descent.fit(pair) for pair in row] for row in pairs]
    groups = UnitSimilarity(
        torch.tensor([[fit.value for fit in row] for row in fits]),
        torch.tensor([row[0].squared()[0] for row in pairs]),
        torch.tensor([pair.squared()[1] for pair in pairs[0]]),
    )
    weights = descent.align(groups).weights
    keys = [[rope.weights for _ in row] for row in fits]
    values = [[fit.dims.weights for fit in row] for row in fits]
    queries = [[torch.kron(fit.heads.weights, rope.weights) for fit in row] for row in fits]
    attended = [[torch.kron(fit.heads.weights, fit.dims.weights) for fit in row] for row in fits]
    facts = {
        "objective": float((weights * groups.inner).sum()),
        "sweeps": max(fit.sweeps for row in fits for fit in row),
    }
    axes = {}
    blocks = {Role.Q: queries, Role.K: keys, Role.V: values, Role.O: attended}
    for role, block in blocks.items():
        plan = _joined(weights, block)
        axes[role] = Axis(plan, plan.statistics(similarity[role]) | facts)
    return axes


def _group_pair(
    similarity: Mapping[Role, UnitSimilarity],
    source: HeadShape,
    group: int,
    target: HeadShape,
    other: int,
    rope: AxisPlan,
) -> GroupPair:
    def part(role: Role) -> UnitSimilarity:
        rows, columns = source.rows(role, group), target.rows(role, other)
        return similarity[role].block(rows, columns)

    return GroupPair(part(Role.Q), part(Role.K), part(Role.V), part(Role.O), rope)


def _joined(groups: Float[Tensor, "ours theirs"], blocks: list[list[Tensor]]) -> AxisPlan:
    """Return the plan of all rows: each pair of groups' own, by the weight of the pair."""
    rows = [
        torch.cat([weight * block for weight, block in zip(weights, row, strict=True)], dim=1)
        for weights, row in zip(groups.tolist(), blocks, strict=True)
    ]
    return AxisPlan(torch.cat(rows))


# Which dimensions of two models' queries and keys turn at about the same frequency.


def rope_plan(
    source: Float[Tensor, " source_pairs"], target: Float[Tensor, " target_pairs"]
) -> AxisPlan:
    """Match the dimensions of a head of queries and keys under rotary position embeddings.

    The i-th and the (i + dims / 2)-th dimension turn together at the i-th frequency, so that a
    permutation across frequencies would change what attention computes: each pair is matched
    to one of about its own frequency. Heads of the same width are matched dimension by
    dimension, whatever their base frequencies.

    Args:
        source: Logarithms of the frequencies of the source's pairs.
        target: Those of the target's.
    """
    # Squares, under which the best assignment between two lists of one length keeps their order.
    gaps = (source[:, None] - target).square()
    pairs = best_assignment(-gaps)
    return AxisPlan(torch.kron(torch.eye(2), pairs))


def log_frequencies(config: PretrainedConfig, layer: int, dims: int) -> Float[Tensor, " pairs"]:
    """Return the logarithms of a layer's rotary frequencies, ``-(2 i / dims) log(theta)``.

    What stretches frequencies for long contexts is left out.

    Args:
        config: The model's config.
        layer: Counted from 0.
        dims: Width of a head.
    """
    steps = torch.arange(dims // 2, dtype=torch.float64)
    return -2 * steps / dims * math.log(rope_theta(config, layer))


# The axes inside one layer of the source and one of the target, matched when they are needed.

_MLP = (Role.GATE, Role.UP, Role.DOWN)
_ATTENTION = (Role.Q, Role.K, Role.V, Role.O)


class LayerAxes:
    """The units of the MLP, and the heads of attention, of two paired layers.

    Only the blocks that are asked for are matched. One weight of each model is in memory at a
    time, and the similarities of the block at hand.

    Args:
        pair: The base models.
        source: The source's layer.
        target: The target's layer.
        residual: Which dimensions of the residual streams correspond.
        align: Makes a plan of a similarity.
        seed: Of the order of coordinate descent.
        sweeps: Of coordinate descent at most.
    """

    def __init__(
        self,
        pair: BasePair,
        source: int,
        target: int,
        residual: AxisPlan,
        align: Aligner,
        seed: int,
        sweeps: int,
    ) -> None:
        self._pair, self._layers, self._residual = pair, (source, target), residual
        self._align, self._seed, self._sweeps = align, seed, sweeps

    @property
    def layers(self) -> tuple[int, int]:
        """The source's layer and the target's."""
        return self._layers

    def inside(self, role: Role) -> Axis:
        """Return the axis that a module writes if it reads the residual stream, else reads."""
        return self._units if role in _MLP else self._heads[role]

    @cached_property
    def _units(self) -> Axis:
        """The MLP's units: one permutation, without signs, as the gate is no odd function."""
        similarity = reduce(add, (self._similarity(role) for role in _MLP))
        plan = self._align(similarity)
        objective = float((plan.weights * similarity.inner).sum())
        return Axis(plan, plan.statistics(similarity) | {"objective": objective})

    @cached_property
    def _heads(self) -> dict[Role, Axis]:
        source = HeadShape.of(self._pair.source.config)
        target = HeadShape.of(self._pair.target.config)
        rope = rope_plan(
            log_frequencies(self._pair.source.config, self._layers[0], source.dims),
            log_frequencies(self._pair.target.config, self._layers[1], target.dims),
        )
        generator = torch.Generator().manual_seed(self._seed)
        return head_axes(
            {role: self._similarity(role) for role in _ATTENTION},
            source,
            target,
            AxisPlan(rope.joint.to(self._pair.device)),
            CoordinateDescent(self._align, self._sweeps, generator),
        )

    def _similarity(self, role: Role) -> UnitSimilarity:
        source, target = (Site(layer, role) for layer in self._layers)
        return site_similarity(self._pair, source, target, self._residual)
