import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loraport.adapters import LoraAdapter, Role, Site
from loraport.exceptions import AdapterError
from loraport.mappers import BasePair, LearnedMapper, load_mapper
from loraport.mappers.base import SitePairs


def refused(content: Any, folder: Path) -> str:
    torch.save(content, folder / "mapper.ckpt")
    with pytest.raises(
        AdapterError, match=r"mapper\.ckpt is no checkpoint of a known map"
    ) as caught:
        load_mapper(folder / "mapper.ckpt")
    return str(caught.value)


def named(kind: str) -> dict[str, Any]:
    return {LearnedMapper.checkpoint_key: {"class": kind, "state": None}, "hyper_parameters": {}}


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"none\.ckpt is no checkpoint.*FileNotFoundError"):
        load_mapper(tmp_path / "none.ckpt")


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04half a zip archive"])
def test_file_that_is_no_checkpoint_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mapper.ckpt").write_bytes(content)
    with pytest.raises(AdapterError, match=r"mapper\.ckpt is no checkpoint of a known mapper"):
        load_mapper(tmp_path / "mapper.ckpt")


def test_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    assert "mapper_state" in refused({"state_dict": {}}, tmp_path)
    refused([1, 2], tmp_path)


@pytest.mark.parametrize("kind", ["builtins.dict", "loraport.mappers.base.load_mapper", "Mapper"])
def test_class_that_is_no_mapper_is_refused(kind: str, tmp_path: Path) -> None:
    refused(named(kind), tmp_path)


@pytest.mark.parametrize("module", ["loraport.mappers.of_the_future", "loraport.mappers"])
def test_mapper_that_there_is_not_is_refused(module: str, tmp_path: Path) -> None:
    refused(named(f"{module}.FutureMapper"), tmp_path)


def test_module_that_is_not_imported_stays_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted_code.py").write_text("raise SystemExit('this must not run')")
    monkeypatch.syspath_prepend(tmp_path)
    refused(named("planted_code.Mapper"), tmp_path)
    assert "planted_code" not in sys.modules


def test_pickled_code_does_not_run(tmp_path: Path) -> None:
    class Planted:
        def __reduce__(self) -> tuple[Any, ...]:
            return (exec, ("raise SystemExit('this must not run')",))

    refused({**named("x.Y"), "planted": Planted()}, tmp_path)


# Which source site feeds which target site.

Adapters = Callable[..., LoraAdapter]


def test_adapter_whose_layers_feed_nothing_is_refused(
    pico_pair: BasePair, adapter_of: Adapters
) -> None:
    adapter = adapter_of(pico_pair.target)
    middle = LoraAdapter({s: u for s, u in adapter.items() if s.layer == 1}, "pico/target")
    with pytest.raises(AdapterError, match=r"only layers \[1\], none .* \[0, 2\] feed"):
        SitePairs.of(middle, pico_pair.target.sites, pico_pair.source.sites)


def test_sites_that_are_not_adapted_stay_so(pico_pair: BasePair, adapter_of: Adapters) -> None:
    adapter = adapter_of(pico_pair.source, (Role.Q,))
    first = LoraAdapter({s: u for s, u in adapter.items() if s.layer == 0}, "pico/llama")
    pairs = SitePairs.of(first, pico_pair.source.sites, pico_pair.target.sites)
    assert list(pairs) == [(Site(0, Role.Q), Site(0, Role.Q))]
    assert pairs.repeated == 0
    assert pairs.dropped == ()


def test_source_layers_that_feed_two_are_counted(pico_pair: BasePair, adapter_of: Adapters) -> None:
    adapter = adapter_of(pico_pair.source, (Role.Q,))
    assert SitePairs.of(adapter, pico_pair.source.sites, pico_pair.target.sites).repeated == 1
