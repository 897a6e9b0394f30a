"""PorTAL (``portallib``, Ramp Labs 2026) as a port without task data, on the texts of ours.

PorTAL holds a latent for every task and a core that makes canonical LoRA factors of a latent and a
layer's embedding; a thin alignment turns these into the factors of one base model. Source
training learns latents, core and the source's alignment together; a port freezes latents and core
and fits a fresh alignment of the target. Both are done here by the library's own trainers
(``PortalCoreTrainer``, ``PortalAdapterRefitter``) with its published architecture (q and v, rank 8,
alpha 16, latents of 256, core of 1,024), learning rates (1e-3, latents 2e-3, constant) and losses.

What differs from the published recipe:

- **Data.** It trains on the tasks' own rows with true answers, on both sides. Here both sides see
  the generic texts that the refinement is given, in the task's prompt, with the likeliest label of
  the source with its adapter. So the latent of a new task is learned from what its adapter does.
- **Budget.** It takes 12 epochs of 500 steps on the sources and 5 epochs of up to 1,000 rows a
  task on the target. Here the target takes as many steps with as many texts of each task as the
  refinement takes, and the source several times as many (``source_epochs``; it is the smaller
  model, and without a core there is nothing to port), as fits in five minutes a port.
- **Bases and tasks.** It trains the core on two sources; a pair has one. All tasks of a run are
  ported together, as it is published: one core, one alignment, every step has a batch of each.
  Seconds a port are those of the whole divided by the number of tasks that were asked for; tasks
  that only help the core cost time but are no ports.
- **Choice of the epoch.** It takes the epoch of the best accuracy on validation rows. Here it is
  the trained epoch of the least negative log-likelihood on held-out generic texts with the
  teacher's labels: so few texts leave accuracy to chance, and an untrained core cannot be ported.
- **Memory and speed.** The networks are wrapped so that the loss takes logits at the answers only;
  the loss is the same number. Gradient checkpointing is off.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from portallib import (
    ChoiceDataset,
    ChoiceExample,
    EpochMetrics,
    PortalAdapterRefitter,
    PortalBase,
    PortalCoreTrainer,
    PortalModel,
    PortalTrainingConfig,
)
from torch import Tensor, nn
from transformers import PreTrainedModel

from benchmarks.peft_trainer import ALPHA, RANK, ROLES, Schedule
from benchmarks.plain_finetuning import TaughtTexts
from loraport.adapters import LoraAdapter, LowRank, Role, Site
from loraport.data.prompts import NOT_ASKED
from loraport.models import BaseModel

EVALUATION_ROWS = 4  # at once, each with logits of the whole vocabulary at all positions


class TaughtTask(NamedTuple):
    """What PorTAL sees of a task.

    Attributes:
        train: Texts to learn from.
        validation: Other texts, by which the epoch is chosen.
    """

    train: TaughtTexts
    validation: TaughtTexts


class PortalPort(NamedTuple):
    """Ported adapters, and the library's account of both phases, as plain data."""

    adapters: dict[str, LoraAdapter]
    report: dict[str, Any]


class AnswerNetwork(nn.Module):
    """A causal language model whose loss meets the head at the answers only.

    Without labels it is the network itself.
    """

    layer_path = "network.model.layers"

    def __init__(self, network: PreTrainedModel) -> None:
        super().__init__()
        self.network = network
        self.config = network.config

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> Any:
        """Return logits, or with labels the mean loss over the tokens that are asked for."""
        if labels is None:
            return self.network(input_ids=input_ids, attention_mask=attention_mask)
        following = labels[:, 1:]
        places = (following != NOT_ASKED).any(dim=0).nonzero().flatten()
        output = self.network(
            input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=places
        )
        output.loss = nn.functional.cross_entropy(
            output.logits.flatten(0, 1).float(),
            following[:, places].flatten(),
            ignore_index=NOT_ASKED,
        )
        return output


