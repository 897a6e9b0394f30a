"""The files that commands write: ``results.json``, ``report.json``, ``intersection_map.json``.

Each is a pydantic model, versioned, and validated on writing and on reading. A number that is
undefined is ``null`` there, never NaN. First what a file is, then the evidence of a
training run, suites and calibration, the benchmark of ``evaluate.py``, a port, the diagnosis of a
pair, and versions. A 95 % interval is ``ci95``; ``condition`` says which model was asked.
"""

import json
import math
import platform
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)

from ..exceptions import DataError
from ..files import read_json, write_whole
from ..option_types import CONTROL_MAPPERS, faults

# The conditions under which every task is scored; controls may come on top.
CONDITIONS = ("base", "source_base", "source", "oracle", "mean", "predicted")

# A further condition, of a mapper that also gives its prediction without making it linear.
CARTRIDGE = "cartridge"

# What a method may use, in the words of the evaluation protocol, the cheapest first.
DATA_ACCESS = ("weights only", "generic text", "anchors", "unlabelled prompts", "few-shot")

GENERIC = "generic"  # the name of generic text in KL records


def cost_rank(data_access: str) -> int:
    """Return the index of a data access in the order of cost; an unknown one comes last.

    >>> cost_rank("weights only"), cost_rank("few-shot"), cost_rank("magic")
    (0, 4, 5)
    """
    return DATA_ACCESS.index(data_access) if data_access in DATA_ACCESS else len(DATA_ACCESS)


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


Number = Annotated[float | None, BeforeValidator(plain)]  # a number; None where it is undefined


def _bounded(ends: Any) -> Any:
    """Return an interval; None for one without an end, as earlier releases wrote it."""
    found = plain(ends)
    return None if isinstance(found, list) and None in found else found


# The ends of a 95 % interval; None where there is none.
Ends = Annotated[tuple[float, float] | None, BeforeValidator(_bounded)]

Free = Annotated[dict[str, Any], BeforeValidator(plain)]  # any plain data under names


def ends_of(interval: tuple[float, float]) -> Ends:
    """Return an interval as files hold it: None without one.

    >>> ends_of((0.25, 0.5)), ends_of((math.nan, math.nan))
    ((0.25, 0.5), None)
    """
    return interval if all(map(math.isfinite, interval)) else None


def interval_text(ends: Ends, digits: int = 2) -> str:
    """Return an interval as people read it.

    >>> interval_text((0.123, 0.344)), interval_text(None)
    ('[0.12, 0.34]', '–')
    """
    return "–" if ends is None else f"[{ends[0]:.{digits}f}, {ends[1]:.{digits}f}]"


def in_points(ends: Ends) -> Ends:
    """Return an interval of shares in points.

    >>> in_points((0.25, 0.5))
    (25.0, 50.0)
    """
    return None if ends is None else (100 * ends[0], 100 * ends[1])


def complete_mean(values: Sequence[Number]) -> Number:
    """Return the mean; None without values, or where one of them is None."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


class Record(BaseModel):
    """A part of a file that a run writes; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True)


File = TypeVar("File", bound="RecordFile")


class Provenance(Record):
    """What the run was made from."""

    versions: dict[str, str]  # of Python and the libraries
    # SHA-256 of models, adapters and tasks by name.
    hashes: dict[str, str] = Field(default_factory=dict)
    # Of the checkout and of what came from the hub.
    revisions: dict[str, str | None] = Field(default_factory=dict)

    @classmethod
    def of(cls, hashes: dict[str, str]) -> "Provenance":
        """Return what a run is made from here: these contents, and the versions of now."""
        revisions = {"checkout": git_revision()}
        return cls(versions=library_versions(), hashes=hashes, revisions=revisions)

    def rows(self) -> list[tuple[str, str]]:
        """Return versions, hashes and revisions by what they are of."""
        return [
            *self.versions.items(),
            *((f"SHA-256 of {name}", value) for name, value in self.hashes.items()),
            *((f"revision of {name}", value) for name, value in self.revisions.items() if value),
        ]


