"""The drift of both models' own adapters on generic text, and what a budget makes of them.

Prints for each task and side the mean and the 95th percentile of the divergence, in nats, the
seconds that one adapter takes, and the scale at which the mean is about the budget: the square
root of budget over drift, as drift grows with the square of the scale.

    python -m benchmarks.drift --corpus FILE --zoo-source DIR --zoo-target DIR
"""

import argparse
import os
from itertools import islice
from pathlib import Path

import platformdirs
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from loraport.adapters import read_adapter
from loraport.data import CorpusFolder
from loraport.models.kl import KlToBaseGauge

from .setting import PAIRS, stopwatch


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--pair", default="smollm2_gemma3", help="a file of conf/pair")
    parser.add_argument("--corpus", required=True, help="a folder or file of texts")
    parser.add_argument("--zoo-source", required=True)
    parser.add_argument("--zoo-target", required=True)
    parser.add_argument("--tasks", nargs="+", default=["sst2", "ag_news", "cr"])
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--positions", type=int, default=8, help="a text")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=0.1, help="nats")
    parser.add_argument(
        "--cache",
        default=os.environ.get("LORAPORT_CACHE") or str(platformdirs.user_cache_path("loraport")),
        help="where dequantised base models are kept",
    )
    options = parser.parse_args()
    corpus = CorpusFolder(options.corpus, seed=options.seed)
    texts = list(islice(corpus.texts("validation"), options.texts))
    sides = DictConfig(OmegaConf.load(PAIRS / f"{options.pair}.yaml"))
    print(f"{'side':<8}{'task':<14}{'mean':>9}{'p95':>9}{'ratio':>7}{'seconds':>9}{'scale':>7}")
    for side, zoo in (("source", options.zoo_source), ("target", options.zoo_target)):
        base = instantiate(sides[side]).load(Path(options.cache))
        with stopwatch() as building:
            gauge = KlToBaseGauge(base, texts, positions=options.positions, seed=options.seed)
        print(f"{side:<8}{gauge.positions} positions of the base{building.wall:>24.1f}")
        for task in options.tasks:
            adapter = read_adapter(Path(zoo) / task)
            with stopwatch() as elapsed:
                drift = gauge.of(adapter)
            scale = min(1.0, (options.budget / drift.mean) ** 0.5)
            print(
                f"{side:<8}{task:<14}{drift.mean:>9.4f}{drift.p95:>9.4f}"
                f"{drift.p95 / drift.mean:>7.1f}{elapsed.wall:>9.1f}{scale:>7.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
