"""Seconds and memory of a transfer by Cross-LoRA, against full singular value decompositions.

Writes two base models of well-known shapes with made-up weights (benchmarks/synthetic_weights.py)
and an adapter of rank 16 at all seven roles, and ports it by ``CrossLoraMapper`` at rank 320: read
the adapter, map, write. It does so twice, each time in a new process: cold, without cached
factorisations and with the weights' files dropped from the page cache; and warm. "peak" is the
largest resident set of that process, interpreter and libraries included.

The reference is ``torch.linalg.svd(full_matrices=False)`` in float32 on one weight of each distinct
shape, in the same run and with the same number of threads. Its time for the whole transfer is an
extrapolation: the time for a shape, times the number of sites of that shape. A shape whose full
decomposition would take too long is not run; its time is scaled from the largest that was, by
out x in x min(out, in), and marked with ~. "cosine" is that of the largest principal angle between
the exact and the randomised singular subspaces of the leading 90 % of the energy, left or right,
whichever is worse.

With --layers only so many layers are written, and time and memory of the whole models projected:
the time by the number of weights, the memory by the size of the adapters.

    python -m benchmarks.cross_lora [--folder DIR] [--shapes 3b|8b|70b] [--layers N]
"""

import argparse
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from loraport.adapters import read_adapter, write_adapter
from loraport.mappers import BasePair
from loraport.mappers.cross_lora import CrossLoraMapper
from loraport.models import FactorCache, StreamedWeights

from .decompositions import Sample, samples
from .setting import Elapsed, stopwatch
from .synthetic_weights import (
    LLAMA_3B,
    LLAMA_8B,
    LLAMA_70B,
    QWEN_1_5B,
    Shape,
    write_model,
    write_random_adapter,
)

SHAPES = {"3b": (QWEN_1_5B, LLAMA_3B), "8b": (LLAMA_3B, LLAMA_8B), "70b": (LLAMA_8B, LLAMA_70B)}
RANK, ADAPTER_RANK = 320, 16


@dataclass(frozen=True)
class Transfer:
    """What one transfer took: seconds, and bytes of the largest resident set."""

    elapsed: Elapsed
    peak: int


def peak_memory() -> int:
    """Return the largest resident set of this process in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would count what the process held that started this one.
        (line,) = (s for s in status.read_text().splitlines() if s.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def transfer(folder: Path, threads: int) -> Transfer:
    """Port the adapter in the folder from its source to its target; runs in a new process."""
    torch.set_num_threads(threads)
    with stopwatch() as elapsed:
        pair = BasePair(
            StreamedWeights.open(folder / "source", "source"),
            StreamedWeights.open(folder / "target", "target"),
            FactorCache(folder / "factors"),
            torch.device("cpu"),
        )
        mapper = CrossLoraMapper(rank=RANK)
        mapper.use(pair)
        mapped = mapper.map(read_adapter(folder / "adapter"))
        write_adapter(mapped, folder / "mapped", overwrite=True)
    return Transfer(elapsed, peak_memory())


def in_new_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process that has done nothing before."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def drop_from_page_cache(folder: Path) -> None:
    """Let the next reading of the weights go to the disk, where the system can be told so."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.glob("*.safetensors"):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def write_missing(folder: Path, shapes: tuple[Shape, Shape]) -> None:
    """Write the models and the adapter that are not in the folder yet."""
    for seed, (side, shape) in enumerate(zip(("source", "target"), shapes, strict=True)):
        if not (folder / side / "config.json").is_file():
            print(f"writing {shape.name} ({shape.sites.layers} layers) to {folder}", flush=True)
            shutil.rmtree(folder / side, ignore_errors=True)
            in_new_process(write_model, shape, folder / side, seed)
    shutil.rmtree(folder / "adapter", ignore_errors=True)
    write_random_adapter(shapes[0], folder / "adapter", ADAPTER_RANK, seed=2)


def sample_table(done: list[Sample]) -> None:
    """Print one line for each shape."""
    print(f"{'':>21}{'full, s':>18}{'ours, s':>18}{'ratio':>16}")
    times = f"{'wall':>9}{'CPU':>9}"
    ends = f"{'wall':>8}{'CPU':>8}{'directions':>12}{'cosine':>10}"
    print(f"{'shape':>14}{'sites':>7}{times}{times}{ends}")
    for one in done:
        full = f"{'' if one.run else '~'}{one.full.wall:.2f}"
        agreement = f"{one.directions:>12}{one.cosine:>10.5f}" if one.run else ""
        print(
            f"{f'{one.out}x{one.in_}':>14}{one.sites:>7}{full:>9}{one.full.cpu:>9.2f}"
            f"{one.ours.wall:>9.3f}{one.ours.cpu:>9.3f}{one.full.wall / one.ours.wall:>8.1f}"
            f"{one.full.cpu / one.ours.cpu:>8.1f}{agreement}"
        )


