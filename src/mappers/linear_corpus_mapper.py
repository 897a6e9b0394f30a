"""Mappers that carry A and B by linear maps, fitted from streamed moments of activations."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..adapters import Site
from ..alignment.linear_maps import LinearMap, SplitMoments
from ..data import AlignedBatch
from ..models.gradients import readings
from ..models.layer_blocks import layer_blocks
from ..models.pair_statistics import PairStatistics, TapPair
from ..models.taps import Tap, tap_widths
from .fitted_maps import FittedMaps, Reader, SitePair, Writer, input_pair
from .gathering import GatheringMapper
from .linear_carrier import LinearCarrier
from .relative_norms import RelativeNorms


class Gathered(NamedTuple):
    """The statistics of all devices, of the text to fit on and of that to measure on."""

    train: PairStatistics
    held_out: PairStatistics

    def inputs(self, source: Site, target: Site) -> SplitMoments:
        """Return the moments of what two sites read, as they are."""
        return self._moments(Tap.input(source), Tap.input(target))

    def outputs(self, source: Site, target: Site) -> SplitMoments:
        """Return the moments of what two sites write, centred."""
        return self._moments(Tap.output(source), Tap.output(target)).centred()

    def gradients(self, source: Site, target: Site) -> SplitMoments:
        """Return the moments of the gradients with respect to what two sites write, as they are.

        Only of a mapper whose :meth:`LinearCorpusMapper.tap_pairs` ask for them.
        """
        return self._moments(Tap.gradient(source), Tap.gradient(target))

    def _moments(self, source: Tap, target: Tap) -> SplitMoments:
        return SplitMoments(*(part.moments(source, target) for part in self))


class LinearCorpusMapper(GatheringMapper, LinearCarrier):
    """Fits a reader and a writer for every target site and every source layer that feeds it.

    An epoch runs both models over the text and keeps moments, no activations; the maps are solved
    at its end. Where the moments of all layers do not fit into memory the layers are taken in
    blocks, an epoch each, whatever ``max_epochs`` says. With a store, a fit that was stopped
    goes on where it was, and statistics that are complete are not gathered again.

    Args:
        roles: The roles of adapters that it shall carry.
        min_r2: See :class:`~loraport.mappers.linear_carrier.LinearCarrier`.
        match_norm: Likewise.
        memory_gb: Gigabytes that statistics may take.
    """

    def __init__(
        self,
        roles: Sequence[str],
        min_r2: float | None,
        match_norm: bool,
        memory_gb: float,
    ) -> None:
        super().__init__(roles, min_r2, match_norm)
        self.memory_gb = memory_gb
        self._blocks: tuple[tuple[TapPair, ...], ...] = ()

    @abstractmethod
    def read(self, source: Site, target: Site, gathered: Gathered) -> LinearMap:
        """Return the map from what a target site reads to what a source site reads."""

    @abstractmethod
    def write(self, source: Site, target: Site, gathered: Gathered) -> LinearMap:
        """Return the map from what a source site writes to what a target site writes."""

    def writer(self, source: Site, target: Site, gathered: Gathered) -> Writer:
        """Return the same, with what the report says of it."""
        return Writer.of(self.write(source, target, gathered))

    def tap_pairs(self, source: Site, target: Site) -> tuple[TapPair, ...]:
        """Return where the models are read for a pair of sites."""
        return (Tap.input(source), Tap.input(target)), (Tap.output(source), Tap.output(target))

    def setup(self, stage: str) -> None:
        """Split the layers into blocks that fit into memory, and ask for an epoch each."""
        if stage != "fit":
            return
        models = self.models
        pairs = [taps for pair in self._site_pairs() for taps in self.tap_pairs(*pair)]
        widths = (
            tap_widths(models.source.sites, [pair[0] for pair in pairs]),
            tap_widths(models.target.sites, [pair[1] for pair in pairs]),
        )
        self._blocks = layer_blocks(pairs, widths, self.memory_gb)
        self.trainer.fit_loop.max_epochs = len(self._blocks)
        # In inference mode there are no gradients, which readings may be asked for.
        self.trainer.fit_loop.epoch_loop.val_loop.inference_mode = False
        self.norms = RelativeNorms.of(models.source, models.target, self.described.feeds())

    def on_train_epoch_start(self) -> None:
        """Take up what was gathered before for this epoch's layers."""
        if self.current_epoch == 0:
            self.maps = FittedMaps()
        self.take_up(self._blocks[self.current_epoch])

    def on_train_epoch_end(self) -> None:
        """Solve the maps of this epoch's layers from the statistics of all devices."""
        gathered = Gathered(*self.gathered())
        layers = {pair[1].layer for pair in self._blocks[self.current_epoch]}
        self.fit_maps(gathered, [pair for pair in self._site_pairs() if pair[1].layer in layers])

    def fit_maps(self, gathered: Gathered, pairs: Sequence[SitePair]) -> None:
        """Solve the maps of some pairs of sites."""
        for source, target in pairs:
            shared = input_pair(source, target)
            if shared not in self.maps.readers:
                self.maps.readers[shared] = Reader.of(self.read(*shared, gathered))
            self.maps.writers[source, target] = self.writer(source, target, gathered)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put also the maps of some of the blocks into it, so that a stopped fit can go on."""
        super().on_save_checkpoint(checkpoint)
        if self.maps.writers:
            checkpoint[self.checkpoint_key]["state"] = self.fitted_state()

    def _site_pairs(self) -> list[SitePair]:
        feeds = self.described.feeds()
        return [(source, target) for target, found in feeds.items() for source, _ in found]

    def gather(self, statistics: PairStatistics, batch: AlignedBatch) -> None:
        """Add what the taps of both models give."""
        models, pairs = self.models, statistics.pairs
        statistics.add(
            readings(
                models.source.network, batch.source, batch.source_places, [p[0] for p in pairs]
            ),
            readings(
                models.target.network, batch.target, batch.target_places, [p[1] for p in pairs]
            ),
        )
