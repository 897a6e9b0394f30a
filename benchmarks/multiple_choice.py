"""Multiple choice against lm-eval's HF backend: agreement, question by question, and seconds.

Both answer the requests of one task of lm-eval with one network, in turns; its own runner judges
the answers of both. Times are those of ``loglikelihood`` alone. Other processes slow both down on
the clock, so compare the seconds of CPU.

    python -m benchmarks.multiple_choice --questions DIR [--names arc_easy hellaswag] [--rows 40]

Needs the extra ``suites``.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import platformdirs
import torch

from loraport.evaluation.harness import HarnessTask, lm_eval_suites

from .setting import Elapsed, base_model, stopwatch

NAMES = (
    *("arc_easy", "arc_challenge", "openbookqa", "hellaswag"),
    *("piqa", "winogrande", "boolq", "social_iqa"),
)


def judged(suite: HarnessTask, answers: Sequence[tuple[float, bool]]) -> list[dict[str, Any]]:
    """Return for each question the chosen index and lm-eval's metrics of the answers."""
    by_item: dict[int, list[tuple[float, bool]]] = {}
    docs: dict[int, Any] = {}
    for instance, answer in zip(suite.task.instances, answers, strict=True):
        by_item.setdefault(instance.doc_id, []).append(answer)
        docs[instance.doc_id] = instance.doc
    found = []
    for item, own in by_item.items():
        values = [value for value, _ in own]
        chosen = {"chosen": values.index(max(values))}
        found.append(chosen | suite.task.process_results(docs[item], own))
    return found


def _options() -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", default="smollm2_gemma3", help="a file of conf/pair")
    parser.add_argument("--pair-side", default="source", choices=("source", "target"))
    parser.add_argument("--questions", required=True, type=Path, help="folder of NAME.jsonl")
    parser.add_argument("--names", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--rows", type=int, default=40, help="questions of each data set")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16], help="lm-eval's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--cache",
        default=os.environ.get("LORAPORT_CACHE") or str(platformdirs.user_cache_path("loraport")),
        help="where dequantised base models are kept",
    )
    return parser.parse_args()


def main() -> None:
    """Answer with both and print the table."""
    options = _options()
    torch.set_num_threads(options.threads)
    base = base_model(options)
    suites = lm_eval_suites(options.names, path=options.questions, limit=options.rows)
    from lm_eval.models.huggingface import HFLM

    from loraport.evaluation.batched_lm import BatchedLM

    models: list[Any] = [BatchedLM(base)]
    for size in options.batch_sizes:
        models.append(HFLM(pretrained=base.network, tokenizer=base.tokenizer, batch_size=size))
    print(f"{base.name}, {options.rows} questions each, {options.threads} threads, float32")
    print(f"{'':<16}{'accuracy':>9}{'norm':>7}{'differ':>8}{'CPU s':>8}{'clock':>8}", end="")
    print("".join(f"{f'lm-eval b{size} s':>16}{'times':>7}" for size in options.batch_sizes))
    total = [Elapsed() for _ in models]
    for suite in suites:
        found, spent = [], []
        for model in models:
            with stopwatch() as elapsed:
                answers = model.loglikelihood(suite.task.instances, disable_tqdm=True)
            spent.append(elapsed)
            found.append(judged(suite, answers))
        for sum_, one in zip(total, spent, strict=True):
            sum_.wall, sum_.cpu = sum_.wall + one.wall, sum_.cpu + one.cpu
        ours, *theirs = found
        differ = sum(a != b for other in theirs for a, b in zip(ours, other, strict=True))
        means = [
            sum(item.get(metric, float("nan")) for item in ours) / len(ours)
            for metric in ("acc", "acc_norm")
        ]
        print(f"{suite.name:<16}{means[0]:>9.3f}{means[1]:>7.3f}{differ:>8}", end="")
        _print_times(spent)
    print(f"{'all':<40}", end="")
    _print_times(total)


def _print_times(spent: Sequence[Elapsed]) -> None:
    ours, *theirs = spent
    print(f"{ours.cpu:>8.2f}{ours.wall:>8.2f}", end="")
    for one in theirs:
        print(f"{one.cpu:>16.2f}{one.cpu / ours.cpu:>7.2f}", end="")
    print(flush=True)


if __name__ == "__main__":
    main()
