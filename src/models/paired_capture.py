"""Activations of two base models on the same texts, batch by batch."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from transformers import PreTrainedModel

from ..data.aligned_batch import AlignedBatch
from .activations import Activations
from .gradients import readings
from .taps import Tap

Progress = Callable[[int], None]
"""Is told how many batches are done."""


class PairedActivations(NamedTuple):
    """What two models hold at the same tokens of the same texts.

    Attributes:
        source: The source model's activations, a row a token.
        target: The target model's, row by row paired with them.
        batch: What they were computed from.
    """

    source: Activations
    target: Activations
    batch: AlignedBatch


class PairedCapture:
    """Runs both base models over aligned batches, one batch at a time.

    Args:
        source: The source model; an adapter that is attached to it takes part.
        target: The target model, likewise.
    """

    def __init__(self, source: PreTrainedModel, target: PreTrainedModel) -> None:
        self._source = source
        self._target = target

    def run(
        self,
        batches: Iterable[AlignedBatch],
        source_taps: Iterable[Tap],
        target_taps: Iterable[Tap],
        *,
        skip: int = 0,
        progress: Progress | None = None,
    ) -> Iterator[PairedActivations]:
        """Yield the activations of each batch.

        Args:
            batches: The texts, in a fixed order.
            source_taps: Where to read the source model.
            target_taps: Where to read the target model.
            skip: So many leading batches are passed over, and no model is run on them.
            progress: Called when the receiver has done with a batch, and once with ``skip``.
        """
        source_taps, target_taps = tuple(source_taps), tuple(target_taps)
        if progress is not None and skip:
            progress(skip)
        for done, batch in enumerate(islice(batches, skip, None), start=skip + 1):
            yield PairedActivations(
                dict(readings(self._source, batch.source, batch.source_places, source_taps)),
                dict(readings(self._target, batch.target, batch.target_places, target_taps)),
                batch,
            )
            if progress is not None:
                progress(done)
