"""Label distillation: the student learns the teacher's distribution over a few labels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from ..adapters import LoraAdapter
from ..data.answers import prompt_tokens
from ..data.question import Question
from ..data.shuffled_batches import seeded_batches
from ..models.base import BaseModel
from ..models.label_likelihoods import batch_log_likelihoods, label_tree
from .label_teacher import check_labels
from .student import Student


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
        self, base: BaseModel, start: LoraAdapter, question: Question, **options: Any
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
