"""What the teacher answers: its distribution over the labels for each of many texts."""

import math
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence, Set
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from ..adapters import LoraAdapter
from ..data.corpora import TRAIN, VALIDATION, cut_at_word
from ..data.prompts import PromptSpec, answer_tokens, prompt_tokens, seeded_batches
from ..exceptions import ConfigurationError, DataError
from ..models.hooks import attached
from ..models.likelihood import batch_log_likelihoods, label_tree, log_likelihoods
from ..models.loading import BaseModel
from .base import (
    Agreement,
    DistillationInputs,
    HeldOut,
    Refined,
    Refinement,
    RefinementProgress,
    RefinementReport,
    SoftLabelDataset,
    Teacher,
    cache_folder,
    distinct,
    in_shards,
    silent,
)
from .text_selection import BalancedTexts, TextSelection
from .trainer import Student, TrainingResult, train_student

PORTION = 64  # texts
_ALIKE = 1e-3  # mean absolute deviation of probabilities; a model that reads the text varies more


def label_distributions(
    teacher: Teacher,
    question: PromptSpec,
    texts: Sequence[str],
    *,
    temperature: float = 1.0,
    cache: Path | None = None,
    progress: RefinementProgress = silent,
    step: str = "asking the source",
) -> Float[Tensor, "texts labels"]:
    """Return the teacher's distribution over the labels for every text.

    It is the softmax of the labels' total log-likelihoods, which are exact for labels of several
    tokens and for labels that begin alike. Portions of texts are kept under the hash of all that
    they depend on, so that a stopped run goes on, and another adapter's port, another selection
    or temperature asks nothing twice.

    Args:
        teacher: The source and its adapter.
        question: What it is asked; it has labels.
        texts: About which.
        temperature: Divides the log-likelihoods; below 1 the distributions are sharper.
        cache: Folder of what is kept; None keeps nothing.
        progress: Is told how many portions are done.
        step: What it is told that is being done.

    Raises:
        DataError: two labels are the same tokens for the source.
    """
    check_labels(teacher.base, question)
    portions = [list(texts[start : start + PORTION]) for start in range(0, len(texts), PORTION)]

    def asked(portion: list[str]) -> list[list[float]]:
        with attached(teacher.base.network, teacher.adapter):
            return log_likelihoods(teacher.base, question, portion).tolist()

    folder = cache_folder(cache, "teacher", _made_of(teacher, question, portions))
    rows = in_shards(folder, portions, asked, step=step, progress=progress)
    found = [row for portion in rows for row in portion]
    scores = torch.tensor(found, dtype=torch.float32).reshape(len(texts), len(question.labels))
    return (scores / temperature).softmax(dim=1)


def teacher_answers(
    distillation_inputs: DistillationInputs, texts: Sequence[str], *, temperature: float, what: str
) -> Float[Tensor, "texts labels"]:
    """Return :func:`label_distributions` of a lesson's teacher.

    Args:
        distillation_inputs: What is taught, by whom, and where answers are kept.
        texts: About which.
        temperature: Divides the log-likelihoods.
        what: Kind of texts, as the progress is told.

    Raises:
        DataError: two labels are the same tokens for the source.
    """
    return label_distributions(
        distillation_inputs.teacher,
        distillation_inputs.question,
        texts,
        temperature=temperature,
        cache=distillation_inputs.cache,
        progress=distillation_inputs.progress,
        step=f"labelling {what} by the source",
    )


def _made_of(teacher: Teacher, question: PromptSpec, portions: list[list[str]]) -> list[Any]:
    return [
        teacher.base.fingerprint,
        teacher.adapter.content_hash(),
        asdict(question),
        portions,
    ]


def check_labels(base: BaseModel, question: PromptSpec) -> None:
    """Refuse labels among which a model cannot tell.

    Raises:
        DataError: two labels are the same tokens for it.
    """
    names: dict[tuple[int, ...], str] = {}
    for label, tokens in answer_tokens(base.tokenizer, question).items():
        other = names.setdefault(tuple(tokens), label)
        if other != label:
            raise DataError(
                f"the labels {other!r} and {label!r} are the same tokens for {base.name}, so that "
                "it cannot tell them apart; choose other words for them in prompt.labels"
            )


