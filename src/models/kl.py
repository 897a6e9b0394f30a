"""How far an adapter moves a base model's next-token distributions on generic text.

The measure is ``E KL(p_base || p_base+adapter)`` over the tokens of texts that have nothing to do
with the adapter's task, in nats and over the full vocabulary. Both distributions are the same
model's, so that no tokens need to be aligned. For a small multiple ``s`` of an adapter it is
``s^2 F / 2``, F being the Fisher information along the adapter.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..adapters import LoraAdapter
from ..data.corpora import cut_at_word
from ..data.prompts import left_padded, pad_token, positions
from ..exceptions import ConfigurationError, DataError, ModelError
from .hooks import Attachable, attached
from .likelihood import LOGIT_POSITIONS, length_batches, picked_logits
from .loading import BaseModel

# So many positions are compared at once: each intermediate result is as large as their logits.
_COMPARED = 32
_BYTES = 4  # of a log-probability in float32
_MAX_CHARS = 400  # of a text
_SKIPPED = 4  # tokens at the start of a text, where it has more
_BATCH_TOKENS = 4096  # padding included

LogProbabilities = Float[Tensor, "positions vocabulary"]


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


@dataclass(frozen=True)
class KlToBase:
    """Mean and 95th percentile of the KL to base, in nats, and over how many positions."""

    mean: float
    p95: float
    positions: int

    @classmethod
    def over(cls, divergences: Float[Tensor, " positions"]) -> "KlToBase":
        """Return the summary of single positions' divergences."""
        exact = divergences.double()
        return cls(float(exact.mean()), float(exact.quantile(0.95)), len(exact))


@dataclass(frozen=True)
class Divergences:
    """Means over positions of what lies between a model without and with an adapter, in nats."""

    positions: int
    kl: float  # KL(base || with the adapter)
    kl_p95: float  # its 95th percentile
    js: float  # Jensen-Shannon; 0 the same, ln 2 nothing in common
    top1: float  # share of the positions at which both find the same token most likely


