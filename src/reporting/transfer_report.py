"""``report.json``: how one adapter was ported, beside the adapter itself."""

import json
from typing import Literal

from pydantic import Field

from .compatibility_record import CompatibilityRecord
from .refinement_record import RefinementRecord
from .results import Free, Number, PairRecord, Provenance, Record

SCHEMA: Literal[2] = 2
"""Version of the file's format; it rises with every change that a reader would notice."""


class AdapterRecord(Record):
    """One adapter that went in or came out.

    Attributes:
        place: The folder, hub id or task by which it was given; None for the one that was made.
        base_model: What it says it was trained on.
        sites: How many modules it adapts.
        roles: Which of a layer's.
        ranks: The least and the greatest of their ranks.
        norm: Frobenius norm over all sites.
        sha256: Of what it computes.
    """

    place: str | None
    base_model: str
    sites: int
    roles: tuple[str, ...]
    ranks: tuple[int, int]
    norm: float
    sha256: str


class StepRecord(Record):
    """One step after the mapper: sparsifying, merging, or cutting to a rank.

    Attributes:
        name: Of the step.
        options: It was done with.
        lost_energy: Share of the squared norm that cutting back to a rank lost.
        sites: What was found at each site.
    """

    name: str
    options: Free = Field(default_factory=dict)
    lost_energy: float
    sites: dict[str, dict[str, Number]] = Field(default_factory=dict)


class TransferReport(Record):
    """Everything that ``report.json`` holds.

    Attributes:
        schema_version: Version of the format, ``schema`` in the file.
        command: Which command wrote it.
        config: Its whole configuration.
        pair: The base pair.
        compatibility: What the diagnosis of the pair said; None where it was left out.
        mapper: Name of the mapper.
        trained_with: The options that a mapper out of a checkpoint was trained with.
        information_class: The dearest of what mapper and refinement may use, in the words of the
            evaluation protocol.
        adapters: The source's adapters, as they were given.
        merged_with: Adapters of the target that were merged with the ported ones.
        mapping: What the mapper reports of each source adapter, in their order.
        refinement: What was made of that by how the models behave; None where nothing was.
        steps: What came after the mapper.
        output: The adapter that was made, as it was written.
        dtype: Of its factors.
        scale: By which it was multiplied.
        verification: What PEFT made of it on the target.
        anchor_scores: What the same steps do with adapters of anchor tasks, where asked for.
        warnings: What a user should know before using it.
        timing: Seconds of each step.
        provenance: What the run was made from.
    """

    schema_version: Literal[2] = Field(default=SCHEMA, alias="schema")
    command: Literal["transfer"] = "transfer"
    config: Free
    pair: PairRecord
    compatibility: CompatibilityRecord | None = None
    mapper: str
    trained_with: Free = Field(default_factory=dict)
    information_class: str
    adapters: tuple[AdapterRecord, ...]
    merged_with: tuple[AdapterRecord, ...] = ()
    mapping: tuple[Free, ...]
    refinement: RefinementRecord | None = None
    steps: tuple[StepRecord, ...] = ()
    output: AdapterRecord
    dtype: str
    scale: float
    verification: Free
    anchor_scores: Free = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    timing: dict[str, Number] = Field(default_factory=dict)
    provenance: Provenance

    def json_text(self) -> str:
        """Return the text of ``report.json``."""
        content = self.model_dump(mode="json", by_alias=True)
        return json.dumps(content, indent=1, allow_nan=False) + "\n"
