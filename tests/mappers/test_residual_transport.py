import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from loraport.adapters import LoraAdapter, LowRank, Role, Site, relative_error
from loraport.alignment.layer_pairing import LayerPairing
from loraport.data.aligned_batch import AlignedBatch
from loraport.exceptions import AdapterError, ConfigurationError
from loraport.mappers import load_mapper
from loraport.mappers.corpus_mapper import ModelPair
from loraport.mappers.residual_map import residual_taps
from loraport.mappers.residual_transport import ResidualTransportMapper
from loraport.models import BaseModel, attached
from loraport.models.activations import activations
from loraport.models.statistics_store import StatisticsStore
from loraport.models.taps import Tap
from loraport.reporting.results import plain

FitOnText = Callable[..., Path]
Pico = Callable[[str], BaseModel]
RandomAdapter = Callable[..., LoraAdapter]

pytestmark = [
    # The aligned batches are in memory already.
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    # A closed form has no optimizer, by design.
    pytest.mark.filterwarnings("ignore:.*this fit will run with no optimizer.*"),
]


class Fitted(NamedTuple):
    """A fitted mapper, and what it was saved to."""

    mapper: ResidualTransportMapper
    checkpoint: Path


def made(**options: object) -> ResidualTransportMapper:
    sizes: dict[str, Any] = {"tokens": 800, "held_out_tokens": 400, "strengths": [1e-6, 1e-2, 1.0]}
    return ResidualTransportMapper(**{**sizes, **options})


def layer_by_layer(layers: int) -> LayerPairing:
    return LayerPairing.one_to_one(layers, tuple(range(layers)))


def scaled(adapter: LoraAdapter, scale: float) -> LoraAdapter:
    return adapter.map(lambda update: update.scaled(scale))


@pytest.fixture(scope="module")
def models(pico: Pico, pico_target: BaseModel) -> ModelPair:
    """Llama of width 32 to Gemma of width 48, other depth and heads, byte tokens."""
    return ModelPair(pico("llama"), pico_target)


@pytest.fixture(scope="module")
def fits() -> dict[str, Fitted]:
    """What has been fitted already: most tests look at the same fit."""
    return {}


@pytest.fixture
def fitted(fit_on_text: FitOnText, models: ModelPair, fits: dict[str, Fitted]) -> Fitted:
    if "pair" not in fits:
        mapper = made()
        fits["pair"] = Fitted(mapper, fit_on_text(mapper, models))
    return fits["pair"]


@pytest.fixture
def adapter(random_adapter: RandomAdapter, models: ModelPair) -> LoraAdapter:
    return scaled(random_adapter(models.source, roles=(Role.Q, Role.V, Role.UP)), 0.3)


def changes(
    base: BaseModel, adapter: LoraAdapter, batch: AlignedBatch, layer: int
) -> tuple[Tensor, Tensor]:
    """The stream behind a layer, and what the adapter makes of it, both as they are."""
    tap = Tap.residual(layer)
    found = []
    for one in (None, adapter):
        with attached(base.network, one):
            found.append(activations(base.network, batch.target, batch.target_places, [tap])[tap])
    return found[0], found[1] - found[0]


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3_text"])
class TestOneModelTwice:
    """What is wanted is then what the adapter itself does."""

    def test_a_planted_update_of_down_is_found_again(
        self,
        architecture: str,
        pico: Pico,
        fit_on_text: FitOnText,
        random_adapter: RandomAdapter,
    ) -> None:
        base = pico(architecture)
        planted = scaled(random_adapter(base, roles=(Role.DOWN,)), 0.01)
        mapper = made(writers=["down"], restraint=1e-6)
        fit_on_text(mapper, ModelPair(base, base), layer_by_layer(2))
        result = mapper.map(planted)
        assert list(result) == list(planted)
        assert {update.rank for update in result.values()} == {3}
        report = mapper.report()["layers"]
        for facts in report.values():
            assert facts["map_r2"] > 0.999
            # A post-norm takes away a direction of 32, which the fit does not know it may use.
            assert facts["share"] > (0.999 if architecture == "llama" else 0.99)
        # The layer above has seen what the layer below does already.
        assert 0.5 < report["1"]["share_before"] < 0.9
        if architecture == "llama":
            assert relative_error(result, planted) < 0.01

    def test_the_reported_share_is_what_the_attached_adapter_makes(
        self,
        architecture: str,
        pico: Pico,
        fit_on_text: FitOnText,
        random_adapter: RandomAdapter,
    ) -> None:
        base = pico(architecture)
        # Not modules that write to the stream, as the fitted ones are.
        source = scaled(random_adapter(base, roles=(Role.V, Role.UP)), 0.1)
        mapper = made(rank=16)
        fit_on_text(mapper, ModelPair(base, base), layer_by_layer(2))
        result = mapper.map(source)
        assert {site.role for site in result} == {Role.O, Role.DOWN}
        for layer in range(2):
            missing = wanted = 0.0
            for batch in mapper.kept[1].batches:
                stream, change = changes(base, source, batch, layer)
                _, ours = changes(base, result, batch, layer)
                size = stream.square().mean(dim=1, keepdim=True).sqrt()
                missing += float(((change - ours) / size).square().sum())
                wanted += float((change / size).square().sum())
            facts = mapper.report()["layers"][str(layer)]
            assert facts["share"] == pytest.approx(1 - missing / wanted, abs=2e-3)
            assert facts["share"] > max(0.2, facts["share_before"])


