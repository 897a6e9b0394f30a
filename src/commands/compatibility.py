"""What a text's surface alone makes alike: the control for similarity between two models.

Models with random weights that differ in everything still have the same neighbours, as many as
trained ones: both mix the tokens of the same prefix, and rows whose prefixes have tokens in common
come out alike. So similarity counts as far as it exceeds that with such a mixture, in which every
token has a random vector.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..alignment.coverage import (
    Coverage,
    LayerMap,
    coverage,
    layer_identification,
    layer_map,
    rescaled,
)
from ..alignment.similarity import LayerMeasure, MutualKnn
from ..data.corpora import TRAIN
from ..data.probe_sets import ProbeSet
from ..data.text_corpus import AlignedBatch, TextCorpus, TokenBatch
from ..data.zoo import SIDES
from ..evaluation.records import CompatibilityRecord
from ..exceptions import ConfigurationError, DataError, IncompatibleError
from ..files import write_whole
from ..models import BaseModel, ModelSource
from ..models.capture import PairedCapture
from ..models.hooks import Tap
from ..store import Store
from .context import RunContext, build, option, shown_bars

_WIDTH = 128
# How much the last token weighs against the sum of the prefix over the root of its length.
_LAST = (0.3, 1.0, 3.0)


def ngram_baselines(
    tokens: TokenBatch, places: Int[Tensor, " rows"], seed: int
) -> tuple[Float[Tensor, "rows width"], ...]:
    """Return some mixtures of random token vectors at the given tokens.

    Args:
        tokens: Texts; the same token has the same vector in every batch.
        places: Tokens by their places in ``tokens.input_ids.flatten()``.
        seed: Draws the vectors.
    """
    vectors = _vectors(tokens.input_ids, seed) * tokens.attention_mask[..., None]
    lengths = torch.arange(1, tokens.input_ids.shape[1] + 1)[:, None]
    prefix = vectors.cumsum(dim=1) / lengths.sqrt()
    return tuple((weight * vectors + prefix).flatten(0, 1)[places] for weight in _LAST)


def _vectors(ids: Int[Tensor, "texts tokens"], seed: int) -> Float[Tensor, "texts tokens width"]:
    """Return a random vector a token, which depends on seed and token alone."""
    distinct, places = torch.unique(ids, return_inverse=True)
    drawn = torch.stack(
        [
            torch.randn(_WIDTH, generator=torch.Generator().manual_seed(seed * 1_000_003 + token))
            for token in distinct.tolist()
        ]
    )
    return drawn[places]


# The residual streams of two models where both have read the same text up to a word's end.

Progress = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and of how much."""


@dataclass(frozen=True, eq=False)
class ProbeStates:
    """Paired rows, one matrix a layer.

    Attributes:
        source: The source's residual stream behind each layer.
        target: The target's, row by row paired with it.
        source_surfaces: What the source's tokens alone would give, without any model.
        target_surfaces: The same of the target's tokens.
        tokens: The target's token of each row.
        documents: The text of each row.
        aligned: How many word ends there were to choose rows from.
    """

    source: tuple[Float[Tensor, "rows source"], ...]
    target: tuple[Float[Tensor, "rows target"], ...]
    source_surfaces: tuple[Float[Tensor, "rows surface"], ...]
    target_surfaces: tuple[Float[Tensor, "rows surface"], ...]
    tokens: Int[Tensor, " rows"]
    documents: Int[Tensor, " rows"]
    aligned: int

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(self.tokens)


