"""How far an adapter moves a base model's next-token distributions on generic text.

The measure is ``E KL(p_base || p_base+adapter)`` over the tokens of texts that have nothing to do
with the adapter's task, in nats and over the full vocabulary. Both distributions are the same
model's, so that no tokens need to be aligned. For a small multiple ``s`` of an adapter it is
``s^2 F / 2``, F being the Fisher information along the adapter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..adapters import LoraAdapter
from ..data.corpora import cut_at_word
from ..data.prompts import left_padded, positions
from ..exceptions import ConfigurationError, DataError, ModelError
from .hooks import Attachable, attached
from .likelihood import LOGIT_POSITIONS, length_batches
from .loading import BaseModel

# So many positions are compared at once: each intermediate result is as large as their logits.
_COMPARED = 32
_BYTES = 4  # of a log-probability in float32

LogProbabilities = Float[Tensor, "positions vocabulary"]


class _Batch(NamedTuple):
    """Texts of like length as the model reads them, and the places in the flattened batch."""

    input_ids: Int[Tensor, "rows tokens"]
    attention_mask: Int[Tensor, "rows tokens"]
    places: Int[Tensor, " positions"]


def divergence(base: LogProbabilities, other: LogProbabilities) -> Float[Tensor, " positions"]:
    """Return ``KL(base || other)`` of every position.

    Summed as ``sum p (e^d - 1 - d)`` with ``d = log q - log p``, which is the same number, as
    both sum to one, and has no negative term: the rounding of the normalisers, which in the plain
    sum is as large as a divergence of 1e-6, only counts squared.
    """
    gain = other - base
    share = base.exp()
    # Beyond e the difference of the probabilities themselves is as exact, and never overflows.
    terms = torch.where(gain < 1, share * (gain.expm1() - gain), other.exp() - share - share * gain)
    return terms.sum(dim=-1)


def js_divergence(one: LogProbabilities, other: LogProbabilities) -> Float[Tensor, " positions"]:
    """Return the Jensen-Shannon divergence of every position, of finite log-probabilities.

    ``JS = KL(p || m) / 2 + KL(q || m) / 2`` with ``m = (p + q) / 2``, in nats: symmetric, and
    between 0 and ln 2. Each token's share is written as a multiple of the greater of its two
    probabilities, so that it is the same from both sides, never overflows, and keeps its digits
    where the two are nearly the same. Source: Lin, Divergence measures based on the Shannon
    entropy, 1991.
    """
    gap = -(one - other).abs()
    # log(m / greater), from 0 where both are alike down to -ln 2.
    middle = torch.log1p(gap.expm1() / 2)
    shares = torch.maximum(one, other).exp() * (gap.exp() * (gap - middle) - middle)
    return shares.clamp_min(0).sum(dim=-1) / 2


def same_choice(one: LogProbabilities, other: LogProbabilities) -> Bool[Tensor, " positions"]:
    """Return at which positions both find the same token most likely."""
    return one.argmax(dim=-1) == other.argmax(dim=-1)


@dataclass(frozen=True)
class KlToBase:
    """Mean and 95th percentile of the divergence, in nats, and over how many positions."""

    mean: float
    p95: float
    positions: int

    @classmethod
    def over(cls, divergences: Float[Tensor, " positions"]) -> "KlToBase":
        """Return the summary of single positions' divergences."""
        exact = divergences.double()
        return cls(float(exact.mean()), float(exact.quantile(0.95)), len(exact))


