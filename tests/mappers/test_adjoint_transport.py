from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from loraport.adapters import LoraAdapter, LowRank, Role, Site, relative_error
from loraport.exceptions import ConfigurationError
from loraport.mappers import load_mapper
from loraport.mappers.adjoint_transport import AdjointTransportMapper
from loraport.mappers.corpus_mapper import ModelPair
from loraport.mappers.transport import TransportMapper
from loraport.models import BaseModel
from loraport.models.statistics_store import StatisticsStore

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*this fit will run with no optimizer.*"),
]


@pytest.fixture
def models(pico: Callable[[str], BaseModel], pico_target: BaseModel) -> ModelPair:
    return ModelPair(pico("llama"), pico_target)


@pytest.fixture
def adapter(random_adapter: Callable[..., LoraAdapter], models: ModelPair) -> LoraAdapter:
    return random_adapter(models.source, roles=(Role.Q, Role.V))


def carried_back(mapper: AdjointTransportMapper) -> list[float]:
    """The R^2 of the gradients, a site each."""
    found = [writer.gradient_r2 for writer in mapper.maps.writers.values()]
    assert None not in found
    return [r2 for r2 in found if r2 is not None]


def test_planted_change_of_basis_is_recovered_and_carries_gradients_back(
    twisted: Callable[[torch.Tensor], ModelPair],
    fit_on_text: Callable[..., Path],
    random_adapter: Callable[..., LoraAdapter],
) -> None:
    generator = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(32, 32, generator=generator)).Q
    pair = twisted(turn)
    mapper = AdjointTransportMapper(strengths=[1e-9])
    fit_on_text(mapper, pair)
    given = random_adapter(pair.source, roles=(Role.Q, Role.V))
    # x_T = x_S Q in row convention, so that A_T = A_S Q; outputs and their effects are the same.
    expected = given.map(lambda u: LowRank(u.A @ turn, u.B, u.scale))
    assert relative_error(mapper.map(given), expected) < 1e-4
    assert carried_back(mapper) == pytest.approx([1.0] * 4, abs=1e-5)


def test_what_is_written_comes_back_where_outputs_do_not_vary(
    twisted: Callable[[torch.Tensor], ModelPair],
    fit_on_text: Callable[..., Path],
    random_adapter: Callable[..., LoraAdapter],
) -> None:
    pair = twisted(torch.eye(32))
    site, plain = Site(0, Role.V), TransportMapper(roles=["v"], strengths=[1e-6])
    weights: list[Any] = [
        model.network.get_submodule(site.module_name) for model in (pair.source, pair.target)
    ]
    for module in weights:  # half of what v writes is always zero, but would not be without effect
        module.weight.data[::2] = 0
    given = random_adapter(pair.source, roles=(Role.V,))
    mapper = AdjointTransportMapper(roles=["v"], strengths=[1e-6])
    errors = {}
    for one in (plain, mapper):
        fit_on_text(one, pair)
        errors[one] = float((one.map(given)[site].B - given[site].B).norm() / given[site].B.norm())
    assert errors[mapper] < 1e-2
    assert errors[plain] > 0.5


def test_without_behaviour_it_is_transport(
    models: ModelPair, adapter: LoraAdapter, fit_on_text: Callable[..., Path]
) -> None:
    plain, alone, both = (
        TransportMapper(),
        AdjointTransportMapper(behaviour=0.0),
        AdjointTransportMapper(),
    )
    for mapper in (plain, alone, both):
        fit_on_text(mapper, models)
    assert relative_error(alone.map(adapter), plain.map(adapter)) < 1e-3
    assert relative_error(both.map(adapter), plain.map(adapter)) > 0.01
    for pair, reader in both.maps.readers.items():
        torch.testing.assert_close(reader.matrix, plain.maps.readers[pair].matrix)
    assert sum(carried_back(both)) > sum(carried_back(alone))


def test_report_says_how_well_gradients_come_back(
    models: ModelPair, adapter: LoraAdapter, fit_on_text: Callable[..., Path]
) -> None:
    mapper, plain = AdjointTransportMapper(), TransportMapper()
    checkpoint = fit_on_text(mapper, models)
    fit_on_text(plain, models)
    loaded = load_mapper(checkpoint)
    assert isinstance(loaded, AdjointTransportMapper)
    assert carried_back(loaded) == carried_back(mapper)
    assert loaded.two_sided == mapper.two_sided
    for one, told in ((mapper, True), (loaded, True), (plain, False)):
        one.map(adapter)
        report = one.report()
        fits = [fit for found in report["fits"].values() for fit in found.values()]
        assert all(("gradient_r2" in fit) == told for fit in fits)
        assert all(("gradient_r2" in site) == told for site in report["sites"].values())
    first = mapper.maps.writers[Site(0, Role.Q), Site(0, Role.Q)]
    assert mapper.report()["sites"]["0.q"]["gradient_r2"] == first.gradient_r2


def test_blocks_of_layers_give_the_maps_of_one_epoch(
    models: ModelPair, adapter: LoraAdapter, fit_on_text: Callable[..., Path]
) -> None:
    whole, blocks = AdjointTransportMapper(), AdjointTransportMapper(memory_gb=1e-6)
    fit_on_text(whole, models)
    fit_on_text(blocks, models)
    assert blocks.trainer.fit_loop.max_epochs == 3
    assert relative_error(blocks.map(adapter), whole.map(adapter)) < 1e-4


def test_statistics_with_gradients_are_kept_apart_from_those_without(
    models: ModelPair, adapter: LoraAdapter, fit_on_text: Callable[..., Path], tmp_path: Path
) -> None:
    store = StatisticsStore(tmp_path)
    fit_on_text(TransportMapper(), models, store=store)
    first, second = AdjointTransportMapper(), AdjointTransportMapper()
    fit_on_text(first, models, store=store)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    fit_on_text(second, models, store=store)
    assert second.map(adapter).content_hash() == first.map(adapter).content_hash()


@pytest.mark.parametrize("behaviour", [-0.1, float("inf"), float("nan")])
def test_impossible_weight_is_refused(behaviour: float) -> None:
    with pytest.raises(ConfigurationError, match=r"mapper\.behaviour is .*; it takes a finite"):
        AdjointTransportMapper(behaviour=behaviour)


@pytest.mark.parametrize("strengths", [[], [0.0], [float("inf")]])
def test_impossible_strengths_are_refused(strengths: list[float]) -> None:
    with pytest.raises(ConfigurationError, match=r"mapper\.strengths is \["):
        AdjointTransportMapper(strengths=strengths)