def check_teaches(
    distributions: Float[Tensor, "texts labels"], labels: Sequence[str]
) -> tuple[str, ...]:
    """Refuse a teacher from whose answers nothing can be learned; return what to beware of.

    Raises:
        DataError: it gives every text the same label, or the same distribution.
    """
    tops = distributions.argmax(dim=1)
    most = labels[int(tops.mode().values)]
    share = float((tops == tops.mode().values).float().mean())
    spread = float((distributions - distributions.mean(dim=0)).abs().mean())
    if share == 1.0 or spread < _ALIKE:
        raise DataError(
            f"the source with its adapter answers {most!r} to {share:.0%} of {len(tops)} texts, "
            f"with probabilities that differ by {spread:.1g} in the mean, so that nothing can be "
            "learned from it; check that prompt.template and prompt.labels are those the adapter "
            "was trained with, or set paths.corpus to texts on which its answers differ"
        )
    if share > 0.98:
        return (
            f"The source with its adapter answers {most!r} to {share:.1%} of the texts: there is "
            "little to learn the other labels from. Texts nearer to the task would help.",
        )
    return ()


def label_shares(
    distributions: Float[Tensor, "texts labels"], labels: Sequence[str]
) -> dict[str, float]:
    """Return the share of texts for which each label is the likeliest."""
    tops: Int[Tensor, " texts"] = distributions.argmax(dim=1)
    counts = torch.bincount(tops, minlength=len(labels))
    return {
        label: int(count) / max(1, len(tops)) for label, count in zip(labels, counts, strict=True)
    }


def label_balance(shares: Mapping[str, float]) -> float:
    """Return how evenly labels are given: the entropy of their shares, 1 where all are equal.

    Near 0 the texts hardly bring up what the adapter tells apart.
    """
    entropy = -sum(share * math.log(share) for share in shares.values() if share > 0)
    return entropy / math.log(len(shares))


def confidence(distributions: Float[Tensor, "texts labels"]) -> float:
    """Return the mean probability of the likeliest label."""
    return float(distributions.amax(dim=1).mean())


# Label distillation: the student learns the teacher's distribution over a few labels.


class SoftBatch(NamedTuple):
    """Prompts, and how the answers to each are to be distributed.

    Attributes:
        prompts: Tokens of the prompts.
        targets: A distribution over the labels for each.
    """

    prompts: list[list[int]]
    targets: Float[Tensor, "rows labels"]


class LabelStudent(Student):
    """A student that learns to give each label the likelihood that its teacher gives it.

    The loss of a prompt is ``-sum_y p(y) log q(y)``: p is the teacher's distribution over the
    labels, and q(y) the student's total likelihood of the label's tokens among all texts, not
    among the labels alone, so that the student also learns to answer by a label at all. Labels
    of several tokens and labels that begin alike are exact. Source: Hinton et al., 2015, with the
    vocabulary cut down to the labels, which need no common tokenizer.

    Args:
        base: The target.
        start: The adapter to begin from.
        question: What is asked; it has labels.
        options: Of :class:`Student`.

    Raises:
        DataError: two labels are the same tokens for the target.
    """

    def __init__(
        self, base: BaseModel, start: LoraAdapter, question: PromptSpec, **options: Any
    ) -> None:
        check_labels(base, question)
        super().__init__(base, start, **options)
        self.question = question
        self._tree = label_tree(base, question)

    def loss(self, batch: SoftBatch) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of the batch's prompts."""
        found = batch_log_likelihoods(self.base, self._tree, batch.prompts)
        return -(batch.targets.to(found) * found).sum(dim=1).mean()

    def batches(
        self,
        texts: Sequence[str],
        targets: Float[Tensor, "texts labels"],
        *,
        batch_size: int,
        epochs: int,
        seed: int,
    ) -> list[SoftBatch]:
        """Return the batches of all epochs, prompts of like length together."""
        prompts = prompt_tokens(self.base.tokenizer, self.question, texts)
        lengths = [len(prompt) for prompt in prompts]
        places = seeded_batches(lengths, batch_size=batch_size, epochs=epochs, seed=seed)
        return [SoftBatch([prompts[p] for p in batch], targets[batch]) for batch in places]


