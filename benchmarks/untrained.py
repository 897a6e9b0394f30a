"""How often the diagnosis says YES to models whose layers were never trained.

``python -m benchmarks.untrained`` makes pairs of a pair's models with random layers: behind the
models' own token embeddings, of few layers and of all, on both sides or on one, and with random
embeddings as well. Each is diagnosed as ``diagnose.py`` does, in both directions, beside the pair
itself. Printed are the coverage of each and, for each kind, how many were called compatible; so
that the null with random layers can be judged, the coverage by the n-gram baseline alone stands
beside it.
"""

import argparse
import copy
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import platformdirs
from hydra.utils import instantiate
from omegaconf import OmegaConf

from benchmarks.setting import PAIRS
from loraport.commands.compatibility import Diagnosis, ProbeStates, drawn_network
from loraport.data import Sentences
from loraport.models import BaseModel


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", default="smollm2_gemma3", help="a file of conf/pair")
    parser.add_argument("--seeds", type=int, default=3, help="pairs of each kind")
    parser.add_argument("--rows", type=int, default=Diagnosis.rows, help="word ends compared")
    parser.add_argument(
        "--cache",
        default=os.environ.get("LORAPORT_CACHE") or str(platformdirs.user_cache_path("loraport")),
        help="where dequantised base models are kept",
    )
    return parser.parse_args()


def random_layers(base: BaseModel, layers: int | None, seed: int, *, embeddings: bool) -> BaseModel:
    """Return a model with so many random layers, or as many as it has, behind its embeddings.

    Args:
        base: The trained model.
        layers: How many; None: as many as it has.
        seed: Draws the weights.
        embeddings: Whether the embeddings are the trained ones.
    """
    config = copy.deepcopy(base.network.config)
    if layers is not None:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    network = drawn_network(config, base.network.dtype, 7919 + seed)
    if embeddings:
        network.set_input_embeddings(base.network.get_input_embeddings())
    return BaseModel.frozen(base.name, network, base.tokenizer, f"{base.fingerprint} {seed}")


@dataclass(frozen=True)
class Trial:
    """Two models to be diagnosed, and of which kind they are."""

    kind: str
    source: BaseModel
    target: BaseModel


def trials(source: BaseModel, target: BaseModel, seeds: int) -> Iterator[Trial]:
    """Give the pair itself, and all that is made of it, in both directions."""
    for one, other in ((source, target), (target, source)):
        yield Trial("trained -> trained", one, other)
        for seed in range(seeds):
            for layers in ((3, 3), (3, 4), (4, 3), (4, 4)):
                drawn = [
                    random_layers(base, number, 2 * seed + side, embeddings=True)
                    for side, (base, number) in enumerate(zip((one, other), layers, strict=True))
                ]
                yield Trial("3 or 4 random layers behind own embeddings", *drawn)
        mixed = random_layers(other, 4, 1, embeddings=True)
        yield Trial("trained -> 4 random layers behind own embeddings", one, mixed)
        whole = [random_layers(b, None, s, embeddings=True) for s, b in enumerate((one, other))]
        yield Trial("all layers random behind own embeddings", *whole)
        bare = [random_layers(b, 4, s, embeddings=False) for s, b in enumerate((one, other))]
        yield Trial("all random, 4 layers", *bare)


def coverages(trial: Trial, diagnosis: Diagnosis) -> tuple[float, float]:
    """Return the coverage, and that by the n-gram baseline alone."""
    states = diagnosis.states(trial.source, trial.target, Sentences(), lambda *_: None)
    similarity = diagnosis.similarity(states, diagnosis.measure)
    bare = replace(
        states,
        source_baselines=states.source_baselines[: -len(states.source)],
        target_baselines=states.target_baselines[: -len(states.target)],
    )

    def covered(these: ProbeStates) -> float:
        return diagnosis.coverage(these, similarity).share

    return covered(states), covered(bare)


def main() -> None:
    """Print each pair, and the table of the kinds."""
    options = arguments()
    sides: Any = OmegaConf.load(PAIRS / f"{options.pair}.yaml")
    source, target = (
        instantiate(sides[side]).load(Path(options.cache)) for side in ("source", "target")
    )
    diagnosis = Diagnosis(rows=options.rows)
    found: dict[str, list[tuple[float, float]]] = {}
    for trial in trials(source, target, options.seeds):
        values = coverages(trial, diagnosis)
        found.setdefault(trial.kind, []).append(values)
        print(
            f"{trial.kind}: {trial.source.name} -> {trial.target.name}, coverage {values[0]:.2f}, "
            f"by n-grams alone {values[1]:.2f}",
            flush=True,
        )
    print("\n| kind | pairs | compatible | most coverage | by n-grams alone | most coverage |")
    print("|---|---|---|---|---|---|")
    for kind, of_kind in found.items():
        cells = [kind, str(len(of_kind))]
        for column in zip(*of_kind, strict=True):
            compatible = sum(value >= diagnosis.minimum for value in column)
            cells += [str(compatible), f"{max(column):.2f}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
