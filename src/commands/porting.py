"""The parts of a port, which port.py puts in order and evaluate.py asks of many adapters.

Adapters are read by whatever a user calls them; the adapter is described by its prompt and labels;
the mapper is built or read; :class:`Porting` does what needs no text; :class:`Refining` does what
does; and :func:`refinement_record` says what came of it.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from ..adapters import LoraAdapter, LowRank, read_adapter
from ..adapters.merge import Combiner
from ..adapters.sparsify import Combined, Sparsifier, cut
from ..data import HubTasks, Interleaved, TaskTexts, TextSource
from ..data.corpora import encodable
from ..data.prompts import PromptSpec
from ..data.tasks import Example
from ..data.zoo import SIDES, read_trained
from ..evaluation.records import (
    DriftRecord,
    ExpectedRecord,
    RefinementRecord,
    ends_of,
    in_points,
    interval_text,
    plain,
)
from ..evaluation.statistics import ItemChange, item_change
from ..exceptions import AdapterError, ConfigurationError, DataError, VerificationError
from ..files import reading
from ..mappers import Mapper, load_mapper
from ..mappers.base import Report
from ..models.architectures import SiteTable
from ..models.loading import DTYPES
from ..refinement.base import (
    DistillationInputs,
    Refinement,
    RefinementProgress,
    RefinementReport,
    Teacher,
)
from ..refinement.expected_recovery import (
    LEAST_POINTS,
    AnchorCalibration,
    AnchorPoint,
    ExpectedRecovery,
    hit_rate,
    left_out,
)
from ..refinement.kl_budget import check_kl
from ..refinement.text_selection import WrittenTexts
from ..settings import PortingSettings, TransferSettings
from ..store import Store
from .anchors import CPU_TRAINER, builds_zoo, train_zoo
from .context import RunContext, costliest, log

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w.-]+")
_FILES = ("adapter_config.json", "adapter_model.safetensors")
# Options of a refinement that change what is reported, and not what is learned from labels.
_ONLY_MEASURED = ("refine.held_out", "refine.sequence")
_UNCHANGED: Mapping[str, Any] = {"scale": 1.0, "steps": ()}  # behind the refinement
_LEAST_P = 0.05  # of a rise of the agreement that may be chance
_ROUNDING = 1e-2  # of an update's norm, by which its dtype may change it; bfloat16: some 0.3 %


def given_adapter(context: RunContext, given: str) -> LoraAdapter:
    """Read the source's adapter that ``adapter=`` names.

    A folder goes first; a bare name is looked up among the source's adapters of the pair's zoo,
    which a pair that brings its own tasks trains where it is missing; ``owner/name`` is an id of
    the hub.

    Raises:
        AdapterError: it is none of them, or what is there cannot be read exactly.
    """
    folder = Path(given).expanduser()
    if given and folder.is_dir():
        return read_adapter(folder)
    if builds_zoo(context) and given in context.task_source().names():
        train_zoo(context, SIDES, list(context.task_source().names()), CPU_TRAINER)
    known = _zoo_tasks(context)
    if given in known:
        return read_trained(known[given])
    if _HUB_ID.fullmatch(given):
        return read_adapter(_fetched(given))
    zoo = f", or a task of the pair's zoo: {', '.join(sorted(known))}" if known else ""
    raise AdapterError(
        f"adapter={given} is no folder; it takes a PEFT adapter's folder, a hub id such as "
        f"owner/name{zoo}"
    )


def _zoo_tasks(context: RunContext) -> dict[str, Path]:
    """Return the source adapters of the pair's zoo, by their tasks."""
    side = _source_zoo(context)
    if not side.is_dir():
        return {}
    return {path.name: path for path in side.iterdir() if (path / _FILES[0]).is_file()}


def _source_zoo(context: RunContext) -> Path:
    folder: Path = context.settings.paths.zoo_source or context.zoo_folder() / "source"
    return folder


def _fetched(name: str) -> Path:
    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise AdapterError(
            f"the adapter {name} is no folder here, nor in the hub's cache, nor could it be "
            f"fetched ({why}); correct the path, connect to the network, or run `hf auth login` "
            "if it is private"
        ) from error


