"""Planted symmetries of pico networks, and what both mappers make of them."""

from collections.abc import Callable
from copy import copy
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from loraport.adapters import LoraAdapter, LowRank, Role, Site, relative_error
from loraport.alignment.permutations import ExactPlan, SinkhornPlan
from loraport.exceptions import ConfigurationError, ModelError
from loraport.mappers.base import BasePair
from loraport.mappers.matching import OptimalTransportMapper, RebasinMapper
from loraport.models import ARCHITECTURES, BaseModel, attached
from loraport.models.streaming import StreamedWeights

MAPPERS = [RebasinMapper, OptimalTransportMapper]
GROUPS, HEADS = 2, 2


def network_with(config: PretrainedConfig, state: dict[str, Tensor]) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    network.load_state_dict(state)
    return network.eval()


class Symmetry:
    """A drawn symmetry of a network: where unit ``i`` of the copy comes from, and its sign."""

    def __init__(self, network: PreTrainedModel, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        config = network.config
        self.dims = getattr(config, "head_dim", None) or config.hidden_size // 4
        self.residual = self.order(config.hidden_size)
        self.signs = torch.randint(0, 2, (config.hidden_size,), generator=self.generator) * 2.0 - 1
        self.layers = [self.layer(config) for _ in range(config.num_hidden_layers)]

    def order(self, units: int) -> Tensor:
        return torch.randperm(units, generator=self.generator)

    def layer(self, config) -> dict[Role, Tensor]:
        """Rows of q, k, v, gate and up, and columns of o and down."""
        units, steps = self.order(config.intermediate_size), torch.arange(self.dims)
        rows: dict[Role, list[Tensor]] = {Role.Q: [], Role.K: [], Role.V: [], Role.O: []}
        for group in self.order(GROUPS):
            value_dims = self.order(self.dims)
            rows[Role.K].append(group * self.dims + steps)
            rows[Role.V].append(group * self.dims + value_dims)
            for head in group * HEADS + self.order(HEADS):
                rows[Role.Q].append(head * self.dims + steps)
                rows[Role.O].append(head * self.dims + value_dims)
        found = {role: torch.cat(parts) for role, parts in rows.items()}
        return {**found, Role.GATE: units, Role.UP: units, Role.DOWN: units}

    def turned(self, vectors: Tensor) -> Tensor:
        """Vectors of the residual stream, as rows."""
        return vectors[..., self.residual] * self.signs

    def weight(self, site: Site, weight: Tensor) -> Tensor:
        inside = self.layers[site.layer][site.role]
        if site.role in (Role.O, Role.DOWN):
            return self.turned(weight[:, inside].mT).mT
        return self.turned(weight[inside])

    def adapter(self, adapter: LoraAdapter) -> LoraAdapter:
        moved = {
            site: LowRank(
                torch.eye(update.shape[1]), self.weight(site, update.dense()).contiguous()
            )
            for site, update in adapter.items()
        }
        return LoraAdapter(moved, adapter.base_model)

    @torch.no_grad()
    def network(self, network: PreTrainedModel) -> PreTrainedModel:
        """A copy that computes the same in other places."""
        state = {}
        for name, tensor in network.state_dict().items():
            module, _, kind = name.rpartition(".")
            site = Site.parse(module)
            if site is not None and kind == "weight":
                state[name] = self.weight(site, tensor)
            elif site is not None:
                state[name] = tensor[self.layers[site.layer][site.role]]
            elif name.endswith(("q_norm.weight", "k_norm.weight")):
                state[name] = tensor
            elif "norm" in name:
                state[name] = tensor[self.residual]
            else:
                state[name] = self.turned(tensor)
        return network_with(network.config, state)


def with_drawn_gains(base: BaseModel, seed: int) -> PreTrainedModel:
    """A copy whose norms' gains and biases are drawn, since they are alike in a fresh network."""
    generator = torch.Generator().manual_seed(seed)
    state = dict(base.network.state_dict())
    for name, tensor in state.items():
        if "norm" in name or name.endswith("bias"):
            state[name] = tensor + 0.3 * torch.randn(tensor.shape, generator=generator)
    return network_with(base.network.config, state)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[PreTrainedModel, BaseModel, str], StreamedWeights]:
    """Save a network with a base model's tokenizer and open its weights."""

    def save(network: PreTrainedModel, base: BaseModel, name: str) -> StreamedWeights:
        network.save_pretrained(tmp_path / name)
        base.tokenizer.save_pretrained(tmp_path / name)
        return StreamedWeights.open(tmp_path / name, name)

    return save


def ported(mapper: OptimalTransportMapper, pair: BasePair, adapter: LoraAdapter) -> LoraAdapter:
    mapper.use(pair)
    return mapper.map(adapter)


@torch.no_grad()
def logits(network: PreTrainedModel, adapter: LoraAdapter) -> Tensor:
    ids = torch.arange(3, 53).reshape(2, 25)
    with attached(network, adapter):
        return network(ids).logits


