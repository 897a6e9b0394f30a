"""Distillation of an adapter that answers by labels: teacher labels, texts, a student.

The teacher gives its distribution over the labels for each text of a pool
(:func:`label_distributions`), some texts are chosen (:mod:`.text_selection`), and the target's
LoRA is trained on the distributions (:class:`LabelStudent`). Where texts and targets come from
tells :class:`CorpusDistill`, :class:`PromptDistill` and :class:`FewShot` apart.

Source: Hinton et al., 2015 (arXiv 1503.02531), with the vocabulary cut down to the labels, which
need no common tokenizer.
"""

import math
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from statistics import fmean
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from ..adapters import LoraAdapter
from ..data.corpora import TRAIN, VALIDATION, cut_at_word
from ..data.prompts import (
    PromptSpec,
    prompt_tokens,
    scoring_rule,
    seeded_batches,
)
from ..exceptions import DataError
from ..models.hooks import attached
from ..models.likelihood import (
    batch_log_likelihoods,
    check_labels,
    label_tree,
    log_likelihoods,
)
from ..models.loading import BaseModel, say_beyond_window
from ..store import Key
from .base import (
    Distillation,
    DistillationInputs,
    Refined,
    Refinement,
    RefinementReport,
    distinct,
)
from .text_selection import BalancedTexts, TextSelection
from .trainer import Student, TrainingResult, train_student

_SHARD = 64  # texts
# Mean absolute deviation of probabilities: a model that reads the text varies more.
_SAME = 1e-3
_RECENT = 8  # steps over which a loss is averaged for the report
_GIVE_CORPUS = "set paths.corpus to a folder with train.txt and validation.txt, or with *.jsonl"


# What the teacher answers.


def label_distributions(
    data: DistillationInputs,
    texts: Sequence[str],
    *,
    temperature: float = 1.0,
    kind: str = "texts",
) -> Float[Tensor, "texts labels"]:
    """Return the teacher's distribution over the labels for every text.

    It is the softmax of the labels' total log-likelihoods over the temperature, which are exact
    for labels of several tokens and for labels that begin alike. The log-likelihoods are kept, so
    that a stopped run goes on, and another temperature computes nothing again. ``kind`` is what
    the progress calls the texts.

    Raises:
        DataError: two labels are the same tokens for the source.
    """
    base, adapter = data.teacher.base, data.teacher.adapter
    check_labels(base, data.prompt_spec)
    shards = [list(texts[start : start + _SHARD]) for start in range(0, len(texts), _SHARD)]
    key = Key.of(
        "teacher_labels",
        model=base.key_parts,
        adapter=adapter,
        prompt_spec=data.prompt_spec,
        shards=shards,
        **scoring_rule(data.prompt_spec.labels),
    )

    def scored(shard: list[str]) -> list[list[float]]:
        with attached(base.network, adapter):
            return log_likelihoods(base, data.prompt_spec, shard).tolist()

    progress = partial(data.progress, f"labelling {kind} by the source")
    rows = data.store.made_shards(key, shards, scored, progress)
    scores = torch.tensor([row for shard in rows for row in shard], dtype=torch.float32)
    return (scores / temperature).softmax(dim=1)


def check_informative(
    distributions: Float[Tensor, "texts labels"], labels: Sequence[str]
) -> tuple[str, ...]:
    """Return a warning, if any, about a teacher that hardly tells the texts apart.

    Raises:
        DataError: it gives every text the same label, or the same distribution.
    """
    tops = distributions.argmax(dim=1)
    most = labels[int(tops.mode().values)]
    share = float((tops == tops.mode().values).float().mean())
    spread = float((distributions - distributions.mean(dim=0)).abs().mean())
    if share == 1.0 or spread < _SAME:
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
    """Return the share of texts for which each label is the most likely."""
    tops = distributions.argmax(dim=1)
    return {label: float((tops == index).double().mean()) for index, label in enumerate(labels)}


def label_balance(shares: Mapping[str, float]) -> float:
    """Return how evenly labels are given: the entropy of their shares, 1 where all are equal.

    Near 0 the texts hardly concern what the adapter distinguishes.
    """
    entropy = -sum(share * math.log(share) for share in shares.values() if share > 0)
    return entropy / math.log(len(shares))