def prompt_spec(context: RunContext, place: str) -> PromptSpec:
    """Return how the adapter that is ported is asked: all that a port knows of its task.

    The options ``prompt`` go first. A task of the pair's zoo brings its instruction and its
    labels; none of its rows is used. Where neither says an instruction, the prompt is the text.

    Args:
        context: The options.
        place: The adapter, as it was given.

    Raises:
        DataError: the template has no ``{text}``, or the labels are no choice.
        ConfigurationError: the template takes an instruction, and there is none.
    """
    settings: PortingSettings = context.settings
    asked, template = settings.prompt, settings.prompt.full_template
    instruction, labels = asked.instruction, asked.labels
    task = task_of(context, place)
    if task is not None and (instruction is None or labels is None):
        known = _described(context, task)
        instruction = known[0] if instruction is None else instruction
        labels = known[1] if labels is None else labels
    if instruction is None and "{instruction}" in template:
        if asked.given:
            raise ConfigurationError(
                f"prompt.template is {template!r}, and nothing says what {{instruction}} is; give "
                "prompt.instruction=TEXT, or write it into the template"
            )
        template = "{text}"
    prompt = template.replace("{instruction}", instruction or "")
    return PromptSpec(prompt, labels or (), asked.completion, asked.text_chars)


def task_of(context: RunContext, place: str) -> str | None:
    """Return the task that an adapter was trained on, where it lies in the pair's zoo."""
    folder = Path(place).expanduser()
    if folder.is_dir():
        if folder.resolve().parent != _source_zoo(context).expanduser().resolve():
            return None
    elif folder.name != place:
        return None
    return folder.name if folder.name in context.task_source().names() else None


def _described(context: RunContext, task: str) -> tuple[str, tuple[str, ...]]:
    """Return the instruction and the labels of a task; of the hub's no row is fetched."""
    source = context.task_source()
    known = source.definitions[task] if isinstance(source, HubTasks) else source.load([task])[task]
    return known.instruction, known.labels


# The mapper: built, or read out of a checkpoint, and ready for the pair.


def chosen_mapper(settings: TransferSettings) -> Mapper:
    """Return the mapper of ``mapper=``, or of ``ckpt=`` where that is given.

    Raises:
        ConfigurationError: a learned mapper lacks its checkpoint, or the checkpoint is of another.
    """
    built: Mapper = settings.mapper.build()
    ckpt = settings.ckpt
    if ckpt is None:
        if built.learns_from is not None:
            name = built.name
            raise ConfigurationError(
                f"mapper={name} is learned, and there is no checkpoint of it: fit it by `python "
                f"train.py mapper={name} pair={settings.pair.name}` and give its mapper.ckpt as "
                "ckpt="
            )
        return built
    loaded = load_mapper(ckpt)
    if not loaded.fitted:
        raise ConfigurationError(
            f"ckpt={ckpt} holds a {type(loaded).__name__} that was never fitted; give the "
            "mapper.ckpt of a run that came to its end"
        )
    if settings.names_mapper and type(loaded) is not type(built):
        raise ConfigurationError(
            f"ckpt={ckpt} holds a {type(loaded).__name__}, but mapper={built.name} is a "
            f"{type(built).__name__}; leave mapper= out, or give the checkpoint of that mapper"
        )
    return loaded


# From source adapters to one adapter of the target, without files or settings.


class Mapped(NamedTuple):
    """What became of one source adapter, before anything is combined.

    Attributes:
        adapter: The target's.
        report: What the mapper reports of it.
        acts: False where it is meant to do nothing.
    """

    adapter: LoraAdapter
    report: Report
    acts: bool


class Ported(NamedTuple):
    """An adapter of the target, and what was found on the way.

    Attributes:
        adapter: As it is to be written.
        mapping: What the mapper reports of each source adapter.
        steps: What each step after the mapper lost and found, by its name.
    """

    adapter: LoraAdapter
    mapping: tuple[Report, ...]
    steps: dict[str, Combined]


