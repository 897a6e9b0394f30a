"""What it costs to gather statistics of both base models' activations, beside running them.

"bare" is the forward pass of both models without their heads, over the same batches and with
nothing read. "q, v" reads inputs and outputs of these modules in every layer and gathers sums,
Grams and cross products of each target layer with the source layer at the same relative depth;
the ratio is the bare time over the time of that. "all seven" does so for every module. Its
float64 sums are too large to be held at once, so it works in blocks of layers that fit into
--budget (training and held-out text together), each with a pass of its own up to its deepest
layer; operations are counted beside the time.

Tokens are those of both models, without padding; operations are those that are carried out, with
padding: 2 a weight and token, attention over whole texts, 2 an entry and row of a product. The
best of --repeats runs is shown, which take turns. "peak" is the largest resident set of the
process so far, models, interpreter and libraries included.

At last a capture of q and v, saved after each batch, is stopped half-way and started again: the
seconds of both parts, and whether the sums have the very bits of those gathered in one go.

    python -m benchmarks.activations --corpus DIR [--pair NAME] [--cache DIR] [--tokens N]
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import platformdirs
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers import PreTrainedModel

from loraport.adapters import Role, Site
from loraport.alignment.layer_matching import relative_depth
from loraport.data.corpora import CorpusFolder
from loraport.data.text_corpus import AlignedBatch, TextCorpus, TokenBatch
from loraport.models import BaseModel, SiteTable
from loraport.models.hooks import Tap, tap_widths
from loraport.models.statistics import StatisticsStore, TapPair, gram_entries, layer_blocks

from .cross_lora import peak_memory
from .setting import PAIRS, stopwatch

Widths = tuple[dict[Tap, int], dict[Tap, int]]


@dataclass(frozen=True)
class Setting:
    """Both models, and the batches that all measurements share."""

    source: BaseModel
    target: BaseModel
    batches: Sequence[AlignedBatch]

    @cached_property
    def tokens(self) -> int:
        """Tokens of both models, without padding."""
        sides = (side for batch in self.batches for side in (batch.source, batch.target))
        return sum(int(side.attention_mask.sum()) for side in sides)

    @cached_property
    def padded(self) -> int:
        """The same with padding."""
        return sum(b.source.input_ids.numel() + b.target.input_ids.numel() for b in self.batches)

    @cached_property
    def rows(self) -> int:
        """Tokens at which both models have read the same."""
        return sum(len(batch.source_places) for batch in self.batches)

    def networks(self) -> tuple[PreTrainedModel, PreTrainedModel]:
        """Return what is run."""
        return self.source.network, self.target.network

    def pairs(self, roles: tuple[Role, ...]) -> list[TapPair]:
        """Return inputs and outputs of modules, each target layer's with one source layer's."""
        pairs: list[TapPair] = []
        depths = relative_depth(self.source.sites.layers, self.target.sites.layers)
        for site in self.target.sites.of_roles(roles):
            other = Site(depths[site.layer], site.role)
            pairs += [(tap(other), tap(site)) for tap in (Tap.input, Tap.output)]
        return list(dict.fromkeys(pairs))

    def widths(self, pairs: Sequence[TapPair]) -> Widths:
        """Return how wide the taps of both sides are."""
        source, target = ([pair[side] for pair in pairs] for side in (0, 1))
        return tap_widths(self.source.sites, source), tap_widths(self.target.sites, target)

    def forward_operations(self, pairs: Sequence[TapPair] | None = None) -> float:
        """Return what running both models takes; with pairs, up to the deepest layers read."""
        source, target = self.source.sites.layers, self.target.sites.layers
        if pairs is not None:
            source, target = (max(pair[side].layer for pair in pairs) + 1 for side in (0, 1))
        return sum(
            source * _layer_operations(self.source.sites, batch.source)
            + target * _layer_operations(self.target.sites, batch.target)
            for batch in self.batches
        )

    def statistics_operations(self, pairs: Sequence[TapPair]) -> float:
        """Return what the products of the statistics take."""
        widths = self.widths(pairs)
        grams = sum(gram_entries(width) for side in widths for width in side.values())
        crosses = sum(widths[0][x] * widths[1][y] for x, y in pairs)
        return 2.0 * self.rows * (grams + crosses)


def _layer_operations(sites: SiteTable, tokens: TokenBatch) -> float:
    """Return the operations of one layer on a batch."""
    weights = sum(out * in_ for site, (out, in_) in sites.shapes.items() if site.layer == 0)
    texts, length = tokens.input_ids.shape
    queries, _ = sites.shapes[Site(0, Role.Q)]
    return 2.0 * texts * length * (weights + 2 * length * queries)


def bare(setting: Setting) -> None:
    """Run both models over all batches, and read nothing."""
    with torch.no_grad():
        for batch in setting.batches:
            for base, side in ((setting.source, batch.source), (setting.target, batch.target)):
                base.network.get_decoder()(
                    input_ids=side.input_ids, attention_mask=side.attention_mask, use_cache=False
                )


def gather(setting: Setting, pairs: Sequence[TapPair]) -> None:
    """Gather the statistics of some pairs and drop them."""
    StatisticsStore(None).gather("", pairs, *setting.networks(), setting.batches, [])


def gather_blocks(setting: Setting, blocks: Sequence[Sequence[TapPair]]) -> None:
    """Gather the statistics of one block of layers after the other."""
    for block in blocks:
        gather(setting, block)


def seconds(runs: Sequence[Callable[[], None]], repeats: int) -> list[float]:
    """Return the best time of each of some runs, which take turns."""
    best = [float("inf")] * len(runs)
    for _ in range(repeats):
        for place, run in enumerate(runs):
            with stopwatch() as elapsed:
                run()
            best[place] = min(best[place], elapsed.wall)
    return best


def line(name: str, setting: Setting, took: float, forward: float, statistics: float) -> None:
    """Print a line of the table."""
    done = forward + statistics
    print(
        f"{name:<12}{took:>9.1f}{setting.tokens / took:>11.0f}{forward / 1e9:>14.0f}"
        f"{statistics / 1e9:>15.0f}{done / took / 1e9:>10.0f}{peak_memory() / 1e9:>11.2f}",
        flush=True,
    )


def costs(setting: Setting, repeats: int, budget: float) -> None:
    """Print what bare runs, q and v, and all seven modules take."""
    few, every = setting.pairs((Role.Q, Role.V)), setting.pairs(tuple(Role))
    blocks = layer_blocks(every, setting.widths(every), budget)
    print(
        f"{'':<12}{'seconds':>9}{'tokens/s':>11}{'forward GFLOP':>14}{'products GFLOP':>15}"
        f"{'GFLOP/s':>10}{'peak GB':>11}"
    )
    plain, read = seconds((lambda: bare(setting), lambda: gather(setting, few)), repeats)
    line("bare", setting, plain, setting.forward_operations(), 0)
    forward, products = setting.forward_operations(few), setting.statistics_operations(few)
    line("q, v", setting, read, forward, products)
    (whole,) = seconds([lambda: gather_blocks(setting, blocks)], 1)
    forward = sum(map(setting.forward_operations, blocks))
    line("all seven", setting, whole, forward, setting.statistics_operations(every))
    print(
        f"\nq, v: {plain / read:.0%} of the bare speed; all seven: {len(blocks)} blocks of layers"
    )


def stopped(setting: Setting) -> None:
    """Stop a capture half-way, let it go on, and print what that took."""
    pairs, networks = setting.pairs((Role.Q, Role.V)), setting.networks()
    half = (len(setting.batches) + 1) // 2

    def stop(done: int) -> None:
        if done == half:
            raise KeyboardInterrupt

    straight = StatisticsStore(None).gather("", pairs, *networks, setting.batches, []).train
    with tempfile.TemporaryDirectory() as name:
        store = StatisticsStore(Path(name), seconds=0.0)
        with stopwatch() as first, suppress(KeyboardInterrupt):
            store.gather("", pairs, *networks, setting.batches, [], progress=stop)
        with stopwatch() as second:
            resumed = store.gather("", pairs, *networks, setting.batches, []).train
        with stopwatch() as third:
            store.gather("", pairs, *networks, setting.batches, [])
    one, other = straight.tensors(), resumed.tensors()
    same = one.keys() == other.keys() and all(torch.equal(one[x], other[x]) for x in one)
    print(
        f"stopped after {half} of {len(setting.batches)} batches: {first.wall:.1f} s, then "
        f"{second.wall:.1f} s for the others; {'the same' if same else 'OTHER'} bits as in one go; "
        f"finished, it is loaded in {third.wall:.1f} s"
    )


def setting_of(options: Any) -> Setting:
    """Load the models and read the texts that the command line names."""
    loaded: Any = OmegaConf.load(PAIRS / f"{options.pair}.yaml")
    pair = loaded.get("pair", loaded)
    source, target = (
        instantiate(pair[side]).load(Path(options.cache)) for side in ("source", "target")
    )
    corpus = TextCorpus(
        CorpusFolder(options.corpus),
        source.tokenizer,
        target.tokenizer,
        tokens=options.tokens,
        batch_tokens=options.batch_tokens,
    )
    return Setting(source, target, list(corpus.train_dataloader()))


def main() -> None:
    """Read the command line and print the measurements."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", default="smollm2_gemma3", help="a file of conf/pair")
    parser.add_argument("--corpus", type=Path, required=True, help="*.txt, *.jsonl")
    parser.add_argument(
        "--cache",
        default=os.environ.get("LORAPORT_CACHE") or str(platformdirs.user_cache_path("loraport")),
        help="where dequantised base models are kept",
    )
    parser.add_argument("--tokens", type=int, default=20_000, help="aligned tokens")
    parser.add_argument("--batch-tokens", type=int, default=4_096)
    parser.add_argument("--budget", type=float, default=2.0, help="GB for statistics")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    setting = setting_of(options)
    print(
        f"{setting.source.name}, {setting.target.name}; {options.threads} threads; "
        f"{setting.rows} aligned tokens in {len(setting.batches)} batches, {setting.tokens} "
        f"tokens of both ({setting.padded} with padding)"
    )
    costs(setting, options.repeats, options.budget)
    stopped(setting)


if __name__ == "__main__":
    main()
