"""What is no checkpoint of a mapper is refused, and sites are paired by relative depth."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from loraport.adapters import LoraAdapter, Role, Site
from loraport.exceptions import AdapterError
from loraport.mappers import BasePair, LearnedMapper, load_mapper
from loraport.mappers.base import paired_by_depth
from loraport.mappers.transport import TransportMapper


def refused(path: Path) -> str:
    with pytest.raises(
        AdapterError, match=r"\.ckpt cannot be read .* the checkpoint of a known mapper"
    ) as caught:
        load_mapper(path)
    return str(caught.value)


def of_class(kind: str) -> dict[str, Any]:
    return {LearnedMapper.checkpoint_key: {"class": kind, "state": None}, "hyper_parameters": {}}


def test_file_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    assert "FileNotFoundError" in refused(tmp_path / "none.ckpt")
    for content in (b"", b"PK\x03\x04half a zip archive"):
        (tmp_path / "mapper.ckpt").write_bytes(content)
        refused(tmp_path / "mapper.ckpt")


class Planted:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('this must not run')",))


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {}},
        [1, 2],
        of_class("builtins.dict"),
        of_class("loraport.mappers.base.load_mapper"),
        of_class("loraport.mappers.of_the_future.Mapper"),
        of_class("planted_code.Mapper"),
        {**of_class("x.Y"), "planted": Planted()},
    ],
    ids=["no_key", "no_dict", "no_mapper", "no_class", "no_module", "not_imported", "pickled_code"],
)
def test_checkpoint_of_something_else_is_refused_and_runs_no_code(
    content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted_code.py").write_text("raise SystemExit('this must not run')")
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(content, tmp_path / "mapper.ckpt")
    refused(tmp_path / "mapper.ckpt")
    assert "planted_code" not in sys.modules


def test_unfitted_checkpoint_is_no_fitted_mapper(tmp_path: Path) -> None:
    mapper = TransportMapper()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(mapper)
    trainer.save_checkpoint(tmp_path / "unfitted.ckpt", weights_only=True)
    assert not load_mapper(tmp_path / "unfitted.ckpt").fitted


def test_sites_are_paired_by_relative_depth(
    pico_pair: BasePair, adapter_of: Callable[..., LoraAdapter]
) -> None:
    shallow, deep = pico_pair.source.sites, pico_pair.target.sites
    given = adapter_of(pico_pair.source, (Role.Q,))
    pairs = paired_by_depth(given, shallow, deep)
    assert [(target.layer, source.layer) for target, source in pairs.items()] == [
        *((0, 0), (1, 1), (2, 1))
    ]
    first = LoraAdapter({s: u for s, u in given.items() if s.layer == 0}, "pico/llama")
    assert paired_by_depth(first, shallow, deep) == {Site(0, Role.Q): Site(0, Role.Q)}
    every = adapter_of(pico_pair.target)
    middle = LoraAdapter({s: u for s, u in every.items() if s.layer == 1}, "pico/target")
    with pytest.raises(AdapterError, match=r"only layers \[1\], none .* \[0, 2\] feed"):
        paired_by_depth(middle, deep, shallow)