def confidence(distributions: Float[Tensor, "texts labels"]) -> float:
    """Return the mean probability of the most likely label."""
    return float(distributions.amax(dim=1).mean())


# What the student learns from.


@dataclass(frozen=True, eq=False)
class SoftLabelDataset:
    """Texts with a distribution over the labels for each.

    A text that occurs twice weighs twice. ``report`` says where they come from, as plain data;
    ``notes`` what the user should know of them, a sentence each.
    """

    texts: tuple[str, ...]
    targets: Float[Tensor, "texts labels"]
    report: RefinementReport = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class SoftBatch(NamedTuple):
    """The tokens of prompts, with a distribution over the labels for each."""

    prompts: list[list[int]]
    targets: Float[Tensor, "rows labels"]


class LabelStudent(Student):
    """A student that learns to give each label the likelihood that its teacher gives it.

    The loss of a prompt is ``-sum_y p(y) log q(y)``: p is the teacher's distribution over the
    labels, and q(y) the student's total likelihood of the label's tokens among all texts, not
    among the labels alone, so that the student also learns to answer by a label at all. Labels
    of several tokens and labels that begin alike are exact.

    Raises:
        DataError: two labels are the same tokens for the target.
    """

    def __init__(
        self, base: BaseModel, start: LoraAdapter, prompt_spec: PromptSpec, **options: Any
    ) -> None:
        tree = label_tree(base, prompt_spec)  # first, since it refuses labels
        super().__init__(base, start, **options)
        self.prompt_spec = prompt_spec
        self.key_parts += [prompt_spec, *scoring_rule(prompt_spec.labels).values()]
        self._tree = tree

    def loss(self, batch: SoftBatch) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of the batch's prompts."""
        found = batch_log_likelihoods(self.base, self._tree, batch.prompts)
        return -(batch.targets.to(found) * found).sum(dim=1).mean()

    def batches(
        self, dataset: SoftLabelDataset, *, batch_size: int, epochs: int, seed: int
    ) -> list[SoftBatch]:
        """Return the batches of all epochs, prompts of like length together."""
        prompts = prompt_tokens(self.base.tokenizer, self.prompt_spec, dataset.texts)
        lengths = [len(prompt) for prompt in prompts]
        say_beyond_window(self.base, lengths, "learning labels")
        return [
            SoftBatch([prompts[row] for row in rows], dataset.targets[rows])
            for rows in seeded_batches(lengths, batch_size=batch_size, epochs=epochs, seed=seed)
        ]


class Agreement(NamedTuple):
    """How alike the answers of student and teacher are, over some texts.

    Attributes:
        top_share: Share of the texts for which both find the same label most likely.
        kl: Mean ``KL(teacher || student)`` between their distributions over the labels, in nats.
        tops: Index of the label that the student finds most likely, of each text.
    """

    top_share: float
    kl: float
    tops: tuple[int, ...] = ()

    @classmethod
    def between(
        cls, teacher: Float[Tensor, "texts labels"], student: Float[Tensor, "texts labels"]
    ) -> "Agreement":
        """Compare the teacher's probabilities with log-probabilities of any normalisation."""
        log_q = student.double().log_softmax(dim=1)
        p = teacher.double()
        p = p / p.sum(dim=1, keepdim=True)
        # entr instead of the logarithm: the teacher's probabilities may be zero.
        kl = -torch.special.entr(p).sum(dim=1) - (p * log_q).sum(dim=1)
        tops = student.argmax(dim=1)
        same = teacher.argmax(dim=1) == tops
        # Rounding does not make it negative, and NaN stays NaN.
        kept = float(kl.mean().clamp(min=0))
        return cls(float(same.double().mean()), kept, tuple(tops.tolist()))

    @classmethod
    def of(
        cls, base: BaseModel, prompt_spec: PromptSpec, held_out: SoftLabelDataset
    ) -> "Agreement":
        """Compare a model, with what is attached to it, with the teacher on held-out texts."""
        student = log_likelihoods(base, prompt_spec, held_out.texts)
        return cls.between(held_out.targets, student)


