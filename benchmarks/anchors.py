"""Examples per second of adapter training, against transformers' Trainer with PEFT.

Both train LoRA on q and v with rank 8 on the same rows with the same batch size, learning rate,
schedule, gradient clipping and starting factors, in float32. The reference is the usual loop: rows
in random order, padded on the right to the longest of the batch, labels -100 at the prompt, logits
at every position. The adapters of both are then judged in the same way: mean loss over the answers'
tokens of the training rows, and accuracy and loss on test rows.

    python -m benchmarks.anchors --tasks-folder DIR
"""

import argparse
import copy
import logging
import warnings
from contextlib import closing
from typing import Any

import torch
from lightning import Trainer
from torch import nn

from loraport.adapters import LoraAdapter
from loraport.data.prompts import NOT_ASKED, AnswerExamples
from loraport.data.tasks import Task
from loraport.evaluation.scoring import LikelihoodScorer
from loraport.models import BaseModel, LoraFineTuning, attached, last_logits

from .peft_trainer import Schedule, train, updates, with_lora
from .setting import TEMPLATE, Elapsed, arguments, base_model, stopwatch, task

BATCH, LR, WARMUP = 8, 2e-3, 4


def ours(base: BaseModel, examples: AnswerExamples) -> tuple[LoraAdapter, Elapsed]:
    """Train with LoraFineTuning."""
    with (
        stopwatch() as elapsed,
        closing(LoraFineTuning(base, lr=LR, warmup_steps=WARMUP)) as tuning,
    ):
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(tuning, examples)
        adapter = tuning.adapter()
    return adapter, elapsed


def reference(base: BaseModel, examples: AnswerExamples) -> tuple[LoraAdapter, Elapsed]:
    """Train with transformers' Trainer and PEFT, from the same factors."""
    with closing(LoraFineTuning(base)) as tuning:
        start = tuning.adapter()
    network = copy.deepcopy(base.network)
    schedule = Schedule(-(-len(examples.rows) // BATCH), BATCH, LR, WARMUP)
    with stopwatch() as elapsed:
        model = with_lora(network, schedule.seed)
        with torch.no_grad():
            for site, update in start.items():
                module: Any = network.get_submodule(site.module_name)
                module.lora_A["default"].weight.copy_(update.A)
        train(model, examples.rows, int(base.tokenizer.pad_token_id), schedule)
    return LoraAdapter(updates(network, start), base.name), elapsed


@torch.inference_mode()
def answer_loss(base: BaseModel, adapter: LoraAdapter, examples: AnswerExamples) -> float:
    """Return the mean loss over the answers' tokens of the training rows."""
    total, tokens = 0.0, 0
    with attached(base.network, adapter):
        for batch in examples.train_dataloader():
            logits = last_logits(
                base.network,
                batch.answer_tokens,
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
            )
            total += float(
                nn.functional.cross_entropy(
                    logits.flatten(0, 1),
                    batch.targets.flatten(),
                    ignore_index=NOT_ASKED,
                    reduction="sum",
                )
            )
            tokens += int((batch.targets != NOT_ASKED).sum())
    return total / tokens


def report(
    name: str, base: BaseModel, examples: AnswerExamples, tested: Task, result: Any
) -> Elapsed:
    """Print one line of the table."""
    adapter, elapsed = result
    loss = answer_loss(base, adapter, examples)
    with attached(base.network, adapter):
        score = LikelihoodScorer().score(base, tested, TEMPLATE)
    rows = len(examples.rows)
    print(
        f"{name:<22}{rows / elapsed.wall:>10.2f}{rows / elapsed.cpu:>13.2f}{loss:>12.4f}"
        f"{score.accuracy:>10.3f}{score.nll:>10.4f}",
        flush=True,
    )
    return elapsed


def extend(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's own options."""
    parser.add_argument("--examples", type=int, default=128)
    parser.add_argument("--test-rows", type=int, default=100)


def main() -> None:
    """Train with both and print the table."""
    options = arguments(__doc__, extend)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", FutureWarning)  # PEFT's and Lightning's, of one another.
    base, chosen = base_model(options), task(options)
    examples = AnswerExamples(
        chosen, TEMPLATE, base.tokenizer, batch_size=BATCH, examples=options.examples
    )
    tested = chosen.limited(options.test_rows)
    tokens = sum(row.length for row in examples.rows) / len(examples.rows)
    print(
        f"{base.name}, {chosen.name}: {len(examples.rows)} examples of {tokens:.0f} tokens on "
        f"average, batch size {BATCH}, {torch.get_num_threads()} threads, float32"
    )
    print(
        f"{'':<22}{'examples/s':>10}{'per CPU s':>13}{'train loss':>12}{'accuracy':>10}{'NLL':>10}"
    )
    plain = report("Trainer + PEFT", base, examples, tested, reference(base, examples))
    tuned = report("LoraFineTuning", base, examples, tested, ours(base, examples))
    print(f"{'ratio':<22}{plain.wall / tuned.wall:>10.2f}{plain.cpu / tuned.cpu:>13.2f}")


if __name__ == "__main__":
    main()
