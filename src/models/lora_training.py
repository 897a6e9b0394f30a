"""Training LoRA adapters: PEFT's modules on a borrowed base network, and what their loss is."""

import math
import re
import signal
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from lightning import LightningModule
from lightning.pytorch.utilities.exceptions import SIGTERMException
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

from ..adapters import LoraAdapter, LowRank, Role, Site
from ..data.prompts import NOT_ASKED, AnswerBatch
from .likelihood import last_logits
from .loading import BaseModel


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt where the trainer would end the process without a word."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:
        if isinstance(end, SIGTERMException) or isinstance(end.__context__, KeyboardInterrupt):
            # The trainer ignores further signals from then on.
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from None
        raise


class LoraTraining(LightningModule):
    """Trains a LoRA adapter of a base model; a subclass says what the loss of a batch is.

    The base network is borrowed: it carries the LoRA modules until :meth:`close`, and is
    bit-equal to itself afterwards, so that one loaded model serves any number of adapters::

        with contextlib.closing(training) as training:
            trainer.fit(training, batches)
            adapter = training.adapter()

    Training begins from each A as PEFT draws it, and from each B at zero.

    Args:
        base: The model to adapt.
        ranks: Columns of B at each adapted module.
        scale: Of every update; PEFT's ``lora_alpha / r``.
        init_seed: Draws every A, in the order of ``ranks``.
        lr: Learning rate of AdamW after the warm-up, without weight decay.
        warmup_steps: Over which it rises from zero; from there it falls linearly to zero.

    ``losses`` has the loss of every step so far.
    """

    def __init__(
        self,
        base: BaseModel,
        ranks: Mapping[Site, int],
        *,
        scale: float,
        init_seed: int,
        lr: float,
        warmup_steps: int,
    ) -> None:
        super().__init__()
        self.base_name = base.name
        self.sites = tuple(ranks)
        self.scale = scale
        self.lr = lr
        self.warmup_steps = warmup_steps
        self.losses: list[float] = []
        self._base = base.network
        self.network = _with_lora(base, ranks, scale).train()
        self._restart(init_seed)

    def _restart(self, init_seed: int) -> None:
        """Draw each A as PEFT does (uniform, within ``1 / sqrt(in)``) and set each B to zero."""
        generator = torch.Generator().manual_seed(init_seed)
        for site in self.sites:
            a, b = self._factors(site)
            drawn = torch.empty(a.shape)
            nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            a.data.copy_(drawn)
            b.data.zero_()

    def _factors(self, site: Site) -> tuple[nn.Parameter, nn.Parameter]:
        module: Any = self._base.get_submodule(site.module_name)
        return module.lora_A["default"].weight, module.lora_B["default"].weight

    @abstractmethod
    def loss(self, batch: Any) -> Float[Tensor, ""]:
        """Return the loss of a batch; gradients flow to the factors."""

    def training_step(self, batch: Any, batch_idx: int) -> Float[Tensor, ""]:
        """Return the loss of the batch, and note it."""
        del batch_idx
        loss = self.loss(batch)
        self.losses.append(float(loss.detach()))
        return loss

    def planned_steps(self) -> int:
        """Return the number of steps after which the learning rate is zero."""
        return int(self.trainer.estimated_stepping_batches)

    def configure_optimizers(self) -> Any:
        """Return AdamW and its schedule, which moves with every step."""
        trained = [parameter for site in self.sites for parameter in self._factors(site)]
        optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=0.0)
        schedule = get_linear_schedule_with_warmup(
            optimizer, self.warmup_steps, self.planned_steps()
        )
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


def _with_lora(base: BaseModel, ranks: Mapping[Site, int], scale: float) -> PeftModel:
    """Return the base network with PEFT's modules at the sites."""
    config = LoraConfig(
        target_modules=[site.module_name for site in ranks],
        rank_pattern={re.escape(site.module_name): rank for site, rank in ranks.items()},
        task_type="CAUSAL_LM",
    )
    # PEFT draws factors from the global generator, which belongs to nobody here.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 reads an attribute that transformers 5 has renamed; it does no harm.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        network = get_peft_model(base.network, config)
    for site in ranks:
        module: Any = base.network.get_submodule(site.module_name)
        module.scaling["default"] = scale
    return network


class LoraFineTuning(LoraTraining):
    """LoRA of one rank at chosen roles of every layer, trained on a task's answers.

    The loss is the mean negative log-likelihood of the answers' tokens; logits are taken there
    only::

        with contextlib.closing(LoraFineTuning(base)) as tuning:
            trainer.fit(tuning, examples)
            adapter = tuning.adapter()

    Args:
        base: As of :class:`LoraTraining`, with ``lr`` and ``warmup_steps``.
        rank: Columns of every B.
        alpha: PEFT's ``lora_alpha``: the update is scaled by ``alpha / rank``.
        roles: Which modules of every layer are adapted.
        init_seed: Adapters of one base that share it start from the same A.
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
