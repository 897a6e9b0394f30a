"""What every benchmark is given: a base model, a task, and a way to measure time."""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from hydra.utils import instantiate
from omegaconf import OmegaConf

from loraport.data.tasks import PromptTemplate, Task, TaskFolder
from loraport.models import BaseModel

PAIRS = Path(__file__).resolve().parents[1] / "conf" / "pair"
TEMPLATE = PromptTemplate(text_chars=200)


@dataclass
class Elapsed:
    """Seconds on the clock, and of all cores' work together."""

    wall: float = 0.0
    cpu: float = 0.0


@contextmanager
def stopwatch() -> Iterator[Elapsed]:
    """Measure the block; the values are there when it has ended."""
    elapsed = Elapsed(time.perf_counter(), time.process_time())
    yield elapsed
    elapsed.wall = time.perf_counter() - elapsed.wall
    elapsed.cpu = time.process_time() - elapsed.cpu


def arguments(description: str | None, extend: Callable[[argparse.ArgumentParser], Any]) -> Any:
    """Read the command line: what all benchmarks take, and what ``extend`` adds."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--pair", default="smollm2_gemma3", help="a file of conf/pair")
    parser.add_argument("--pair-side", default="target", choices=("source", "target"))
    parser.add_argument("--tasks-folder", required=True, help="NAME/task.json, NAME/*.jsonl")
    parser.add_argument("--task", default="sst2")
    parser.add_argument(
        "--cache",
        default=os.environ.get("LORAPORT_CACHE") or str(platformdirs.user_cache_path("loraport")),
        help="where dequantised base models are kept",
    )
    extend(parser)
    return parser.parse_args()


def base_model(options: Any) -> BaseModel:
    """Load the base model that the command line names."""
    sides = OmegaConf.load(PAIRS / f"{options.pair}.yaml")
    loaded: BaseModel = instantiate(sides[options.pair_side]).load(Path(options.cache))
    return loaded


def task(options: Any) -> Task:
    """Load the task that the command line names."""
    return TaskFolder(options.tasks_folder).load([options.task])[options.task]
