"""How far an adapter moves a base model on generic text: the KL divergence, token by token.

``D = E KL(p_base || p_base+adapter)`` over the tokens of texts that have nothing to do with the
adapter's task, in nats and over the full vocabulary. Both distributions are the same model's, so
that no tokens need to be aligned. For a small multiple ``s`` of an adapter ``D = s^2 F / 2``,
``F`` being the Fisher information along the adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..adapters import LoraAdapter
from ..data.answers import left_padded, positions
from ..data.text_source import cut_at_word
from ..exceptions import ConfigurationError, DataError, ModelError
from .attach import attached
from .base import BaseModel
from .label_likelihoods import length_batches
from .logits import LOGIT_POSITIONS

# So many of them are compared at once: each intermediate result is as large as they are.
_COMPARED = 32
_BYTES = 4  # of a log-probability in float32


@dataclass(frozen=True)
class Drift:
    """Mean and 95th percentile of the divergence, in nats, and over how many positions."""

    mean: float
    p95: float
    positions: int

    @classmethod
    def over(cls, divergences: Float[Tensor, " positions"]) -> "Drift":
        """Return the drift that single positions' divergences amount to."""
        exact = divergences.double()
        return cls(float(exact.mean()), float(exact.quantile(0.95)), len(exact))


class _Batch(NamedTuple):
    """Texts of like length as the model reads them, and where it is asked for its prediction."""

    input_ids: Int[Tensor, "rows tokens"]
    attention_mask: Int[Tensor, "rows tokens"]
    places: Int[Tensor, " positions"]


def divergence(
    base: Float[Tensor, "positions vocabulary"], other: Float[Tensor, "positions vocabulary"]
) -> Float[Tensor, " positions"]:
    """Return ``KL(base || other)`` of every position, of log-probabilities.

    Summed as ``sum p (e^d - 1 - d)`` with ``d = log q - log p``, which is the same number, as
    both sum to one, and has no negative term: the rounding of the normalisers, which in the plain
    sum is as large as a divergence of 1e-6, only counts squared.
    """
    gain = other - base
    share = base.exp()
    # Behind e the difference of the probabilities themselves is as exact, and never overflows.
    terms = torch.where(gain < 1, share * (gain.expm1() - gain), other.exp() - share - share * gain)
    return terms.sum(dim=-1)


class DriftGauge:
    """Measures the drift of any number of adapters of one base model on the same positions.

    The base's log-probabilities are computed once and kept in float32: half precision would
    round them by up to 4e-3, which is more than small drifts. Logits are computed at the chosen
    positions only, by the model's own head, and memory bounds how many there are.

    Args:
        base: The model without adapter.
        texts: Generic texts.
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
        _check(positions, skip, max_chars)
        self.base = base
        rows = _tokens(base, [cut_at_word(text, max_chars) for text in texts])
        generator = torch.Generator().manual_seed(seed)
        vocabulary = int(base.network.get_output_embeddings().weight.shape[0])
        room = int(memory_gb * 2**30 / _BYTES / vocabulary)
        chosen = _chosen([len(row) for row in rows], positions, skip, room, generator)
        self._batches = _batches(rows, chosen, int(base.tokenizer.pad_token_id), batch_tokens)
        self._base = self._own()

    @property
    def positions(self) -> int:
        """How many positions are looked at, of all texts together."""
        return sum(len(batch.places) for batch in self._batches)

    def of(self, adapter: LoraAdapter, scale: float = 1.0) -> Drift:
        """Return the drift of ``scale`` times the adapter.

        Raises:
            ModelError: the adapter does not fit the base model, or makes it say NaN.
        """
        return Drift.over(self.divergences(adapter, scale))

    @torch.inference_mode()
    def divergences(self, adapter: LoraAdapter, scale: float = 1.0) -> Float[Tensor, " positions"]:
        """Return the divergence at every position, texts of like length together.

        Raises:
            ModelError: the adapter does not fit the base model, or makes it say NaN.
        """
        scaled = adapter.map(lambda update: update.scaled(scale))
        found: list[Tensor] = []
        with attached(self.base.network, scaled):
            for batch, kept in zip(self._batches, self._base, strict=True):
                logits = _logits_at(self.base.network, batch)
                for place in range(0, len(kept), _COMPARED):
                    piece = logits[place : place + _COMPARED].float().log_softmax(dim=-1).cpu()
                    found.append(divergence(kept[place : place + _COMPARED], piece))
        divergences = torch.cat(found)
        if not divergences.isfinite().all():
            raise ModelError(
                f"with {scale:g} times the adapter {self.base.name} says NaN or infinity; drift "
                "takes finite logits: scale the adapter down, or load the model in float32"
            )
        return divergences

    @torch.inference_mode()
    def _own(self) -> list[Float[Tensor, "_ vocabulary"]]:
        """Return the log-probabilities of the base model, a tensor a batch."""
        kept = [
            _logits_at(self.base.network, batch).float().log_softmax(dim=-1).cpu()
            for batch in self._batches
        ]
        if not all(bool(piece.isfinite().all()) for piece in kept):
            raise ModelError(
                f"{self.base.name} itself says NaN or infinity on these texts; drift takes a model "
                "that works: load it in float32"
            )
        return kept


def drift(base: BaseModel, adapter: LoraAdapter, texts: Sequence[str], **options: Any) -> Drift:
    """Return one adapter's drift; ``options`` and errors are those of :class:`DriftGauge`."""
    return DriftGauge(base, texts, **options).of(adapter)