class KlToBaseGauge:
    """Measures the KL to base of any number of adapters of one model at the same positions.

    The base's log-probabilities are computed once and kept in float32: half precision would
    round them by up to 4e-3, which is more than small divergences. Logits are computed at the
    chosen positions only, by the model's own head, and memory bounds how many there are.

    Args:
        base: The model without adapter.
        texts: Generic texts; those without a token are left out.
        positions: Positions a text at most, drawn at random; None takes all.
        skip: So many tokens at the start of a text are not looked at, where it has more: what a
            model says there depends on hardly any text.
        max_chars: A text is cut at the last word boundary before so many characters.
        batch_tokens: Tokens a forward pass, padding included.
        memory_gb: For what is kept; where it does not suffice, fewer positions a text are taken.
        seed: Of the draw.

    Raises:
        ConfigurationError: a number is out of range, or memory too small for a position a text.
        DataError: none of the texts has a token.
        ModelError: the model's own logits are not finite.
    """

    def __init__(
        self,
        base: BaseModel,
        texts: Sequence[str],
        *,
        positions: int | None = 8,
        skip: int = 4,
        max_chars: int = 400,
        batch_tokens: int = 4096,
        memory_gb: float = 0.5,
        seed: int = 0,
    ) -> None:
        if (positions is not None and positions < 1) or skip < 0 or max_chars < 1:
            raise ConfigurationError(
                f"KL to base got positions={positions}, skip={skip}, max_chars={max_chars}; it "
                "takes 1 or more positions and characters, and skips 0 or more tokens"
            )
        self.base = base
        cut = [cut_at_word(text, max_chars) for text in texts]
        rows = [row for row in base.tokenizer(cut)["input_ids"] if row] if cut else []
        if not rows:
            raise DataError(
                f"KL to base of {base.name} is measured on generic text, and none of {len(texts)} "
                "texts has a token; give texts, such as those of paths.corpus"
            )
        room = room_for(base, memory_gb)
        each = room // len(rows)
        if each < 1:
            raise ConfigurationError(
                "KL to base keeps log-probabilities at one position a text at least, but "
                f"memory_gb has room for {room} of {len(rows)} texts; raise memory_gb or take "
                "fewer texts"
            )
        chosen = _drawn(rows, each if positions is None else min(each, positions), skip, seed)
        self._batches = list(_batches(base, rows, chosen, batch_tokens))
        self._base = self._own()

    @property
    def positions(self) -> int:
        """How many positions are looked at, of all texts together."""
        return sum(len(batch.places) for batch in self._batches)

    def of(self, adapter: LoraAdapter, scale: float = 1.0) -> KlToBase:
        """Return the KL to base of ``scale`` times the adapter.

        Raises:
            ModelError: the adapter does not fit the base model, or makes it say NaN.
        """
        return KlToBase.over(self.divergences(adapter, scale))

    @torch.inference_mode()
    def divergences(self, adapter: LoraAdapter, scale: float = 1.0) -> Float[Tensor, " positions"]:
        """Return the divergence at every position, texts of like length together.

        Raises:
            ModelError: the adapter does not fit the base model, or makes it say NaN.
        """
        scaled = adapter.map(lambda update: update.scaled(scale))
        divergences = torch.cat([divergence(own, other) for own, other in self.compared(scaled)])
        if not divergences.isfinite().all():
            raise ModelError(
                f"with {scale:g} times the adapter {self.base.name} says NaN or infinity; KL to "
                "base takes finite logits: scale the adapter down, or load the model in float32"
            )
        return divergences

    @torch.inference_mode()
    def compared(
        self, adapter: LoraAdapter | Attachable
    ) -> Iterator[tuple[LogProbabilities, LogProbabilities]]:
        """Give the log-probabilities without and with an adapter, some positions at a time.

        Raises:
            LoraportError: the adapter does not fit the base model.
        """
        with attached(self.base.network, adapter):
            for batch, kept in zip(self._batches, self._base, strict=True):
                logits = _logits(self.base.network, batch)
                for first in range(0, len(kept), _COMPARED):
                    part = slice(first, first + _COMPARED)
                    yield kept[part], logits[part].float().log_softmax(dim=-1).cpu()

    @torch.inference_mode()
    def _own(self) -> list[Float[Tensor, "_ vocabulary"]]:
        """Return the log-probabilities of the base model, a tensor a batch."""
        kept = [
            _logits(self.base.network, batch).float().log_softmax(dim=-1).cpu()
            for batch in self._batches
        ]
        if not all(bool(part.isfinite().all()) for part in kept):
            raise ModelError(
                f"{self.base.name} itself says NaN or infinity on these texts; KL to base takes a "
                "model that works: load it in float32"
            )
        return kept


def kl_to_base(
    base: BaseModel, adapter: LoraAdapter, texts: Sequence[str], **options: Any
) -> KlToBase:
    """Return one adapter's KL to base, with the options and errors of :class:`KlToBaseGauge`."""
    return KlToBaseGauge(base, texts, **options).of(adapter)


@dataclass(frozen=True)
class Divergences:
    """Means over positions of what lies between a model without and with an adapter.

    Attributes:
        positions: How many were compared.
        kl: Mean of ``KL(base || with the adapter)``, in nats.
        kl_p95: Its 95th percentile.
        js: Mean Jensen-Shannon divergence, in nats; 0 the same, ln 2 nothing in common.
        top1: Share of the positions at which both find the same token most likely.
    """

    positions: int
    kl: float
    kl_p95: float
    js: float
    top1: float


