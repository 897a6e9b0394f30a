"""Whether an adapter can be carried over between two base models at all: the cheap diagnosis.

Both models read the same probe texts, their layers are compared by calibrated mutual k-NN, and a
pair of which too few target layers have a counterpart is refused
(:func:`check_compatibility`) before anything is transferred. What was found is kept in the store,
so that a pair is diagnosed once.
"""

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from math import inf
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

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
from ..mappers.base import Mapper
from ..models import BaseModel
from ..models.capture import readings
from ..models.hooks import Tap
from ..progress import shown_steps
from ..settings import TextSettings
from ..store import Key, Store
from .context import RunContext

_log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and of how much."""

# With fewer rows a coverage of 0 and one of 1 are hardly told apart.
_LEAST_ROWS = 40
# Of a longer text only the beginning is run: what counts is many texts, not long ones.
_MOST_CHARS = 120
_LIMITS = {
    "rows": (_LEAST_ROWS, inf),
    "per_token": (1, inf),
    "neighbours": (1, _LEAST_ROWS - 1),
    "permutations": (20, inf),
    "surplus": (0, 1),
    "minimum": (0, 1),
}
# Of the n-gram baseline: its width, and how much the last token weighs against the sum of the
# prefix over the root of its length.
_WIDTH = 128
_LAST_WEIGHTS = (0.3, 1.0, 3.0)


# What is compared: the residual streams of both models where they have read the same text.

ProbeTexts = list[tuple[TokenBatch, Int[Tensor, " _"]]]
"""Batches of one side's tokens, and the places in them that are compared."""

Streams = tuple[Float[Tensor, "rows _"], ...]
"""The residual stream behind each layer, row by row; layers may differ in width."""


@dataclass(frozen=True, eq=False)
class ProbeStates:
    """Paired rows, one matrix a layer.

    Attributes:
        source: The source's residual stream behind each layer.
        target: The target's, row by row paired with it.
        source_baselines: What the source's tokens make alike without trained layers: n-grams
            (:func:`ngram_baselines`), and the layers of the :func:`untrained` source.
        target_baselines: The same of the target.
        tokens: The target's token of each row.
        documents: The text of each row.
        aligned: How many word ends there were to choose rows from.
    """

    source: tuple[Float[Tensor, "rows source"], ...]
    target: tuple[Float[Tensor, "rows target"], ...]
    source_baselines: Streams
    target_baselines: Streams
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
        progress: Called with the number of texts that are read.
    """
    batches = list(corpus.train_dataloader())
    source_ids, target_ids = (
        torch.cat([b.source.input_ids.flatten()[b.source_places] for b in batches]),
        torch.cat([b.target.input_ids.flatten()[b.target_places] for b in batches]),
    )
    documents = torch.cat([batch.documents for batch in batches])
    chosen = chosen_rows(
        source_ids, target_ids, documents, rows=rows, per_token=per_token, seed=seed
    )
    masks = torch.split(chosen, [len(batch.documents) for batch in batches])
    kept = [_restricted(b, mask) for b, mask in zip(batches, masks, strict=True) if mask.any()]
    of_source = [(batch.source, batch.source_places) for batch in kept]
    of_target = [(batch.target, batch.target_places) for batch in kept]
    done, total = 0, 4 * len(kept)

    def streams(base: BaseModel, network: PreTrainedModel, texts: ProbeTexts) -> Streams:
        nonlocal done
        taps = [Tap.residual(layer) for layer in range(base.sites.layers)]
        read = []
        for tokens, places in texts:
            states = dict(readings(network, tokens, places, taps))
            read.append(tuple(states[tap].float().cpu() for tap in taps))
            done += 1
            progress("reading probes", done, total)
        return _joined(read)

    def baselines(base: BaseModel, texts: ProbeTexts) -> Streams:
        ngrams = _joined([ngram_baselines(tokens, places, seed) for tokens, places in texts])
        return (*ngrams, *streams(base, untrained(base, seed), texts))

    return ProbeStates(
        source=streams(source, source.network, of_source),
        target=streams(target, target.network, of_target),
        source_baselines=baselines(source, of_source),
        target_baselines=baselines(target, of_target),
        tokens=target_ids[chosen],
        documents=documents[chosen],
        aligned=len(chosen),
    )


def _joined(batches: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def untrained(base: BaseModel, seed: int) -> PreTrainedModel:
    """Return a network of the same configuration with random layers behind the base's embeddings.

    What its layers have in common with another model's is what token embeddings alone make alike.

    Args:
        base: A model; its token embeddings are shared, not copied.
        seed: Draws the other weights.
    """
    network = base.network
    drawn: Any = drawn_network(network.config, network.dtype, seed)
    drawn.set_input_embeddings(network.get_input_embeddings())
    return drawn.to(network.device).eval().requires_grad_(False)


def drawn_network(config: PretrainedConfig, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    """Return a network of a configuration with the random weights that it begins with."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def _restricted(batch: AlignedBatch, mask: Bool[Tensor, " aligned"]) -> AlignedBatch:
    """Return a batch with the chosen word ends alone."""
    return batch._replace(
        source_places=batch.source_places[mask],
        target_places=batch.target_places[mask],
        documents=batch.documents[mask],
    )


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
        for row in order:
            keys = candidates[row]
            free = all(c[k] < m for c, k, m in zip(counts, keys, limits, strict=True))
            if left == 0 or not free:
                skipped.append(row)
                continue
            for count, key in zip(counts, keys, strict=True):
                count[key] += 1
            chosen[row] = True
            left -= 1
        order = skipped
    return chosen