def agreement_rows(
    held_out: SoftLabelDataset, before: Agreement, after: Agreement
) -> RefinementReport:
    """Return what single held-out texts say of the student, beside means.

    On how many it has come to agree with its teacher, and on how many it no longer does; how
    often one label for all texts would agree, and how much more often the student does; how
    evenly teacher and student give the labels, as :func:`label_balance`.
    """
    count, labels = held_out.targets.shape
    taught = held_out.targets.argmax(dim=1).tolist()
    then, now = (
        [top == own for top, own in zip(taught, student.tops, strict=False)]
        for student in (before, after)
    )
    balances = {
        name: label_balance({str(label): tops.count(label) / count for label in range(labels)})
        for name, tops in (("teacher", taught), ("student", after.tops))
    }
    constant = max(map(taught.count, range(labels))) / count
    return {
        "agreement_gained": sum(new and not old for old, new in zip(then, now, strict=False)),
        "agreement_lost": sum(old and not new for old, new in zip(then, now, strict=False)),
        "agreement_constant": constant,
        "agreement_over_constant": after.top_share - constant,
        **{f"{name}_balance": value for name, value in balances.items()},
    }


# The refinements.


@dataclass(frozen=True, kw_only=True)
class LabelDistillation(Distillation):
    """Trains the target on texts with soft labels; a subclass says which.

    Attributes:
        selection: Which texts of the pool are learned from.
        text_chars: Generic texts are cut at a word to so many characters where the prompt spec
            does not say how long a text may be.
        temperature: Of the teacher's distributions; below 1 they are sharper.
        sequence: The refinement that takes over where the prompt spec has no labels.
    """

    selection: TextSelection = field(default_factory=BalancedTexts)
    text_chars: int = 400
    temperature: float = 1.0
    sequence: Refinement | None = None

    stops_early: ClassVar[bool] = True
    """Whether the weights with the best agreement on held-out texts are kept."""

    @abstractmethod
    def dataset(self, data: DistillationInputs) -> SoftLabelDataset:
        """Return what the student learns from; DataError where nothing can be learned."""

    def refine(self, start: LoraAdapter, data: DistillationInputs) -> Refined:
        """Train the target on the dataset, and report how far it agrees with the teacher.

        Stopped, and called again with the same store, it goes on.
        """
        if not data.prompt_spec.labels:
            if self.sequence is None:
                raise DataError(
                    f"refine={self.name} teaches answers by labels, but none are given; set "
                    "prompt.labels to the words among which the adapter chooses, or "
                    "refine.sequence to a refinement for adapters that write freely"
                )
            return self.sequence.refine(start, data)
        begun = time.monotonic()
        dataset = self.dataset(data)
        held_out = self.held_out_texts(data, self.held_out, dataset.texts)
        options = {"seed": data.seed, "lr": self.lr, "warmup_steps": self.warmup_steps}
        epochs = {"batch_size": self.batch_size, "epochs": self.epochs, "seed": data.seed}
        compare = held_out and partial(Agreement.of, data.target, data.prompt_spec, held_out)
        with closing(LabelStudent(data.target, start, data.prompt_spec, **options)) as student:
            before = compare() if compare else None
            result = train_student(
                student,
                student.batches(dataset, **epochs),
                store=data.store,
                measure=(lambda: compare().kl) if compare and self.stops_early else None,
                measured_on=[held_out.texts, held_out.targets] if held_out else None,
                start_value=before.kl if before else None,
                checks=self.checks,
                step="distilling into the target",
                progress=data.progress,
            )
            after = compare() if compare else None
            adapter = student.adapter()
        report = dataset.report | {
            "held_out": len(held_out.texts) if held_out else 0,
            "agreement_before": before.top_share if before else None,
            "agreement_after": after.top_share if after else None,
            "kl_before": before.kl if before else None,
            "kl_after": after.kl if after else None,
            **(agreement_rows(held_out, before, after) if held_out and before and after else {}),
            "steps": result.steps,
            "training_seconds": result.seconds,
            "loss_first": fmean(result.losses[:_RECENT]) if result.losses else None,
            "loss_last": fmean(result.losses[-_RECENT:]) if result.losses else None,
            "checks": {str(step): value for step, value in result.measured.items()},
            "best_step": result.best_step,
            "texts": len(set(dataset.texts)),
            "seconds": time.monotonic() - begun,
            "notes": [*dataset.notes, *self._notes(result, held_out)],
        }
        return Refined(adapter, report)

    def generic_dataset(self, data: DistillationInputs, count: int) -> SoftLabelDataset:
        """Return ``count`` chosen texts of the corpus with the teacher's distributions."""
        labels = data.prompt_spec.labels
        pool = self._generic_texts(data, TRAIN, max(count, self.pool))
        if len(pool) < len(labels):
            raise DataError(
                f"the corpus has {len(pool)} training texts that are not empty and differ, but "
                f"distillation takes at least {len(labels)}, and some hundreds to be of use; "
                f"{_GIVE_CORPUS}"
            )
        targets = label_distributions(data, pool, temperature=self.temperature)
        notes = check_informative(targets, labels)
        if len(pool) < count:
            notes += (
                f"The corpus has {len(pool)} texts of the {count} that were asked for; all "
                "of them were used.",
            )
        chosen = self.selection.choose(pool, targets, count, data.seed)
        shares = label_shares(targets, labels)
        report = {
            "generic_texts": len(chosen),
            "pool": len(pool),
            "pool_shares": shares,
            "chosen_shares": label_shares(targets[chosen], labels),
            "pool_balance": label_balance(shares),
            "pool_confidence": confidence(targets),
            "chosen_confidence": confidence(targets[chosen]),
        }
        texts = tuple(pool[index] for index in chosen)
        return SoftLabelDataset(texts, targets[chosen], report, notes)

    def beside_generic_texts(
        self, own: SoftLabelDataset, repeats: int, data: DistillationInputs, generic: int
    ) -> SoftLabelDataset:
        """Return a task's texts so many times over, and generic ones where there is a corpus."""
        texts, targets = own.texts * repeats, own.targets.repeat(repeats, 1)
        if data.texts is None or generic == 0:
            return replace(own, texts=texts, targets=targets)
        other = self.generic_dataset(data, generic)
        return SoftLabelDataset(
            texts + other.texts,
            torch.cat([targets, other.targets]),
            own.report | other.report,
            own.notes + other.notes,
        )

    def held_out_texts(
        self, data: DistillationInputs, count: int, learned: Sequence[str] = ()
    ) -> SoftLabelDataset | None:
        """Return validation texts of the corpus with the teacher's distributions, if any.

        Neither ``learned`` nor texts of the pool are among them.
        """
        if data.texts is None or count == 0:
            return None
        seen = {*learned, *self._generic_texts(data, TRAIN, self.pool)}
        texts = self._generic_texts(data, VALIDATION, count, seen)
        if not texts:
            return None
        targets = label_distributions(
            data, texts, temperature=self.temperature, kind="held-out texts"
        )
        return SoftLabelDataset(tuple(texts), targets)

    def _generic_texts(
        self, data: DistillationInputs, split: str, count: int, without: set[str] | None = None
    ) -> list[str]:
        """Return the first different texts of a split, cut to the length that the prompt takes."""
        if data.texts is None:
            raise DataError(
                f"distillation takes generic texts, but there is no corpus; {_GIVE_CORPUS}"
            )
        chars = data.prompt_spec.text_chars or self.text_chars
        cut = distinct(cut_at_word(text.strip(), chars) for text in data.texts.texts(split))
        return list(islice((text for text in cut if text not in (without or ())), count))

    def _notes(self, result: TrainingResult, held_out: SoftLabelDataset | None) -> list[str]:
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