# Generic texts as exercises: the teacher labels a pool of them, and some are chosen.

_WANTED = "set paths.corpus to a folder with train.txt and validation.txt, or with *.jsonl"


@dataclass(frozen=True)
class GenericTexts:
    """How texts of the corpus become exercises.

    Attributes:
        count: So many are learned from.
        pool: So many are labelled by the teacher, and the others chosen among them.
        selection: Which.
        text_chars: Texts are cut at a word to so many characters where the question itself does
            not say how long a text may be.
        temperature: Of the teacher's distributions.
    """

    count: int
    pool: int
    selection: TextSelection
    text_chars: int
    temperature: float

    def dataset(self, distillation_inputs: DistillationInputs) -> SoftLabelDataset:
        """Return the chosen texts with the teacher's distributions.

        Raises:
            DataError: there is no corpus, it has too few texts, or nothing can be learned from
                the teacher's answers to them.
        """
        labels = distillation_inputs.question.labels
        pool = self.texts(distillation_inputs, TRAIN, max(self.count, self.pool))
        if len(pool) < len(labels):
            raise DataError(
                f"the corpus has {len(pool)} training texts that are not empty and differ, but "
                f"distillation takes at least {len(labels)}, and some hundreds to be of use; "
                f"{_WANTED}"
            )
        found = teacher_answers(
            distillation_inputs, pool, temperature=self.temperature, what="texts"
        )
        notes = check_teaches(found, labels)
        if len(pool) < self.count:
            notes += (
                f"The corpus has {len(pool)} texts of the {self.count} that were asked for; all "
                "of them were used.",
            )
        places = self.selection.choose(pool, found, self.count, distillation_inputs.seed)
        chosen = found[places]
        shares = label_shares(found, labels)
        report = {
            "generic_texts": len(places),
            "pool": len(pool),
            "pool_shares": shares,
            "chosen_shares": label_shares(chosen, labels),
            "pool_balance": label_balance(shares),
            "pool_confidence": confidence(found),
            "chosen_confidence": confidence(chosen),
        }
        return SoftLabelDataset(tuple(pool[place] for place in places), chosen, report, notes)

    def held_out(self, distillation_inputs: DistillationInputs, count: int) -> HeldOut | None:
        """Return validation texts of the corpus with the teacher's answers; None without any."""
        if distillation_inputs.texts is None or count == 0:
            return None
        learned = set(self.texts(distillation_inputs, TRAIN, max(self.count, self.pool)))
        texts = self.texts(distillation_inputs, VALIDATION, count, without=learned)
        if not texts:
            return None
        found = teacher_answers(
            distillation_inputs, texts, temperature=self.temperature, what="held-out texts"
        )
        return HeldOut(distillation_inputs.question, texts, found)

    def texts(
        self,
        distillation_inputs: DistillationInputs,
        split: str,
        count: int,
        without: Set[str] = frozenset(),
    ) -> list[str]:
        """Return the first texts of a split that differ, cut as the question takes them.

        Raises:
            DataError: there is no corpus, or it cannot be read.
        """
        if distillation_inputs.texts is None:
            raise DataError(f"distillation takes generic texts, but there is no corpus; {_WANTED}")
        chars = distillation_inputs.question.text_chars or self.text_chars
        cut = (cut_at_word(text.strip(), chars) for text in distillation_inputs.texts.texts(split))
        return list(islice((text for text in distinct(cut) if text not in without), count))


# What refinements have in common that teach the target to answer by labels.

_FORMAT = 1  # raise it when the same options train otherwise
_RECENT = 8  # steps over which a loss is averaged for the report