@dataclass(frozen=True)
class Porting:
    """Map, sparsify, merge, cut to a rank, scale, convert: in this order, each where asked for.

    Attributes:
        mapper: Turns a source adapter into one of the target.
        target: The target's modules, which the result must fit.
        sparsify: Applied to each mapped adapter.
        merge: Merges the mapped adapters and those of the target.
        weights: Of the merged adapters, the mapped ones first; None: as the combiner has it.
        output_rank: The most that a site may have.
        scale: Multiplies the result.
        dtype: Of its factors.

    Raises:
        ConfigurationError: a number is out of its range.
    """

    mapper: Mapper
    target: SiteTable
    sparsify: Sparsifier | None = None
    merge: Combiner | None = None
    weights: Sequence[float] | None = None
    output_rank: int | None = None
    scale: float = 1.0
    dtype: torch.dtype = field(default=torch.float32)

    def __post_init__(self) -> None:
        if self.output_rank is not None and self.output_rank < 1:
            raise ConfigurationError(
                f"output_rank is {self.output_rank}; it takes a whole number of at least 1, or "
                "null for the rank that the mapper made"
            )
        if not 0 < abs(self.scale) < float("inf"):
            raise ConfigurationError(
                f"scale is {self.scale}; it takes a finite number other than 0 (mapper=noop makes "
                "an adapter that does nothing)"
            )

    def port(self, adapters: Sequence[LoraAdapter], others: Sequence[LoraAdapter] = ()) -> Ported:
        """Port source adapters, and merge them with others of the target into one.

        Raises:
            AdapterError: an adapter does not fit its model, nothing of it is left, or the dtype
                cannot hold it.
            ConfigurationError: there is no adapter, or the weights do not fit.
        """
        self.check_others(others)
        return self.combined(self.mapped(adapters), others)

    def check_others(self, others: Sequence[LoraAdapter]) -> None:
        """Raise AdapterError unless the adapters to merge with fit the target."""
        for other in others:
            check_target(other, self.target, "the adapter of merge.with")

    def mapped(self, adapters: Sequence[LoraAdapter]) -> list[Mapped]:
        """Map source adapters: the first step, which others may better before they are combined.

        Raises:
            AdapterError: an adapter does not fit its model.
            ConfigurationError: there is no adapter.
        """
        if not adapters:
            raise ConfigurationError("there is no adapter to port; adapter= takes at least one")
        found = []
        for adapter in adapters:
            made = self.mapper.map(adapter)
            check_target(made, self.target, "the mapper's result")
            found.append(Mapped(made, self.mapper.report(), self.mapper.acts))
        return found

    def combined(self, mapped: Sequence[Mapped], others: Sequence[LoraAdapter] = ()) -> Ported:
        """Do everything that follows the mapper; the others are those that were checked.

        Raises:
            AdapterError: nothing is left, or the dtype cannot hold it.
            ConfigurationError: the weights do not fit.
        """
        steps, parts = {}, [one.adapter for one in mapped]
        if self.sparsify is not None:
            for place, part in enumerate(parts):
                sparse = self.sparsify(part, index=place)
                steps["sparsify" if len(parts) == 1 else f"sparsify {place + 1}"] = sparse
                parts[place] = sparse.adapter
        result = parts[0]
        several = len(parts) + len(others) > 1
        if self.merge is not None and (several or self.weights is not None):
            steps["merge"] = self.merge([*parts, *others], self.weights, self.output_rank)
            result = LoraAdapter(steps["merge"].adapter.sites, parts[0].base_model)
        if self.output_rank is not None and any(u.rank > self.output_rank for u in result.values()):
            steps["output_rank"] = cut(result, self.output_rank)
            result = steps["output_rank"].adapter
        finished = self._finished(result, acts=any(one.acts for one in mapped))
        return Ported(finished, tuple(one.report for one in mapped), steps)

    def _finished(self, adapter: LoraAdapter, acts: bool) -> LoraAdapter:
        if self.scale != 1:
            adapter = adapter.map(lambda update: update.scaled(self.scale))
        if acts and adapter.norm() == 0:
            raise AdapterError(
                "the ported adapter is zero at every site, so that it would do nothing on the "
                "target; give a source adapter that was trained, or drop less of it"
            )
        for site, update in adapter.items():
            error = _rounding_error(update, self.dtype)
            if not error <= _ROUNDING:
                raise AdapterError(
                    f"dtype={str(self.dtype).removeprefix('torch.')} cannot hold the factors of "
                    f"{site.module_name}: the update would change by {error:.1%} of its norm; use "
                    "dtype=float32"
                )
        return adapter.map(lambda update: update.to(self.dtype))


def check_target(adapter: LoraAdapter, target: SiteTable, what: str) -> None:
    """Raise AdapterError unless an adapter's sites and shapes are modules of the target."""
    way_out = "choose the pair whose target it belongs to"
    target.check(adapter, what, "the pair's target", way_out)


def _rounding_error(update: LowRank, dtype: torch.dtype) -> float:
    """Return by what share of its norm an update changes in ``dtype``; NaN beyond its range."""
    rounded, norm = update.to(dtype), update.norm()
    squared = rounded.inner(rounded) - 2 * rounded.inner(update) + norm**2
    return max(squared, 0.0) ** 0.5 / norm if norm > 0 else 0.0


