"""What is kept of a benchmark, and what it makes of a method's configuration."""

from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from loraport.adapters import LoraAdapter, LowRank, Role
from loraport.adapters.lora import Site
from loraport.commands.benchmark import CachedRun, cached_run
from loraport.settings import Method
from loraport.store import Key, Store


def test_the_default_method_is_the_default_of_transfer():
    transfer = OmegaConf.load("conf/transfer.yaml").defaults
    named = {k: v for entry in transfer if hasattr(entry, "items") for k, v in entry.items()}
    refine, own = OmegaConf.load(f"conf/refine/{named['refine']}.yaml").defaults
    assert own == "_self_"
    default = Method("default")
    assert (default.mapper, default.refine) == (named["mapper"], refine)


class Maker:
    """Makes another adapter each time."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> CachedRun:
        self.made += 1
        generator = torch.Generator().manual_seed(self.made)
        a, b = torch.randn(2, 6, generator=generator), torch.randn(4, 2, generator=generator)
        adapter = LoraAdapter({Site(0, Role.Q): LowRank(a, b)}, "pico/target")
        return CachedRun(adapter, 1.5, {"value": float("nan"), "labels": ("a", "b")})


def test_a_run_is_made_once_and_read_back_to_the_same_bits(tmp_path: Path):
    make, key = Maker(), Key.of("ports", mapper="copy")
    first, again = (cached_run(Store(tmp_path), key, make) for _ in range(2))
    assert make.made == 1
    hashes = {run.adapter.content_hash() for run in (first, again, Maker()())}
    assert len(hashes) == 1
    assert (first.seconds, first.report) == (again.seconds, again.report)
    assert again.report == {"value": None, "labels": ["a", "b"]}


def test_another_key_is_another_run(tmp_path: Path):
    make, store = Maker(), Store(tmp_path)
    one, other = (cached_run(store, Key.of("ports", mapper=m), make) for m in ("copy", "mean"))
    assert make.made == 2
    assert one.adapter.content_hash() != other.adapter.content_hash()


@pytest.mark.parametrize("damaged", ["adapter_model.safetensors", "run.json"])
def test_a_damaged_run_is_made_again(tmp_path: Path, damaged: str):
    make, key = Maker(), Key.of("ports", mapper="copy")
    cached_run(Store(tmp_path), key, make)
    [file] = tmp_path.rglob(damaged)
    file.write_bytes(b"{")
    assert cached_run(Store(tmp_path), key, make).adapter.content_hash()
    assert cached_run(Store(tmp_path), key, make).seconds == 1.5
    assert make.made == 2
