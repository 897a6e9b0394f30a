"""Planted symmetries of pico networks, and what both mappers make of them."""

from typing import Any

import pytest
import torch
from hydra.utils import instantiate
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


def ported(mapper: OptimalTransportMapper, pair: BasePair, adapter: LoraAdapter) -> LoraAdapter:
    mapper.use(pair)
    return mapper.map(adapter)


@torch.no_grad()
def logits(network: PreTrainedModel, adapter: LoraAdapter) -> Tensor:
    ids = torch.arange(3, 53).reshape(2, 25)
    with attached(network, adapter):
        return network(ids).logits


@pytest.mark.parametrize("make", MAPPERS)
def test_same_model_returns_the_update(make, pico_source, opened, random_adapter):
    """Also where the tokenizer has few words, all of them shared."""
    weights, adapter = opened(pico_source), random_adapter(pico_source)
    mapper = make()
    assert relative_error(ported(mapper, BasePair(weights, weights), adapter), adapter) < 1e-5
    report = mapper.report()
    assert report["residual"]["fixed"] == 1
    for facts in report["sites"].values():
        assert facts["fixed"] == facts["matched"] == pytest.approx(1)
        assert facts["similarity"] == facts["kept_norm"] == pytest.approx(1)
        assert facts["random_similarity"] < 0.3