class DivergenceGauge:
    """Measures any number of adapters by several divergences, at the same positions.

    Of more texts than asked for, or than memory has room for at a position each, some are drawn.

    Args:
        base: The model without adapter.
        texts: Generic texts, or the prompts of a suite.
        most: So many texts are looked at, drawn from all.
        positions: Positions a text at most, drawn at random.
        memory_gb: For what is kept.
        seed: Of the draws.

    Raises:
        ConfigurationError: a number is out of range.
        DataError: none of the texts has a token.
        ModelError: the model's own logits are not finite.
    """

    def __init__(
        self,
        base: BaseModel,
        texts: Sequence[str],
        *,
        most: int = 64,
        positions: int = 4,
        memory_gb: float = 0.5,
        seed: int = 0,
    ) -> None:
        fitting = min(most, room_for(base, memory_gb))
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(texts), generator=generator)[:fitting].sort().values.tolist()
        drawn = [texts[number] for number in order]
        self._gauge = KlToBaseGauge(
            base, drawn, positions=positions, memory_gb=memory_gb, seed=seed
        )

    @torch.inference_mode()
    def of(self, adapter: LoraAdapter | Attachable) -> Divergences:
        """Return how far an adapter moves the model, by all measures, in one pass.

        Raises:
            LoraportError: the adapter does not fit the base model, or makes it say NaN.
        """
        parts = [
            (divergence(*pair), js_divergence(*pair), same_choice(*pair))
            for pair in self._gauge.compared(adapter)
        ]
        kl, js, same = (torch.cat(part) for part in zip(*parts, strict=True))
        if not (kl.isfinite().all() and js.isfinite().all()):
            raise ModelError(
                f"with the adapter {self._gauge.base.name} says NaN or infinity; divergences take "
                "finite logits: scale the adapter down, or load the model in float32"
            )
        summary = KlToBase.over(kl)
        return Divergences(
            positions=summary.positions,
            kl=summary.mean,
            kl_p95=summary.p95,
            js=float(js.double().mean()),
            top1=float(same.double().mean()),
        )


def room_for(base: BaseModel, memory_gb: float) -> int:
    """Return at how many positions a model's log-probabilities fit into so much memory."""
    vocabulary = int(base.network.get_output_embeddings().weight.shape[0])
    return int(memory_gb * 2**30 / _BYTES / vocabulary)


def _drawn(
    rows: Sequence[Sequence[int]], most: int, skip: int, seed: int
) -> list[Int[Tensor, " _"]]:
    """Draw the places in each text, at most so many."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for row in rows:
        first = min(skip, len(row) - 1)
        drawn = torch.randperm(len(row) - first, generator=generator)[:most]
        chosen.append(drawn.sort().values + first)
    return chosen


def _batches(
    base: BaseModel,
    rows: Sequence[Sequence[int]],
    chosen: Sequence[Int[Tensor, " _"]],
    batch_tokens: int,
) -> Iterator[_Batch]:
    """Give texts of like length together, with the chosen places in each flattened batch."""
    most = max(1, LOGIT_POSITIONS // max(len(places) for places in chosen))
    for numbers in length_batches([len(row) for row in rows], batch_tokens, most):
        ids, mask = left_padded(
            [rows[number] for number in numbers], int(base.tokenizer.pad_token_id)
        )
        width = ids.shape[1]
        places = [
            (line + 1) * width - len(rows[number]) + chosen[number]
            for line, number in enumerate(numbers)
        ]
        yield _Batch(ids, mask, torch.cat(places))


def _logits(network: PreTrainedModel, batch: _Batch) -> Float[Tensor, "positions vocabulary"]:
    """Return the logits at the batch's places, by the architecture's own forward pass.

    Nothing else meets the head, and the model's scaling and capping of logits hold.
    """

    def pick(_head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states = arguments[0].flatten(0, 1)
        return (states[batch.places.to(states.device)][None], *arguments[1:])

    head: Any = network.get_output_embeddings()
    handle = head.register_forward_pre_hook(pick)
    try:
        logits: Tensor = network(
            input_ids=batch.input_ids.to(network.device),
            attention_mask=batch.attention_mask.to(network.device),
            position_ids=positions(batch.attention_mask).to(network.device),
            use_cache=False,
        ).logits
    finally:
        handle.remove()
    return logits[0]