@dataclass(frozen=True, kw_only=True)
class CorpusDistill(LabelDistillation):
    """Distillation on generic texts: no data of the task at all.

    The teacher labels a pool of the corpus's training texts in the adapter's own prompt; the
    student learns ``texts`` of them, by default as many of each label. Nothing of the task is
    needed but the prompt's template and the labels' words.
    """

    name: ClassVar[str] = "corpus_distill"
    data_access: ClassVar[str] = "generic text"
    needs_texts: ClassVar[bool] = True

    texts: int = 640

    def dataset(self, data: DistillationInputs) -> SoftLabelDataset:
        """Return the chosen texts of the corpus with the teacher's distributions."""
        return self.generic_dataset(data, self.texts)


@dataclass(frozen=True, kw_only=True)
class PromptDistill(LabelDistillation):
    """Distillation on unlabelled inputs of the task, with generic texts beside them.

    A few dozen inputs alone are learned by heart.

    Attributes:
        generic: Number of generic texts to learn from beside the inputs, where there is a corpus.
        repeats: How often the inputs are seen in an epoch.
    """

    name: ClassVar[str] = "prompt_distill"
    data_access: ClassVar[str] = "unlabelled prompts"
    takes: ClassVar[tuple[str, ...]] = ("inputs",)

    generic: int = 512
    repeats: int = 4

    def dataset(self, data: DistillationInputs) -> SoftLabelDataset:
        """Return the inputs with the teacher's distributions, and generic texts beside them."""
        inputs = tuple(distinct(data.inputs))
        if not inputs:
            raise DataError(
                f"prompt distillation takes unlabelled inputs of the task, but got "
                f"{len(data.inputs)}, none with any text; give inputs=FILE, "
                "a text a line, or choose refine=corpus_distill, which takes generic texts alone"
            )
        labels = data.prompt_spec.labels
        targets = label_distributions(data, inputs, temperature=self.temperature, kind="inputs")
        report = {
            "inputs": len(inputs),
            "input_shares": label_shares(targets, labels),
            "input_confidence": confidence(targets),
        }
        # With generic texts beside them the inputs may all have one label.
        alone = data.texts is None or self.generic == 0
        notes = check_informative(targets, labels) if alone else ()
        own = SoftLabelDataset(inputs, targets, report, notes)
        return self.beside_generic_texts(own, self.repeats, data, self.generic)