def _check(positions: int | None, skip: int, max_chars: int) -> None:
    """Refuse numbers that leave nothing to look at."""
    if (positions is not None and positions < 1) or skip < 0 or max_chars < 1:
        raise ConfigurationError(
            f"drift got positions={positions}, skip={skip}, max_chars={max_chars}; it takes 1 or "
            "more positions and characters, and skips 0 or more tokens"
        )


def _tokens(base: BaseModel, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each text that has any."""
    rows: list[list[int]] = base.tokenizer(list(texts))["input_ids"] if texts else []
    rows = [row for row in rows if row]
    if not rows:
        raise DataError(
            f"drift of {base.name} is measured on generic text, and none of {len(texts)} texts has "
            "a token; give texts, such as those of paths.corpus"
        )
    return rows


def _chosen(
    lengths: Sequence[int],
    positions: int | None,
    skip: int,
    room: int,
    generator: torch.Generator,
) -> list[Int[Tensor, " _"]]:
    """Draw the places in each text, at most ``room`` of all texts together."""
    each = room // len(lengths)
    if each < 1:
        raise ConfigurationError(
            f"drift keeps log-probabilities at one position a text at least, but memory_gb has "
            f"room for {room} of {len(lengths)} texts; raise memory_gb or take fewer texts"
        )
    most = each if positions is None else min(each, positions)
    chosen = []
    for length in lengths:
        first = min(skip, length - 1)
        drawn = torch.randperm(length - first, generator=generator)[:most]
        chosen.append(drawn.sort().values + first)
    return chosen


def _batches(
    rows: Sequence[Sequence[int]],
    chosen: Sequence[Int[Tensor, " _"]],
    pad_token: int,
    batch_tokens: int,
) -> list[_Batch]:
    """Return texts of like length together, with the chosen places in each flattened batch."""
    most = max(1, LOGIT_POSITIONS // max(len(places) for places in chosen))
    batches = []
    for numbers in length_batches([len(row) for row in rows], batch_tokens, most):
        ids, mask = left_padded([rows[number] for number in numbers], pad_token)
        width = ids.shape[1]
        ends = [(place + 1) * width - len(rows[number]) for place, number in enumerate(numbers)]
        places = [end + chosen[number] for end, number in zip(ends, numbers, strict=True)]
        batches.append(_Batch(ids, mask, torch.cat(places)))
    return batches


def _logits_at(network: PreTrainedModel, batch: _Batch) -> Float[Tensor, "positions vocabulary"]:
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