@dataclass(frozen=True, kw_only=True)
class LabelRefinement(Refinement):
    """Trains a LoRA on the target that begins from the given adapter, on texts with labels.

    A subclass says which texts. Where the question has no labels, the work is handed over to
    another refinement.

    Attributes:
        pool: So many generic texts are labelled by the teacher, and those to learn from chosen
            among them.
        selection: Which of them are chosen.
        text_chars: Generic texts are cut to so many characters where the question does not say.
        held_out: So many generic texts tell how far the student agrees with its teacher.
        epochs: How often each text is learned from; 0 keeps the given adapter.
        batch_size: Texts a step.
        lr: Learning rate.
        warmup_steps: Over which it rises.
        temperature: Of the teacher's distributions; below 1 they are sharper.
        checks: How often during training the agreement is measured; the best weights are kept.
            0 keeps the last.
        sequence: Takes over where the question has no labels.

    Raises:
        ConfigurationError: an option has a value it cannot take.
    """

    pool: int = 1024
    selection: TextSelection = field(default_factory=BalancedTexts)
    text_chars: int = 400
    held_out: int = 64
    epochs: int = 1
    batch_size: int = 8
    lr: float = 2e-3
    warmup_steps: int = 4
    temperature: float = 1.0
    checks: int = 2
    sequence: Refinement | None = None

    stops_early: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name, least)
            if value < least:
                raise ConfigurationError(f"refine.{name}={value}, but it takes {least} or more")
        for name in ("lr", "temperature"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(
                    f"refine.{name}={getattr(self, name)}, but it takes a number above 0"
                )

    @abstractmethod
    def dataset(self, distillation_inputs: DistillationInputs) -> SoftLabelDataset:
        """Return what the student learns from.

        Raises:
            DataError: the lesson lacks what is needed, or nothing can be learned from it.
        """

    def of_corpus(self, count: int) -> GenericTexts:
        """Return how so many texts of the corpus become exercises."""
        return GenericTexts(count, self.pool, self.selection, self.text_chars, self.temperature)

    def refine(self, start: LoraAdapter, distillation_inputs: DistillationInputs) -> Refined:
        """Train the target to answer as the exercises say, and report how far it now does.

        Raises:
            DataError: the lesson lacks what is needed, or nothing can be learned from it.
            AdapterError: the start does not fit the target.
            KeyboardInterrupt: it was stopped; called again with the same cache, it goes on.
        """
        if not distillation_inputs.question.labels:
            return self._without_labels(start, distillation_inputs)
        begun = time.monotonic()
        dataset = self.dataset(distillation_inputs)
        held_out = self.of_corpus(0).held_out(distillation_inputs, self.held_out)
        student = LabelStudent(
            distillation_inputs.target,
            start,
            distillation_inputs.question,
            seed=distillation_inputs.seed,
            lr=self.lr,
            warmup_steps=self.warmup_steps,
        )
        with closing(student):
            before = None if held_out is None else held_out.agreement(distillation_inputs.target)
            result = self._train(student, dataset, held_out, before, distillation_inputs, start)
            after = None if held_out is None else held_out.agreement(distillation_inputs.target)
            report = dataset.report | _measured(before, after, held_out) | _facts(result)
            report["texts"] = len(set(dataset.texts))
            report["seconds"] = time.monotonic() - begun
            report["notes"] = [*dataset.notes, *self._notes(result, held_out)]
            return Refined(student.adapter(), report)

    def _train(
        self,
        student: LabelStudent,
        dataset: SoftLabelDataset,
        held_out: HeldOut | None,
        before: Agreement | None,
        distillation_inputs: DistillationInputs,
        start: LoraAdapter,
    ) -> TrainingResult:
        batches = student.batches(
            dataset.texts,
            dataset.targets,
            batch_size=self.batch_size,
            epochs=self.epochs,
            seed=distillation_inputs.seed,
        )
        stops = held_out if self.stops_early else None
        return train_student(
            student,
            batches,
            self._folder(dataset, stops, distillation_inputs, start),
            measure=None
            if stops is None
            else lambda: stops.agreement(distillation_inputs.target).kl,
            start_value=None if before is None else before.kl,
            checks=self.checks,
            step="distilling into the target",
            progress=distillation_inputs.progress,
        )

    def _without_labels(
        self, start: LoraAdapter, distillation_inputs: DistillationInputs
    ) -> Refined:
        if self.sequence is None:
            raise DataError(
                f"refine.{type(self).__name__} teaches answers by labels, but none are given; set "
                "prompt.labels to the words among which the adapter chooses, or refine.sequence "
                "to a refinement for adapters that write freely"
            )
        return self.sequence.refine(start, distillation_inputs)

    def _folder(
        self,
        dataset: SoftLabelDataset,
        stops: HeldOut | None,
        distillation_inputs: DistillationInputs,
        start: LoraAdapter,
    ) -> Path | None:
        """Return where the unfinished training is kept: a hash of all that it depends on."""
        checked = None if stops is None else [stops.texts, stops.targets.tolist(), self.checks]
        key_parts = [
            _FORMAT,
            distillation_inputs.target.fingerprint,
            start.content_hash(),
            asdict(distillation_inputs.question),
            [dataset.texts, dataset.targets.tolist()],
            checked,
            [self.epochs, self.batch_size, self.lr, self.warmup_steps, distillation_inputs.seed],
        ]
        return cache_folder(distillation_inputs.cache, "students", key_parts)

    def _notes(self, result: TrainingResult, held_out: HeldOut | None) -> list[str]:
        notes = []
        if held_out is None and self.held_out > 0:
            notes.append(
                "There are no held-out generic texts, so that it is not known how far the target "
                "now answers as its teacher."
            )
        elif held_out is not None and len(held_out.texts) < self.held_out:
            notes.append(
                f"Agreement was measured on {len(held_out.texts)} texts of the {self.held_out} "
                "that were asked for: the corpus has no more validation texts."
            )
        if result.steps and result.measured and result.best_step == 0:
            notes.append(
                "Training brought the target no nearer to its teacher on held-out texts: the "
                "adapter was kept as it was before."
            )
        return notes


_LEAST = {
    **{"pool": 1, "text_chars": 1, "held_out": 0, "epochs": 0, "batch_size": 1},
    **{"warmup_steps": 0, "checks": 0, "texts": 1, "generic": 0, "repeats": 1},
}
"""The least value of each option that is a count."""


def _measured(
    before: Agreement | None, after: Agreement | None, held_out: HeldOut | None
) -> RefinementReport:
    return {
        "held_out": 0 if held_out is None else len(held_out.texts),
        "agreement_before": None if before is None else before.top_share,
        "agreement_after": None if after is None else after.top_share,
        "kl_before": None if before is None else before.kl,
        "kl_after": None if after is None else after.kl,
    }


def _facts(result: TrainingResult) -> RefinementReport:
    first, last = result.losses[:_RECENT], result.losses[-_RECENT:]
    return {
        "steps": result.steps,
        "training_seconds": result.seconds,
        "loss_first": sum(first) / len(first) if first else None,
        "loss_last": sum(last) / len(last) if last else None,
        "checks": {str(step): value for step, value in result.measured.items()},
        "best_step": result.best_step,
    }


# Distillation on generic text: no data of the task at all.


@dataclass(frozen=True, kw_only=True)
class CorpusDistill(LabelRefinement):
    """The source answers the adapter's question about generic texts; the target learns the answers.

    The teacher labels a pool of the corpus's training texts, in the adapter's own prompt; some
    are chosen, evenly over its predictions by default, and the target's LoRA is trained on its
    distributions over the labels. Nothing of the task is needed but the prompt's template and the
    labels' words.

    Attributes:
        texts: So many are learned from.
    """

    texts: int = 640

    data_access: ClassVar[str] = "generic text"

    def dataset(self, distillation_inputs: DistillationInputs) -> SoftLabelDataset:
        """Return the chosen texts of the corpus with the teacher's distributions.

        Raises:
            DataError: there is no corpus, it has too few texts, or nothing can be learned from
                the teacher's answers to them.
        """
        return self.of_corpus(self.texts).dataset(distillation_inputs)


# Distillation on a few unlabelled inputs of the task.


@dataclass(frozen=True, kw_only=True)
class PromptDistill(LabelRefinement):
    """The source answers the user's own inputs; the target learns the answers.

    Chosen generic texts may stand beside them: a few dozen inputs alone are learned by heart.

    Attributes:
        generic: So many chosen generic texts are learned from beside the inputs, where
            there is a corpus.
        repeats: The inputs are seen so many times an epoch.
    """

    generic: int = 512
    repeats: int = 4

    data_access: ClassVar[str] = "unlabelled prompts"

    def dataset(self, distillation_inputs: DistillationInputs) -> SoftLabelDataset:
        """Return the inputs with the teacher's distributions, and generic texts beside them.

        Raises:
            DataError: there are no inputs, or nothing can be learned from the teacher's answers.
        """
        inputs = list(distinct(distillation_inputs.inputs))
        if not inputs:
            raise DataError(
                f"prompt distillation takes unlabelled inputs of the task, but got "
                f"{len(distillation_inputs.inputs)}, none with any text; give inputs=FILE, "
                "a text a line, or choose refine=corpus_distill, which takes generic texts alone"
            )
        found = teacher_answers(
            distillation_inputs, inputs, temperature=self.temperature, what="inputs"
        )
        report = {
            "inputs": len(inputs),
            "input_shares": label_shares(found, distillation_inputs.question.labels),
            "input_confidence": confidence(found),
        }
        own = SoftLabelDataset(tuple(inputs), found, report).repeated(self.repeats)
        if distillation_inputs.texts is None or self.generic == 0:
            return SoftLabelDataset(
                own.texts,
                own.targets,
                report,
                check_teaches(found, distillation_inputs.question.labels),
            )
        return own.beside(self.of_corpus(self.generic).dataset(distillation_inputs))


# Training on a few labelled examples of the task.


@dataclass(frozen=True, kw_only=True)
class FewShot(LabelRefinement):
    """The target learns the user's labelled examples, and the teacher's answers beside them.

    The last weights are kept: examples may contradict the teacher, so that agreement with it is
    reported, but does not stop the training.

    Attributes:
        generic: So many chosen generic texts, with the teacher's answers, are learned from
            beside the examples, where there is a corpus.
        repeats: The examples are seen so many times an epoch.
        teacher_weight: Share of the teacher's distribution in the target of an example, from 0
            to 1; the rest is its label.
    """

    generic: int = 512
    repeats: int = 4
    teacher_weight: float = 0.0

    data_access: ClassVar[str] = "few-shot"
    stops_early: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.teacher_weight <= 1:
            raise ConfigurationError(
                f"refine.teacher_weight={self.teacher_weight}, but it takes a share from 0 to 1"
            )

    def dataset(self, distillation_inputs: DistillationInputs) -> SoftLabelDataset:
        """Return the examples with their labels, and generic texts beside them.

        Raises:
            DataError: there are no examples, or one has a label that the question has not.
        """
        labels, examples = distillation_inputs.question.labels, distillation_inputs.examples
        _check(distillation_inputs)
        places = torch.tensor([labels.index(example.label) for example in examples])
        targets = one_hot(places, len(labels)).float()
        texts = tuple(example.text for example in examples)
        if self.teacher_weight > 0:
            found = teacher_answers(
                distillation_inputs, texts, temperature=self.temperature, what="examples"
            )
            targets = (1 - self.teacher_weight) * targets + self.teacher_weight * found
        counts = {label: sum(e.label == label for e in examples) for label in labels}
        report = {"examples": len(examples), "example_labels": counts}
        own = SoftLabelDataset(texts, targets, report, _unseen(counts)).repeated(self.repeats)
        if distillation_inputs.texts is None or self.generic == 0:
            return own
        return own.beside(self.of_corpus(self.generic).dataset(distillation_inputs))


def _check(distillation_inputs: DistillationInputs) -> None:
    """Refuse examples that cannot be learned from."""
    labels = distillation_inputs.question.labels
    if not distillation_inputs.examples:
        raise DataError(
            "few-shot refinement takes labelled examples of the task, but there are none; give "
            'examples=FILE, *.jsonl with rows {"text": ..., "label": ...}, or choose '
            "refine=prompt_distill, which takes inputs without labels"
        )
    strangers = sorted({example.label for example in distillation_inputs.examples} - set(labels))
    if strangers:
        raise DataError(
            f"examples are labelled {', '.join(map(repr, strangers))}, but the labels are "
            f"{', '.join(map(repr, labels))}; correct the examples or prompt.labels"
        )
    empty = sum(not example.text.strip() for example in distillation_inputs.examples)
    if empty:
        raise DataError(
            f"{empty} of {len(distillation_inputs.examples)} examples have no text; remove them"
        )


def _unseen(counts: dict[str, int]) -> tuple[str, ...]:
    missing = [label for label, count in counts.items() if count == 0]
    if not missing:
        return ()
    return (f"No example is labelled {', '.join(map(repr, missing))}.",)
