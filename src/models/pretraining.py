"""Pre-training a small causal language model on documents, on the CPU."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

_IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """Settings of a pre-training.

    Attributes:
        steps: Optimiser steps.
        batch_size: Documents a step.
        lr: Learning rate of AdamW after the warm-up; from there it falls linearly to zero.
        warmup_steps: Over which it rises from zero.
        weight_decay: Of AdamW.
        clip_norm: Largest norm of the gradient.
        seed: Order of the documents.
    """

    steps: int = 400
    batch_size: int = 32
    lr: float = 8e-3
    warmup_steps: int = 40
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    seed: int = 0

    def share(self, step: int) -> float:
        """Return the share of the learning rate that a step, counted from 0, uses."""
        rising = (step + 1) / max(1, self.warmup_steps)
        falling = (self.steps - step) / max(1, self.steps - self.warmup_steps)
        return min(rising, falling, 1.0)


def _batches(
    documents: Sequence[Sequence[int]], settings: Pretraining
) -> Iterator[Int[Tensor, "documents tokens"]]:
    """Yield one batch a step, padded at the right by -100; each pass is a new shuffle."""
    rows = [torch.tensor(document) for document in documents]
    generator = torch.Generator().manual_seed(settings.seed)
    order: list[int] = []
    for _ in range(settings.steps):
        while len(order) < settings.batch_size:
            order += torch.randperm(len(rows), generator=generator).tolist()
        chosen, order = order[: settings.batch_size], order[settings.batch_size :]
        batch = pad_sequence([rows[row] for row in chosen], batch_first=True)
        lengths = torch.tensor([len(rows[row]) for row in chosen])
        yield batch.masked_fill(torch.arange(batch.shape[1]) >= lengths[:, None], _IGNORED)


def pretrain(
    network: PreTrainedModel,
    documents: Sequence[Sequence[int]],
    settings: Pretraining,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train the network in place to predict every token of the documents.

    Args:
        network: With its weights drawn; left in evaluation mode.
        documents: Token numbers, each with the tokens that begin and end a document.
        settings: How.
        report: Called after each step with the number of steps done and the loss in nats a token.
    """
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=settings.lr,
        betas=(0.9, 0.98),
        weight_decay=settings.weight_decay,
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, settings.share)
    network.train()
    for step, batch in enumerate(_batches(documents, settings), start=1):
        # Documents are padded at their ends, where causal attention needs no mask.
        logits = network(input_ids=batch[:, :-1].clamp(min=0), use_cache=False).logits
        loss = nn.functional.cross_entropy(
            logits.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=_IGNORED
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
        optimizer.step()
        schedule.step()
        report(step, float(loss.detach()))
    network.eval()
