"""The cheap part of the diagnosis: may an adapter be carried over between two models at all?"""

from dataclasses import dataclass, replace

import torch

from ..alignment.similarity import (
    Coverage,
    LayerMap,
    LayerMeasure,
    MutualKnn,
    coverage,
    layer_identification,
    layer_map,
)
from ..alignment.similarity.calibration import rescaled
from ..data.probe_sets import ProbeSet
from ..data.text_corpus import TextCorpus
from ..exceptions import ConfigurationError, DataError
from ..models import BaseModel
from .compatibility import Compatibility
from .probe_states import ProbeStates, Progress, read_probe_states

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

        Beside what :func:`~loraport.alignment.similarity.coverage` asks for, a target layer and
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