def porting_for(settings: PortingSettings, mapper: Mapper, target: SiteTable) -> Porting:
    """Return the steps that settings ask for.

    Raises:
        ConfigurationError: an option of the sparsifier or the combiner cannot be taken.
    """
    return Porting(
        mapper,
        target,
        sparsify=None if settings.sparsify is None else settings.sparsify.build(),
        merge=settings.merge.method.build(),
        weights=settings.merge.weights,
        output_rank=settings.output_rank,
        scale=settings.scale,
        dtype=DTYPES[settings.dtype],
    )


# Inputs and labelled examples out of files that a user gives.

_INPUTS = 'inputs= takes a file with a text a line, or *.jsonl with rows {"text": ...}'
_EXAMPLES = 'examples= takes *.jsonl with rows {"text": ..., "label": ...}'


def given_inputs(path: Path) -> tuple[str, ...]:
    """Return the texts of a file, each once, in their order.

    Raises:
        DataError: the file is of another kind, cannot be read, is empty, or a row has no text.
    """
    if path.suffix not in ("", ".txt", ".jsonl"):
        raise DataError(
            f"{path} is a {path.suffix} file, whose columns would all become text, labels with "
            f"them; {_INPUTS}: write the texts alone into a file of either kind"
        )
    if path.suffix == ".jsonl":
        texts = [_field(row, "text", where, _INPUTS) for where, row in _rows(path, _INPUTS)]
    else:
        texts = [line for _, line in _lines(path, _INPUTS)]
    once = tuple(dict.fromkeys(texts))
    if more := len(texts) - len(once):
        log.info("%d of %d texts in %s repeat another, and count once", more, len(texts), path)
    return once


def given_examples(path: Path, labels: tuple[str, ...]) -> tuple[Example, ...]:
    """Return the labelled texts of a file.

    Args:
        path: The file.
        labels: The labels that there are; none where answers are written freely.

    Raises:
        DataError: the file is of another kind, cannot be read, is empty, or a row has no text or a
            label that is not among them.
    """
    if path.suffix not in ("", ".jsonl"):
        raise DataError(f"{path} is a {path.suffix} file; {_EXAMPLES}")
    examples = []
    for where, row in _rows(path, _EXAMPLES):
        text, label = (_field(row, name, where, _EXAMPLES) for name in ("text", "label"))
        if labels and label not in labels:
            raise DataError(
                f"{where} has the label {label!r}, but the labels are {', '.join(labels)}; "
                "correct the row, or prompt.labels"
            )
        examples.append(Example(text, label))
    if len(examples) > 1 and len({row.label for row in examples}) == 1:
        log.warning(
            "all %d examples in %s have the label %r, and tell nothing of any other",
            *(len(examples), path, examples[0].label),
        )
    if more := len(examples) - len({row.text for row in examples}):
        log.warning("%d of %d examples in %s repeat a text", more, len(examples), path)
    return tuple(examples)


def _lines(path: Path, wanted: str) -> list[tuple[str, str]]:
    """Return where each line is, and the line, empty ones left out."""
    try:
        # Not str.splitlines: a text may hold a line separator that JSON need not escape.
        content = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); {wanted}") from None
    found = [
        (f"{path}, line {number},", line.strip())
        for number, line in enumerate(content, start=1)
        if line.strip()
    ]
    if not found:
        raise DataError(f"{path} is empty; {wanted}")
    return found


def _rows(path: Path, wanted: str) -> Iterator[tuple[str, Any]]:
    for where, line in _lines(path, wanted):
        with reading(where, f"JSON; {wanted}", DataError):
            row = json.loads(line)
        yield where, row


def _field(row: Any, name: str, where: str, wanted: str) -> str:
    value = row.get(name) if isinstance(row, dict) else None
    if not isinstance(value, str) or not value.strip():
        raise DataError(f'{where} has no "{name}" with text; {wanted}')
    return encodable(value)


# Refinement: what it learns from, the models that it is given, and what is measured behind it.


def corpus(settings: PortingSettings) -> TextSource | None:
    """Return the corpus; None where none is named.

    Raises:
        DataError: it is named, and not there.
    """
    return settings.corpus.build() if settings.has_corpus else None