class TestPair:
    def test_updates_are_of_the_writers_and_bring_the_stream_nearer(
        self, fitted: Fitted, adapter: LoraAdapter, models: ModelPair
    ) -> None:
        result = fitted.mapper.map(adapter)
        assert result.base_model == models.target.name
        shapes = models.target.sites.shapes
        assert result
        assert all(update.shape == shapes[site] for site, update in result.items())
        assert {site.role for site in result} <= {Role.O, Role.DOWN}
        report = fitted.mapper.report()
        json.dumps(plain(report))
        assert report["tokens"] == {"train": 800, "held_out": 400}
        assert [facts["source_layer"] for facts in report["layers"].values()] == [0, 1, 1]
        for layer, facts in report["layers"].items():
            assert facts["share"] >= facts["share_before"]
            assert list(facts["sites"]) == [f"{layer}.o", f"{layer}.down"]
            for label, found in facts["sites"].items():
                assert (found["size"] > 0) == (Site.from_label(label) in result)

    def test_progress_is_told_layer_by_layer(
        self, fitted: Fitted, adapter: LoraAdapter, models: ModelPair
    ) -> None:
        told: list[tuple[int, int]] = []
        again = load_mapper(fitted.checkpoint)
        assert isinstance(again, ResidualTransportMapper)
        again.use(
            models, again.frame.pairing, progress=lambda done, total: told.append((done, total))
        )
        again.map(adapter)
        assert told == [(1, 3), (2, 3), (3, 3)]

    def test_gauge_of_the_factors_does_not_matter(
        self,
        fitted: Fitted,
        adapter: LoraAdapter,
        regauged: Callable[[LoraAdapter, int], LoraAdapter],
    ) -> None:
        assert not fitted.mapper.gauge_dependent
        again = fitted.mapper.map(regauged(adapter, 5))
        # Of a change that is small beside the stream float32 leaves four digits.
        assert relative_error(again, fitted.mapper.map(adapter)) < 1e-2

    def test_loaded_from_its_checkpoint_it_maps_to_the_same_bits(
        self, fitted: Fitted, adapter: LoraAdapter, models: ModelPair
    ) -> None:
        saved = torch.load(fitted.checkpoint, weights_only=True)
        assert list(saved["state_dict"]) == ["unused"]
        loaded = load_mapper(fitted.checkpoint)
        assert isinstance(loaded, ResidualTransportMapper)
        assert loaded.fitted
        assert loaded.needs_models
        with pytest.raises(RuntimeError, match="has no base models yet"):
            loaded.map(adapter)
        loaded.use(models, loaded.frame.pairing)
        expected = fitted.mapper.map(adapter).content_hash()
        assert loaded.map(adapter).content_hash() == expected
        assert loaded.report() == fitted.mapper.report()

    def test_training_again_gives_the_same_bits_with_what_a_store_kept(
        self,
        fitted: Fitted,
        adapter: LoraAdapter,
        models: ModelPair,
        fit_on_text: FitOnText,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        expected = fitted.mapper.map(adapter).content_hash()
        for run in range(2):
            again = made()
            if run == 1:
                monkeypatch.setattr("loraport.mappers.residual_mapper.activations", None)
            fit_on_text(again, models, store=StatisticsStore(tmp_path))
            assert again.map(adapter).content_hash() == expected

    def test_another_pairing_than_that_of_training_is_refused(
        self, fitted: Fitted, models: ModelPair
    ) -> None:
        loaded = load_mapper(fitted.checkpoint)
        assert isinstance(loaded, ResidualTransportMapper)
        with pytest.raises(ConfigurationError, match=r"fitted for pico/llama and pico/target"):
            loaded.use(models, LayerPairing.one_to_one(2, (0, 0, 1)))

    @pytest.mark.parametrize("case", ["target", "layer", "nothing"])
    def test_adapter_that_does_not_fit_is_refused_by_name(
        self,
        case: str,
        fitted: Fitted,
        models: ModelPair,
        adapter: LoraAdapter,
        random_adapter: RandomAdapter,
    ) -> None:
        deep: Mapping[Site, LowRank] = {Site(7, Role.Q): adapter[Site(0, Role.Q)]}
        wrong, message = {
            "target": (random_adapter(models.target), r"'pico/target', has shape \(48, 48\)"),
            "layer": (
                replace(adapter, sites=deep),
                r"layers\.7\.self_attn\.q_proj, .* pico/llama has no such module",
            ),
            "nothing": (scaled(adapter, 0.0), r"nothing that the adapter of pico/llama does"),
        }[case]
        with pytest.raises(AdapterError, match=message):
            fitted.mapper.map(wrong)


def test_of_several_layers_the_highest_is_read_and_without_any_none() -> None:
    pairing = LayerPairing(4, (((0, 0.5), (2, 0.5)), (), ((3, 0.0), (1, 1.0))))
    taps = residual_taps(pairing)
    assert {target: pair[0].layer for target, pair in taps.items()} == {0: 2, 2: 1}
    assert [pair[1] for pair in taps.values()] == [Tap.residual(0), Tap.residual(2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"writers": ["q"]}, r"mapper\.writers is \['q'\]; it takes one or both of o, down"),
        ({"writers": []}, r"mapper\.writers is \[\]"),
        ({"strengths": [0.0]}, r"mapper\.strengths is \[0\.0\]"),
        ({"tokens": 0}, r"mapper\.tokens=0, but it takes at least 1"),
        ({"rank": 0}, r"mapper\.rank=0, but it takes at least 1"),
        ({"restraint": 0.0}, r"mapper\.restraint=0\.0, but it takes a positive"),
        ({"answer_weight": -1.0}, r"mapper\.answer_weight=-1\.0, but it takes a positive"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        made(**options)


def test_unfitted_it_says_so(adapter: LoraAdapter) -> None:
    mapper = made()
    assert not mapper.fitted
    with pytest.raises(RuntimeError, match="has seen no text yet: train it first"):
        mapper.map(adapter)
