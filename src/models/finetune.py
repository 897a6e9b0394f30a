"""Training one LoRA adapter of a base model on one task."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from lightning import LightningModule
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from ..adapters import LoraAdapter, LowRank, Role, Site
from ..data.answers import NOT_ASKED, AnswerBatch
from .base import BaseModel
from .logits import last_logits


class LoraFineTuning(LightningModule):
    """PEFT's LoRA modules on a base network, trained on a task's answers.

    The loss is the mean negative log-likelihood of the answers' tokens; logits are taken there
    only. The base network is borrowed: it carries the LoRA modules until :meth:`close`, and is
    bit-equal to itself afterwards, so that one loaded model serves any number of adapters::

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
        super().__init__()
        self.base_name = base.name
        self.scale = alpha / rank
        self.lr = lr
        self.warmup_steps = warmup_steps
        self.losses: list[float] = []
        self.sites = base.sites.of_roles(tuple(Role(role) for role in roles))
        self._base = base.network
        self.network = _with_lora(base, rank, alpha, self.sites).train()
        self._restart(init_seed)

    def _restart(self, init_seed: int) -> None:
        """Draw each A as PEFT does (uniform, within ``1 / sqrt(in)``) and set each B to zero."""
        generator = torch.Generator().manual_seed(init_seed)
        for site in self.sites:
            a, b = self._factors(site)
            drawn = nn.init.kaiming_uniform_(
                torch.empty(a.shape), a=math.sqrt(5), generator=generator
            )
            a.data.copy_(drawn)
            b.data.zero_()

    def _factors(self, site: Site) -> tuple[nn.Parameter, nn.Parameter]:
        module: Any = self._base.get_submodule(site.module_name)
        return module.lora_A["default"].weight, module.lora_B["default"].weight

    def training_step(self, batch: AnswerBatch, batch_idx: int) -> Float[Tensor, ""]:
        """Return the mean loss over the answers' tokens of the batch."""
        del batch_idx
        logits = last_logits(
            self._base,
            batch.answer_tokens,
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
        )
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), batch.targets.flatten(), ignore_index=NOT_ASKED
        )
        self.losses.append(float(loss.detach()))
        return loss

    def configure_optimizers(self) -> Any:
        """Return AdamW and its schedule, which moves with every step."""
        trained = [parameter for site in self.sites for parameter in self._factors(site)]
        optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=0.0)
        steps = int(self.trainer.estimated_stepping_batches)

        def share(step: int) -> float:
            if step < self.warmup_steps:
                return step / self.warmup_steps
            return max(0.0, (steps - step) / max(1, steps - self.warmup_steps))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def adapter(self) -> LoraAdapter:
        """Return a copy of the factors as they are now, in float32."""
        updates = {}
        for site in self.sites:
            a, b = (factor.detach().float().cpu().clone() for factor in self._factors(site))
            updates[site] = LowRank(a, b, self.scale)
        return LoraAdapter(updates, self.base_name)

    def close(self) -> None:
        """Take the LoRA modules off the base network; this object is of no use afterwards."""
        if "network" in self._modules:
            self.network.unload()
            del self.network
            self._base.eval()


def _with_lora(base: BaseModel, rank: int, alpha: int, sites: Sequence[Site]) -> PeftModel:
    """Return the base network with PEFT's modules at the sites."""
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=[site.module_name for site in sites],
        task_type="CAUSAL_LM",
    )
    # PEFT draws factors from the global generator, which belongs to nobody here.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers 5 has renamed; it does no harm.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return get_peft_model(base.network, config)
