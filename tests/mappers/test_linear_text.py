"""What becomes of an adapter once linear maps are there, on maps that are given."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from torch import Tensor

from loraport.adapters import LoraAdapter, LowRank, Role, Site
from loraport.alignment.layer_matching import LayerPairing
from loraport.exceptions import AdapterError, ConfigurationError
from loraport.mappers import load_mapper
from loraport.mappers.from_text import ModelPair
from loraport.mappers.linear_text import FittedMaps, InputProjection, OutputProjection, weight_norms
from loraport.mappers.transport import TransportMapper
from loraport.models import BaseModel

Draw = Callable[..., LoraAdapter]
Make = Callable[..., TransportMapper]

PAIRING = LayerPairing(2, (((0, 1.0),), ((0, 0.25), (1, 0.75)), ((1, 0.5),)))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def adapter(random_adapter: Draw, models: ModelPair) -> LoraAdapter:
    return random_adapter(models.source, roles=(Role.V,))


@pytest.fixture
def carrier(models: ModelPair) -> Callable[..., TransportMapper]:
    """A mapper with maps drawn at random; what layer 1 reads is unpredictable."""

    def make(**options: object) -> TransportMapper:
        mapper = TransportMapper(roles=["v"], **options)  # type: ignore[arg-type]
        mapper.learn_from(models, PAIRING)
        inputs, outputs = {}, {}
        sizes = [m.sites.shapes[Site(0, Role.V)] for m in (models.source, models.target)]
        (out_s, in_s), (out_t, in_t) = sizes
        for target, feeds in mapper.described.feeds().items():
            for source, _ in feeds:
                seed = 10 * source.layer + target.layer
                missed, eye = 0.25 + source.layer, torch.eye(in_s)
                shared = Site(source.layer, Role.Q), Site(target.layer, Role.Q)
                inputs[shared] = InputProjection(
                    drawn(in_s, in_t, seed=seed), 0.1, 1 - missed, missed * eye, eye
                )
                outputs[source, target] = OutputProjection(
                    drawn(out_t, out_s, seed=seed), None, 0.5
                )
        mapper.maps = FittedMaps(inputs, outputs)
        mapper.source_norms = weight_norms(models.source, models.source.sites.shapes)
        mapper.target_norms = weight_norms(models.target, models.target.sites.shapes)
        return mapper

    return make


def carried(mapper: TransportMapper, update: LowRank, source: int, target: int) -> Tensor:
    pair = Site(source, Role.V), Site(target, Role.V)
    into = mapper.maps.inputs[Site(source, Role.Q), Site(target, Role.Q)]
    return mapper.maps.outputs[pair].matrix @ update.dense() @ into.matrix


def test_updates_are_the_weighted_sums_of_their_feeds(carrier: Make, adapter: LoraAdapter) -> None:
    mapper = carrier()
    result = mapper.map(adapter)
    zero, one = adapter[Site(0, Role.V)], adapter[Site(1, Role.V)]
    first, both, half = (result[Site(layer, Role.V)] for layer in range(3))
    assert torch.allclose(first.dense(), carried(mapper, zero, 0, 0), atol=1e-4)
    expected = 0.25 * carried(mapper, zero, 0, 1) + 0.75 * carried(mapper, one, 1, 1)
    assert torch.allclose(both.dense(), expected, atol=1e-4)
    assert torch.allclose(half.dense(), 0.5 * carried(mapper, one, 1, 2), atol=1e-4)
    assert [update.rank for update in (first, both, half)] == [3, 6, 3]
    assert first.scale == zero.scale


def test_report_tells_the_fit_of_every_feed(carrier: Make, adapter: LoraAdapter) -> None:
    mapper = carrier()
    result = mapper.map(adapter)
    report = mapper.report()
    assert report["fits"]["1.v"] == {
        "0.v": {"input_r2": 0.75, "output_r2": 0.5, "input_strength": 0.1},
        "1.v": {"input_r2": -0.25, "output_r2": 0.5, "input_strength": 0.1},
    }
    first, both = report["sites"]["0.v"], report["sites"]["1.v"]
    assert first["source"] == "0.v"
    assert first["restricted_r2"] == pytest.approx(0.75)
    before = adapter[Site(0, Role.V)].norm()
    assert first["kept_norm"] == pytest.approx(result[Site(0, Role.V)].norm() / before, rel=1e-5)
    assert both["source"] == "0.v + 1.v"
    assert both["restricted_r2"] == pytest.approx(0.25 * 0.75 - 0.75 * 0.25, abs=1e-6)
    assert both["feeds"]["1.v"]["weight"] == 0.75
    assert report["repeated_sites"] == 2


def test_gauge_of_the_factors_does_not_change_what_is_left_out(
    carrier: Make, adapter: LoraAdapter, regauged: Callable[[LoraAdapter, int], LoraAdapter]
) -> None:
    mapper = carrier()
    for pair, into in mapper.maps.inputs.items():
        mapper.maps.inputs[pair] = replace(into, residual=torch.linspace(0, 2, 32).diag())
    found = []
    for given in (adapter, regauged(adapter, 5)):
        mapper.map(given)
        found.append([facts["restricted_r2"] for facts in mapper.report()["sites"].values()])
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    dense = adapter[Site(0, Role.V)].dense()
    expected = 1 - (dense @ torch.linspace(0, 2, 32).sqrt().diag()).norm() ** 2 / dense.norm() ** 2
    assert found[0][0] == pytest.approx(float(expected), rel=1e-3)


def test_what_text_does_not_predict_is_left_out_on_request(
    carrier: Make, adapter: LoraAdapter
) -> None:
    mapper = carrier(min_r2=0.0)
    result = mapper.map(adapter)
    assert list(result) == [Site(0, Role.V), Site(1, Role.V)]
    zero = adapter[Site(0, Role.V)]
    expected = 0.25 * carried(mapper, zero, 0, 1)
    assert torch.allclose(result[Site(1, Role.V)].dense(), expected, atol=1e-4)
    report = mapper.report()
    assert report["left_out"] == ["1.v > 1.v", "1.v > 2.v"]
    assert list(report["sites"]) == ["0.v", "1.v"]
    with pytest.raises(AdapterError, match=r"above mapper\.min_r2=0\.9 at none of its sites"):
        carrier(min_r2=0.9).map(adapter)


def test_norms_are_matched_on_request(
    carrier: Make, adapter: LoraAdapter, models: ModelPair
) -> None:
    plain, matched = carrier().map(adapter), carrier(match_norm=True).map(adapter)

    def relative(model: BaseModel, update: LowRank, site: Site) -> float:
        weight = model.network.get_parameter(f"{site.module_name}.weight")
        return update.norm() / float(weight.norm())

    zero, one = (
        relative(models.source, adapter[site], site) for site in (Site(0, Role.V), Site(1, Role.V))
    )
    for layer, expected in ((0, zero), (1, 0.25 * zero + 0.75 * one), (2, 0.5 * one)):
        site = Site(layer, Role.V)
        assert relative(models.target, matched[site], site) == pytest.approx(expected, rel=1e-4)
        ratio = matched[site].norm() / plain[site].norm()
        assert torch.allclose(matched[site].dense(), ratio * plain[site].dense(), atol=1e-5)


def test_update_of_zeros_stays_zero(carrier: Make, adapter: LoraAdapter) -> None:
    mapper = carrier(match_norm=True, min_r2=None)
    nothing = mapper.map(adapter.map(lambda u: LowRank(u.A, 0 * u.B, u.scale)))
    assert nothing.norm() == 0
    assert "kept_norm" not in mapper.report()["sites"]["0.v"]


def test_adapter_that_does_not_fit_is_refused_by_name(
    carrier: Make, adapter: LoraAdapter, models: ModelPair, random_adapter: Draw
) -> None:
    mapper, deep = carrier(), {Site(7, Role.V): adapter[Site(0, Role.V)]}
    for wrong, message in (
        (
            random_adapter(models.source, roles=(Role.K, Role.V)),
            r"pico/llama adapts k_proj, .* roles \[v\]; .* mapper\.roles=\[k,v\]",
        ),
        (
            random_adapter(models.target, roles=(Role.V,)),
            r"'pico/target', has shape \(12, 48\) at model\.layers\.0\.self_attn\.v_proj, "
            r"but the mapper's source pico/llama has \(16, 32\)",
        ),
        (
            replace(adapter, sites=deep),
            r"model\.layers\.7\.self_attn\.v_proj, .* pico/llama has no such module",
        ),
    ):
        with pytest.raises(AdapterError, match=message):
            mapper.map(wrong)
    mapper.learn_from(models, LayerPairing.one_to_one(2, (1, 1, 1)))
    first = {site: adapter[site] for site in adapter if site.layer == 0}
    with pytest.raises(AdapterError, match=r"only layers \[0\], none of which .* layers \[1\]"):
        mapper.described.feeds_of(replace(adapter, sites=first))


def test_what_it_cannot_learn_is_refused(models: ModelPair) -> None:
    mapper = TransportMapper()
    with pytest.raises(RuntimeError, match=r"Mapper has no base models yet: call learn_from\("):
        mapper.models  # noqa: B018
    with pytest.raises(RuntimeError, match="not attached to a `Trainer`"):
        mapper.data  # noqa: B018
    with pytest.raises(ValueError, match=r"of \(2, 2\) layers, the models have \(2, 3\)"):
        mapper.learn_from(models, LayerPairing.one_to_one(2, (0, 1)))
    for roles in (["z"], []):
        with pytest.raises(ConfigurationError, match=r"roles is .*; it takes one or more of q, "):
            TransportMapper(roles=roles)


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *((name, "bf16-mixed") for name in ("procrustes", "transport", "adjoint_transport")),
        *(("transport", precision) for precision in ("bf16-true", "64-true")),
    ],
)
def test_maps_are_the_same_in_whatever_precision_the_trainer_computes(
    recipe: Callable[..., Any],
    fit_on_text: Callable[..., Path],
    fitted_on_text: Callable[[str], tuple[Any, Path]],
    models: ModelPair,
    random_adapter: Draw,
    name: str,
    precision: str,
) -> None:
    """The models are in float32, and so are statistics: maps of them differ in no bit."""
    given = random_adapter(models.source, roles=(Role.Q, Role.V))
    expected = load_mapper(fitted_on_text(name)[1]).map(given)
    mapper = instantiate(recipe(name).mapper)
    found = load_mapper(fit_on_text(mapper, models, precision=precision)).map(given)
    for site, update in expected.items():
        assert torch.equal(found[site].A, update.A)
        assert torch.equal(found[site].B, update.B)