def read_probe_states(
    source: BaseModel,
    target: BaseModel,
    corpus: TextCorpus,
    *,
    rows: int,
    per_token: int,
    seed: int,
    progress: Progress,
) -> ProbeStates:
    """Run both models over the probe texts and keep some rows of every layer's residual stream.

    Args:
        source: The source model.
        target: The target model.
        corpus: The texts, as both read them.
        rows: Keep at most so many.
        per_token: Keep at most so many with the same token on both sides.
        seed: Draws the rows.
        progress: Is told how many texts are read.
    """
    batches = list(corpus.train_dataloader())
    ids = (
        torch.cat([b.source.input_ids.flatten()[b.source_places] for b in batches]),
        torch.cat([b.target.input_ids.flatten()[b.target_places] for b in batches]),
    )
    documents = torch.cat([batch.documents for batch in batches])
    chosen = chosen_rows(ids[0], ids[1], documents, rows=rows, per_token=per_token, seed=seed)
    kept = list(_restricted(batches, chosen))
    taps = [[Tap.residual(layer) for layer in range(m.sites.layers)] for m in (source, target)]
    found: tuple[list[list[Tensor]], ...] = ([[] for _ in taps[0]], [[] for _ in taps[1]])
    capture = PairedCapture(source.network, target.network)
    for done, states in enumerate(capture.run(kept, *taps)):
        progress("reading probes", done, len(kept))
        for layers, of_side, read in zip(found, taps, (states.source, states.target), strict=True):
            for rows_of, tap in zip(layers, of_side, strict=True):
                rows_of.append(read[tap].float().cpu())
    progress("reading probes", len(kept), len(kept))
    return ProbeStates(
        source=tuple(torch.cat(rows_of) for rows_of in found[0]),
        target=tuple(torch.cat(rows_of) for rows_of in found[1]),
        source_surfaces=_joined([ngram_baselines(b.source, b.source_places, seed) for b in kept]),
        target_surfaces=_joined([ngram_baselines(b.target, b.target_places, seed) for b in kept]),
        tokens=ids[1][chosen],
        documents=documents[chosen],
        aligned=len(chosen),
    )