def ngram_baselines(
    tokens: TokenBatch, positions: Int[Tensor, " rows"], seed: int
) -> tuple[Float[Tensor, "rows width"], ...]:
    """Return mixtures of random token vectors: what the bare text makes alike, without any model.

    Models with random weights that differ in everything still have the same neighbours, as many as
    trained ones: both mix the tokens of the same prefix, and rows whose prefixes have tokens in
    common come out alike. So similarity counts as far as it exceeds that with these mixtures.

    Args:
        tokens: Texts; the same token has the same vector in every batch.
        positions: Of the tokens in ``tokens.input_ids.flatten()``.
        seed: Draws the vectors.
    """
    distinct, indices = torch.unique(tokens.input_ids, return_inverse=True)
    drawn = torch.stack(
        [
            torch.randn(_WIDTH, generator=torch.Generator().manual_seed(seed * 1_000_003 + token))
            for token in distinct.tolist()
        ]
    )
    vectors = drawn[indices] * tokens.attention_mask[..., None]
    lengths = torch.arange(1, tokens.input_ids.shape[1] + 1)[:, None]
    prefix = vectors.cumsum(dim=1) / lengths.sqrt()
    mixtures = (weight * vectors + prefix for weight in _LAST_WEIGHTS)
    return tuple(mixture.flatten(0, 1)[positions] for mixture in mixtures)