def generic_texts(context: RunContext) -> TextSource:
    """Return what drift is measured on: the corpus, or the probes where there is none."""
    settings: PortingSettings = context.settings
    source: TextSource = corpus(settings) or settings.probes.build()
    return source


def anchor_texts(context: RunContext, place: str) -> TaskTexts | None:
    """Return the training texts of the anchor tasks, without question or answer.

    Held-out tasks are never among them, nor is the task that is ported. None unless
    ``refine_texts.anchors`` asks for them; where it says nothing, ``paths.tasks`` decides.

    Raises:
        ConfigurationError: no anchor task is left.
    """
    settings: PortingSettings = context.settings
    asked = settings.refine_texts.anchors
    if not (settings.paths.tasks if asked is None else asked):
        return None
    source, names = context.task_source(), settings.tasks.names
    others = {*settings.tasks.held_out, Path(place).name, task_of(context, place)}
    anchors = [n for n in (source.names() if names is None else names) if n not in others]
    if not anchors and asked is None:
        return None
    if not anchors:
        raise ConfigurationError(
            "refine_texts.anchors takes texts of tasks that are neither held out nor ported, and "
            "none is left; shorten tasks.held_out, or set refine_texts.anchors=false"
        )
    loaded = source.load(anchors)
    return TaskTexts(list(loaded.values()), settings.seed)


def taught_by(context: RunContext, refinement: Refinement, place: str) -> dict[str, TextSource]:
    """Return the sources of texts that a refinement is given, by what reports call them.

    Raises:
        DataError: it needs a corpus, and there is none.
    """
    if not refinement.learns:
        return {"generic": generic_texts(context)}
    settings: PortingSettings = context.settings
    found, anchors = corpus(settings), anchor_texts(context, place)
    if found is None and refinement.needs_texts and not settings.refine_texts.written:
        raise DataError(
            f"refine={refinement.name} puts generic texts into the adapter's prompt, and there is "
            "no corpus; give paths.corpus=DIR (*.txt with a text a line, or *.jsonl), or let the "
            "source write some by refine_texts.written=256, or name a mapper, such as "
            "mapper=cross_lora"
        )
    sources = {"corpus": found, "anchors": anchors}
    return {called: source for called, source in sources.items() if source is not None}


def check_adapters(refinement: Refinement, given: dict[str, LoraAdapter]) -> None:
    """Refuse adapters of which nothing can be learned.

    Raises:
        ConfigurationError: there are several, and the refinement asks one question.
        AdapterError: one of them does nothing.
    """
    if len(given) > 1 and refinement.learns:
        raise ConfigurationError(
            f"refine={refinement.name} refines one adapter, as it asks one question, but adapter= "
            f"names {len(given)}; port each by itself, and merge the results by merge.with=[DIR] "
            "and refine=none"
        )
    for place, adapter in given.items():
        if adapter.norm() == 0:
            raise AdapterError(
                f"{place} is zero at every site, so that there is nothing to learn from it; give "
                "a source adapter that was trained"
            )


def task_data(
    settings: TransferSettings, refinement: Refinement, labels: tuple[str, ...]
) -> tuple[tuple[str, ...], tuple[Example, ...]]:
    """Return the inputs and the examples, each where the refinement takes them.

    Raises:
        DataError: what it takes is missing, or cannot be used.
        ConfigurationError: something is given that it does not take.
    """
    name, takes = refinement.name, refinement.takes
    for key, taker in (("inputs", "prompt_distill"), ("examples", "few_shot")):
        if key not in takes and getattr(settings, key) is not None:
            raise ConfigurationError(
                f"refine={name} does not use {key}=; leave it out, or set refine={taker}"
            )
    if "inputs" in takes and settings.inputs is None:
        raise DataError(
            f"refine={name} learns from the task's own inputs, and none are given; give "
            'inputs=FILE, a text a line, or *.jsonl with rows {"text": ...}'
        )
    if "examples" in takes and settings.examples is None:
        raise DataError(
            f"refine={name} learns from labelled examples, and none are given; give "
            'examples=FILE, *.jsonl with rows {"text": ..., "label": ...}'
        )
    return (
        () if settings.inputs is None else given_inputs(settings.inputs),
        () if settings.examples is None else given_examples(settings.examples, labels),
    )