@pytest.mark.parametrize("make", MAPPERS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_planted_symmetry_is_recovered(make, architecture, pico, opened, random_adapter):
    base = pico(architecture)
    network = with_drawn_gains(base, 1)
    symmetry = Symmetry(network, 1)
    target = symmetry.network(network)
    pair = BasePair(opened(base, network), opened(base, target))
    adapter = random_adapter(base)
    mapper = make(seed=1)
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
@pytest.mark.parametrize("way", [1, -1], ids=["deeper", "shallower"])
def test_models_of_other_shapes_get_every_site(make, way, models, pico_pair, random_adapter):
    base, other = (models.source, models.target)[::way]
    pair = BasePair(*(pico_pair.source, pico_pair.target)[::way])
    mapper, adapter = make(), random_adapter(base)
    found = ported(mapper, pair, adapter)
    assert list(found) == list(other.sites.shapes)
    for site, update in found.items():
        assert update.shape == other.sites.shapes[site]
        facts = mapper.report()["sites"][site.label]
        assert 0 < facts["kept_norm"] < 2
        # The dimensions of queries and keys are matched by frequency, not by likeness.
        if site.role not in (Role.Q, Role.K):
            assert facts["similarity"] > facts["random_similarity"]
    assert mapper.report()["residual"]["shared_tokens"] == 256


@pytest.mark.parametrize(
    ("roles", "read"),
    [((Role.Q, Role.V), "qkvo"), ((Role.GATE, Role.UP, Role.DOWN), ("gate", "up", "down"))],
)
def test_only_blocks_that_the_adapter_touches_are_read(
    roles, read, pico_pair, models, random_adapter, monkeypatch
):
    sites, original = [], StreamedWeights.weight

    def recorded(self, site):
        sites.append(site)
        return original(self, site)

    monkeypatch.setattr(StreamedWeights, "weight", recorded)
    adapter = random_adapter(models.source, roles=roles)
    pair = BasePair(pico_pair.source, pico_pair.source)
    assert list(ported(RebasinMapper(), pair, adapter)) == list(adapter)
    assert {site.role.value for site in sites} == set(read)
    # Once for the source and once for the target, and layer after layer.
    assert len(sites) == 2 * len(set(sites))
    assert [site.layer for site in sites] == sorted(site.layer for site in sites)


def test_what_cannot_be_is_refused(pico_source, pico_pair, opened, random_adapter):
    pair = BasePair(opened(pico_source), pico_pair.target)
    with pytest.raises(ModelError, match="share 3 strings, but it takes 16"):
        ported(RebasinMapper(), pair, random_adapter(pico_source))
    with pytest.raises(ConfigurationError, match=r"mapper\.sweeps is 0; it takes 1 or more"):
        OptimalTransportMapper(sweeps=0)
    with pytest.raises(ConfigurationError, match=r"mapper\.tokens is 3; it takes 16 or more"):
        RebasinMapper(tokens=3)


def widened(base: BaseModel, units: int, change) -> PreTrainedModel:
    """A copy with so many MLP units; ``change`` makes of each of its weights, units first."""
    state = dict(base.network.state_dict())
    for name, tensor in state.items():
        if "down_proj" in name:
            state[name] = change(tensor.mT, True).mT.contiguous()
        elif ".mlp." in name:
            state[name] = change(tensor, False)
    config = type(base.network.config)(
        **base.network.config.to_dict() | {"intermediate_size": units}
    )
    return network_with(config, state)


def test_units_of_a_smaller_model_are_found_in_a_wider_one_and_back(pico, opened, random_adapter):
    base, more = pico("llama"), 6
    units = base.network.config.intermediate_size
    generator = torch.Generator().manual_seed(0)
    places = torch.randperm(units + more, generator=generator)[:units]

    def among_others(weight: Tensor, is_down: bool) -> Tensor:
        del is_down
        wide = 0.2 * torch.randn(units + more, weight.shape[1], generator=generator)
        wide[places] = weight
        return wide

    small, wide = opened(base), opened(base, widened(base, units + more, among_others))
    adapter, mapper = random_adapter(base), RebasinMapper(sweeps=1)
    found = ported(mapper, BasePair(small, wide), adapter)
    rest = [unit for unit in range(units + more) if unit not in places.tolist()]
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
    sites = mapper.report()["sites"]
    assert sites["0.gate"]["matched"] == 1
    # Each of q, k, v and o has norm 1 on both sides.
    assert sites["0.q"]["objective"] == pytest.approx(4, rel=1e-5)
    assert sites["0.q"]["sweeps"] == 1
    assert "sweeps" not in sites["0.up"]
    # Units that a narrower model lacks are left out.
    back = ported(mapper, BasePair(wide, small), found)
    assert relative_error(back, adapter) < 1e-5
    facts = mapper.report()["sites"]["0.gate"]
    assert facts["matched"] == pytest.approx(units / (units + more))
    assert facts["partners"] == 1


def test_adapter_acts_alike_where_every_unit_has_two_copies(pico, opened, random_adapter):
    """Columns that sum to 1 give both copies the unit's update, rows that sum to 1 half its read.

    With one normalisation for both, one side would be off by the ratio of the widths, 2.
    """
    base = pico("llama")
    units = base.network.config.intermediate_size
    order = torch.randperm(2 * units, generator=torch.Generator().manual_seed(0)) % units
    # The same function, with each unit twice, at half its output.
    wide = widened(base, 2 * units, lambda w, is_down: w[order] / 2 if is_down else w[order])
    pair = BasePair(opened(base), opened(base, wide))
    adapter, mapper = random_adapter(base), OptimalTransportMapper()
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
    # On the way back the updates of two copies are averaged.
    back = ported(OptimalTransportMapper(), BasePair(pair.target, pair.source), found)
    assert relative_error(back, adapter) < 1e-5
    soft = OptimalTransportMapper(SinkhornPlan(0.5))
    ported(soft, pair, random_adapter(base, roles=(Role.DOWN,)))
    partners = mapper.report()["sites"]["1.down"]["partners"]
    assert soft.report()["sites"]["1.down"]["partners"] > partners + 0.5


def test_yaml_builds_it_with_either_plan(recipe):
    config = recipe("optimal_transport", "seed=3")
    assert instantiate(config.mapper).align == ExactPlan()
    kind = "loraport.alignment.permutations.SinkhornPlan"
    config.mapper.plan = {"_target_": kind, "regularisation": 0.2}
    mapper: Any = instantiate(config.mapper)
    assert (mapper.align, mapper.seed) == (SinkhornPlan(0.2), 3)