class RecordFile(Record):
    """A whole file."""

    # The version of the format; it rises with every change that a reader would notice.
    schema_version: int = Field(alias="schema")
    command: str  # which command wrote it
    config: Free  # its whole configuration
    timing: dict[str, Number] = Field(default_factory=dict)  # seconds of each step
    provenance: Provenance  # what the run was made from

    def json_text(self) -> str:
        """Return the text of the file."""
        content = self.model_dump(mode="json", by_alias=True)
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def write(self, path: str | Path) -> Path:
        """Write the file, whole or not at all, and return its path."""
        return write_whole(Path(path), self.json_text())

    @classmethod
    def read(cls: type[File], path: str | Path) -> File:
        """Read and validate a file.

        Raises:
            DataError: it is missing, is no JSON, has another schema version, or lacks a field.
        """
        written_by = f"{cls.model_fields['command'].default}.py"
        content = read_json(Path(path), f"a file that {written_by} has written", DataError)
        found = content.get("schema")
        wanted = cls.model_fields["schema_version"].default
        if found != wanted:
            raise DataError(
                f"{path} has the schema version {found!r}, but this release reads version "
                f"{wanted}; run again, or read it with the release that wrote it"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise DataError(
                f"{path} is no valid file of {written_by} ({faults(error)}); run {written_by} again"
            ) from None


class PairRecord(Record):
    """The base pair: its name, and the names of its two models."""

    name: str
    source: str
    target: str


class TaskResult(Record):
    """The evidence of one held-out task, on ``n`` test rows."""

    usable: bool  # whether the oracle is far enough above the base for a gap to be recovered
    n: int
    # Accuracy under each condition: those of CONDITIONS, the controls, and CARTRIDGE where there is
    # one.
    scores: dict[str, Number]
    # Mean negative log-likelihood of the right label, in nats, under each condition.
    nll: dict[str, Number]
    gap_recovered: Number  # (predicted - base) / (oracle - base); None where not usable
    ci95: Ends
    # The same on minus the negative log-likelihood, with its own headroom.
    gap_recovered_nll: Number
    ci95_nll: Ends
    # Why a gap that is known has no interval; nothing where it has one.
    why_no_ci95: str = ""
    why_no_ci95_nll: str = ""
    # predicted / source. Not zero for an adapter that does nothing, so never to be shown without
    # the gap recovered.
    retention: Number
    relative_to_oracle: Number  # predicted / oracle
    margin: Number  # predicted minus the best of base and controls
    weight_cosine: Number = None  # cosine of the predicted and the oracle's update
    relative_error: Number = None  # |predicted - oracle| / |oracle| of the updates, Frobenius


class Margin(Record):
    """How far the prediction lies above a control, in accuracy, mean over the held-out tasks."""

    control: str
    value: Number
    ci95: Ends

    @property
    def points(self) -> tuple[Number, Ends]:
        """The value and its interval in points."""
        return None if self.value is None else 100 * self.value, in_points(self.ci95)


class Summary(Record):
    """The evidence over all held-out tasks, of which ``usable`` have a gap to recover."""

    tasks: int
    usable: int
    gap_recovered: Number  # mean over the usable tasks; its interval is over tasks and test rows
    ci95: Ends
    # The same on minus the negative log-likelihood, with its own headroom.
    gap_recovered_nll: Number
    ci95_nll: Ends
    control_gaps: dict[str, Number]  # gap recovered by each control in place of the prediction
    margin: Margin  # over the best of base and controls, by mean accuracy
    margin_over_mean: Margin  # over the anchors' mean adapter
    # Gap recovered by the cartridges in place of the prediction; None without.
    cartridge_gap: Number = None
    cartridge_gap_nll: Number = None


class Results(RecordFile):
    """What ``results.json`` of ``train.py`` holds."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    command: Literal["train"] = "train"
    pair: PairRecord
    mapper: str
    data_access: str  # what the mapper may use, in the words of the evaluation protocol
    space: str | None = None  # delta or factors; None for a mapper without such a choice
    seed: int
    controls: tuple[str, ...]  # the conditions that are controls, beside the base
    tasks: dict[str, TaskResult]  # each held-out task's evidence
    summary: Summary
    mapper_report: Free = Field(default_factory=dict)  # what was chosen in fitting

    def as_method(self) -> "MethodResult":
        """Return the evidence of the run as that of a method of a benchmark."""
        return MethodResult(
            name=self.mapper,
            mapper=self.mapper,
            data_access=self.data_access,
            pair=self.pair.name,
            seed=self.seed,
            controls=self.controls,
            tasks=self.tasks,
            summary=self.summary,
            seconds={"fit": self.timing.get("fit")},
            report=self.mapper_report,
        )

    def as_benchmark(self) -> "BenchmarkResults":
        """Return the evidence of the run as that of a benchmark with one method."""
        return BenchmarkResults(
            config=self.config,
            pairs={self.pair.name: self.pair},
            methods=(self.as_method(),),
            timing=self.timing,
            provenance=self.provenance,
        )


class Condition(Record):
    """Which model was asked: the target (or the source) of a pair, with which adapter."""

    pair: str
    method: str  # base, oracle, source_base, source or the name of a method
    task: str | None = None  # whose adapter; None without an adapter
    seed: int | None = None  # of the method; None where there is none


class SuiteScores(Record):
    """What one model scores on a suite: means of its metrics, with 95 % intervals over items."""

    condition: Condition
    means: dict[str, Number]
    ci95: dict[str, Ends]


class SuiteChange(Record):
    """How an adapter changes one metric of a suite against the same model without it."""

    condition: Condition
    metric: str
    value: Number  # mean difference over the n items that count for the metric in both, paired
    ci95: Ends
    n: int
    gained: int | None = None  # items that went from 0 to 1; None for a metric that is not 0 or 1
    lost: int | None = None  # items that went from 1 to 0; None likewise
    p: Number = None  # of McNemar's exact test; None likewise


class SuiteResult(Record):
    """What every model scores on a suite (named as in ``suite=``), and how adapters change that.

    Metrics stand in the order in which they are shown; ``changes`` has every adapter's, against
    the model without it.
    """

    name: str
    items: int
    metrics: tuple[str, ...]
    scores: tuple[SuiteScores, ...]
    changes: tuple[SuiteChange, ...] = ()


class Divergence(Record):
    """How far an adapter moves a model's next-token distributions, in nats a token."""

    condition: Condition
    texts: str  # on what: generic text, or the prompts of a suite, by its name
    positions: int  # how many positions were compared
    kl: Number  # mean KL divergence from the model without the adapter
    kl_p95: Number  # its 95th percentile over the positions
    js: Number  # mean Jensen-Shannon divergence, at most ln 2
    top1: Number  # share of the positions where the most likely token is the same


class CalibrationPoint(Record):
    """One ported adapter: what was known before it was ported, by name, and what it recovered."""

    condition: Condition
    gap_recovered: Number
    gap_recovered_nll: Number = None
    diagnostics: dict[str, Number]


class DiagnosticResult(Record):
    """How well one diagnostic tells in advance what a port recovers."""

    name: str
    method: str | None = None  # over whose ports; None over all methods
    points: int  # how many ported adapters
    spearman: Number  # rank correlation with the gap recovered
    ci95: Ends
    # A port is expected to succeed on that side of it; None where none was fitted.
    threshold: Number = None
    above: bool = True  # whether success lies above the threshold
    hit_rate: Number = None  # share of right expectations, by leave-one-task-out cross-validation
    # Share of right expectations of always saying what is more frequent.
    majority_rate: Number = None


class CalibrationResult(Record):
    """Whether diagnostics before a transfer tell what comes of it.

    A port succeeds that recovers more than ``success`` of the gap; ``points`` are all ports.
    """

    success: float
    points: tuple[CalibrationPoint, ...]
    diagnostics: tuple[DiagnosticResult, ...]


class MethodResult(Record):
    """The evidence of one method, in one run with one seed."""

    name: str  # as in methods=: a mapper, mapper+refine, or default
    mapper: str
    refine: str | None = None
    data_access: str  # what it may use, in the words of the evaluation protocol
    # Whether its refinement learns from the source's adapter; None without one.
    learns: bool | None = None
    pair: str  # name of the pair; see BenchmarkResults.pairs
    seed: int
    # Options in which runs of a sweep differ, as on the command line.
    variant: dict[str, str] = Field(default_factory=dict)
    controls: tuple[str, ...] = ()  # the conditions that are controls, beside the base
    # Each held-out task's evidence; predicted is what the method scores.
    tasks: dict[str, TaskResult] = Field(default_factory=dict)
    summary: Summary | None = None  # the evidence over them; None where the method refused
    # Wall-clock seconds of fit (once a pair) and of port (mean over the tasks), as they were when
    # the work was done.
    seconds: dict[str, Number] = Field(default_factory=dict)
    refused: str | None = None  # why the method could not be used on this pair; None where it could
    report: Free = Field(default_factory=dict)  # what the mapper or the refinement has to say

    @property
    def label(self) -> str:
        """Its name, with the options in which it differs from its namesakes."""
        options = ", ".join(f"{name}={value}" for name, value in self.variant.items())
        return f"{self.name} ({options})" if options else self.name

    @property
    def uses_labels(self) -> bool:
        """Whether it learns from labelled examples of the task."""
        return self.data_access == "few-shot"

    @property
    def is_control(self) -> bool:
        """Whether it is there to be beaten, such as the anchors' mean.

        A control's adapter that is refined stays a control. From zero (``noop``) the refinement
        makes the adapter: a method where it learns from the source's adapter and no labels.
        """
        if self.mapper == "noop" and self.refine is not None:
            return self.uses_labels or self.learns is False
        return self.mapper in CONTROL_MAPPERS

    @property
    def gap_recovered(self) -> Number:
        """Mean gap recovered over the usable tasks."""
        return None if self.summary is None else self.summary.gap_recovered

    @property
    def merit(self) -> float:
        """The same, and less than any where it is unknown."""
        return -math.inf if self.gap_recovered is None else self.gap_recovered

    @property
    def ci95(self) -> Ends:
        """The interval of :attr:`gap_recovered`."""
        return None if self.summary is None else self.summary.ci95

    @property
    def retention(self) -> Number:
        """Mean retention over the usable tasks."""
        return complete_mean([task.retention for task in self.tasks.values() if task.usable])

    @property
    def total_seconds(self) -> Number:
        """Seconds of fitting and porting; None where none is known."""
        known = [seconds for seconds in self.seconds.values() if seconds is not None]
        return sum(known) if known else None

    def mean_accuracy(self, condition: str) -> Number:
        """Return the mean accuracy over the usable tasks; None where one lacks the condition."""
        return complete_mean([t.scores.get(condition) for t in self.tasks.values() if t.usable])


class Verdict(Record):
    """Whether a hypothesis of the protocol stands: H1 (transfer is possible), H2 (safety is kept).

    ``words`` is a sentence with the figures that decide.
    """

    hypothesis: Literal["H1", "H2"]
    state: Literal["supported", "falsified", "open", "cannot be told", "not tested"]
    words: str


class Example(Record):
    """One test row, its right answer, and what each condition (or method) answered."""

    text: str
    label: str
    answers: dict[str, str]


class BenchmarkResults(RecordFile):
    """What ``results.json`` of ``evaluate.py`` holds, or that of several collected runs."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    command: Literal["evaluate"] = "evaluate"
    pairs: dict[str, PairRecord]  # base pairs by name
    methods: tuple[MethodResult, ...]  # evidence of every method, pair, seed and variant
    suites: tuple[SuiteResult, ...] = ()
    # Of every adapter on generic text and on the suites' prompts.
    divergences: tuple[Divergence, ...] = ()
    # Of the diagnosis; None where it was not asked for.
    calibration: CalibrationResult | None = None
    # Pair to the calibrated similarity of every target layer (rows) with every source layer
    # (columns): the intersection map.
    similarities: dict[str, list[list[Number]]] = Field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()
    # Task to some of its rows.
    examples: dict[str, tuple[Example, ...]] = Field(default_factory=dict)

    def ranked(self) -> list[MethodResult]:
        """Return the methods that could be used, the cheapest data access first, then the best.

        Of several pairs the first comes first.
        """
        pairs = list(self.pairs)

        def rank(method: MethodResult) -> tuple[int, int, float, str, int]:
            cost = cost_rank(method.data_access)
            return pairs.index(method.pair), cost, -method.merit, method.label, method.seed

        return sorted((m for m in self.methods if m.refused is None), key=rank)

    def refused(self) -> list[MethodResult]:
        """Return the methods that could not be used."""
        return [method for method in self.methods if method.refused is not None]

    def task_names(self) -> list[str]:
        """Return the tasks of all methods in the order in which they appear."""
        return list(dict.fromkeys(name for method in self.methods for name in method.tasks))

    def unusable_tasks(self) -> dict[str, list[str]]:
        """Return of each pair the tasks on which the oracle is too near to the base."""
        names: dict[str, dict[str, None]] = {}
        for method in self.methods:
            for name, task in method.tasks.items():
                if not task.usable:
                    names.setdefault(method.pair, {})[name] = None
        return {pair: list(names[pair]) for pair in self.pairs if pair in names}

    def generic_kl(self, pair: str, method: str, seed: int | None) -> Iterator[Divergence]:
        """Give how far a method's adapters move the model on generic text."""
        for found in self.divergences:
            of = found.condition
            if (found.texts, of.pair, of.method, of.seed) == (GENERIC, pair, method, seed):
                yield found


class Coverage(Record):
    """How much of a pair's target has a counterpart in its source."""

    coverage: float  # share of the target's layers with a counterpart, calibrated against chance
    minimum: float  # the coverage that is asked for
    identification: float  # share of the layers that their counterparts lead back to
    forced: bool  # whether force=true overrode too low a coverage


class CompatibilityRecord(Coverage):
    """The same, measured on so many aligned word ends."""

    rows: int
    needed: bool = True  # whether the mapper rests on layers that correspond

    @property
    def words(self) -> str:
        """One sentence for cards and consoles."""
        found = (
            f"diagnosis: {self.coverage:.0%} of the target's layers have a counterpart in the "
            f"source, on {self.rows} words"
        )
        if self.forced:
            return (
                f"{found}; at least {self.minimum:.0%} are needed, which force=true overrode: do "
                "not expect this adapter to work"
            )
        if self.coverage < self.minimum and not self.needed:
            return (
                f"{found}; mappers from layer to layer need at least {self.minimum:.0%}, but this "
                "port pairs no layers"
            )
        return found


class DriftRecord(Record):
    """KL divergence of the target with the finished adapter from the target, in nats a token.

    Mean over the tokens of generic texts and 95th percentile; ``source_`` is the same of the
    source's own adapter on the source, ``budget`` what the mean is compared with.
    """

    mean: float
    p95: float
    source_mean: float
    source_p95: float
    budget: float
    texts: int


class ExpectedRecord(Record):
    """What part of the gap is to be expected, as measured anchors of the pair say."""

    value: Number = None  # the part, between low and high; None where nothing can be said
    low: Number = None
    high: Number = None
    go: bool | None = None  # whether it is enough; None where nothing can be said
    level: Number = None  # the coverage that the interval stands for
    loo_error: Number = None  # mean absolute leave-one-out error over the anchors
    anchors: int = 0  # how many there are
    # Share of them for which go or no-go was right by the others; None of too few.
    hit_rate: Number = None
    # Rise of the share of held-out texts on which the target agrees with its teacher.
    rise: Number = None
    rise_ci95: Ends = None
    # What was fitted on, with this adapter's values.
    features: dict[str, float] = Field(default_factory=dict)
    why_not: str = ""  # why nothing is said


class RefinementRecord(Record):
    """One refinement."""

    name: str
    data_access: str  # what it may use, with the texts that it was given
    question: Free  # how the adapter was asked: prompt, labels, completion
    data: Free  # number of texts, inputs and examples that it was given, or what they come from
    # What anchors have to be ported with as well to say what to expect.
    setting: Free = Field(default_factory=dict)
    measured: tuple[Free, ...]  # what the refinement reports of each source adapter
    drift: DriftRecord
    expected: ExpectedRecord


class AdapterRecord(Record):
    """One adapter that went in or came out."""

    # The folder, hub id or task by which it was given; None for the one that was made.
    place: str | None
    base_model: str  # what it says it was trained on
    sites: int  # how many modules it adapts
    roles: tuple[str, ...]  # which of a layer's
    ranks: tuple[int, int]  # the least and the greatest of their ranks
    norm: float  # Frobenius norm over all sites
    sha256: str  # of what it computes


class StepRecord(Record):
    """One step after the mapper: sparsifying, merging, or cutting to a rank."""

    name: str
    options: Free = Field(default_factory=dict)
    lost_energy: float  # share of the squared norm that cutting back to a rank lost
    sites: dict[str, dict[str, Number]] = Field(default_factory=dict)  # what was found at each site


class TransferReport(RecordFile):
    """What ``report.json`` of ``transfer.py`` holds."""

    schema_version: Literal[2] = Field(default=2, alias="schema")
    command: Literal["transfer"] = "transfer"
    pair: PairRecord
    # What the diagnosis of the pair said; None where it was left out.
    compatibility: CompatibilityRecord | None = None
    mapper: str
    # The options that a mapper out of a checkpoint was trained with.
    trained_with: Free = Field(default_factory=dict)
    # The dearest of what mapper and refinement may use, in the words of the evaluation protocol.
    data_access: str
    adapters: tuple[AdapterRecord, ...]  # the source's adapters, as they were given
    # Adapters of the target that were merged with the ported ones.
    merged_with: tuple[AdapterRecord, ...] = ()
    mapping: tuple[Free, ...]  # what the mapper reports of each source adapter, in their order
    # What was made of that by how the models behave; None where nothing was.
    refinement: RefinementRecord | None = None
    steps: tuple[StepRecord, ...] = ()  # what came after the mapper
    # The adapter that was made, as it was written: its factors of dtype, multiplied by scale.
    output: AdapterRecord
    dtype: str
    scale: float
    verification: Free  # what PEFT made of it on the target
    # What the same steps do with adapters of anchor tasks, where asked for.
    anchor_scores: Free = Field(default_factory=dict)
    warnings: tuple[str, ...] = ()  # what a user should know before using it

    @property
    def from_zero(self) -> bool:
        """Whether a refinement alone has made the adapter, and the mapper nothing."""
        return self.refinement is not None and self.mapper == "noop"


Grid = tuple[tuple[Number, ...], ...]  # one row a target layer, one column a source layer


class MeasureMap(Record):
    """One measure of similarity between every target layer and every source layer."""

    title: str  # what the measure is called in tables and above heat maps
    raw: Grid  # its value on the paired rows
    calibrated: Grid  # the part of it above what rows in random order give, from 0 to 1
    rows: int  # rows that it was computed on


class TransportCell(Record):
    """Entropic Gromov-Wasserstein between one target layer and one source layer, on some rows."""

    target: int
    source: int
    rows: int
    diagonal_mass: Number  # mass of the plan that stays with its own row; by chance 1 / rows
    matched: Number  # share of the rows whose most likely partner is their own; chance is the same
    ratio: Number  # distance over that of the same search with rows in random order


class LayerConfidence(Record):
    """How sure the counterpart of one target layer is."""

    target: int
    source: int  # the source layer with the highest mutual k-NN
    similarity: Number  # that value, as far as it exceeds what the bare text gives
    covered: bool  # whether it counts for the coverage
    agreement: Number  # share of the measures whose own best source layer is at most one further
    # Mean Jaccard overlap of the rows' neighbours in both layers; None where it is not measured.
    jaccard: Number = None
    # Relative error of the best rotation between the paired layers on held-out rows; 1 is no better
    # than nothing.
    procrustes_error: Number = None
    # Share of the held-out rows' variance in the directions that the anchors determine, on the
    # target's side.
    anchor_coverage: Number = None


class ModuleFit(Record):
    """How well linear maps between a target module and its source module predict held-out text."""

    target: str
    source: str
    inputs: Number  # held-out R^2 of what the source module reads, from what the target's reads
    outputs: Number  # held-out R^2 of what the target module writes, from what the source's writes
    # The first in the directions that the adapter reads; None without one.
    adapter_inputs: Number = None
    adapter_outputs: Number = None  # the second for the directions that the adapter writes


class Geometry(Record):
    """Rotations between the paired layers' residual streams, fitted on half of the rows.

    Mean and greatest relative error on the other half, and the mean of the layers'
    ``anchor_coverage``; ``roughness`` is how much the rotation changes from one target layer to
    the next, from 0 (not at all) to 1 (as much as two random ones).
    """

    mean_error: Number
    max_error: Number
    roughness: Number
    anchor_coverage: Number


class Probes(Record):
    """The texts at which the two models were compared.

    ``aligned`` word ends at which both models have read the same, ``rows`` of them compared, with
    ``tokens`` distinct tokens of the target among them.
    """

    name: str
    texts: int
    aligned: int
    rows: int
    tokens: int


class CompatibilityVerdict(Coverage):
    """Whether an adapter can be expected to be carried over, also in words."""

    compatible: bool
    words: str
    # Mean of the target layers' similarity beyond the baselines, each counted by its agreement.
    weighted_similarity: Number = None

    def record(self, rows: int) -> CompatibilityRecord:
        """Return it as reports of other commands hold it."""
        return CompatibilityRecord(
            rows=rows, **self.model_dump(exclude={"compatible", "words", "weighted_similarity"})
        )


class IntersectionMap(RecordFile):
    """What ``intersection_map.json`` holds."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    command: Literal["diagnose"] = "diagnose"
    pair: PairRecord
    probes: Probes
    verdict: CompatibilityVerdict
    measures: dict[str, MeasureMap]  # every measure's map by its name
    transport: tuple[TransportCell, ...] = ()  # Gromov-Wasserstein for some pairs of layers
    layers: tuple[LayerConfidence, ...]  # one entry a target layer
    geometry: Geometry
    # For each target layer the source layers that feed it, with their weights.
    pairing: tuple[tuple[tuple[int, float], ...], ...]
    pairing_name: str  # how they were chosen
    # By which the directions of modules are restricted; None without one.
    adapter: str | None = None
    # Linear maps between paired modules; empty without a corpus.
    modules: tuple[ModuleFit, ...] = ()
    warnings: tuple[str, ...] = ()  # what a user should know before transferring


_LIBRARIES = ("torch", "lightning", "transformers", "peft", "datasets", "loraport")


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}


def git_revision(folder: Path | None = None) -> str | None:
    """Return the commit that is checked out, with ``+changes`` where files differ from it.

    None where there is no checkout, no commit yet, or no git.

    Args:
        folder: Root of the checkout; None for the one that this package is run from.
    """
    root = Path(__file__).resolve().parents[2] if folder is None else folder
    # Without this an installed package would report the repository that its environment lies in.
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    commit = git("rev-parse", "--verify", "--quiet", "HEAD")
    return f"{commit}+changes" if commit and git("status", "--porcelain") else commit or None
