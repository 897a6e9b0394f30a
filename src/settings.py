"""The configuration of every command as a typed value, checked before anything heavy is imported.

``TransferSettings.of(config)`` reads what Hydra composed for ``transfer.py``; the other commands
have classes of their own. Reading resolves what depends on other options (``refine: auto``), makes
paths of texts with ``~``, and refuses every option that cannot be taken in one
:class:`~loraport.exceptions.ConfigurationError` that names them all.

Only values count: how Hydra came by them, on the command line, in an experiment or in a YAML of
another package, makes no difference. What is built from the configuration (mappers, corpora, base
models, ...) stays a description, :class:`~loraport.component.Component`, whose class is imported
when it is built.

``options("transfer")`` lists all options of a command with what each takes and means.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from omegaconf import DictConfig, OmegaConf
from platformdirs import user_cache_path
from pydantic import BeforeValidator, Field, model_validator

from .component import Component, Components, OptionalComponent
from .composing import as_running, choices, compose, given_words
from .exceptions import ConfigurationError
from .option_types import (
    CONTROL_MAPPERS,
    AdapterPlace,
    Count,
    Device,
    Dtype,
    DtypeOrAuto,
    Flag,
    Names,
    NaturalNumber,
    NonZero,
    Option,
    OptionalCount,
    OptionalNames,
    OptionalPath,
    Options,
    Positive,
    PromptText,
    Read,
    Roles,
    Seed,
    Several,
    SeveralOrNone,
    Takes,
    Text,
    listed,
    read_as,
)

DEFAULT_TEMPLATE = "{text}\n{instruction}\nAnswer:"
"""The prompt that adapters of a zoo are trained with unless ``prompt.template`` says another."""

_LABEL, _TEXT = "{label}", "{text}"


class Prompt(Options):
    """How a row of a task is shown to a model."""

    template: Annotated[PromptText | None, Takes(f"text with {_TEXT}, or null")] = Field(
        None,
        description="Template of the prompt, with the fields {text} and {instruction}; null: "
        f"{json.dumps(DEFAULT_TEMPLATE)}, or the text alone where nothing says an instruction.",
    )
    completion: Annotated[PromptText, Takes(f"text with {_LABEL}")] = Field(
        f" {_LABEL}", description="Template of an answer, with the field {label}."
    )
    text_chars: OptionalCount = Field(
        None, description="A text is cut to so many characters; null keeps it whole."
    )

    @property
    def given(self) -> bool:
        """Whether a template other than the default is asked for."""
        return self.template not in (None, DEFAULT_TEMPLATE)

    @property
    def full_template(self) -> str:
        """The template, the default one where none is given."""
        return DEFAULT_TEMPLATE if self.template is None else self.template

    def _problems(self) -> Iterator[str]:
        if _TEXT not in self.full_template:
            yield (
                f"prompt.template is {self.template!r}, so that all prompts would be the same; it "
                f"takes text with {_TEXT}, where the text goes"
            )
        if _LABEL not in self.completion:
            yield (
                f"prompt.completion is {self.completion!r}, so that all answers would be the same; "
                f"it takes text with {_LABEL}, where the label goes"
            )


def _labels(value: Any) -> Any:
    """Read whole numbers as the words that they are; a true or a null may have been any word."""
    if not isinstance(value, list | tuple):
        return value
    return tuple(str(label) if type(label) is int else label for label in value)


class AskedPrompt(Prompt):
    """How the adapter that is ported is asked."""

    instruction: Annotated[PromptText | None, Takes("text, or null")] = Field(
        None,
        description="Fills {instruction} of prompt.template; null: that of the task, where the "
        "adapter is of the pair's zoo.",
    )
    labels: Annotated[
        tuple[str, ...] | None,
        BeforeValidator(_labels),
        Takes(
            "at least two different words, such as [A,B] or ['true','false'], or null where the "
            "adapter writes"
        ),
    ] = Field(
        None,
        description="The answers among which the adapter chooses; null: the task's, or it writes "
        "freely.",
    )

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        labels = self.labels
        if labels is None:
            return
        words = [label.strip() for label in labels]
        twice = sorted({word for word in words if words.count(word) > 1})
        if labels and (len(set(labels)) < 2 or not all(map(str.strip, labels))):
            yield (
                f"prompt.labels is {list(labels)}; it takes at least two different words, such as "
                "[A,B], or null where the adapter writes freely"
            )
        elif twice:
            yield f"prompt.labels names {', '.join(twice)} twice; name each once"


class Scoring(Options):
    """How adapters are scored on tasks."""

    scoring: Text = Field(
        "likelihood", description="One of evaluation.scorers: `likelihood` or `generate`."
    )
    batch_tokens: Count = Field(4096, description="Tokens a forward pass.")
    scorers: Components = Field(description="Ways to score, by name.")

    @property
    def scorer(self) -> Component:
        """The chosen one of ``scorers``."""
        return self.scorers[self.scoring]

    def _problems(self) -> Iterator[str]:
        if self.scoring not in self.scorers:
            yield (
                f"evaluation.scoring is {self.scoring!r}; it takes one of {', '.join(self.scorers)}"
            )


class ZooScoring(Scoring):
    """How the adapters of a zoo are scored when they are trained."""

    rows: OptionalCount = Field(
        None, description="Score every adapter and its base on so many test rows; null: do not."
    )


class TrainScoring(Scoring):
    """How predictions are scored, and beside which controls."""

    controls: Annotated[
        Several[Literal["nearest", "random", "swapped"]],
        Takes("any of nearest, random, swapped, such as [random]"),
    ] = Field((), description="Scored beside base and mean.")


class BenchmarkScoring(Scoring):
    """How methods are scored, and beside which controls."""

    controls: Annotated[
        Several[Literal["copy", "nearest", "random"]],
        Takes("any of copy, nearest, random, such as [copy]"),
    ] = Field((), description="Scored beside base, mean and swapped.")


class Paths(Options):
    """Where things lie; null takes what is said."""

    cache: OptionalPath = Field(
        None,
        description="Models, zoos and scores that are built once; null: $LORAPORT_CACHE, or the "
        "user's cache folder.",
    )
    tasks: OptionalPath = Field(None, description="Folder of tasks; null: where tasks.source says.")
    corpus: OptionalPath = Field(
        None,
        description="Texts: a folder of *.txt (a text a line) and *.jsonl, or one such file; null: "
        "none, or nothing to download for pair=tiny.",
    )
    suites: OptionalPath = Field(
        None,
        description="Folder of suites: reasoning, code, safety, creativity; null: from the hub.",
    )
    zoo: OptionalPath = Field(
        None, description="Folder of paired adapters; null: in the cache, by pair and recipe."
    )
    zoo_source: OptionalPath = Field(
        None, description="Instead of paths.zoo: a folder of the source's adapters, ..."
    )
    zoo_target: OptionalPath = Field(
        None, description="... and one of the target's, with the same names."
    )

    @property
    def cache_folder(self) -> Path:
        """The folder for everything that is built once."""
        given = self.cache or os.environ.get("LORAPORT_CACHE")
        return Path(given).expanduser() if given else user_cache_path("loraport")

    def _problems(self) -> Iterator[str]:
        if (self.zoo_source is None) != (self.zoo_target is None):
            yield (
                "paths.zoo_source and paths.zoo_target are set together or not at all: two folders "
                "with same-named adapters of the source and of the target"
            )


class Recipe(Options):
    """How one adapter is trained."""

    rank: Count = Field(description="Columns of every B.")
    alpha: Count = Field(description="PEFT's lora_alpha: the update is scaled by alpha / rank.")
    roles: Roles = Field(description="Adapted modules of every layer.")
    init_seed: Seed = Field(
        description="Draws A; shared by all tasks of a base, so that adapters are comparable."
    )
    lr: Positive = Field(description="Of AdamW, after the warm-up.")
    warmup_steps: NaturalNumber = Field(
        description="After which the learning rate falls linearly to zero."
    )
    epochs: Count = Field(description="Passes over the rows.")
    batch_size: Count = Field(description="Rows a step.")
    examples: Count = Field(description="Training rows.")
    balanced: Flag = Field(description="Take them from the labels in turn.")
    clip_norm: Positive = Field(description="Of the gradient.")
    seed: Seed = Field(description="Order of the rows.")


class Tasks(Options):
    """The tasks that there are."""

    names: OptionalNames = Field(None, description="Which tasks there are; null: all.")
    held_out: Names = Field((), description="Those that are no anchors.")
    limit: OptionalCount = Field(None, description="Test rows a task; null: all.")
    source: Component = Field(description="Where tasks come from, unless paths.tasks is given.")
    definitions: dict[str, Any] | None = Field(
        None, description="Instruction and labels of tasks of the hub, for tasks.source."
    )


class Pair(Options):
    """The two base models."""

    name: Text = Field(description="What the pair is called in reports and in the cache.")
    build_zoo: Flag = Field(
        False, description="The pair brings its tasks, and commands train its zoo where it lacks."
    )
    workers: Count = Field(1, description="Processes that train it, one a side.")
    source: Component = Field(description="The base model that adapters come from.")
    target: Component = Field(description="The base model that they go to.")


class Drift(Options):
    """How far a finished adapter moves the target on generic text (KL to the base model)."""

    texts: Count = Field(
        64, description="Of the corpus's validation split, or of the probes without a corpus."
    )
    positions: Count = Field(8, description="Tokens a text at most.")


class BudgetedDrift(Drift):
    """The same, with what is thought to be acceptable."""

    budget: Annotated[float, Field(ge=0), Takes("a number of at least 0")] = Field(
        0.1, description="Nats a token that the finished adapter should keep within; it is told."
    )


class SampledDrift(Drift):
    """The same, where it may be left out."""

    texts: NaturalNumber = Field(
        64, description="Of the validation split, or of the probes without a corpus; 0: none."
    )


class RefineTexts(Options):
    """What is mixed with the corpus, if there is one."""

    written: NaturalNumber = Field(0, description="So many texts that the source writes itself.")
    anchors: Annotated[bool | None, Takes("true, false, or null")] = Field(
        None, description="Training texts of anchor tasks; null: where paths.tasks is given."
    )


class Merge(Options):
    """How ported adapters are merged with others into one."""

    others: Annotated[Several[AdapterPlace], Takes("folders of adapters, such as [A,B]")] = Field(
        (),
        alias="with",
        description="Folders of adapters of the target that are merged with the ported one.",
    )
    weights: Annotated[
        SeveralOrNone[float],
        Takes("numbers, such as [0.5,0.5], or null"),
    ] = Field(None, description="One number an adapter, the ported one(s) first; null: all alike.")
    method: Component = Field(description="How they are merged.")

    def _problems(self) -> Iterator[str]:
        yield from _twice("merge.with", self.others)


class Choose(Options):
    """Anchors on which the same steps are scored, to choose options by."""

    anchors: Names = Field((), description="Tasks of the zoo, none of them held out.")
    rows: Count = Field(100, description="Test rows of each.")
    merged: Flag = Field(False, description="Merge each with merge.with as well.")


class Transport(Options):
    """Entropic Gromov-Wasserstein between paired layers."""

    rows: NaturalNumber = Field(50, description="Of the probes' rows; 0 leaves it out.")
    layers: Count = Field(3, description="Target layers, spread evenly; each takes ten seconds.")


def _twice(key: str, given: Sequence[str]) -> Iterator[str]:
    twice = sorted({place for place in given if given.count(place) > 1})
    if twice:
        yield (
            f"{key} names {', '.join(twice)} twice; name it once, and give it weight by "
            "merge.weights"
        )


class Settings(Options):
    """What all commands share."""

    seed: Seed = Field(description="Of everything that is drawn.")
    force: Flag = Field(
        description="Go on although the diagnosis finds the two models too different."
    )
    prompt: Prompt = Field(description="How a row of a task is shown to a model.")
    evaluation: Scoring = Field(description="How adapters are scored.")
    paths: Paths = Field(description="Where things lie.")
    recipe: Recipe = Field(description="How the adapters of a zoo are trained.")
    tasks: Tasks = Field(description="The tasks that there are.")
    pair: Pair = Field(description="The two base models.")

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, given: Any) -> Any:
        """Leave out what belongs to other commands: an experiment may be one for several."""
        known = {name for command in _commands() for name in command.names()} - cls.names()
        return {key: value for key, value in given.items() if key not in known}

    @classmethod
    def names(cls) -> set[str]:
        """Return the options of the first level."""
        return {field.alias or name for name, field in cls.model_fields.items()}

    @classmethod
    def of(cls: type[Read], config: DictConfig) -> Read:
        """Read what Hydra composed.

        Raises:
            ConfigurationError: an option is unknown, missing, of the wrong kind, out of its range,
                or does not go with another one; the message tells all of them.
        """
        return read_as(cls, OmegaConf.to_container(config, resolve=True, throw_on_missing=False))

    def plain(self) -> dict[str, Any]:
        """Return the options as plain data, for records."""
        content = self.model_dump(mode="json", by_alias=True)
        content["prompt"]["template"] = self.prompt.full_template
        return content

    def recipe_hash(self) -> str:
        """Return the SHA-256 of what determines the adapters of a zoo."""
        given = self.plain()
        # Not all of prompt: what a transfer asks about its own adapter trains none of the zoo's.
        prompt = {key: given["prompt"][key] for key in ("template", "completion", "text_chars")}
        parts = {"recipe": given["recipe"], "prompt": prompt, "tasks": given["tasks"]["source"]}
        parts["pair"] = {side: given["pair"][side] for side in ("source", "target")}
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class TextSettings(Settings):
    """What commands share that compare the two models on text."""

    diagnosis: OptionalComponent = Field(
        None, description="How the two models are compared first; null: they are not."
    )
    probes: Component = Field(description="Texts on which they are compared.")
    corpus: Component = Field(description="Generic texts, which belong to no task.")

    @property
    def has_corpus(self) -> bool:
        """Whether there are generic texts: only a folder of them may be left out."""
        return self.corpus.options.get("folder", "") is not None


class TrainerSettings(Settings):
    """What commands share that may train a mapper."""

    trainer: Component = Field(description="Lightning's trainer.")
    callbacks: Components = Field({}, description="Of the trainer, by name.")


class PortingSettings(TextSettings, TrainerSettings):
    """The steps of a port, as transfer.py and evaluate.py both have them."""

    prompt: AskedPrompt = Field(description="How the adapter that is ported is asked.")
    mapper: Component = Field(description="What turns a source adapter into one of the target.")
    data: OptionalComponent = Field(None, description="What a learned mapper is trained on.")
    refine: OptionalComponent = Field(
        None, description="What makes the mapped adapter better; null: nothing."
    )
    refine_texts: RefineTexts = Field(description="What is mixed with the corpus.")
    refine_dtype: DtypeOrAuto = Field(
        description="In which both models teach and learn; auto: bfloat16 for large models on "
        "hardware made for it."
    )
    sparsify: OptionalComponent = Field(
        None, description="What drops a part of each mapped adapter; null: nothing."
    )
    merge: Merge = Field(description="How ported adapters are merged.")
    scale: Annotated[
        NonZero,
        Takes(
            "a finite number other than 0 (mapper=noop refine=none makes an adapter that does "
            "nothing)"
        ),
    ] = Field(description="Multiplies the ported update.")
    output_rank: Annotated[
        Annotated[int, Field(ge=1)] | None,
        Takes("a whole number of at least 1, or null for the rank that the mapper made"),
    ] = Field(None, description="Cut every site to at most so many columns.")
    dtype: Dtype = Field(description="Of the ported factors.")
    device: Device = Field(description="Where matrices are multiplied.")

    @model_validator(mode="before")
    @classmethod
    def _leave_out_data(cls, given: Any) -> Any:
        """Drop options of ``data`` that an experiment sets where the mapper needs no data."""
        return _without_bare_data(given)

    @property
    def names_mapper(self) -> bool:
        """Whether a mapper is named: any but noop, with which a port begins at zero."""
        return not self.mapper.is_called("NoopMapper")


class TrainSettings(TextSettings, TrainerSettings):
    """The configuration of ``train.py``."""

    evaluation: TrainScoring = Field(description="How predictions are scored.")
    mapper: Component = Field(description="What is trained.")
    data: OptionalComponent = Field(None, description="What it is trained on.")
    pairing: Component = Field(description="Which source layers feed each target layer.")
    logger: Components = Field({}, description="Where numbers are logged, by name.")
    objective: OptionalComponent = Field(
        None, description="What a sweep that chooses options goes by; null: nothing is chosen."
    )
    anchor_questions: Flag = Field(
        description="A mapper that learns from text: put the anchor tasks' questions behind texts."
    )

    @model_validator(mode="before")
    @classmethod
    def _leave_out_data(cls, given: Any) -> Any:
        return _without_bare_data(given)


class AnchorsSettings(Settings):
    """The configuration of ``anchors.py``."""

    evaluation: ZooScoring = Field(description="How trained adapters are scored.")
    trainer: Component = Field(description="Lightning's trainer.")
    side: Annotated[Literal["source", "target", "both"], Takes("source, target or both")] = Field(
        description="Whose adapters are trained."
    )

    @property
    def sides(self) -> tuple[str, ...]:
        """The sides whose adapters are trained."""
        return ("source", "target") if self.side == "both" else (self.side,)

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        for key in ("devices", "num_nodes"):
            asked = self.trainer.options.get(key, 1)
            if not (asked in (1, "1") or (isinstance(asked, list) and len(asked) == 1)):
                yield (
                    f"trainer.{key} is {asked!r}, but anchors.py trains each adapter on one "
                    "device: several would average gradients of different tasks; set it to 1, and "
                    "start the same command once a device (trainer.devices=[0], [1], ...): "
                    "processes share the tasks"
                )


class TransferSettings(PortingSettings):
    """The configuration of ``transfer.py``.

    ``refine: auto`` is settled: with a mapper or a checkpoint that is named it is none, else
    ``corpus_distill``.
    """

    adapter: Annotated[
        Several[AdapterPlace],
        Field(min_length=1),
        Takes("a PEFT folder, a hub id or a task of the pair's zoo, or several as [A,B]"),
    ] = Field(
        description="A PEFT folder, a hub id, or a task of the pair's zoo; several are ported and "
        "merged."
    )
    output: OptionalPath = Field(
        None, description="The PEFT folder to make; null: adapter/ in the run's folder."
    )
    overwrite: Flag = Field(description="Replace what is at output and cartridge already.")
    ckpt: OptionalPath = Field(
        None, description="The mapper.ckpt of a learned mapper, as train.py wrote it."
    )
    cartridge: OptionalPath = Field(
        None,
        description="Of a checkpoint of mapper=cast: a folder for the adapter behind its heads.",
    )
    inputs: OptionalPath = Field(
        None,
        description="For refine=prompt_distill: unlabelled inputs of the task, a text a line or "
        '*.jsonl with rows {"text": ...}.',
    )
    examples: OptionalPath = Field(
        None,
        description='For refine=few_shot: *.jsonl with rows {"text": ..., "label": ...}.',
    )
    calibration: OptionalPath = Field(
        None,
        description="Measured anchors of the pair, by which to expect what is recovered; null: "
        "those that come with loraport.",
    )
    drift: BudgetedDrift = Field(description="Measured on the finished adapter.")
    choose: Choose = Field(description="Anchors to choose options by.")

    @classmethod
    def of(cls, config: DictConfig) -> "TransferSettings":
        """Read what Hydra composed; see :meth:`Settings.of`."""
        read = super().of(config)
        auto = OmegaConf.select(config, "refine.chosen") is False
        if auto and read.refine is None and (lost := _refine_options(config)):
            raise ConfigurationError(
                f"{', '.join(lost)} is set, but a port by a mapper or a checkpoint that is named "
                "is not refined unless refine= is named as well, such as refine=corpus_distill"
            )
        return read

    @model_validator(mode="before")
    @classmethod
    def _settle_refine(cls, given: Any) -> Any:
        """Settle ``refine: auto``, whose node says that nobody chose it."""
        refine = given.get("refine")
        if not isinstance(refine, Mapping) or refine.get("chosen") is not False:
            return given
        mapper = str((given.get("mapper") or {}).get("_target_", ""))
        from_zero = mapper.endswith(".NoopMapper") and not given.get("ckpt")
        kept = {key: value for key, value in refine.items() if key != "chosen"}
        return {**given, "refine": kept if from_zero else None}

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        yield from _twice("adapter", self.adapter)
        yield from self._choice_problems()
        if self.cartridge is not None:
            yield from self._cartridge_problems(self.cartridge)
        if self.refine is None:
            for key, takes in (("inputs", "prompt_distill"), ("examples", "few_shot")):
                if getattr(self, key) is not None:
                    yield (f"refine=none does not use {key}=; leave it out, or set refine={takes}")
            asked = {"written": self.refine_texts.written, "anchors": self.refine_texts.anchors}
            for key, value in asked.items():
                if value:
                    yield (
                        f"refine_texts.{key} is {value!r}, but nothing is refined; leave it out, "
                        "or set refine=corpus_distill"
                    )

    def _choice_problems(self) -> Iterator[str]:
        anchors, others = set(self.choose.anchors), self.merge.others if self.choose.merged else ()
        if given := sorted(anchors & {Path(place).name for place in others}):
            yield (
                f"choose.anchors has {', '.join(given)}, whose adapter of the target merge.with "
                "has: it would be scored with its own answer; choose options on other tasks"
            )
        if own := sorted(anchors & {Path(place).name for place in self.adapter}):
            yield (
                f"choose.anchors has {', '.join(own)}, which is ported itself; choose options on "
                "other tasks of the zoo"
            )
        if wrong := sorted(anchors & set(self.tasks.held_out)):
            yield (
                f"choose.anchors has {', '.join(wrong)}, which tasks.held_out keeps for "
                "evaluation; choose options on other tasks of the zoo"
            )
        if anchors and self.refine is not None:
            yield (
                "choose.anchors ports every anchor as well, and refine= would refine each for "
                "minutes; set refine=none and a mapper, such as mapper=cross_lora"
            )

    def _cartridge_problems(self, folder: Path) -> Iterator[str]:
        if self.ckpt is None:
            yield (
                f"cartridge={folder} takes ckpt= of mapper=cast, but there is no checkpoint; give "
                "it, or leave cartridge= out"
            )
        if len(self.adapter) > 1:
            yield (
                f"cartridge={folder} holds one adapter, but adapter= names {len(self.adapter)}, "
                "and what is behind heads is not merged; give one adapter"
            )
        if self.refine is not None:
            yield (
                f"cartridge={folder} holds the adapter behind its heads, which refine= does not "
                "change; leave one of them out"
            )


class DiagnoseSettings(TextSettings):
    """The configuration of ``diagnose.py``."""

    diagnosis: Component = Field(description="How the two models are compared.")
    measures: Components = Field({}, description="Measures of similarity between layers, by name.")
    data: Component = Field(description="The corpus, aligned for both models.")
    pairing: Component = Field(description="Which source layers feed each target layer.")
    adapter: Annotated[
        AdapterPlace | None, Takes("a PEFT folder, a hub id, a task of the pair's zoo, or null")
    ] = Field(
        None,
        description="A PEFT folder, a hub id, or a task of the pair's zoo: what of its directions "
        "the maps between modules predict.",
    )
    roles: Roles = Field(
        description="Modules between which maps are fitted; those of the adapter where one is "
        "given."
    )
    transport: Transport = Field(description="Gromov-Wasserstein between paired layers.")

    @classmethod
    def of(cls, config: DictConfig) -> "DiagnoseSettings":
        """Read what Hydra composed; see :meth:`Settings.of`."""
        # Before the rest, which refers to its options.
        if not config.get("diagnosis"):
            raise ConfigurationError(
                "diagnosis=none leaves nothing to do; diagnose.py takes diagnosis=cheap"
            )
        return super().of(config)


@dataclass(frozen=True)
class Method:
    """One way to port an adapter, as ``methods=`` of evaluate.py names it.

    Attributes:
        name: ``MAPPER``, ``MAPPER+REFINE``, or ``default``: what transfer.py does by itself.
        options: More of the command line, for this method alone.
    """

    name: str
    options: tuple[str, ...] = ()

    DEFAULT: ClassVar[str] = "default"
    CONTROLS: ClassVar[tuple[str, ...]] = CONTROL_MAPPERS

    @property
    def mapper(self) -> str:
        """Its choice of the group mapper."""
        return "noop" if self.name == self.DEFAULT else self.name.partition("+")[0]

    @property
    def refine(self) -> str:
        """Its choice of the group refine."""
        if self.name == self.DEFAULT:
            return "corpus_distill"
        return self.name.partition("+")[2] or "none"

    @property
    def words(self) -> list[str]:
        """What the method adds to a command line."""
        return [f"mapper={self.mapper}", f"refine={self.refine}", *self.options]


class MethodSettings(PortingSettings):
    """What evaluate.py runs for one method: the command's configuration, and the method's own.

    A method's YAML changes other groups too (``data``, ``callbacks``, ``trainer``), so that it is
    composed anew, see :meth:`of_method`.
    """

    evaluation: BenchmarkScoring = Field(description="How methods are scored.")
    pairing: Component = Field(description="Which source layers feed each target layer.")
    logger: Components = Field({}, description="Where numbers are logged, by name.")
    suite: Components = Field({}, description="Suites that are asked, by name.")
    methods: Annotated[
        Several[str], Field(min_length=1), Takes("names of methods, such as [cross_lora,default]")
    ] = Field(
        description="What is compared: each MAPPER, MAPPER+REFINE or default (what transfer.py "
        "does by itself); all: every mapper."
    )
    method_options: Annotated[
        dict[str, Several[str]] | None,
        Takes("options of single methods, such as {cast: ['mapper.hidden=128']}, or null"),
    ] = Field(None, description="More options of single methods.")
    seeds: Annotated[
        SeveralOrNone[Annotated[int, Field(ge=0, lt=2**32)]],
        Takes("whole numbers of at least 0, such as [0,1], or null"),
    ] = Field(None, description="Of everything that is drawn; null: seed alone.")
    few_shot: Annotated[
        Several[Annotated[int, Field(ge=1)]],
        Takes("whole numbers of at least 1, such as [8,32], or [] for no such control"),
    ] = Field((), description="Labelled examples of the control that is trained on the target.")
    unlabelled: Count = Field(description="Inputs of the task that MAPPER+prompt_distill is given.")
    examples: Count = Field(description="Labelled ones that MAPPER+few_shot is given.")
    suite_methods: OptionalNames = Field(
        None,
        description="Methods whose ported adapters are asked the suites, with the first seed, "
        "beside base and oracle; null: all.",
    )
    suite_tasks: OptionalNames = Field(None, description="... of these held-out tasks; null: all.")
    suite_dtype: DtypeOrAuto = Field(description="In which the target answers suites.")
    calibration: Flag = Field(
        description="Compare what is known before a transfer with what came of it."
    )
    collect: OptionalPath = Field(
        None,
        description="Gather the runs of a multirun under this folder into one report; nothing is "
        "run.",
    )
    dashboard: Annotated[
        Annotated[str, Field(pattern=r"^[^/]+/.+$")] | None,
        Takes("ENTITY/PROJECT, as W&B has it, or null"),
    ] = Field(
        None,
        description="ENTITY/PROJECT in W&B: create its workspace for these methods and tasks; "
        "nothing is run.",
    )
    shown_examples: NaturalNumber = Field(
        description="Rows of each task that the report shows with the answers."
    )
    anchor_questions: Flag = Field(
        description="A mapper that learns from text: put the anchor tasks' questions behind texts."
    )
    drift: SampledDrift = Field(description="Of suite_methods and oracles.")

    @property
    def asked_methods(self) -> tuple[Method, ...]:
        """The methods, each once, in their order."""
        names = tuple(dict.fromkeys(self.methods))
        if names == ("all",):
            found = (name for name in choices("mapper") if name not in Method.CONTROLS)
            names = (*found, Method.DEFAULT)
        given = self.method_options or {}
        return tuple(Method(name, given.get(name, ())) for name in names)

    @property
    def asked_seeds(self) -> tuple[int, ...]:
        """The seeds, each once."""
        return (self.seed,) if self.seeds is None else tuple(dict.fromkeys(self.seeds))

    def of_method(self, method: Method, seed: int) -> "MethodSettings":
        """Return the configuration of one method with one seed.

        It is composed of the running command's own words, with those of the method behind them:
        they make the same configuration again, apart from what the method is about.

        Raises:
            ConfigurationError: an option of the method cannot be taken.
            HydraException: a word of it names what does not exist.
        """
        words = [*given_words(), *method.words, f"seed={seed}"]
        return MethodSettings.of(compose("evaluate", words))


class EvaluateSettings(MethodSettings):
    """The configuration of ``evaluate.py``; every method has its own :class:`MethodSettings`."""

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        for key, named in (("mapper", self.names_mapper), ("refine", self.refine is not None)):
            if named:
                yield (
                    f"evaluate.py compares methods, but {key}= is given; write methods=[MAPPER, "
                    "MAPPER+REFINE, default], and options of one of them into method_options"
                )
        known = {group: choices(group) for group in ("mapper", "refine")}
        known["refine"].remove("auto")
        for method in self.asked_methods:
            for group in known:
                if getattr(method, group) not in known[group]:
                    yield (
                        f"methods names {method.name!r}, but there is no {group}="
                        f"{getattr(method, group)}; a method is default, MAPPER or MAPPER+REFINE, "
                        f"and {group} takes {', '.join(known[group])}"
                    )
        asked = [method.name for method in self.asked_methods]
        strangers = set(self.method_options or {}) - {*known["mapper"], Method.DEFAULT, *asked}
        for name in sorted(strangers):
            yield (
                f"method_options names {name}, which is none of the methods; they are "
                f"{', '.join(asked)}"
            )


SETTINGS: dict[str, type[Settings]] = {
    "train": TrainSettings,
    "anchors": AnchorsSettings,
    "transfer": TransferSettings,
    "diagnose": DiagnoseSettings,
    "evaluate": EvaluateSettings,
}
"""The settings of each command."""


def read(command: str, config: DictConfig) -> Settings:
    """Return the settings of a command; see :meth:`Settings.of`."""
    return SETTINGS[command].of(config)


def load(command: str, words: Sequence[str] = ()) -> Settings:
    """Return the settings of a command for some words of its command line, from Python.

    Raises:
        ConfigurationError: an option cannot be taken.
        HydraException: a word names what does not exist.
    """
    with as_running(command, words) as config:
        return read(command, config)


def _commands() -> list[type[Settings]]:
    return list(SETTINGS.values())


def _without_bare_data(given: Any) -> Any:
    bare = isinstance(given.get("data"), Mapping) and "_target_" not in given["data"]
    return {key: value for key, value in given.items() if key != "data"} if bare else given


def _refine_options(config: DictConfig) -> list[str]:
    """Return the options of ``refine: auto`` that are not as its YAML has them."""
    default = compose("refine/auto")
    kept, now = (OmegaConf.to_container(one.refine, resolve=False) for one in (default, config))
    if not isinstance(kept, dict) or not isinstance(now, dict):
        return []
    return [f"refine.{name}" for name in map(str, now) if now[name] != kept.get(name)]


def options(command: str) -> list[Option]:
    """Return every option of a command, in the order of its settings.

    Options of what is built (a mapper, a corpus, ...) are those of its class, see there.
    """
    return list(listed(SETTINGS[command]))
