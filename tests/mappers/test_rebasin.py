from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from loraport.adapters import Role, Site
from loraport.alignment.permutations import LinearAssignment
from loraport.mappers.rebasin import RebasinMapper
from loraport.mappers.weight_mapper import BasePair
from loraport.models.weights import StreamedWeights

# What the target's MLP has besides the source's units.
MORE = 6


@pytest.fixture
def grown(tmp_path: Path, pico):
    """A model, one with more MLP units among which are its own, and where these are."""
    base = pico("llama")
    units = base.network.config.intermediate_size
    generator = torch.Generator().manual_seed(0)
    places = torch.randperm(units + MORE, generator=generator)[:units]
    state = dict(base.network.state_dict())
    for name, tensor in state.items():
        if ".mlp." in name:
            wide = 0.2 * torch.randn(units + MORE, 32, generator=generator)
            wide[places] = tensor.mT if "down_proj" in name else tensor
            state[name] = (wide.mT if "down_proj" in name else wide).contiguous()
    opened = []
    for name, width, weights in (
        ("small", units, base.network.state_dict()),
        ("wide", units + MORE, state),
    ):
        base.network.save_pretrained(tmp_path / name, state_dict=weights)
        base.tokenizer.save_pretrained(tmp_path / name)
        config = base.network.config.to_dict() | {"intermediate_size": width}
        type(base.network.config)(**config).save_pretrained(tmp_path / name)
        opened.append(StreamedWeights.open(tmp_path / name, name))
    return base, *opened, places


def test_units_of_a_smaller_model_are_found_in_a_wider_one(grown, random_adapter):
    base, small, wide, places = grown
    adapter = random_adapter(base)
    mapper = RebasinMapper()
    mapper.use(BasePair(small, wide))
    found = mapper.map(adapter)
    rest = [unit for unit in range(40 + MORE) if unit not in places.tolist()]
    for layer in range(2):
        for role in (Role.GATE, Role.UP):
            site = Site(layer, role)
            assert torch.equal(found[site].B[places], adapter[site].B)
            assert (found[site].B[rest] == 0).all()
            assert torch.equal(found[site].A, adapter[site].A)
        site = Site(layer, Role.DOWN)
        assert torch.equal(found[site].A[:, places], adapter[site].A)
        assert (found[site].A[:, rest] == 0).all()
        assert torch.equal(found[site].B, adapter[site].B)
    assert mapper.report()["sites"]["0.gate"]["matched"] == 1


def test_units_that_a_narrower_model_lacks_are_left_out(grown, random_adapter):
    base, small, wide, _ = grown
    mapper = RebasinMapper()
    mapper.use(BasePair(small, wide))
    there = mapper.map(random_adapter(base))
    mapper.use(BasePair(wide, small))
    back = mapper.map(there)
    for site, update in random_adapter(base).items():
        torch.testing.assert_close(back[site].dense(), update.dense())
    facts = mapper.report()["sites"]["0.gate"]
    assert facts["matched"] == pytest.approx(40 / (40 + MORE))
    assert facts["partners"] == 1


def test_report_tells_how_it_was_reached(grown, random_adapter):
    base, small, _, _ = grown
    mapper = RebasinMapper(sweeps=1)
    mapper.use(BasePair(small, small))
    mapper.map(random_adapter(base))
    sites = mapper.report()["sites"]
    # Each of q, k, v and o, and of gate, up and down, has norm 1 on both sides.
    assert sites["0.q"]["objective"] == pytest.approx(4, rel=1e-5)
    assert sites["0.q"]["sweeps"] == 1
    assert sites["0.up"]["objective"] == pytest.approx(3, rel=1e-5)
    assert "sweeps" not in sites["0.up"]


def test_yaml_builds_it_with_hard_matching():
    file = Path(__file__).parents[2] / "conf/mapper/rebasin.yaml"
    config = OmegaConf.merge({"seed": 3}, OmegaConf.load(file))
    mapper = instantiate(config.mapper)
    assert isinstance(mapper, RebasinMapper)
    assert mapper.align == LinearAssignment()
    assert (mapper.seed, mapper.information_class) == (3, "weights only")