@pytest.mark.parametrize("make", MAPPERS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_same_model_returns_the_update(make, architecture, pico, saved, random_adapter):
    base = pico(architecture)
    weights = saved(base.network, base, "base")
    adapter = random_adapter(base)
    mapper = make()
    assert relative_error(ported(mapper, BasePair(weights, weights), adapter), adapter) < 1e-5
    report = mapper.report()
    assert report["residual"]["fixed"] == 1
    for facts in report["sites"].values():
        assert facts["fixed"] == facts["matched"] == pytest.approx(1)
        assert facts["similarity"] == pytest.approx(1)
        assert facts["random_similarity"] < 0.3
        assert facts["kept_norm"] == pytest.approx(1)


@pytest.mark.parametrize("make", MAPPERS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("seed", [0, 1])
def test_planted_symmetry_is_recovered(make, architecture, seed, pico, saved, random_adapter):
    base = pico(architecture)
    network = with_drawn_gains(base, seed)
    symmetry = Symmetry(network, seed)
    target = symmetry.network(network)
    pair = BasePair(saved(network, base, "source"), saved(target, base, "target"))
    adapter = random_adapter(base)
    mapper = make(seed=seed)
    found = ported(mapper, pair, adapter)
    assert relative_error(found, symmetry.adapter(adapter)) < 1e-5
    before = logits(network, adapter)
    torch.testing.assert_close(logits(target, found), before, atol=1e-4, rtol=1e-4)
    # The adapter does act, and in other places it would act otherwise.
    assert (logits(target, adapter) - before).abs().max() > 0.1
    for facts in mapper.report()["sites"].values():
        assert facts["similarity"] == pytest.approx(1)
        assert facts["matched"] == 1
    assert mapper.report()["residual"]["fixed"] < 0.3


@pytest.mark.parametrize("make", MAPPERS)
def test_models_of_other_shapes_get_every_site(make, pico, pico_target, saved, random_adapter):
    source, target = pico("llama"), pico_target
    there = saved(source.network, source, "source"), saved(target.network, target, "target")
    for pair, base, other in ((there, source, target), (there[::-1], target, source)):
        mapper = make()
        found = ported(mapper, BasePair(*pair), random_adapter(base))
        assert list(found) == list(other.sites.shapes)
        for site, update in found.items():
            assert update.shape == other.sites.shapes[site]
            facts = mapper.report()["sites"][site.label]
            assert 0 < facts["kept_norm"] < 2
            # The dimensions of queries and keys are matched by frequency, not by likeness.
            if site.role not in (Role.Q, Role.K):
                assert facts["similarity"] > facts["random_similarity"]
        assert mapper.report()["residual"]["shared_tokens"] == 256
        again = ported(make(), BasePair(*pair), random_adapter(base))
        assert again.content_hash() == found.content_hash()


@pytest.mark.parametrize("make", MAPPERS)
@pytest.mark.parametrize(
    ("roles", "read"),
    [((Role.Q, Role.V), "qkvo"), ((Role.GATE, Role.UP, Role.DOWN), ("gate", "up", "down"))],
)
def test_only_blocks_that_the_adapter_touches_are_read(
    make, roles, read, pico, saved, random_adapter, monkeypatch
):
    base = pico("llama")
    weights = saved(base.network, base, "base")
    sites, original = [], StreamedWeights.weight

    def recorded(self, site):
        sites.append(site)
        return original(self, site)

    monkeypatch.setattr(StreamedWeights, "weight", recorded)
    adapter = random_adapter(base, roles=roles)
    found = ported(make(), BasePair(weights, weights), adapter)
    assert list(found) == list(adapter)
    assert {site.role.value for site in sites} == set(read)
    # Once for the source and once for the target, and layer after layer.
    assert len(sites) == 2 * len(set(sites))
    assert [site.layer for site in sites] == sorted(site.layer for site in sites)


@pytest.mark.parametrize("make", MAPPERS)
def test_groups_of_other_number_and_width_are_matched(make, pico, saved, random_adapter):
    base = pico("qwen3")
    shape = {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16}
    config = copy(base.network.config)
    for option, value in shape.items():
        setattr(config, option, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        other = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    pair = BasePair(saved(base.network, base, "source"), saved(other, base, "target"))
    adapter = random_adapter(base, roles=(Role.Q, Role.K, Role.V, Role.O))
    found = ported(make(), pair, adapter)
    shapes = {site.role: update.shape for site, update in found.items()}
    assert shapes == {Role.Q: (96, 32), Role.K: (48, 32), Role.V: (48, 32), Role.O: (32, 96)}
    assert all(update.norm() > 0 for update in found.values())


@pytest.mark.parametrize("make", MAPPERS)
def test_tokenizers_with_nothing_in_common_are_refused(
    make, pico_source, pico_target, saved, random_adapter
):
    pair = BasePair(
        saved(pico_source.network, pico_source, "source"),
        saved(pico_target.network, pico_target, "target"),
    )
    with pytest.raises(ModelError, match="share 3 strings, but it takes 16"):
        ported(make(), pair, random_adapter(pico_source))
    same = BasePair(pair.source, pair.source)
    adapter = random_adapter(pico_source)
    assert relative_error(ported(make(), same, adapter), adapter) < 1e-5


@pytest.mark.parametrize("make", MAPPERS)
def test_options_that_cannot_be_are_refused(make):
    with pytest.raises(ConfigurationError, match=r"mapper\.sweeps is 0; it takes 1 or more"):
        make(sweeps=0)
    with pytest.raises(ConfigurationError, match=r"mapper\.tokens is 3; it takes 16 or more"):
        make(tokens=3)


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
            "_target_": "loraport.alignment.permutations.SinkhornPlan",
            "regularisation": 0.2,
        }
    mapper = instantiate(config.mapper)
    assert isinstance(mapper, OptimalTransportMapper)
    assert mapper.align == {"ExactPlan": ExactPlan(), "SinkhornPlan": SinkhornPlan(0.2)}[plan]
    assert mapper.seed == 3
