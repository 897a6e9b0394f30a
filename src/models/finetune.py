"""Training one LoRA adapter of a base model on one task."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from ..adapters import Role
from ..data.answers import NOT_ASKED, AnswerBatch
from .base import BaseModel
from .logits import last_logits
from .lora_training import LoraTraining


class LoraFineTuning(LoraTraining):
    """LoRA of one rank at chosen roles of every layer, trained on a task's answers.

    The loss is the mean negative log-likelihood of the answers' tokens; logits are taken there
    only::

        with contextlib.closing(LoraFineTuning(base)) as tuning:
            trainer.fit(tuning, examples)
            adapter = tuning.adapter()

    Args:
        base: The model to adapt.
        rank: Columns of every B.
        alpha: PEFT's ``lora_alpha``: the update is scaled by ``alpha / rank``.
        roles: Which modules of every layer are adapted.
        init_seed: Draws every A. Adapters of one base that share it start from the same A; B
            starts at zero.
        lr: Learning rate of AdamW after the warm-up, without weight decay.
        warmup_steps: Over which it rises from zero; from there it falls linearly to zero.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        rank: int = 8,
        alpha: int = 16,
        roles: Sequence[Role | str] = (Role.Q, Role.V),
        init_seed: int = 0,
        lr: float = 2e-3,
        warmup_steps: int = 4,
    ) -> None:
        sites = base.sites.of_roles(tuple(Role(role) for role in roles))
        super().__init__(
            base,
            dict.fromkeys(sites, rank),
            scale=alpha / rank,
            init_seed=init_seed,
            lr=lr,
            warmup_steps=warmup_steps,
        )

    def loss(self, batch: AnswerBatch) -> Float[Tensor, ""]:
        """Return the mean loss over the answers' tokens of the batch."""
        logits = last_logits(
            self._base,
            batch.answer_tokens,
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
        )
        return nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=NOT_ASKED
        )
