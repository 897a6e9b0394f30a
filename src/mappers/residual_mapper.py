"""Mappers that know how two models' residual streams correspond, and keep text to use it on."""

from collections.abc import Callable
from typing import Any, ClassVar

from ..adapters import Role
from ..alignment.layer_pairing import LayerPairing
from ..alignment.linear_maps import Ridge
from ..data.aligned_batch import AlignedBatch
from ..exceptions import ConfigurationError
from ..models.activations import activations
from ..models.pair_statistics import PairStatistics
from ..models.statistics_store import StatisticsStore
from .corpus_mapper import ModelPair
from .gathering import GatheringMapper
from .kept_batches import KeptBatches
from .pair_frame import PairFrame
from .residual_map import ResidualMap, as_read, residual_taps

Progress = Callable[[int, int], None]
"""Is told how many layers are done, and of how many."""


class ResidualMapper(GatheringMapper):
    """Maps the source's residual stream behind each layer to the paired target layer's.

    The map N of ``du_T ~ N du_S`` is that of ridge regression between centred streams, as the
    next layers read them (:mod:`~loraport.mappers.residual_map`), fitted from moments in one
    epoch. With a store, a fit that was stopped goes on where it was.

    Args:
        tokens: Aligned tokens of training text that are kept.
        held_out_tokens: Aligned tokens of held-out text that are kept.

    Attributes:
        needs_models: True: the base models are used to map an adapter, too.
        maps: N of each target layer that is fed.
    """

    needs_models: ClassVar[bool] = True
    statistics_of: ClassVar[str] = "as read: "

    def __init__(self, tokens: int, held_out_tokens: int) -> None:
        super().__init__([role.value for role in Role])
        self.tokens, self.held_out_tokens = tokens, held_out_tokens
        self.maps: dict[int, ResidualMap] = {}
        self.progress: Progress = _silent
        self.kept = KeptBatches(tokens), KeptBatches(held_out_tokens)

    def use(
        self,
        models: ModelPair,
        pairing: LayerPairing,
        store: StatisticsStore | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Give the mapper the two base models, before it is trained and before it maps.

        Args:
            models: The base models. They are no part of the mapper's own state.
            pairing: Which source layers feed each target layer; after training the same again.
            store: Where statistics of their activations are kept from run to run.
            progress: Told, while an adapter is mapped, how far it is.

        Raises:
            ConfigurationError: it was fitted for other models or for another pairing.
        """
        fitted = self._frame if self.fitted else None
        super().use(models, pairing, store)
        self.progress = progress or _silent
        if fitted is not None and fitted.state() != self.described.state():
            self._frame = fitted
            raise ConfigurationError(
                f"the mapper was fitted for {fitted.source_name} and {fitted.target_name} with "
                f"the layers paired as {[list(feeds) for feeds in fitted.pairing.feeds]}, but is "
                f"used with {models.source.name} and {models.target.name}, paired as "
                f"{[list(feeds) for feeds in pairing.feeds]}; choose the pair and the pairing it "
                "was trained with, or train it again"
            )

    @property
    def fitted(self) -> bool:
        """Whether the streams have been mapped and text has been kept."""
        return bool(self.maps)

    def setup(self, stage: str) -> None:
        """One epoch is all there is to see."""
        if stage == "fit":
            self.trainer.fit_loop.max_epochs = 1

    def on_train_epoch_start(self) -> None:
        """Take up what was gathered before."""
        self.take_up(list(residual_taps(self.described.pairing).values()))
        self.kept = KeptBatches(self.tokens), KeptBatches(self.held_out_tokens)

    def training_step(self, batch: AlignedBatch, batch_idx: int) -> None:
        """Keep the first batches, and add each to the statistics that maps are fitted on."""
        self.kept[0].offer(batch)
        super().training_step(batch, batch_idx)

    def validation_step(self, batch: AlignedBatch, batch_idx: int) -> None:
        """Likewise for what maps are chosen and measured on."""
        if not self.trainer.sanity_checking:
            self.kept[1].offer(batch)
        super().validation_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        """Solve the maps from the statistics of all devices."""
        parts = self.gathered()
        ridge = Ridge()
        for target, taps in residual_taps(self.described.pairing).items():
            found = ridge.forward(*(part.moments(*taps).centred() for part in parts))
            self.maps[target] = ResidualMap.of(taps[0].layer, found)

    def fitted_state(self) -> dict[str, Any]:
        """Return the maps, the frame and the texts that an adapter is mapped on."""
        return {
            "frame": self.described.state(),
            "maps": {layer: found.state() for layer, found in self.maps.items()},
            "texts": [kept.state() for kept in self.kept],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back the maps, the frame and the texts."""
        self._frame = PairFrame.from_state(state["frame"])
        self.maps = {
            int(layer): ResidualMap.from_state(found) for layer, found in state["maps"].items()
        }
        for kept, texts in zip(self.kept, state["texts"], strict=True):
            kept.restore(texts)

    def gather(self, statistics: PairStatistics, batch: AlignedBatch) -> None:
        """Add both streams as the next layers read them."""
        sides = (
            (self.models.source.network, batch.source, batch.source_places),
            (self.models.target.network, batch.target, batch.target_places),
        )
        read = []
        for place, (network, tokens, places) in enumerate(sides):
            taps = [pair[place] for pair in statistics.pairs]
            found = activations(network, tokens, places, taps)
            read.append({tap: as_read(network, h, tap.layer) for tap, h in found.items()})
        statistics.add(*read)


def _silent(done: int, total: int) -> None:
    """Tell nobody."""