@dataclass(frozen=True, eq=False)
class Refining:
    """A refinement that was asked for, with what was given for it, checked.

    Attributes:
        refinement: The refinement.
        questions: What each adapter is asked, by the place that it was given as.
        texts: Sources of texts by what they are called; all of them are mixed.
        generic: What drift is measured on.
        inputs: Unlabelled inputs.
        examples: Labelled ones.
        written: Number of texts that the source writes itself.
    """

    context: RunContext
    refinement: Refinement
    questions: dict[str, PromptSpec]
    texts: dict[str, TextSource]
    generic: TextSource
    inputs: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()
    written: int = 0

    @classmethod
    def of(cls, context: RunContext, given: dict[str, LoraAdapter]) -> "Refining | None":
        """Read what ``refine`` asks for; None for ``refine=none``.

        Raises:
            LoraportError: something that the refinement needs is missing, or cannot be used.
        """
        settings: TransferSettings = context.settings
        if settings.refine is None:
            return None
        refinement: Refinement = settings.refine.build()
        check_adapters(refinement, given)
        questions = {place: prompt_spec(context, place) for place in given}
        place = next(iter(given))
        inputs, examples = task_data(settings, refinement, questions[place].labels)
        return cls(
            context=context,
            refinement=refinement,
            questions=questions,
            texts=taught_by(context, refinement, place),
            generic=generic_texts(context),
            inputs=inputs,
            examples=examples,
            written=settings.refine_texts.written,
        )

    @property
    def data_access(self) -> str:
        """What the refinement may use, its texts included."""
        own = self.refinement.data_access
        return costliest(own, "anchors") if "anchors" in self.texts else own

    @property
    def budget(self) -> float:
        """The drift that the finished adapter should keep within, in nats."""
        settings: TransferSettings = self.context.settings
        own = self.refinement.kl_budget
        return settings.drift.budget if own is None else own

    @property
    def data(self) -> dict[str, Any]:
        """What reports say of the texts that were given."""
        facts: dict[str, Any] = {"texts": [*self.texts, *(["written"] if self.written else [])]}
        facts |= {"inputs": len(self.inputs)} if self.inputs else {}
        return facts | ({"examples": len(self.examples)} if self.examples else {})

    def question(self) -> dict[str, object]:
        """Return what reports say of how the adapter was asked."""
        return asdict(next(iter(self.questions.values())))

    def distillation_inputs(
        self, place: str, adapter: LoraAdapter, progress: RefinementProgress
    ) -> DistillationInputs:
        """Return what the target learns from to behave like one adapter of the source.

        Raises:
            LoraportError: a model cannot be loaded.
        """
        seed, store = self.context.settings.seed, Store(self.context.cache)
        sources = list(self.texts.values())
        if self.written:
            source, question = self.context.learner("source"), self.questions[place]
            sources.append(
                WrittenTexts(
                    source, question, count=self.written, store=store, seed=seed, progress=progress
                )
            )
        alone = next(iter(sources), None)
        return DistillationInputs(
            teacher=Teacher(self.context.learner("source"), adapter),
            target=self.context.learner("target"),
            prompt_spec=self.questions[place],
            texts=Interleaved(sources, seed=seed) if len(sources) > 1 else alone,
            inputs=self.inputs,
            examples=self.examples,
            store=store,
            seed=seed,
            progress=progress,
        )

    def refine_all(
        self,
        given: Mapping[str, LoraAdapter],
        mapped: Sequence[Mapped],
        progress: RefinementProgress,
    ) -> tuple[list[Mapped], list[RefinementReport]]:
        """Refine what a mapper has made of each adapter.

        Returns:
            The better adapters in the place of the mapped ones, and what was done for each.

        Raises:
            VerificationError: what it has learned does nothing.
            LoraportError: the refinement cannot use what it was given.
        """
        better, reports = [], []
        for (place, adapter), one in zip(given.items(), mapped, strict=True):
            made = self.refinement.refine(
                one.adapter, self.distillation_inputs(place, adapter, progress)
            )
            acts = made.adapter.norm() > 0
            if self.refinement.learns and not acts:
                raise VerificationError(
                    f"refine={self.refinement.name} has found nothing better than an adapter that "
                    "is zero at every site, and would do nothing on the target; let it learn "
                    "longer (refine.epochs, refine.lr) or from more texts, or start from a mapper"
                )
            # What is zero now was meant to be, as with a drift budget of zero; it is said.
            better.append(Mapped(made.adapter, one.report, acts))
            reports.append(made.report)
        return better, reports

    def drift(
        self, given: Mapping[str, LoraAdapter], finished: LoraAdapter, progress: RefinementProgress
    ) -> DriftRecord:
        """Measure how far the finished adapter moves the target, and the source's own the source.

        Raises:
            LoraportError: there are no generic texts, or a model cannot use the adapter.
        """
        adapter = next(iter(given.values()))
        # In the models' own dtype: rounding would be much of a small divergence.
        distillation_inputs = DistillationInputs(
            Teacher(self.context.model("source"), adapter),
            self.context.model("target"),
            texts=self.generic,
            seed=self.context.settings.seed,
            progress=progress,
        )
        asked = self.context.settings.drift
        found = check_kl(
            finished, distillation_inputs, texts=asked.texts, positions=asked.positions
        )
        own, source = found["drift"], found["source_drift"]
        return DriftRecord(
            mean=own["mean"],
            p95=own["p95"],
            source_mean=source["mean"],
            source_p95=source["p95"],
            budget=self.budget,
            texts=found["drift_texts"],
        )


