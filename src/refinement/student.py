"""The target as it learns: LoRA modules that begin from the adapter a mapper has made."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..adapters import LoraAdapter, LowRank, Site
from ..exceptions import AdapterError
from ..models.base import BaseModel
from ..models.lora_training import LoraTraining

SCALE = 2.0
"""Of every update, ``lora_alpha / r``: what the learning rates here are made for."""

_NOTHING = 1e-6  # singular values under this share of the largest are rounding


class Student(LoraTraining):
    """The target with trainable LoRA modules that at first do what a given adapter does.

    One learning rate has to suit a start from nothing and one from any mapper, so the start is
    brought into the gauge of a fresh one: with its update ``U S V^T``, the rows of A are those of
    ``V^T``, each with the norm ``1 / sqrt(3)`` that a row drawn by PEFT has in the mean, and B
    holds the rest. Rows that the update does not need, all of them where it is zero, are drawn as
    PEFT draws them, and their columns of B are zero. So the same update trains alike, whatever
    factors it came in.

    Args:
        base: The target; borrowed until :meth:`close`, as :class:`LoraTraining` says.
        start: The adapter to begin from; it also says which modules have which rank.
        seed: Of what is drawn.
        lr: Learning rate of AdamW after the warm-up, without weight decay.
        warmup_steps: Over which it rises from zero; from there it falls linearly to zero.

    Raises:
        AdapterError: the adapter does not fit the target.
    """

    def __init__(
        self,
        base: BaseModel,
        start: LoraAdapter,
        *,
        seed: int = 0,
        lr: float = 2e-3,
        warmup_steps: int = 4,
    ) -> None:
        misfit = base.sites.misfit(start)
        if misfit is not None:
            site, found = misfit
            raise AdapterError(
                f"refinement begins from an adapter whose {site.module_name} has the shape "
                f"{start[site].shape}, but {base.name} has {found}; map the adapter to this model"
            )
        ranks = {site: update.rank for site, update in start.items()}
        super().__init__(base, ranks, scale=SCALE, init_seed=seed, lr=lr, warmup_steps=warmup_steps)
        self.base = base
        self._steps: int | None = None
        for site, update in start.items():
            self._begin_from(site, update)

    def _begin_from(self, site: Site, update: LowRank) -> None:
        a, b = self._factors(site)
        u, sigma, vt = update.to(torch.float32).factors_svd()
        kept = int((sigma > _NOTHING * sigma.max()).sum())
        row = 1 / math.sqrt(3)
        a.data[:kept] = (row * vt[:kept]).to(a)
        b.data[:, :kept] = (u[:, :kept] * sigma[:kept] / (row * self.scale)).to(b)

    def plan(self, steps: int) -> None:
        """Say how many steps the whole training has, of which this run may do the last only."""
        self._steps = steps

    def planned_steps(self) -> int:
        """Return the number of steps of the whole training."""
        return super().planned_steps() if self._steps is None else self._steps

    def factors(self) -> list[Float[Tensor, "_ _"]]:
        """Return copies of A and B of every site."""
        return [factor.detach().clone() for site in self.sites for factor in self._factors(site)]

    def take(self, factors: list[Any]) -> None:
        """Take back what :meth:`factors` returned."""
        own = [factor for site in self.sites for factor in self._factors(site)]
        for factor, value in zip(own, factors, strict=True):
            factor.data.copy_(value)
