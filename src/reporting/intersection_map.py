"""``intersection_map.json``: how far two base models represent the same text alike, in all layers.

The file is versioned and validated, like ``results.json``.
"""

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from ..files import write_whole
from .compatibility_record import CompatibilityRecord
from .results import Free, Number, PairRecord, Provenance, Record

SCHEMA: Literal[1] = 1
"""Version of the file's format; it rises with every change that a reader would notice."""

Grid = tuple[tuple[Number, ...], ...]
"""One row a target layer, one column a source layer."""


class MeasureMap(Record):
    """One measure of similarity between every target layer and every source layer.

    Attributes:
        title: What the measure is called in tables and above heat maps.
        raw: Its value on the paired rows.
        calibrated: The part of it above what rows in random order give, from 0 to 1.
        rows: Rows that it was computed on.
    """

    title: str
    raw: Grid
    calibrated: Grid
    rows: int

    @model_validator(mode="after")
    def _are_of_one_shape(self) -> "MeasureMap":
        if [len(row) for row in self.raw] != [len(row) for row in self.calibrated]:
            raise ValueError("raw and calibrated are not of one shape")
        return self


class TransportCell(Record):
    """Entropic Gromov-Wasserstein between one target layer and one source layer.

    Attributes:
        target: The target layer.
        source: The source layer.
        rows: Rows that were matched.
        diagonal_mass: Mass of the plan that stays with its own row; by chance ``1 / rows``.
        matched: Share of the rows whose most likely partner is their own; chance is the same.
        ratio: Distance over that of the same search with rows in random order.
    """

    target: int
    source: int
    rows: int
    diagonal_mass: Number
    matched: Number
    ratio: Number


class LayerConfidence(Record):
    """How sure the counterpart of one target layer is.

    Attributes:
        target: The target layer.
        source: The source layer with the highest mutual k-NN.
        similarity: That value, as far as it exceeds what the bare text gives.
        covered: Whether it counts for the coverage.
        agreement: Share of the measures whose own best source layer is at most one further.
        procrustes_error: Relative error of the best rotation between the paired layers on
            held-out rows; 1 is no better than nothing.
        anchor_coverage: Share of the held-out rows' variance in the directions that the anchors
            determine, on the target's side.
    """

    target: int
    source: int
    similarity: Number
    covered: bool
    agreement: Number
    procrustes_error: Number = None
    anchor_coverage: Number = None


class ModuleFit(Record):
    """How well linear maps between one target module and its source module predict held-out text.

    Attributes:
        target: The target's site.
        source: The source's site that it is paired with.
        inputs: Held-out R^2 of what the source module reads, from what the target's reads.
        outputs: Held-out R^2 of what the target module writes, from what the source's writes.
        adapter_inputs: The first in the directions that the adapter reads; None without one.
        adapter_outputs: The second for the directions that the adapter writes.
    """

    target: str
    source: str
    inputs: Number
    outputs: Number
    adapter_inputs: Number = None
    adapter_outputs: Number = None


class Geometry(Record):
    """Rotations between the paired layers' residual streams, fitted on half of the rows.

    Attributes:
        mean_error: Mean over the layers of the relative error on the other half.
        max_error: The greatest of them.
        roughness: How much the rotation changes from one target layer to the next, from 0 (not at
            all) to 1 (as much as two random ones).
        anchor_coverage: Mean over the layers; see :class:`LayerConfidence`.
    """

    mean_error: Number
    max_error: Number
    roughness: Number
    anchor_coverage: Number


class Probes(Record):
    """The text at which the two models were compared.

    Attributes:
        name: Of the probe set.
        texts: How many there are.
        aligned: Word ends at which both models have read the same.
        rows: Those of them that were compared.
        tokens: Distinct tokens of the target among them.
    """

    name: str
    texts: int
    aligned: int
    rows: int
    tokens: int


class Verdict(Record):
    """Whether an adapter can be expected to be carried over; see :class:`CompatibilityRecord`.

    Attributes:
        coverage: Share of the target's layers that have a counterpart in the source.
        minimum: The coverage that is asked for.
        identification: Share of the layers that are found again by the other half of the rows.
        compatible: Whether the coverage is high enough.
        forced: Whether ``force=true`` overrides that.
        words: The verdict in words.
    """

    coverage: float
    minimum: float
    identification: float
    compatible: bool
    forced: bool
    words: str

    def record(self, rows: int) -> CompatibilityRecord:
        """Return it as reports of other commands hold it."""
        return CompatibilityRecord(
            coverage=self.coverage,
            minimum=self.minimum,
            identification=self.identification,
            rows=rows,
            forced=self.forced,
        )


class IntersectionMap(Record):
    """Everything that ``intersection_map.json`` holds.

    Attributes:
        schema_version: Version of the format, ``schema`` in the file.
        command: Which command wrote it.
        config: Its whole configuration.
        pair: The base pair.
        probes: The text.
        verdict: What comes of it.
        measures: Every measure's map by its name.
        transport: Gromov-Wasserstein for some pairs of layers.
        layers: One entry a target layer.
        geometry: Of the rotations.
        pairing: For each target layer the source layers that feed it, with their weights.
        pairing_name: How they were chosen.
        adapter: By which the directions of ``modules`` are restricted; None without one.
        modules: Linear maps between paired modules; empty without a corpus.
        warnings: What a user should know before transferring.
        timing: Seconds of each step.
        provenance: What the run was made from.
    """

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    command: Literal["diagnose"] = "diagnose"
    config: Free
    pair: PairRecord
    probes: Probes
    verdict: Verdict
    measures: dict[str, MeasureMap]
    transport: tuple[TransportCell, ...] = ()
    layers: tuple[LayerConfidence, ...]
    geometry: Geometry
    pairing: tuple[tuple[tuple[int, float], ...], ...]
    pairing_name: str
    adapter: str | None = None
    modules: tuple[ModuleFit, ...] = ()
    warnings: tuple[str, ...] = ()
    timing: dict[str, Number] = Field(default_factory=dict)
    provenance: Provenance


def write_intersection_map(content: IntersectionMap, path: str | Path) -> Path:
    """Write ``intersection_map.json``, whole or not at all, and return its path."""
    text = json.dumps(content.model_dump(mode="json", by_alias=True), indent=1, allow_nan=False)
    return write_whole(Path(path), text + "\n")
