"""Carries over what an adapter does to the residual stream, and fits a LoRA that does it."""

import math
from collections.abc import Sequence
from typing import Any

from ..adapters import LoraAdapter, Role
from ..data.aligned_batch import AlignedBatch
from ..exceptions import AdapterError, ConfigurationError
from ..models.activations import activations
from ..models.attach import attached
from ..models.taps import Tap
from .base import Report
from .residual_fit import ResidualFit, ResidualFitOptions, WantedChange
from .residual_map import change_as_read
from .residual_mapper import ResidualMapper

WRITERS = (Role.O.value, Role.DOWN.value)
STRENGTHS = (1e-2, 1e-1, 1.0, 10.0)


class ResidualTransportMapper(ResidualMapper):
    """Fits a LoRA to the change of the residual stream that the source's adapter makes.

    Training maps the source's stream behind each layer to that of the paired target layer, by
    ridge regression between centred streams, and keeps some batches of text.
    To port an adapter, source and target run over these: the source with the adapter and
    without it, and the target from below upward with what has been fitted
    (:class:`~loraport.mappers.residual_fit.ResidualFit`). Which modules the adapter updates does
    not matter, only what becomes of the stream.

    Args:
        writers: The target's modules that get an update, of those that write to the stream.
        rank: Of their updates; None is the highest rank of the adapter's own.
        tokens: Aligned tokens that updates are fitted on.
        held_out_tokens: Aligned tokens of other texts: they choose strengths and sizes, and the
            report is measured on them.
        strengths: Ridge strengths to choose among, without unit.
        restraint: How dear it is to change a module's output where little of it reaches the
            stream (:class:`~loraport.mappers.residual_stream.OutputMetric`).
        answer_weight: How much the last aligned token of a text counts; others count 1.

    Raises:
        ConfigurationError: an option has a value that it cannot take.
    """

    def __init__(
        self,
        writers: Sequence[str] = WRITERS,
        rank: int | None = None,
        tokens: int = 4000,
        held_out_tokens: int = 1500,
        strengths: Sequence[float] = STRENGTHS,
        restraint: float = 0.1,
        answer_weight: float = 1.0,
    ) -> None:
        super().__init__(tokens, held_out_tokens)
        self.writers, self.rank = tuple(writers), rank
        self.strengths = tuple(float(strength) for strength in strengths)
        self.restraint, self.answer_weight = restraint, answer_weight
        self._check_options()
        self.save_hyperparameters(
            {
                "writers": list(self.writers),
                "rank": rank,
                "tokens": tokens,
                "held_out_tokens": held_out_tokens,
                "strengths": list(self.strengths),
                "restraint": restraint,
                "answer_weight": answer_weight,
            }
        )
        self._found: dict[int, dict[str, Any]] = {}

    def map(self, adapter: LoraAdapter) -> LoraAdapter:
        """Return the target adapter, in float32.

        Raises:
            AdapterError: the adapter is not one of the source, or nothing of what it does could
                be made in the target.
        """
        self.frame.check(adapter)
        target = self.models.target
        train, held_out = (self._wanted(adapter, kept.batches) for kept in self.kept)
        fit = ResidualFit(target, train, held_out, self._options(adapter))
        fit.run(tuple(self.maps), self.progress)
        self._found = fit.facts
        if not fit.updates:
            raise AdapterError(
                f"nothing that the adapter of {adapter.base_model} does to the residual stream of "
                f"{self.described.source_name} could be made in {target.name} on held-out text; "
                "train the mapper on more text, with data.tokens and mapper.tokens"
            )
        return LoraAdapter(fit.updates, target.name)

    def report(self) -> Report:
        """Return how well text predicts the streams, and what became of the last adapter."""
        frame = self.frame
        return {
            "pairing": [[list(feed) for feed in feeds] for feeds in frame.pairing.feeds],
            "tokens": {"train": self.kept[0].tokens, "held_out": self.kept[1].tokens},
            "layers": {
                str(layer): {
                    "source_layer": found.source_layer,
                    "map_r2": found.r2,
                    "map_strength": found.strength,
                    **self._found.get(layer, {}),
                }
                for layer, found in self.maps.items()
            },
        }

    def _wanted(self, adapter: LoraAdapter, batches: Sequence[AlignedBatch]) -> WantedChange:
        """Run the source with the adapter and without it, and carry the difference over."""
        source = self.models.source.network
        taps = {t: Tap.residual(found.source_layer) for t, found in self.maps.items()}
        behind = []
        for batch in batches:
            read = []
            for one in (None, adapter):
                with attached(source, one):
                    read.append(
                        activations(source, batch.source, batch.source_places, taps.values())
                    )
            without, having = read
            behind.append(
                {
                    layer: self.maps[layer].carried(
                        change_as_read(source, without[tap], having[tap], tap.layer)
                    )
                    for layer, tap in taps.items()
                }
            )
        return WantedChange(batches, behind)

    def _options(self, adapter: LoraAdapter) -> ResidualFitOptions:
        rank = self.rank or max(update.rank for update in adapter.values())
        roles = tuple(Role(writer) for writer in self.writers)
        return ResidualFitOptions(roles, rank, self.strengths, self.restraint, self.answer_weight)

    def _check_options(self) -> None:
        if not self.writers or set(self.writers) - set(WRITERS):
            raise ConfigurationError(
                f"mapper.writers is {list(self.writers)}; it takes one or both of "
                f"{', '.join(WRITERS)}, the modules that write to the residual stream"
            )
        if not self.strengths or not all(0 < strength < math.inf for strength in self.strengths):
            raise ConfigurationError(
                f"mapper.strengths is {list(self.strengths)}; it takes one or more positive finite "
                f"numbers, such as {list(STRENGTHS)}"
            )
        counts = {"tokens": self.tokens, "held_out_tokens": self.held_out_tokens}
        counts |= {} if self.rank is None else {"rank": self.rank}
        for name, count in counts.items():
            if count < 1:
                raise ConfigurationError(f"mapper.{name}={count}, but it takes at least 1")
        sizes = {"restraint": self.restraint, "answer_weight": self.answer_weight}
        for name, size in sizes.items():
            if not 0 < size < math.inf:
                raise ConfigurationError(
                    f"mapper.{name}={size}, but it takes a positive finite number"
                )
