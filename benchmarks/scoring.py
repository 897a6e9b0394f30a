"""Rows per second of label scoring, against generation with prefix match.

The reference is the usual loop: the prompts in the order of the file, so many at a time, padded on
the left, through transformers' ``generate`` (greedy), and the label that the continuation begins
with. It is given as many new tokens as the longest label has, which is the fewest that can work,
and once more ``--new-tokens``, by default the 20 that ``generate`` takes where nothing is said. The
label scorer has the same number of rows a batch. All run on the same network, with the same adapter
where one is given. "times" is the time on the clock in units of the label scorer's.

    python -m benchmarks.scoring --tasks-folder DIR [--adapter DIR]
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from loraport.adapters import read_adapter
from loraport.data.prompts import PromptSpec, answer_tokens
from loraport.data.tasks import Task
from loraport.evaluation.scoring import GenerateScorer, LikelihoodScorer, prefix_label
from loraport.models import BaseModel, attached

from .setting import TEMPLATE, Elapsed, arguments, base_model, stopwatch, task


@torch.inference_mode()
def generated(base: BaseModel, asked: Task, batch_rows: int, new_tokens: int) -> float:
    """Return the accuracy by generation, batches in the order of the file."""
    network: Any = base.network
    tokenizer = base.tokenizer
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    right = 0
    for start in range(0, len(asked.test), batch_rows):
        rows = asked.test[start : start + batch_rows]
        prompts = [PromptSpec.of(asked, TEMPLATE).ask(row.text) for row in rows]
        inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
        ids = network.generate(**inputs, generation_config=settings)
        new = ids[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        for text, row in zip(texts, rows, strict=True):
            right += prefix_label(text, asked.labels) == row.label
    return right / len(asked.test)


def report(name: str, rows: int, accuracy: float, elapsed: Elapsed, ours: Elapsed) -> None:
    """Print one line of the table."""
    print(
        f"{name:<36}{rows / elapsed.wall:>8.2f}{rows / elapsed.cpu:>11.2f}{accuracy:>10.3f}"
        f"{elapsed.wall / ours.wall:>9.2f}{elapsed.cpu / ours.cpu:>9.2f}",
        flush=True,
    )


def extend(parser: argparse.ArgumentParser) -> None:
    """Add this benchmark's own options."""
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--batch-rows", type=int, default=8)
    parser.add_argument("--new-tokens", type=int, default=20, help="generate's own default is 20")
    parser.add_argument("--adapter", default=None, help="PEFT folder to attach")


def main() -> None:
    """Score with all and print the table."""
    options = arguments(__doc__, extend)
    base, asked = base_model(options), task(options).limited(options.rows)
    adapter = None if options.adapter is None else read_adapter(Path(options.adapter))
    longest = max(map(len, answer_tokens(base.tokenizer, PromptSpec.of(asked, TEMPLATE)).values()))
    rows = len(asked.test)
    print(
        f"{base.name}, {asked.name}: {rows} rows, at most {options.batch_rows} a batch, labels of "
        f"up to {longest} tokens, {torch.get_num_threads()} threads, float32"
    )
    print(f"{'':<36}{'rows/s':>8}{'per CPU s':>11}{'accuracy':>10}{'times':>9}{'CPU x':>9}")
    with attached(base.network, adapter):
        with stopwatch() as ours:
            score = LikelihoodScorer(batch_rows=options.batch_rows).score(base, asked, TEMPLATE)
        report("LikelihoodScorer", rows, score.accuracy, ours, ours)
        with stopwatch() as elapsed:
            score = GenerateScorer(batch_rows=options.batch_rows).score(base, asked, TEMPLATE)
        report(f"GenerateScorer, {longest} new tokens", rows, score.accuracy, elapsed, ours)
        for tokens in sorted({longest, options.new_tokens}):
            with stopwatch() as elapsed:
                accuracy = generated(base, asked, options.batch_rows, tokens)
            report(f"generate, {tokens} new tokens", rows, accuracy, elapsed, ours)


if __name__ == "__main__":
    main()
