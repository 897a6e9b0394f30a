"""``results.json``: what a run was, what it scored, and what that was made from.

The file is versioned and validated on writing and on reading. A number that is undefined or
unbounded is ``null`` there, never NaN.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from ..exceptions import DataError
from ..files import write_whole

SCHEMA: Literal[1] = 1
"""Version of the file's format; it rises with every change that a reader would notice."""

CONDITIONS = ("base", "source_base", "source", "oracle", "mean", "predicted")
"""The conditions under which every task is scored; controls may come on top."""

CARTRIDGE = "cartridge"
"""A further condition, of a mapper that also gives its prediction without making it linear."""


def plain(value: Any) -> Any:
    """Return ``value`` as JSON can hold it: containers rebuilt, NaN and infinity as None.

    >>> plain({"strength": float("inf"), "sites": ("0.q", "0.v")})
    {'strength': None, 'sites': ['0.q', '0.v']}

    Raises:
        ValueError: something in it is no plain data, such as a tensor.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    raise ValueError(f"takes plain data, not {type(value).__name__}")


Number = Annotated[float | None, BeforeValidator(plain)]
"""A number; None where it is undefined."""

Ends = Annotated[tuple[Number, Number] | None, BeforeValidator(plain)]
"""The ends of a 95 % interval, an end None where it is unbounded; None where there is none."""

Free = Annotated[dict[str, Any], BeforeValidator(plain)]
"""Any plain data under names."""


class Record(BaseModel):
    """A part of a file that a run writes; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True)


class PairRecord(Record):
    """The base pair: its name, and the names of its two models."""

    name: str
    source: str
    target: str


class TaskResult(Record):
    """The evidence of one held-out task.

    Attributes:
        usable: Whether the oracle is far enough above the base for a gap to be recovered.
        n: Test rows scored.
        scores: Accuracy under each condition: those of :data:`CONDITIONS`, the controls, and
            :data:`CARTRIDGE` where there is one.
        nll: Mean negative log-likelihood of the right label, in nats, under each condition.
        gap_recovered: ``(predicted - base) / (oracle - base)``; None where not usable.
        ci95: Its paired-bootstrap interval over the test rows.
        gap_recovered_nll: The same on minus the negative log-likelihood, with its own headroom.
        ci95_nll: Its interval.
        retention: ``predicted / source``; see :func:`~loraport.evaluation.statistics.retention`.
        relative_to_oracle: ``predicted / oracle``.
        margin: ``predicted`` minus the best of base and controls.
        weight_cosine: Cosine of the predicted and the oracle's update.
        relative_error: ``|predicted - oracle| / |oracle|`` of the updates, Frobenius.
    """

    usable: bool
    n: int
    scores: dict[str, Number]
    nll: dict[str, Number]
    gap_recovered: Number
    ci95: Ends
    gap_recovered_nll: Number
    ci95_nll: Ends
    retention: Number
    relative_to_oracle: Number
    margin: Number
    weight_cosine: Number = None
    relative_error: Number = None

    @field_validator("scores", "nll")
    @classmethod
    def _has_every_condition(cls, scores: dict[str, Number]) -> dict[str, Number]:
        missing = [name for name in CONDITIONS if name not in scores]
        if missing:
            raise ValueError(f"lacks {', '.join(missing)}")
        return scores


class Margin(Record):
    """How far the prediction lies above a control, in accuracy, mean over the held-out tasks."""

    control: str
    value: Number
    ci95: Ends


class Summary(Record):
    """The evidence over all held-out tasks.

    Attributes:
        tasks: How many held-out tasks there are.
        usable: How many of them have a gap to recover.
        gap_recovered: Mean over the usable tasks.
        ci95: Its bootstrap interval over tasks and test rows.
        gap_recovered_nll: The same on minus the negative log-likelihood, with its own headroom.
        ci95_nll: Its interval.
        control_gaps: Gap recovered by each control in place of the prediction.
        margin: Over the best of base and controls, by mean accuracy.
        margin_over_mean: Over the anchors' mean adapter.
        cartridge_gap: Gap recovered by the cartridges in place of the prediction; None without.
        cartridge_gap_nll: The same on minus the negative log-likelihood.
    """

    tasks: int
    usable: int
    gap_recovered: Number
    ci95: Ends
    gap_recovered_nll: Number
    ci95_nll: Ends
    control_gaps: dict[str, Number]
    margin: Margin
    margin_over_mean: Margin
    cartridge_gap: Number = None
    cartridge_gap_nll: Number = None


class Provenance(Record):
    """What the run was made from.

    Attributes:
        versions: Of Python and the libraries.
        hashes: SHA-256 of models, adapters and tasks by name.
        revisions: Of the checkout and of what came from the hub.
    """

    versions: dict[str, str]
    hashes: dict[str, str] = Field(default_factory=dict)
    revisions: dict[str, str | None] = Field(default_factory=dict)


class Results(Record):
    """Everything that ``results.json`` holds.

    Attributes:
        schema_version: Version of the format, ``schema`` in the file.
        command: Which command wrote it.
        config: Its whole configuration.
        pair: The base pair.
        mapper: Name of the mapper.
        information_class: What the mapper may use, in the words of the evaluation protocol.
        space: ``delta`` or ``factors``; None for a mapper without such a choice.
        seed: Of the run.
        controls: The conditions that are controls, beside the base.
        tasks: Each held-out task's evidence.
        summary: The evidence over them.
        mapper_report: What was chosen in fitting.
        timing: Seconds of each step.
        provenance: What the run was made from.
    """

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    command: str
    config: Free
    pair: PairRecord
    mapper: str
    information_class: str
    space: str | None = None
    seed: int
    controls: tuple[str, ...]
    tasks: dict[str, TaskResult]
    summary: Summary
    mapper_report: Free = Field(default_factory=dict)
    timing: dict[str, Number] = Field(default_factory=dict)
    provenance: Provenance


def write_results(results: Results, path: str | Path) -> Path:
    """Write ``results.json``, whole or not at all, and return its path."""
    content = json.dumps(results.model_dump(mode="json", by_alias=True), indent=2, allow_nan=False)
    return write_whole(Path(path), content + "\n")


def read_results(path: str | Path) -> Results:
    """Read and validate ``results.json``.

    Raises:
        DataError: the file is missing, is no JSON, has another schema version, or lacks a field.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read ({error}); it takes a results.json that a run has written"
        ) from None
    version = content.get("schema") if isinstance(content, dict) else None
    if version != SCHEMA:
        raise DataError(
            f"{path} has the schema version {version!r}, but this release reads version "
            f"{SCHEMA}; run again, or read it with the release that wrote it"
        )
    try:
        return Results.model_validate(content)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()[:5]
        )
        raise DataError(f"{path} is no valid results.json ({faults}); run again") from None