def _joined(batches: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def chosen_rows(
    source_tokens: Int[Tensor, " aligned"],
    target_tokens: Int[Tensor, " aligned"],
    documents: Int[Tensor, " aligned"],
    *,
    rows: int,
    per_token: int,
    seed: int,
) -> Bool[Tensor, " aligned"]:
    """Choose rows of as many different tokens and texts as there are.

    Two models that have learnt nothing still hold the same token, or tokens of the same text,
    as more alike than others. So each token is chosen once, of as many texts as possible, before
    any is chosen twice.

    Args:
        source_tokens: The source's token of each aligned word end.
        target_tokens: The target's.
        documents: The text that it is of.
        rows: Choose at most so many.
        per_token: Choose at most so many of the same tokens.
        seed: Of the order in which they are looked at.
    """
    tokens = zip(source_tokens.tolist(), target_tokens.tolist(), strict=True)
    candidates = list(zip(tokens, documents.tolist(), strict=True))
    order = list(range(len(candidates)))
    random.Random(f"probe rows {seed}").shuffle(order)
    counts: tuple[Counter[object], ...] = (Counter(), Counter())
    chosen = torch.zeros(len(candidates), dtype=torch.bool)
    left, most = rows, max(Counter(documents.tolist()).values(), default=0)
    for level in range(1, max(most, per_token) + 1):
        limits = (min(level, per_token), level)
        skipped = []
        for place in order:
            keys = candidates[place]
            free = all(c[k] < m for c, k, m in zip(counts, keys, limits, strict=True))
            if left == 0 or not free:
                skipped.append(place)
                continue
            for count, key in zip(counts, keys, strict=True):
                count[key] += 1
            chosen[place] = True
            left -= 1
        order = skipped
    return chosen


def _restricted(
    batches: list[AlignedBatch], chosen: Bool[Tensor, " aligned"]
) -> list[AlignedBatch]:
    """Return the batches with the chosen rows alone, and without batches that have none."""
    kept, begin = [], 0
    for batch in batches:
        mask = chosen[begin : begin + len(batch.documents)]
        begin += len(mask)
        if mask.any():
            kept.append(
                batch._replace(
                    source_places=batch.source_places[mask],
                    target_places=batch.target_places[mask],
                    documents=batch.documents[mask],
                )
            )
    return kept


# How much of a target model has a counterpart in a source model, as it is kept on disk.


@dataclass(frozen=True)
class Compatibility:
    """How much of a target model has a counterpart in a source model.

    Attributes:
        similarity: Calibrated mutual k-NN of every target layer with every source layer.
        coverage: Share of the target's layers with a counterpart.
        identification: Share of the layers that their counterparts lead back to.
        rows: Aligned word ends that were compared.
    """

    similarity: tuple[tuple[float, ...], ...]
    coverage: float
    identification: float
    rows: int

    @classmethod
    def read(cls, path: Path) -> "Compatibility | None":
        """Return what is kept in a file; None where there is none, or a damaged one."""
        try:
            kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            rows = tuple(tuple(map(float, row)) for row in kept.pop("similarity"))
            return cls(similarity=rows, **kept)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return None

    def write(self, path: Path) -> None:
        """Keep it in a file.

        Raises:
            OutputError: the file cannot be written.
        """
        write_whole(path, json.dumps(asdict(self)) + "\n")

    def record(self, minimum: float, *, force: bool) -> CompatibilityRecord:
        """Return what reports hold of it."""
        return CompatibilityRecord(
            coverage=self.coverage,
            minimum=minimum,
            identification=self.identification,
            rows=self.rows,
            forced=force and self.coverage < minimum,
        )


# The cheap part of the diagnosis: may an adapter be carried over between two models at all?

# With fewer rows a coverage of 0 and one of 1 are hardly told apart.
_LEAST_ROWS = 40
# Of a longer text only the beginning is run: what counts is many texts, not long ones.
_MOST_CHARS = 120


@dataclass(frozen=True)
class Diagnosis:
    """What is compared, and how much similarity is asked for.

    Attributes:
        rows: Aligned word ends that are compared, at most.
        per_token: At most so many of them with the same token on both sides.
        skip: Tokens at the start of each text that are left out: models keep there what belongs
            to no word.
        neighbours: k of mutual k-NN.
        permutations: Of the rows, against which similarities are calibrated.
        surplus: Similarity beyond that with the bare text, which a layer has to have.
        minimum: Coverage under which a transfer stops.
        batch_tokens: Tokens a forward pass, at most.
        seed: Draws rows and permutations.

    Raises:
        ConfigurationError: a number is out of its range.
    """

    rows: int = 1000
    per_token: int = 3
    skip: int = 2
    neighbours: int = 10
    permutations: int = 200
    surplus: float = 0.1
    minimum: float = 0.5
    batch_tokens: int = 4096
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"rows": _LEAST_ROWS, "per_token": 1, "neighbours": 1, "permutations": 20}
        for name, number in least.items():
            given = getattr(self, name)
            if given < number:
                raise ConfigurationError(
                    f"diagnosis.{name} is {given}; it takes at least {number}, or diagnosis=none "
                    "to leave the diagnosis out"
                )
        if not self.neighbours < _LEAST_ROWS:
            raise ConfigurationError(
                f"diagnosis.neighbours is {self.neighbours}; it takes less than {_LEAST_ROWS}"
            )
        for name in ("surplus", "minimum"):
            given = getattr(self, name)
            if not 0 <= given <= 1:
                raise ConfigurationError(f"diagnosis.{name} is {given}; it takes 0 to 1")

    def states(
        self, source: BaseModel, target: BaseModel, probes: ProbeSet, progress: Progress
    ) -> ProbeStates:
        """Read both models' residual streams on the probe texts.

        Raises:
            DataError: the two models' tokens hardly ever end at the same place of a text.
        """
        corpus = TextCorpus(
            probes,
            source.tokenizer,
            target.tokenizer,
            # Many more than are compared, so that few have the same token.
            tokens=8 * self.rows,
            max_chars=_MOST_CHARS,
            batch_tokens=self.batch_tokens,
            skip=self.skip,
            seed=self.seed,
        )
        states = read_probe_states(
            source,
            target,
            corpus,
            rows=self.rows,
            per_token=self.per_token,
            seed=self.seed,
            progress=progress,
        )
        if states.rows < _LEAST_ROWS:
            raise DataError(
                f"the probes have {states.aligned} word ends at which both {source.name} and "
                f"{target.name} have read the same, but only {states.rows} with different enough "
                f"tokens, and it takes {_LEAST_ROWS}; choose other probes=, or diagnosis=none"
            )
        return states

    @property
    def measure(self) -> MutualKnn:
        """What coverage goes by."""
        return MutualKnn(self.neighbours)

    def similarity(self, states: ProbeStates, measure: LayerMeasure) -> LayerMap:
        """Compare all layers by a measure, calibrated."""
        return layer_map(
            measure,
            states.target,
            states.source,
            permutations=self.permutations,
            seed=self.seed,
        )

    def coverage(self, states: ProbeStates, similarity: LayerMap) -> Coverage:
        """Return which target layers have a counterpart: beyond chance and beyond the text.

        Beside what :func:`~loraport.alignment.coverage` asks for, a target layer and
        its best source layer have to be more alike than either is to the bare text of the other:
        ``(s - s_text) / (1 - s_text) >= surplus``.
        """
        found = coverage(similarity)
        whole = self.measure.compare(
            [*states.target, *states.target_surfaces], [*states.source, *states.source_surfaces]
        ).matrix(torch.arange(states.rows))
        targets, sources = similarity.raw.shape
        best = torch.tensor(found.best)
        of_text = torch.maximum(
            whole[:targets, sources:].amax(dim=1), whole[targets:, :sources].amax(dim=0)[best]
        )
        scores = similarity.raw.gather(1, best[:, None])[:, 0]
        beyond = rescaled(scores, of_text)
        return replace(found, scores=beyond, covered=found.covered & (beyond >= self.surplus))

    def judge(self, states: ProbeStates, similarity: LayerMap) -> Compatibility:
        """Say what the similarity of :attr:`measure` means for the pair."""
        found = layer_identification(self.measure, states.target, states.source, self.seed)
        covered = self.coverage(states, similarity)
        return Compatibility(
            similarity=tuple(tuple(row) for row in similarity.calibrated.tolist()),
            coverage=covered.share,
            identification=found.accuracy,
            rows=states.rows,
        )

    def compare(
        self, source: BaseModel, target: BaseModel, probes: ProbeSet, progress: Progress
    ) -> Compatibility:
        """Do the whole of the cheap diagnosis.

        Raises:
            DataError: the two models' tokens hardly ever end at the same place of a text.
        """
        states = self.states(source, target, probes, progress)
        progress("comparing layers", 0, 1)
        return self.judge(states, self.similarity(states, self.measure))