# How alike they are.


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
    def of(cls, plain: dict[str, Any]) -> "Compatibility":
        """Return what was written as plain data."""
        return cls(**plain | {"similarity": tuple(map(tuple, plain["similarity"]))})

    def record(self, minimum: float, *, force: bool, needed: bool = True) -> CompatibilityRecord:
        """Return what reports hold of it; ``needed`` says whether a mapper rests on it."""
        return CompatibilityRecord(
            coverage=self.coverage,
            minimum=minimum,
            identification=self.identification,
            rows=self.rows,
            needed=needed,
            forced=force and needed and self.coverage < minimum,
        )


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
        surplus: Similarity beyond that with the other side's baselines (n-grams, random layers
            behind its embeddings), which a layer has to have.
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
        for name, (least, most) in _LIMITS.items():
            number = getattr(self, name)
            if not least <= number <= most:
                takes = f"at least {least}" if most == inf else f"{least} to {most}"
                raise ConfigurationError(
                    f"diagnosis.{name} is {number}; it takes {takes}, or diagnosis=none to leave "
                    "the diagnosis out"
                )

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
        """Return which target layers have a counterpart: beyond chance, n-grams and embeddings.

        Beside what :func:`~loraport.alignment.coverage` asks for, a target layer and
        its best source layer have to be more alike than either is to the other's baselines:
        ``(s - s_baseline) / (1 - s_baseline) >= surplus``.
        """
        found = coverage(similarity)
        whole = self.measure.compare(
            [*states.target, *states.target_baselines], [*states.source, *states.source_baselines]
        )(torch.arange(states.rows))
        targets, sources = similarity.raw.shape
        best = torch.tensor(found.best)
        of_baseline = torch.maximum(
            whole[:targets, sources:].amax(dim=1), whole[targets:, :sources].amax(dim=0)[best]
        )
        scores = similarity.raw.gather(1, best[:, None])[:, 0]
        beyond = rescaled(scores, of_baseline)
        return replace(found, scores=beyond, covered=found.covered & (beyond >= self.surplus))

    def judge(self, states: ProbeStates, similarity: LayerMap) -> Compatibility:
        """Say what the similarity of :attr:`measure` means for the pair."""
        identified = layer_identification(self.measure, states.target, states.source, self.seed)
        covered = self.coverage(states, similarity)
        return Compatibility(
            similarity=tuple(tuple(row) for row in similarity.calibrated.tolist()),
            coverage=covered.share,
            identification=identified,
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


# The check before a transfer.


def check_compatibility(
    context: RunContext, mappers: Iterable[type[Mapper]]
) -> CompatibilityRecord | None:
    """Diagnose the pair of a configuration, unless that is left out, and refuse a hopeless one.

    Args:
        context: The configuration.
        mappers: What is to be used. It is looked at where the coverage is too low: a pair is
            refused where any of them needs layers that correspond, and warned of otherwise.

    Returns:
        What reports are to hold; None with ``diagnosis=none``.

    Raises:
        IncompatibleError: the coverage is too low, and ``force`` is not set.
        ModelError: a base model cannot be found or read.
        DataError: the probes cannot be read.
    """
    settings: TextSettings = context.settings
    if settings.diagnosis is None:
        return None
    diagnosis: Diagnosis = settings.diagnosis.build()
    found = compatibility_of(context, diagnosis)
    needed = found.coverage >= diagnosis.minimum or any(m.needs_correspondence for m in mappers)
    record = found.record(diagnosis.minimum, force=settings.force, needed=needed)
    refuse_incompatible(context, record)
    if not needed:
        _log.warning("%s", record.words)
    return record


def compatibility_of(context: RunContext, diagnosis: Diagnosis) -> Compatibility:
    """Return how alike the pair's models are: as it is kept, or as it is found now."""
    probes: ProbeSet = context.settings.probes.build()

    def compare() -> dict[str, Any]:
        with shown_steps() as progress:
            source, target = (context.model(side) for side in SIDES)
            for model in (source, target):  # a trainer may have moved it since it was loaded
                model.move("cpu")
            return asdict(diagnosis.compare(source, target, probes, progress))

    key = compatibility_key(context, diagnosis, probes)
    return Compatibility.of(Store(context.cache).made(key, compare))


def known_compatibility(context: RunContext) -> Compatibility | None:
    """Return how alike the pair's models are, where that is kept already."""
    settings: TextSettings = context.settings
    if settings.diagnosis is None:
        return None
    key = compatibility_key(context, settings.diagnosis.build(), settings.probes.build())
    kept = Store(context.cache).get(key)
    return None if kept is None else Compatibility.of(kept)


def compatibility_key(context: RunContext, diagnosis: Diagnosis, probes: ProbeSet) -> Key:
    """Return the key of a pair's compatibility: both models, the probes and the options."""
    store = Store(context.cache)
    sources = [context.model_source(side) for side in SIDES]
    return Key.of(
        "diagnoses",
        models=[store.folder_hash(source.weights(context.cache).folder) for source in sources],
        dtypes=[getattr(source, "dtype", "float32") for source in sources],
        device=torch.device("cpu"),
        precision=torch.get_float32_matmul_precision(),
        probes=list(probes.texts(TRAIN)),
        options={name: value for name, value in asdict(diagnosis).items() if name != "minimum"},
    )


def refuse_incompatible(context: RunContext, record: CompatibilityRecord) -> None:
    """Raise IncompatibleError where the coverage is too low and ``force`` is not set."""
    if record.coverage >= record.minimum or record.forced or not record.needed:
        return
    pair = context.settings.pair.name
    source, target = (context.model_source(side).name for side in SIDES)
    raise IncompatibleError(
        f"{source} and {target} (pair={pair}) represent text too "
        f"differently: only {record.coverage:.0%} of the target's layers have a counterpart in the "
        f"source (calibrated mutual k-NN of {record.rows} word ends), and at least "
        f"{record.minimum:.0%} are needed, so that an adapter would not work. `python diagnose.py "
        f"pair={pair}` shows more; force=true goes on nevertheless, and diagnosis=none "
        "leaves this check out; the default port (`python transfer.py` without mapper=) pairs no "
        "layers and goes on"
    )
