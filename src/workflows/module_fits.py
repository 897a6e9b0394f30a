"""How well linear maps between paired modules of two models predict text that they never saw."""

from collections.abc import Sequence
from typing import NamedTuple

from ..adapters import LoraAdapter, Role, Site
from ..alignment.layer_pairing import LayerPairing
from ..alignment.linear_maps import LinearMap, Ridge
from ..data.text_corpus import TextCorpus
from ..models import BaseModel
from ..models.pair_statistics import TapPair
from ..models.paired_capture import PairedCapture
from ..models.statistics_store import RunningTotals, StatisticsStore
from ..models.taps import Tap
from ..reporting.intersection_map import ModuleFit
from .probe_states import Progress


class ModulePair(NamedTuple):
    """A site of the target, and the site of the source that it is fitted to."""

    target: Site
    source: Site

    @property
    def inputs(self) -> TapPair:
        """What both read, source first."""
        return Tap.input(self.source), Tap.input(self.target)

    @property
    def outputs(self) -> TapPair:
        """What both write, source first."""
        return Tap.output(self.source), Tap.output(self.target)


def module_pairs(pairing: LayerPairing, roles: Sequence[Role]) -> list[ModulePair]:
    """Pair the sites of each target layer with those of the source layer that feeds it most."""
    return [
        ModulePair(Site(target, role), Site(max(feeds, key=lambda feed: feed[1])[0], role))
        for target, feeds in enumerate(pairing.feeds)
        if feeds
        for role in roles
    ]


def module_fits(
    source: BaseModel,
    target: BaseModel,
    corpus: TextCorpus,
    pairs: Sequence[ModulePair],
    adapter: LoraAdapter | None,
    store: StatisticsStore,
    progress: Progress,
) -> tuple[ModuleFit, ...]:
    """Fit ridge maps between paired modules, and measure them on held-out text.

    Inputs are mapped from the target to the source, outputs from the source to the target: that
    is what carries an update ``B A`` over as ``N B A M``.

    Args:
        source: The source model.
        target: The target model.
        corpus: Text to fit on, and other text to measure on.
        pairs: The modules.
        adapter: Of the source: restricts R^2 to the directions that it reads (``A x``) and
            writes (``N B``); None for all directions.
        store: Keeps what was read of the models.
        progress: Is told what is being done.
    """
    train, held_out = corpus.train_dataloader(), corpus.val_dataloader()
    batches = len(train) + len(held_out)
    totals = store.gather(
        f"{source.fingerprint} {target.fingerprint} {corpus.content_hash()}",
        [taps for pair in pairs for taps in (pair.inputs, pair.outputs)],
        PairedCapture(source.network, target.network),
        train,
        held_out,
        progress=lambda done: progress("reading the corpus", done, batches),
    )
    fits: list[ModuleFit] = []
    readings: dict[TapPair, LinearMap] = {}  # q, k and v read the same
    for pair in pairs:
        progress("fitting maps", len(fits), len(pairs))
        if pair.inputs not in readings:
            readings[pair.inputs] = _reading(pair, totals)
        fits.append(_fit(pair, readings[pair.inputs], _writing(pair, totals), adapter))
    return tuple(fits)


def _reading(pair: ModulePair, totals: RunningTotals) -> LinearMap:
    """Return M; inputs are not centred, since a LoRA has no bias that could hold an intercept."""
    return Ridge().backward(
        totals.train.moments(*pair.inputs), totals.held_out.moments(*pair.inputs)
    )


def _writing(pair: ModulePair, totals: RunningTotals) -> LinearMap:
    """Return N; outputs are centred, since an update is a difference of outputs."""
    return Ridge().forward(
        totals.train.moments(*pair.outputs).centred(),
        totals.held_out.moments(*pair.outputs).centred(),
    )


def _fit(
    pair: ModulePair, reading: LinearMap, writing: LinearMap, adapter: LoraAdapter | None
) -> ModuleFit:
    update = None if adapter is None else adapter.get(pair.source)
    used = (
        (None, None)
        if update is None
        else (
            reading.error.restricted_r2(update.A),
            writing.error.restricted_r2((writing.matrix @ update.B.to(writing.matrix)).mT),
        )
    )
    return ModuleFit(
        target=pair.target.label,
        source=pair.source.label,
        inputs=reading.error.r2,
        outputs=writing.error.r2,
        adapter_inputs=used[0],
        adapter_outputs=used[1],
    )