# What a diagnosis shows while it works.


@contextmanager
def diagnosis_progress() -> Iterator[Progress]:
    """Show what is being done, how far it is, and how long the rest takes."""
    with shown_bars() as progress:
        bar = progress.add_task("loading models", total=None)

        def told(what: str, done: int, total: int) -> None:
            progress.update(bar, description=what, completed=done, total=total)

        yield told


# Refusing a pair of base models between which no adapter can be carried over.

# Raise it when the code changes what is kept or what comes out of it.
_FORMAT = 1


def check_compatibility(context: RunContext) -> CompatibilityRecord | None:
    """Diagnose the pair of a configuration, unless that is left out, and refuse a hopeless one.

    What was found is kept in the cache, under both models, the probes and the options, so that a
    pair is diagnosed once.

    Returns:
        What reports are to hold; None with ``diagnosis=none``.

    Raises:
        IncompatibleError: the coverage is too low, and ``force`` is not set.
        ModelError: a base model cannot be found or read.
        DataError: the probes cannot be read.
    """
    force = option(context.config, "force", bool)
    if "_target_" not in context.config.diagnosis:
        return None
    diagnosis: Diagnosis = build(context.config.diagnosis)
    probes: ProbeSet = build(context.config.probes)
    place = kept_at(context, diagnosis, probes)
    found = Compatibility.read(place)
    if found is None:
        with diagnosis_progress() as progress:
            source, target = (context.model(side) for side in SIDES)
            found = diagnosis.compare(source, target, probes, progress)
        found.write(place)
    record = found.record(diagnosis.minimum, force=force)
    refuse_incompatible(context, record)
    return record


def kept_at(context: RunContext, diagnosis: Diagnosis, probes: ProbeSet) -> Path:
    """Return the file in the cache that is kept for a pair, its probes and the options."""
    options = {name: value for name, value in asdict(diagnosis).items() if name != "minimum"}
    store = Store(context.cache)
    sources: list[ModelSource] = [build(context.config.pair[side]) for side in SIDES]
    key_parts = {
        "format": _FORMAT,
        "models": [store.folder_hash(source.weights(context.cache).folder) for source in sources],
        "dtypes": [getattr(source, "dtype", "float32") for source in sources],
        "probes": list(probes.texts(TRAIN)),
        "options": options,
    }
    key = hashlib.sha256(json.dumps(key_parts, sort_keys=True).encode()).hexdigest()
    return context.cache / "compatibility" / f"{key[:32]}.json"


def refuse_incompatible(context: RunContext, record: CompatibilityRecord) -> None:
    """Raise IncompatibleError where the coverage is too low and ``force`` is not set."""
    if record.coverage >= record.minimum or record.forced:
        return
    source, target = (context.config.pair[side] for side in SIDES)
    names = [str(build(side).name) for side in (source, target)]
    raise IncompatibleError(
        f"{names[0]} and {names[1]} (pair={context.config.pair.name}) represent text too "
        f"differently: only {record.coverage:.0%} of the target's layers have a counterpart in the "
        f"source (calibrated mutual k-NN of {record.rows} word ends), and at least "
        f"{record.minimum:.0%} are needed, so that an adapter would not work. `python diagnose.py "
        f"pair={context.config.pair.name}` shows more; force=true goes on nevertheless, and "
        "diagnosis=none leaves this check out"
    )