@dataclass(frozen=True)
class Portal:
    """Ports all tasks of a run by PorTAL.

    Attributes:
        schedule: Steps and texts a step on the target, and the seed; PorTAL's learning rates are
            its own.
        source_epochs: How often the core sees the texts.
        lr: Learning rate of core and alignments; latents take twice as much.
    """

    schedule: Schedule
    source_epochs: int = 3
    lr: float = 1e-3

    def port(
        self, source: BaseModel, target: BaseModel, tasks: Mapping[str, TaughtTask]
    ) -> PortalPort:
        """Fit latents and core on the source, the alignment on the target, and write adapters."""
        data, texts = _dataset(tasks), max(len(task.train.texts) for task in tasks.values())
        with (
            _given(source) as first,
            _given(target) as second,
            tempfile.TemporaryDirectory() as place,
            torch.random.fork_rng(devices=[]),
        ):
            torch.manual_seed(self.schedule.seed)
            folder = Path(place) / "source"
            core = PortalCoreTrainer(
                [first], data, config=self._recipe(self.source_epochs, folder)
            ).train()
            carrier, source_epoch = _chosen(core.history, folder)
            folder = Path(place) / "target"
            refitted = PortalAdapterRefitter(
                carrier, second, data, config=self._recipe(self.schedule.epochs(texts), folder)
            ).refit()
            artifact, target_epoch = _chosen(refitted.history, folder)
        report = {
            "source": [metrics.to_dict() for metrics in core.history],
            "source_epoch": source_epoch,
            "target": [metrics.to_dict() for metrics in refitted.history],
            "target_epoch": target_epoch,
            "target_steps": refitted.diagnostics["planned_optimizer_steps"],
        }
        return PortalPort({name: _adapter(artifact, name, target) for name in tasks}, report)

    def _recipe(self, epochs: int, checkpoints: Path) -> PortalTrainingConfig:
        return PortalTrainingConfig(
            modules=tuple(role.value for role in ROLES),
            rank=RANK,
            alpha=ALPHA,
            source_max_examples=None,
            refit_max_examples=10**9,
            eval_max_examples=None,
            eval_batch_size=EVALUATION_ROWS,
            epochs=epochs,
            batch_size=self.schedule.batch_rows,
            learning_rate=self.lr,
            latent_learning_rate=2 * self.lr,
            seed=self.schedule.seed,
            gradient_checkpointing=False,
            checkpoint_dir=checkpoints,
        )


@contextmanager
def _given(base: BaseModel) -> Iterator[PortalBase]:
    """Hand a base model to the library, which switches off its cache of keys and values."""
    config, network = base.network.config, AnswerNetwork(base.network)
    kept = config.use_cache
    try:
        yield PortalBase(base.name, network, base.tokenizer, layer_path=network.layer_path)
    finally:
        config.use_cache = kept
        base.network.eval()


def _chosen(history: Sequence[EpochMetrics], checkpoints: Path) -> tuple[PortalModel, int]:
    """Return the model of the trained epoch with the least loss on held-out texts."""
    best = min(history[1:], key=lambda metrics: metrics.macro_gold_nll).epoch
    # The core's trainer writes a folder for each of its bases below the epoch's; there is one.
    (weights,) = (checkpoints / f"epoch-{best}").rglob("model.safetensors")
    return PortalModel.from_pretrained(weights.parent), best


def _dataset(tasks: Mapping[str, TaughtTask]) -> ChoiceDataset:
    def examples(name: str, taught: TaughtTexts) -> Iterator[ChoiceExample]:
        labels = taught.question.labels
        choices = tuple(taught.question.answer(label) for label in labels)
        for text, label in zip(taught.texts, taught.labels, strict=True):
            yield ChoiceExample(name, taught.question.ask(text), choices, labels.index(label))

    return ChoiceDataset(
        [row for name, task in tasks.items() for row in examples(name, task.train)],
        [row for name, task in tasks.items() for row in examples(name, task.validation)],
    )


def _adapter(artifact: PortalModel, task: str, base: BaseModel) -> LoraAdapter:
    """Return the factors that PorTAL generates for a task."""
    return LoraAdapter(
        {
            Site(layer, Role(role)): LowRank(a.clone(), b.clone(), artifact.config.scaling)
            for (layer, role), (a, b) in artifact.generate(task).items()
        },
        base.name,
    )