def numbers(report: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """Give every number of a nested report by its dotted name.

    >>> dict(numbers({"agreement": {"after": 0.9}, "notes": ["few texts"], "texts": 3}))
    {'agreement.after': 0.9, 'texts': 3.0}
    """
    for name, value in report.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{above}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{above}{name}", float(value)


# What to expect of an adapter, by anchors that were ported in the same way.


def given_calibration(settings: TransferSettings) -> AnchorCalibration | None:
    """Return the anchors of ``calibration=FILE``, or those that come with loraport for the pair.

    Raises:
        DataError: the file cannot be used.
        ConfigurationError: it is of another pair.
    """
    file, pair = settings.calibration, settings.pair.name
    if file is None:
        models = [str(getattr(settings.pair, side).options.get("name")) for side in SIDES]
        return AnchorCalibration.packaged(pair, models)
    found = AnchorCalibration.read(file)
    if found.pair != pair:
        raise ConfigurationError(
            f"calibration={file} was measured on pair={found.pair}, but this is pair={pair}, of "
            "which it says nothing; leave it out, or give one of this pair"
        )
    return found


def port_setting(
    start: tuple[str, Mapping[str, Any]],
    refine: Mapping[str, Any],
    texts: Sequence[str],
    adapter: LoraAdapter,
    measured: Mapping[str, Any],
    weights: Mapping[str, str],
    after: Mapping[str, Any] = _UNCHANGED,
) -> dict[str, Any]:
    """Return what a port was made with: anchors that differ in any of it say nothing of it.

    Args:
        start: Name and options of the mapper that the refinement begins from.
        refine: The refinement's options.
        texts: What its generic texts are called.
        adapter: What it has made.
        measured: What it reports: how much of each kind it has learned from.
        weights: The fingerprints of both models, by their sides.
        after: What was done to the adapter behind it.
    """
    mapper, options = start
    ranks = {update.rank for update in adapter.values()}
    return plain(
        {
            "mapper": mapper,
            **dict(_flat(options, "mapper.")),
            "rank": sorted(ranks)[0] if len(ranks) == 1 else sorted(ranks),
            "roles": [role.value for role in adapter.roles],
            "texts": texts,
            **{name: measured.get(name, 0) for name in ("generic_texts", "inputs", "examples")},
            **{k: v for k, v in _flat(refine, "refine.") if k not in _ONLY_MEASURED},
            **after,
            **{f"{side} weights": _shortened(weights[side]) for side in SIDES},
        }
    )


def _flat(options: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    """Give options by their dotted names; a class by the last part of its own."""
    for name, value in options.items():
        if isinstance(value, Mapping) and f"{above}{name}" not in _ONLY_MEASURED:
            yield from _flat(value, f"{above}{name}.")
        elif name == "_target_":
            yield above.removesuffix("."), str(value).rpartition(".")[2]
        else:
            yield f"{above}{name}", value


def _shortened(fingerprint: str) -> str:
    """Return the start of a hash, which tells models apart, and the dtype behind it."""
    content, dash, dtype = fingerprint.partition("-")
    return f"{content[:12]}{dash}{dtype}"


def expected(
    calibration: AnchorCalibration | None,
    refinement: str,
    setting: Mapping[str, Any],
    tasks: tuple[str, ...],
    measured: RefinementReport,
) -> ExpectedRecord:
    """Return what to expect of an adapter.

    Args:
        calibration: The anchors, if there are any.
        refinement: Name of the refinement.
        setting: What the adapter was made with.
        tasks: What is ported: of these tasks nothing may be known.
        measured: What was measured of the adapter.
    """
    if calibration is None:
        return ExpectedRecord(why_not="no anchors of this pair were measured")
    rise = agreement_rise(measured)
    anchors = [point for point in calibration.points if point.task not in tasks]
    found = dict(numbers(measured))
    told: dict[str, Any] = {}
    if rise is not None:
        told = {"rise": rise.difference.value, "rise_ci95": ends_of(rise.difference.interval)}
    why_not = list(_obstacles(calibration, refinement, setting, anchors, measured, rise))
    if why_not:
        return ExpectedRecord(**told, why_not="; ".join(why_not))
    fit = ExpectedRecovery.fit(anchors, calibration.features)
    value = fit.expect(found)
    return ExpectedRecord(
        **told,
        value=value.value,
        low=value.low,
        high=value.high,
        go=value.go,
        level=fit.level,
        loo_error=fit.loo_error,
        anchors=fit.anchors,
        hit_rate=hit_rate(anchors, left_out(anchors, calibration.features)),
        features={name: found[name] for name in calibration.features},
    )


def _obstacles(
    calibration: AnchorCalibration,
    refinement: str,
    setting: Mapping[str, Any],
    anchors: Sequence[AnchorPoint],
    measured: RefinementReport,
    rise: ItemChange | None,
) -> Iterator[str]:
    """Say why the anchors tell nothing of a port: another kind, or nothing was learned."""
    if calibration.refinement != refinement:
        yield f"the anchors of this pair were measured with refine={calibration.refinement}"
    elif differences := calibration.differences(setting):
        yield differences
    known = dict(numbers(measured))
    missing = [n for n in calibration.features if not math.isfinite(known.get(n, math.nan))]
    if missing:
        yield f"{', '.join(missing)} was not measured of this adapter"
    if len(anchors) < LEAST_POINTS:
        yield f"only {len(anchors)} other anchors of this pair were measured"
    if rise is None:
        yield "it is not known on which held-out texts the target has come to agree with the source"
    elif not _is_sure(rise):
        yield (
            "the target does not surely agree with the source more often than before "
            f"({100 * rise.difference.value:+.1f} points of {rise.items} held-out texts, 95 % "
            f"interval {interval_text(in_points(ends_of(rise.difference.interval)), 1)})"
        )
    elif known.get("agreement_over_constant", math.inf) <= 0:
        yield (
            "the target agrees with the source no more often than one label for all texts would "
            f"({known['agreement_constant']:.0%})"
        )


def agreement_rise(measured: Mapping[str, Any]) -> ItemChange | None:
    """Return how the agreement with the teacher has changed over the same held-out texts.

    None where it was not measured text by text.
    """
    known = dict(numbers(measured))
    names = ("held_out", "agreement_gained", "agreement_lost")
    if not all(name in known for name in names) or not known["held_out"]:
        return None
    texts, gained, lost = (int(known[name]) for name in names)
    # The texts that it agrees on both times or never do not differ: either is a 0 here.
    before, after = torch.zeros(texts), torch.zeros(texts)
    after[:gained] = 1
    before[gained : gained + lost] = 1
    return item_change(before, after)


def _is_sure(rise: ItemChange) -> bool:
    """Return whether the interval is above 0, and the sign test as well.

    The bootstrap alone calls four texts of 64 a rise where none was lost.
    """
    return rise.difference.interval.low > 0 and rise.p is not None and rise.p < _LEAST_P


def refinement_record(
    refining: Refining,
    places: tuple[str, ...],
    reports: Sequence[RefinementReport],
    drift: DriftRecord,
    setting: Mapping[str, Any],
    calibration: AnchorCalibration | None,
) -> RefinementRecord:
    """Return what reports hold of a refinement.

    Args:
        refining: The refinement.
        places: The adapters that it was done for, as they were given.
        reports: What it reports of each.
        drift: Of the finished adapter.
        setting: What it was made with.
        calibration: What to expect by, if there is anything.
    """
    tasks = tuple(Path(place).name for place in places)
    measured = {**reports[0], "drift": drift.model_dump()}
    name = refining.refinement.name
    return RefinementRecord(
        name=name,
        data_access=refining.data_access,
        question=refining.question(),
        data=refining.data,
        setting=dict(setting),
        measured=tuple(reports),
        drift=drift,
        expected=expected(calibration, name, setting, tasks, measured),
    )
