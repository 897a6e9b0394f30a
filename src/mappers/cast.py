"""CAST: projection heads trained on text, behind which a frozen source adapter acts.

The heads are in :mod:`~loraport.mappers.heads`, what acts behind them in
:mod:`~loraport.mappers.cartridge`; this file trains the ones and builds the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from lightning import LightningDataModule
from torch import Tensor

from ..adapters import LoraAdapter, Site
from ..alignment.layer_matching import LayerPairing
from ..data import TextCorpus
from ..exceptions import ConfigurationError
from ..models.capture import without_autocast
from ..models.hooks import Tap
from ..models.loading import BaseModel
from ..models.statistics import StatisticsStore
from .activation_rows import ActivationRows, Rows
from .base import Report, check_least, dropped_facts
from .cartridge import Cartridge, CartridgeSite, exported
from .from_text import ROLES, CorpusMapper, ModelPair, PairFrame, SitePair
from .heads import HeadR2, Heads, Losses

SourceModule = tuple[Float[Tensor, "out in"], Float[Tensor, " out"]]
"""The weight and the bias of one of the source's modules."""


@dataclass(frozen=True, eq=False)
class CartridgeParts:
    """What a cartridge and its export take beside the heads.

    Attributes:
        modules: Weight and bias of each source module, by its site's label, float32.
        train: Rows that the target's modules read, by ``Tap.input(site).label_on("target")``.
        held_out: The same on other text.
    """

    modules: Mapping[str, SourceModule]
    train: Mapping[str, Float[Tensor, "rows _"]]
    held_out: Mapping[str, Float[Tensor, "more _"]]

    @classmethod
    def of(
        cls, source: BaseModel, pairs: Sequence[SitePair], rows: ActivationRows, most: int
    ) -> "CartridgeParts":
        """Copy the modules, and at most so many rows; of held-out text a quarter."""
        labels = sorted({Tap.input(target).label_on("target") for _, target in pairs})
        return cls(
            {site.label: _module(source, site) for site in dict.fromkeys(s for s, _ in pairs)},
            {label: rows.all_rows(label, "train", most) for label in labels},
            {label: rows.all_rows(label, "held_out", most // 4) for label in labels},
        )

    def state(self) -> dict[str, Any]:
        """Return everything as plain data; rows in bfloat16, as they were cached."""
        return {
            "modules": {label: list(kept) for label, kept in self.modules.items()},
            "train": {label: rows.bfloat16() for label, rows in self.train.items()},
            "held_out": {label: rows.bfloat16() for label, rows in self.held_out.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "CartridgeParts":
        """Return what :meth:`state` describes."""
        return cls(
            {label: (weight, bias) for label, (weight, bias) in state["modules"].items()},
            {label: rows.float() for label, rows in state["train"].items()},
            {label: rows.float() for label, rows in state["held_out"].items()},
        )


def _module(model: BaseModel, site: Site) -> SourceModule:
    module: Any = model.network.get_submodule(site.module_name)
    weight = module.weight.detach().float().cpu().clone()
    bias = getattr(module, "bias", None)
    return weight, torch.zeros(len(weight)) if bias is None else bias.detach().float().cpu().clone()


class CastMapper(CorpusMapper):
    """Learns how two models represent the same text, then carries any adapter across.

    An input projection D takes what a target module reads to what the paired source module reads;
    an output projection U takes what the source module writes to what the target's writes. Both
    start as closed-form linear maps and get a small MLP on top. U is trained to reconstruct
    activations and, by ``behaviour``, to carry the gradients of the text's end back, so that it
    is right for the small changes that an adapter makes. The adapter itself takes no part in
    training.

    :meth:`cartridge` gives the adapter behind its heads; :meth:`map` the LoRA that comes nearest
    to it on text.

    Args:
        roles: The roles of adapters that it shall carry.
        hidden: Of each head's MLP; 0 leaves linear heads.
        cycle: Weight of the way back, by heads of its own; 0 leaves them out.
        behaviour: Weight of the gradients; 0 leaves them out, as the published losses do.
        lr: Learning rate of AdamW.
        batch_rows: Tokens a step.
        rank: Of the exported LoRA; None: as the source adapter has it.
        export_rows: Tokens on which a cartridge is made linear; a quarter more measure it.
        seed: Of MLPs and batches.

    Source: CAST, arXiv 2510.17902, of which only the abstract was known: heads, losses and the
    form of the difference are this project's.
    """

    name: ClassVar[str] = "cast"
    has_cartridge: ClassVar[bool] = True

    def __init__(
        self,
        roles: Sequence[str] = ROLES,
        hidden: int = 256,
        cycle: float = 0.1,
        behaviour: float = 1.0,
        lr: float = 1e-3,
        batch_rows: int = 512,
        rank: int | None = None,
        export_rows: int = 4096,
        seed: int = 0,
    ) -> None:
        super().__init__(roles)
        check_least(0, hidden=hidden, cycle=cycle, behaviour=behaviour)
        check_least(1, batch_rows=batch_rows, rank=1 if rank is None else rank)
        check_least(32, export_rows=export_rows)
        if not lr > 0:
            raise ConfigurationError(f"mapper.lr is {lr}; it takes a positive number")
        self.save_hyperparameters(
            *("hidden", "cycle", "behaviour", "lr", "batch_rows", "rank", "export_rows", "seed")
        )
        self.hidden, self.cycle, self.behaviour = hidden, cycle, behaviour
        self.lr, self.batch_rows, self.seed = lr, batch_rows, seed
        self.rank, self.export_rows = rank, export_rows
        self.heads: Heads | None = None
        self._parts: CartridgeParts | None = None
        self._r2 = HeadR2()
        self._mapped: Report = {}

    def learn_from(
        self, models: ModelPair, pairing: LayerPairing, store: StatisticsStore | None = None
    ) -> None:
        """Take the base models, and make heads of their widths."""
        super().learn_from(models, pairing, store)
        self.heads, self._parts = self._new_heads(self.described), None

    def data_module(self, corpus: TextCorpus, folder: Path) -> LightningDataModule:
        """Return both models' activations on the texts, which are kept in the folder."""
        taps = self._made().taps()
        return ActivationRows(corpus, self.models, taps, folder, self.batch_rows, self.seed)

    @property
    def fitted(self) -> bool:
        """Whether there are heads, and what a cartridge takes beside them."""
        return self._parts is not None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW over all heads."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=1e-4)

    def on_fit_start(self) -> None:
        """Solve the skips, and keep what a cartridge takes beside the heads."""
        if self._parts is not None:
            return  # a checkpoint has brought heads that are trained already
        rows, heads = self.trained_on(ActivationRows), self._made()
        self._r2 = HeadR2(heads.start(rows, self.behaviour))
        self._parts = CartridgeParts.of(self.models.source, heads.pairs, rows, self.export_rows)

    def training_step(self, batch: Rows, batch_idx: int) -> Tensor:
        """Return the weighted losses of all heads."""
        losses = self._made().losses(batch)
        for name, part in losses._asdict().items():
            self.log(f"train/{name}", part.detach(), on_step=False, on_epoch=True, sync_dist=True)
        return self._total(losses, "training", batch_idx)

    def on_validation_epoch_start(self) -> None:
        """Forget the held-out rows of the epoch before."""
        self._r2.begin()

    def validation_step(self, batch: Rows, batch_idx: int) -> None:
        """Log the losses on held-out text, which stop the training."""
        heads = self._made()
        # What is measured does not depend on the precision that heads are trained in.
        with without_autocast(self.device):
            with torch.enable_grad():  # a head's derivative is part of a loss
                losses = Losses(*(part.detach() for part in heads.losses(batch)))
            self._r2.add(heads, batch)
        logged = {**losses._asdict(), "loss": self._total(losses, "held-out", batch_idx)}
        size = len(next(iter(batch.values())))
        for name, part in logged.items():
            self.log(f"val/{name}", part, batch_size=size, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Note how much of the held-out text each head explains now."""
        self._r2.end(self._made(), self.summed)

    def cartridge(self, adapter: LoraAdapter) -> Cartridge:
        """Return the adapter behind the heads, ready to be attached to the target."""
        frame, heads, parts = self.frame, self._made().frozen(), self._fitted_parts()
        sites = [
            CartridgeSite(
                source,
                target,
                weight,
                heads.input_heads(source, target).head,
                heads.output_heads(source, target).head,
                *parts.modules[source.label],
                adapter[source],
            )
            for target, feeds in frame.feeds_of(adapter).items()
            for source, weight in feeds
        ]
        return Cartridge(frame.target_name, sites).eval()

    def map(self, adapter: LoraAdapter) -> LoraAdapter:
        """Return the LoRA that comes nearest to the adapter's cartridge on text, in float32."""
        cartridge, parts = self.cartridge(adapter), self._fitted_parts()
        feeding = {site.source for acting in cartridge.acts_at().values() for site in acting}
        rank = self.rank or max(update.rank for update in adapter.values())
        made, facts = exported(cartridge, parts.train, parts.held_out, rank)
        for target, acting in cartridge.acts_at().items():
            facts[target.label]["source"] = " + ".join(site.source.label for site in acting)
            before = sum(adapter[site.source].norm() ** 2 for site in acting) ** 0.5
            if before > 0:
                facts[target.label]["kept_norm"] = made[target].norm() / before
        self._mapped = {**dropped_facts(adapter, feeding), "sites": facts}
        return made

    def report(self) -> Report:
        """Return how well held-out text is reconstructed, and what the last export lost."""
        return {**self.frame.report(), **self._r2.facts(self._made().pairs), **self._mapped}

    def fitted_state(self) -> dict[str, Any]:
        """Return what a cartridge and its export take beside the heads."""
        return {
            "frame": self.described.state(),
            "parts": self._fitted_parts().state(),
            "r2": self._r2.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Make heads of the right widths, which Lightning then fills, and take back the rest."""
        self._frame = PairFrame.from_state(state["frame"])
        self.heads = self._new_heads(self._frame)
        self._parts = CartridgeParts.from_state(state["parts"])
        self._r2 = HeadR2(**state["r2"])

    def _new_heads(self, frame: PairFrame) -> Heads:
        return Heads(frame, self.hidden, self.cycle > 0, self.behaviour > 0, self.seed)

    def _total(self, losses: Losses, which: str, batch_idx: int) -> Tensor:
        """Return the weighted sum of the losses, where it is a number."""
        weighted = self.cycle * losses.cycle + self.behaviour * losses.behaviour
        total = losses.reconstruction + weighted
        if not torch.isfinite(total):
            raise ConfigurationError(
                f"the {which} loss is {total.item()} in batch {batch_idx} of epoch "
                f"{self.current_epoch}, with mapper.lr={self.lr:g}: the heads have diverged; take "
                "a smaller mapper.lr, such as 1e-3, or a larger mapper.batch_rows"
            )
        return total

    def _made(self) -> Heads:
        if self.heads is None:
            raise RuntimeError("CastMapper knows no models yet: call learn_from(...) first")
        return self.heads

    def _fitted_parts(self) -> CartridgeParts:
        if self._parts is None:
            raise RuntimeError("CastMapper has seen no text yet: train it first")
        return self._parts