def transfer_table(cold: Transfer, warm: Transfer, done: list[Sample]) -> None:
    """Print the two transfers beside the full decompositions."""
    full = Elapsed(
        sum(sample.full.wall * sample.sites for sample in done),
        sum(sample.full.cpu * sample.sites for sample in done),
    )
    print(f"{'':<22}{'wall s':>10}{'CPU s':>10}{'peak GB':>10}{'full / it: wall':>18}{'CPU':>8}")
    for name, one in (("cold", cold), ("warm", warm)):
        wall, cpu = one.elapsed.wall, one.elapsed.cpu
        print(
            f"{name:<22}{wall:>10.1f}{cpu:>10.1f}{one.peak / 1e9:>10.2f}"
            f"{full.wall / wall:>18.1f}{full.cpu / cpu:>8.1f}"
        )
    print(f"{'full decompositions':<22}{full.wall:>10.0f}{full.cpu:>10.0f}   (extrapolated)")
    worst = min(sample.cosine for sample in done if sample.run)
    print(f"least cosine {worst:.5f} on the leading 90 % of the energy")


def parameters(shape: Shape) -> tuple[int, int]:
    """Return how many numbers the written sites' weights have, and an adapter's factors."""
    sizes = shape.sites.shapes.values()
    return sum(o * i for o, i in sizes), ADAPTER_RANK * sum(o + i for o, i in sizes)


def projection(shapes: tuple[Shape, Shape], cold: Transfer, warm: Transfer) -> None:
    """Print what the transfer between the whole models would take."""
    whole = [parameters(replace(shape, written=None)) for shape in shapes]
    part = [parameters(shape) for shape in shapes]
    share = sum(w for w, _ in whole) / sum(w for w, _ in part)
    # Both adapters are held in float32, whatever the number of layers in work.
    more = 4 * (sum(a for _, a in whole) - sum(a for _, a in part))
    print(
        f"projected for all {shapes[0].layers} and {shapes[1].layers} layers: "
        f"cold {cold.elapsed.wall * share / 60:.1f} min, warm {warm.elapsed.wall * share:.0f} s, "
        f"peak {(cold.peak + more) / 1e9:.2f} GB"
    )


def load() -> str:
    """Return how busy the machine is."""
    return ", ".join(f"{value:.2f}" for value in os.getloadavg())


def measure(folder: Path, shapes: tuple[Shape, Shape], threads: int) -> None:
    """Run all and print the tables."""
    write_missing(folder, shapes)
    shutil.rmtree(folder / "factors", ignore_errors=True)
    for side in ("source", "target"):
        drop_from_page_cache(folder / side)
    print(f"{threads} threads; load before {load()} (other work counts)", flush=True)
    cold = in_new_process(transfer, folder, threads)
    print(f"cold: {cold.elapsed.wall:.1f} s; load {load()}", flush=True)
    warm = in_new_process(transfer, folder, threads)
    print(f"warm: {warm.elapsed.wall:.1f} s; load {load()}", flush=True)
    done = in_new_process(samples, folder, RANK, threads)
    print(f"load after {load()}\n")
    sample_table(done)
    print()
    transfer_table(cold, warm, done)
    if any(shape.written for shape in shapes):
        projection(shapes, cold, warm)


def main() -> None:
    """Read the command line, and measure in the folder that it names or in a temporary one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="for models and factors, about 12 GB; is kept")
    parser.add_argument("--shapes", default="3b", choices=SHAPES)
    parser.add_argument("--layers", type=int, help="write only so many layers of each model")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    source, target = (replace(shape, written=options.layers) for shape in SHAPES[options.shapes])
    print(f"{source.name} -> {target.name}, rank {RANK}, an adapter of rank {ADAPTER_RANK}")
    if options.folder is not None:
        folder = options.folder / f"{options.shapes}-{options.layers or 'all'}"
        folder.mkdir(parents=True, exist_ok=True)
        measure(folder, (source, target), options.threads)
        return
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), (source, target), options.threads)


if __name__ == "__main__":
    main()
