from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM

from loraport.adapters import Role, Site
from loraport.alignment.transport_plan import ExactPlan, SinkhornPlan
from loraport.mappers.optimal_transport import OptimalTransportMapper
from loraport.mappers.rebasin import RebasinMapper
from loraport.mappers.weight_mapper import BasePair
from loraport.models import attached
from loraport.models.weights import StreamedWeights

MLP = (Role.GATE, Role.UP, Role.DOWN)


@pytest.fixture
def doubled(tmp_path: Path, pico):
    """A model, and one that computes the same with each MLP unit twice, at half its output."""
    base = pico("llama")
    units = base.network.config.intermediate_size
    order = torch.randperm(2 * units, generator=torch.Generator().manual_seed(0)) % units
    state = dict(base.network.state_dict())
    for name, tensor in state.items():
        if "down_proj" in name:
            state[name] = (tensor[:, order] / 2).contiguous()
        elif ".mlp." in name:
            state[name] = tensor[order]
    config = type(base.network.config)(
        **base.network.config.to_dict() | {"intermediate_size": 2 * units}
    )
    with torch.random.fork_rng(devices=[]):
        wide = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    wide.load_state_dict(state)
    opened = []
    for name, network in (("small", base.network), ("wide", wide)):
        network.save_pretrained(tmp_path / name)
        base.tokenizer.save_pretrained(tmp_path / name)
        opened.append(StreamedWeights.open(tmp_path / name, name))
    source, target = opened
    return base, wide, order, BasePair(source, target)


def logits(network, adapter):
    with torch.no_grad(), attached(network, adapter):
        return network(torch.arange(3, 53).reshape(2, 25)).logits


def ported(mapper, pair, adapter):
    mapper.use(pair)
    return mapper.map(adapter)


def test_adapter_acts_alike_where_every_unit_has_two_copies(doubled, random_adapter):
    """Columns that sum to 1 give both copies the unit's update, rows that sum to 1 half its read.

    With one normalisation for both, one side would be off by the ratio of the widths, 2.
    """
    base, wide, order, pair = doubled
    adapter = random_adapter(base)
    mapper = OptimalTransportMapper()
    found = ported(mapper, pair, adapter)
    for role in (Role.GATE, Role.UP):
        assert torch.equal(found[Site(0, role)].B, adapter[Site(0, role)].B[order])
    down = Site(0, Role.DOWN)
    torch.testing.assert_close(found[down].A, adapter[down].A[:, order] / 2)
    expected = logits(base.network, adapter)
    torch.testing.assert_close(logits(wide, found), expected, atol=1e-4, rtol=1e-4)
    facts = mapper.report()["sites"]["0.gate"]
    assert facts["partners"] == pytest.approx(2)
    assert facts["similarity"] == pytest.approx(1)
    hard = ported(RebasinMapper(), pair, adapter)
    assert (logits(wide, hard) - expected).abs().max() > 0.01


def test_updates_of_two_copies_are_averaged_on_the_way_back(doubled, random_adapter):
    base, _, _, pair = doubled
    adapter = random_adapter(base, roles=MLP)
    there = ported(OptimalTransportMapper(), pair, adapter)
    back = ported(OptimalTransportMapper(), BasePair(pair.target, pair.source), there)
    for site, update in adapter.items():
        torch.testing.assert_close(back[site].dense(), update.dense())


def test_regularisation_gives_units_more_partners(doubled, random_adapter):
    base, _, _, pair = doubled
    partners = []
    for plan in (ExactPlan(), SinkhornPlan(0.1), SinkhornPlan(0.5)):
        mapper = OptimalTransportMapper(plan)
        found = ported(mapper, pair, random_adapter(base))
        assert all(update.norm() > 0 for update in found.values())
        partners.append(mapper.report()["sites"]["1.down"]["partners"])
    assert partners[0] < partners[1] < partners[2]


@pytest.mark.parametrize("plan", ["ExactPlan", "SinkhornPlan"])
def test_yaml_builds_it_with_either_plan(plan):
    file = Path(__file__).parents[2] / "conf/mapper/optimal_transport.yaml"
    config = OmegaConf.merge({"seed": 3}, OmegaConf.load(file))
    assert config.mapper.plan["_target_"].endswith(".ExactPlan")
    if plan == "SinkhornPlan":
        config.mapper.plan = {
            "_target_": "loraport.alignment.transport_plan.SinkhornPlan",
            "regularisation": 0.2,
        }
    mapper = instantiate(config.mapper)
    assert isinstance(mapper, OptimalTransportMapper)
    assert mapper.align == {"ExactPlan": ExactPlan(), "SinkhornPlan": SinkhornPlan(0.2)}[plan]
    assert mapper.seed == 3