@dataclass(frozen=True, kw_only=True)
class FewShot(LabelDistillation):
    """Training on labelled examples of the task, with generic texts beside them.

    The last weights are kept: examples may contradict the teacher, so that agreement with it is
    reported, but does not choose the weights.

    Attributes:
        generic: Number of generic texts to learn from beside the examples, where there is a corpus.
        repeats: How often the examples are seen in an epoch.
        teacher_weight: Share of the teacher's distribution in an example's target; the rest is its
            label.
    """

    name: ClassVar[str] = "few_shot"
    data_access: ClassVar[str] = "few-shot"
    takes: ClassVar[tuple[str, ...]] = ("examples",)
    stops_early: ClassVar[bool] = False

    generic: int = 512
    repeats: int = 4
    teacher_weight: float = 0.0

    def dataset(self, data: DistillationInputs) -> SoftLabelDataset:
        """Return the examples with their labels, and generic texts beside them."""
        labels, examples = data.prompt_spec.labels, data.examples
        if not examples:
            raise DataError(
                "few-shot refinement takes labelled examples of the task, but there are none; "
                'give examples=FILE, *.jsonl with rows {"text": ..., "label": ...}, or choose '
                "refine=prompt_distill, which takes inputs without labels"
            )
        if unknown := sorted({example.label for example in examples} - set(labels)):
            raise DataError(
                f"examples are labelled {', '.join(map(repr, unknown))}, but the labels are "
                f"{', '.join(map(repr, labels))}; correct the examples or prompt.labels"
            )
        texts = tuple(example.text for example in examples)
        if empty := sum(not text.strip() for text in texts):
            raise DataError(f"{empty} of {len(texts)} examples have no text; remove them")
        indices = torch.tensor([labels.index(example.label) for example in examples])
        targets = one_hot(indices, len(labels)).float()
        if self.teacher_weight > 0:
            soft = label_distributions(data, texts, temperature=self.temperature, kind="examples")
            targets = (1 - self.teacher_weight) * targets + self.teacher_weight * soft
        counts = Counter(example.label for example in examples)
        missing = ", ".join(repr(label) for label in labels if label not in counts)
        notes = (f"No example is labelled {missing}.",) if missing else ()
        report = {
            "examples": len(examples),
            "example_labels": {label: counts[label] for label in labels},
        }
        own = SoftLabelDataset(texts, targets, report, notes)
        return self.beside_generic_texts(own, self.repeats, data, self.generic)