class KlToBaseGauge:
    """Measures how far any number of adapters move one model, at the same positions.

    The base's log-probabilities are computed once and kept in float32: half precision would
    round them by up to 4e-3, which is more than small divergences. Logits are computed at the
    chosen positions only, by the model's own head, and memory bounds how many there are.

    Args:
        base: The model without adapter.
        texts: Generic texts, each cut to 400 characters; those without a token are left out.
        most: So many texts are looked at, or as many as memory has room for at a position each,
            drawn at random; None takes all.
        positions: Positions a text at most, drawn at random behind its first 4 tokens, where a
            model says what depends on hardly any text.
        memory_gb: For what is kept; where it does not suffice, fewer positions a text are taken.
        seed: Of the draws.

    Raises:
        ConfigurationError: there is no position, or memory is too small for one in each text.
        DataError: none of the texts has a token.
        ModelError: the model's own logits are not finite.
    """

    def __init__(
        self,
        base: BaseModel,
        texts: Sequence[str],
        *,
        most: int | None = None,
        positions: int = 8,
        memory_gb: float = 0.5,
        seed: int = 0,
    ) -> None:
        if positions < 1:
            raise ConfigurationError(f"KL to base got positions={positions}; it takes 1 or more")
        self.base = base
        vocabulary = int(base.network.get_output_embeddings().weight.shape[0])
        room = int(memory_gb * 2**30 / _BYTES / vocabulary)
        if most is not None:
            generator = torch.Generator().manual_seed(seed)
            order = torch.randperm(len(texts), generator=generator)[: min(most, room)]
            texts = [texts[number] for number in order.sort().values.tolist()]
        cut = [cut_at_word(text, _MAX_CHARS) for text in texts]
        rows = [row for row in base.tokenizer(cut)["input_ids"] if row] if cut else []
        if not rows:
            raise DataError(
                f"KL to base of {base.name} is measured on generic text, and none of {len(texts)} "
                "texts has a token; give texts, such as those of paths.corpus"
            )
        each = room // len(rows)
        if each < 1:
            raise ConfigurationError(
                "KL to base keeps log-probabilities at one position a text at least, but "
                f"memory_gb has room for {room} of {len(rows)} texts; raise memory_gb or take "
                "fewer texts"
            )
        chosen = _drawn(rows, min(each, positions), seed)
        self._batches = list(_batches(base, rows, chosen))
        with torch.inference_mode():
            self._base = [
                self._logits(*batch).float().log_softmax(dim=-1).cpu() for batch in self._batches
            ]
        if not all(bool(part.isfinite().all()) for part in self._base):
            raise ModelError(
                f"{base.name} itself says NaN or infinity on these texts; KL to base takes a "
                "model that works: load it in float32"
            )

    @property
    def positions(self) -> int:
        """How many positions are looked at, of all texts together."""
        return sum(map(len, self._base))

    def of(self, adapter: LoraAdapter, scale: float = 1.0) -> KlToBase:
        """Return the KL to base of ``scale`` times the adapter.

        Raises:
            LoraportError: the adapter does not fit the base model, or makes it say NaN; so do the
                methods below.
        """
        return KlToBase.over(self.divergences(adapter, scale))

    @torch.inference_mode()
    def divergences(self, adapter: LoraAdapter, scale: float = 1.0) -> Float[Tensor, " positions"]:
        """Return what :meth:`of` sums up: the KL of each position, like texts together."""
        scaled = adapter.map(lambda update: update.scaled(scale))
        return self._finite(torch.cat([divergence(*pair) for pair in self._compared(scaled)]))

    @torch.inference_mode()
    def measures(self, adapter: LoraAdapter | Attachable) -> Divergences:
        """Return how far an adapter moves the model by all measures, in one pass."""
        parts = [
            (divergence(own, other), js_divergence(own, other), own.argmax(-1) == other.argmax(-1))
            for own, other in self._compared(adapter)
        ]
        kl, js, same = (torch.cat(part) for part in zip(*parts, strict=True))
        summary = KlToBase.over(self._finite(kl))
        return Divergences(
            positions=summary.positions,
            kl=summary.mean,
            kl_p95=summary.p95,
            js=float(js.double().mean()),
            top1=float(same.double().mean()),
        )

    def _finite(self, divergences: Tensor) -> Tensor:
        if not divergences.isfinite().all():
            raise ModelError(
                f"with the adapter {self.base.name} says NaN or infinity; KL to base takes finite "
                "logits: scale the adapter down, or load the model in float32"
            )
        return divergences

    def _compared(
        self, adapter: LoraAdapter | Attachable
    ) -> Iterator[tuple[LogProbabilities, LogProbabilities]]:
        """Give the log-probabilities without and with an adapter, some positions at a time."""
        with attached(self.base.network, adapter):
            for batch, kept in zip(self._batches, self._base, strict=True):
                logits = self._logits(*batch)
                for first in range(0, len(kept), _COMPARED):
                    part = slice(first, first + _COMPARED)
                    yield kept[part], logits[part].float().log_softmax(dim=-1).cpu()

    def _logits(
        self, ids: Int[Tensor, "rows tokens"], mask: Int[Tensor, "rows tokens"], places: Tensor
    ) -> LogProbabilities:
        """Return the logits at places of the flattened batch."""
        device = self.base.network.device
        logits = picked_logits(
            self.base.network,
            lambda states: states.flatten(0, 1)[places.to(states.device)][None],
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions(mask).to(device),
        )
        return logits[0]


def _drawn(rows: Sequence[Sequence[int]], most: int, seed: int) -> list[Int[Tensor, " _"]]:
    """Draw the places in each text, at most so many."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for row in rows:
        first = min(_SKIPPED, len(row) - 1)
        drawn = torch.randperm(len(row) - first, generator=generator)[:most]
        chosen.append(drawn.sort().values + first)
    return chosen


def _batches(
    base: BaseModel, rows: Sequence[Sequence[int]], chosen: Sequence[Int[Tensor, " _"]]
) -> Iterator[tuple[Tensor, Tensor, Int[Tensor, " positions"]]]:
    """Give texts of like length together: tokens, mask, chosen places in the flattened batch."""
    most = max(1, LOGIT_POSITIONS // max(len(places) for places in chosen))
    for numbers in length_batches([len(row) for row in rows], _BATCH_TOKENS, most):
        ids, mask = left_padded([rows[number] for number in numbers], pad_token(base.tokenizer))
        width = ids.shape[1]
        places = [
            (line + 1) * width - len(rows[number]) + chosen[number]
            for line, number in enumerate(numbers)
        ]
        yield ids, mask, torch.cat(places)
