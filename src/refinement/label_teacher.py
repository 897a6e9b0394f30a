"""What the teacher answers: its distribution over the labels for each of many texts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.answers import answer_tokens
from ..data.question import Question
from ..exceptions import DataError
from ..models.attach import attached
from ..models.base import BaseModel
from ..models.label_likelihoods import log_likelihoods
from .base import Lesson, Progress, Teacher, silent
from .cache_folder import cache_folder
from .portions import in_portions

PORTION = 64  # texts
_ALIKE = 1e-3  # mean absolute deviation of probabilities; a model that reads the text varies more


def label_distributions(
    teacher: Teacher,
    question: Question,
    texts: Sequence[str],
    *,
    temperature: float = 1.0,
    cache: Path | None = None,
    progress: Progress = silent,
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
    rows = in_portions(folder, portions, asked, step=step, progress=progress)
    found = [row for portion in rows for row in portion]
    scores = torch.tensor(found, dtype=torch.float32).reshape(len(texts), len(question.labels))
    return (scores / temperature).softmax(dim=1)


def teacher_answers(
    lesson: Lesson, texts: Sequence[str], *, temperature: float, what: str
) -> Float[Tensor, "texts labels"]:
    """Return :func:`label_distributions` of a lesson's teacher.

    Args:
        lesson: What is taught, by whom, and where answers are kept.
        texts: About which.
        temperature: Divides the log-likelihoods.
        what: Kind of texts, as the progress is told.

    Raises:
        DataError: two labels are the same tokens for the source.
    """
    return label_distributions(
        lesson.teacher,
        lesson.question,
        texts,
        temperature=temperature,
        cache=lesson.cache,
        progress=lesson.progress,
        step=f"labelling {what} by the source",
    )


def _made_of(teacher: Teacher, question: Question, portions: list[list[str]]) -> list[Any]:
    return [
        teacher.base.fingerprint,
        teacher.adapter.content_hash(),
        asdict(question),
        portions,
    ]


def check_labels(base: BaseModel, question: Question) -> None:
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
