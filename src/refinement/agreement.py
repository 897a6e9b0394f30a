"""How far a student answers as its teacher does."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.question import Question
from ..models.base import BaseModel
from ..models.label_likelihoods import log_likelihoods


class Agreement(NamedTuple):
    """How alike a student's answers are to its teacher's, over some texts.

    Attributes:
        top_share: Share of the texts for which both find the same label likeliest.
        kl: Mean ``KL(teacher || student)`` between their distributions over the labels, in nats.
    """

    top_share: float
    kl: float

    @classmethod
    def between(
        cls, teacher: Float[Tensor, "texts labels"], student: Float[Tensor, "texts labels"]
    ) -> "Agreement":
        """Compare distributions over labels.

        Args:
            teacher: Probabilities.
            student: Log-probabilities, of any normalisation.
        """
        found = student.double().log_softmax(dim=1)
        expected = teacher.double()
        expected = expected / expected.sum(dim=1, keepdim=True)
        # Not through the logarithm of the teacher's zeros.
        entropy = -torch.special.entr(expected).sum(dim=1)
        kl = entropy - (expected * found).sum(dim=1)
        same = teacher.argmax(dim=1) == student.argmax(dim=1)
        # Not below zero by rounding; what is not a number stays so.
        return cls(float(same.double().mean()), float(kl.mean().clamp(min=0)))


class HeldOut:
    """Texts that nothing is learned from, with the teacher's answers to them.

    Args:
        question: What is asked about each.
        texts: The texts, at least one.
        targets: The teacher's distributions over the labels.
    """

    def __init__(
        self, question: Question, texts: Sequence[str], targets: Float[Tensor, "texts labels"]
    ) -> None:
        self.question, self.texts, self.targets = question, tuple(texts), targets

    def agreement(self, base: BaseModel) -> Agreement:
        """Return how far a model, with what is attached to it, agrees with the teacher."""
        found = log_likelihoods(base, self.question, self.texts)
        return Agreement.between(self.targets, found)
