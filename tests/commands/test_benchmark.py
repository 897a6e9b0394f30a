from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from loraport.adapters import LoraAdapter, LowRank, Role
from loraport.adapters.lora import Site
from loraport.commands.benchmark import (
    CONTROLS,
    AdapterCells,
    Cell,
    Method,
    cell_key,
    choices,
    chosen_methods,
)
from loraport.exceptions import ConfigurationError


def chosen(methods: list[str], options: dict[str, list[str]] | None = None) -> list[Method]:
    return chosen_methods(OmegaConf.create({"methods": methods, "method_options": options or {}}))


def test_a_method_is_a_mapper_a_mapper_with_a_refinement_or_the_default():
    plain, refined, default = chosen(["global_ridge", "cross_lora+drift_budget", "default"])
    assert plain.overrides == ["mapper=global_ridge", "refine=none"]
    assert refined.overrides == ["mapper=cross_lora", "refine=drift_budget"]
    # What transfer.py does where neither is named: see conf/transfer.yaml.
    assert default.overrides == ["mapper=noop", "refine=corpus_distill"]


def test_the_default_method_is_the_default_of_transfer():
    transfer = OmegaConf.load("conf/transfer.yaml").defaults
    named = {k: v for entry in transfer if hasattr(entry, "items") for k, v in entry.items()}
    [refine] = OmegaConf.load(f"conf/refine/{named['refine']}.yaml").defaults
    default = Method.named("default")
    assert (default.mapper, default.refine) == (named["mapper"], refine)


def test_all_are_the_mappers_that_are_no_controls_and_the_default():
    names = [method.name for method in chosen(["all"])]
    assert set(names) == {*choices("mapper"), "default"} - set(CONTROLS)
    assert names[-1] == "default"


def test_options_reach_their_method_alone():
    first, second = chosen(["global_ridge", "pca_ridge"], {"pca_ridge": ["mapper.components=2"]})
    assert "mapper.components=2" not in first.overrides
    assert second.overrides[-1] == "mapper.components=2"


def test_a_method_that_is_named_twice_is_run_once():
    assert [m.name for m in chosen(["mean", "mean"])] == ["mean"]


@pytest.mark.parametrize("name", ["global_rigde", "global_ridge+", "global_ridge+distill", ""])
def test_strangers_are_refused_with_what_there_is(name: str):
    with pytest.raises(ConfigurationError, match=r"methods names .* takes "):
        chosen([name])


def test_options_of_no_method_are_refused():
    with pytest.raises(ConfigurationError, match="method_options names ridge"):
        chosen(["global_ridge"], {"ridge": ["mapper.space=factors"]})


def adapter(seed: int) -> LoraAdapter:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 6, generator=generator), torch.randn(4, 2, generator=generator)
    return LoraAdapter({Site(0, Role.Q): LowRank(a, b)}, "pico/target")


class Maker:
    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> Cell:
        self.made += 1
        return Cell(adapter(self.made), 1.5, {"value": float("nan"), "labels": ("a", "b")})


def test_a_cell_is_made_once_and_read_back_to_the_same_bits(tmp_path: Path):
    make, cells = Maker(), AdapterCells(tmp_path / "cells")
    first = cells.kept("key", make)
    again = AdapterCells(tmp_path / "cells").kept("key", make)
    assert make.made == 1
    assert first.adapter.content_hash() == again.adapter.content_hash() == adapter(1).content_hash()
    assert (first.seconds, first.report) == (again.seconds, again.report)
    assert again.report == {"value": None, "labels": ["a", "b"]}


def test_another_key_is_another_cell(tmp_path: Path):
    make, cells = Maker(), AdapterCells(tmp_path)
    one, other = cells.kept("one", make), cells.kept("other", make)
    assert make.made == 2
    assert one.adapter.content_hash() != other.adapter.content_hash()


def test_a_damaged_cell_is_made_again(tmp_path: Path):
    make, cells = Maker(), AdapterCells(tmp_path)
    cells.kept("key", make)
    for damage in ("adapter_model.safetensors", "cell.json"):
        (tmp_path / "key" / damage).write_bytes(b"{")
        assert cells.known("key") is None
        cells.kept("key", make)
        assert cells.known("key") is not None
    assert make.made == 3


def test_a_key_depends_on_every_part_and_on_no_order():
    assert cell_key({"a": 1, "b": [2]}) == cell_key({"b": [2], "a": 1})
    assert len({cell_key({"a": 1}), cell_key({"a": 2}), cell_key({"b": 1}), cell_key({})}) == 4
