"""The contract of every mapper, asked of each YAML in conf/mapper, and what holds beyond it."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from loraport.adapters import LoraAdapter, Role, Site, relative_error
from loraport.alignment.layer_matching import LayerPairing
from loraport.data import AnchorSet, ZooPairs
from loraport.exceptions import DataError
from loraport.mappers import BasePair, WeightMapper
from loraport.mappers.contract import Letters, MapperContract, paired_layers, random_text, trained
from loraport.mappers.controls import CopyMapper
from loraport.mappers.from_text import ModelPair

Fit = Callable[..., Path]
Draw = Callable[..., LoraAdapter]
Recipe = Callable[..., Any]

YAMLS = {p.stem: p.read_text() for p in (Path(__file__).parents[2] / "conf/mapper").glob("*.yaml")}
OF_ANCHORS = sorted(name for name, yaml in YAMLS.items() if "/data: anchor_pairs" in yaml)
OF_TEXT = sorted(name for name, yaml in YAMLS.items() if "/data: text_corpus" in yaml)
OF_WEIGHTS = sorted(set(YAMLS) - {*OF_ANCHORS, *OF_TEXT})

CONTRACTS: dict[str, tuple[str, ...]] = {name: () for name in sorted(YAMLS)}
CONTRACTS["cast"] = ("mapper.hidden=8",)  # nothing that is asked depends on how wide heads are
# The other space, in closed form and by gradient steps.
CONTRACTS |= {"global_ridge_": ("mapper.space=factors",), "pca_mlp_": ("mapper.space=factors",)}
for _name, _options in CONTRACTS.items():
    globals()[f"Test_{_name}"] = type(
        f"Test_{_name}", (MapperContract,), {"mapper": _name.rstrip("_"), "overrides": _options}
    )


def test_every_yaml_is_found() -> None:
    assert {"mean", "global_ridge", "pca_ridge", "pca_mlp"} <= set(OF_ANCHORS)
    assert {"cast", "procrustes", "transport"} <= set(OF_TEXT)
    assert {"copy", "cross_lora", "noop", "rebasin"} <= set(OF_WEIGHTS)


# Mappers of anchors.

HELD_OUT = "t00"


@pytest.fixture(scope="module")
def mapped(recipe: Recipe) -> Callable[..., tuple[Any, LoraAdapter]]:
    """Fit a mapper on anchors, without a trainer, and map the adapter of the held-out task."""

    def make(name: str, space: str, zoo: ZooPairs, order: list[int]) -> tuple[Any, LoraAdapter]:
        mapper: Any = instantiate(recipe(name, f"mapper.space={space}").mapper)
        generator = torch.Generator().manual_seed(0)
        for parameter in mapper.parameters():  # weights that start at zero could not show
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        mapper.fit(AnchorSet.of(zoo, list(zoo.source)[1:]).select(order))
        return mapper, mapper.map(zoo.source[HELD_OUT])

    return make


@pytest.mark.parametrize("space", ["delta", "factors"])
@pytest.mark.parametrize("name", OF_ANCHORS)
def test_order_of_anchors_does_not_matter_and_their_gauge_in_factor_space_only(
    name: str,
    space: str,
    mapped: Callable[..., tuple[Any, LoraAdapter]],
    noisy_zoo: ZooPairs,
    regauged: Callable[[LoraAdapter, int], LoraAdapter],
) -> None:
    mapper, expected = mapped(name, space, noisy_zoo, list(range(13)))
    oracle = noisy_zoo.target[HELD_OUT]
    assert [(site, u.rank) for site, u in expected.items()] == [
        (site, u.rank) for site, u in oracle.items()
    ]
    order = torch.randperm(13, generator=torch.Generator().manual_seed(1)).tolist()
    assert relative_error(mapped(name, space, noisy_zoo, order)[1], expected) < 1e-4
    moved = ZooPairs(
        {n: regauged(a, seed) for seed, (n, a) in enumerate(noisy_zoo.source.items())},
        {n: regauged(a, 99 + seed) for seed, (n, a) in enumerate(noisy_zoo.target.items())},
    )
    assert relative_error(moved.source[HELD_OUT], noisy_zoo.source[HELD_OUT]) < 1e-5
    change = relative_error(mapped(name, space, moved, order)[1], expected)
    assert mapper.gauge_dependent == (space == "factors")
    assert (change > 0.05) if mapper.gauge_dependent else (change < 1e-4)


@pytest.fixture(scope="module")
def planted_error(
    train: Recipe, planted_zoo: Callable[..., ZooPairs]
) -> Callable[[str, str], float]:
    """Train a mapper on a zoo that is linear, as its YAML says; return its error on two tasks."""

    @cache
    def error(name: str, space: str) -> float:
        zoo, held_out = planted_zoo(20), ["t00", "t01"]
        epochs = ["trainer.max_epochs=60"] if name == "pca_mlp" else []
        mapper = train(name, zoo, held_out, f"mapper.space={space}", *epochs)
        return sum(relative_error(mapper.map(zoo.source[t]), zoo.target[t]) for t in held_out)

    return error


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*this fit will run with no optimizer.*")
@pytest.mark.filterwarnings("ignore:.*but have no `validation_step`.*")
@pytest.mark.parametrize("space", ["delta", "factors"])
@pytest.mark.parametrize("name", sorted({*OF_ANCHORS} - {"mean"}))
def test_planted_linear_relation_is_recovered(
    name: str, space: str, planted_error: Callable[[str, str], float]
) -> None:
    of_mean = planted_error("mean", space)
    assert of_mean > 0.6
    assert planted_error(name, space) < {"pca_mlp": 0.5}.get(name, 0.02) * of_mean


# Mappers of weights.


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_every_site_of_all_roles_is_mapped_at_its_rank_and_reported(
    name: str, recipe: Recipe, pico_pair: BasePair, adapter_of: Draw
) -> None:
    given = adapter_of(pico_pair.source, rank=24)
    mapper: WeightMapper = instantiate(recipe(name).mapper)
    mapper.use(pico_pair)
    result = mapper.map(given)
    assert {s: update.shape for s, update in result.items()} == pico_pair.target.sites.shapes
    assert {update.rank for update in result.values()} == {24}
    facts = mapper.report()["sites"]
    assert list(facts) == [site.label for site in result]
    for site, update in result.items():
        source = Site.from_label(facts[site.label]["source"])
        assert source.role == site.role
        kept = update.norm() / given[source].norm()
        assert facts[site.label]["kept_norm"] == pytest.approx(kept, rel=1e-4)
        assert (kept > 0) == mapper.acts


def test_layers_without_a_partner_are_reported_and_progress_is_told(
    pico_pair: BasePair, adapter_of: Draw
) -> None:
    mapper, told = CopyMapper(), list[tuple[int, int]]()
    given = adapter_of(pico_pair.target, (Role.Q,))
    mapper.use(BasePair(pico_pair.target, pico_pair.source), lambda *done: told.append(done))
    assert [site.layer for site in mapper.map(given)] == [0, 1]
    report = mapper.report()
    assert (report["dropped_sites"], report["repeated_sites"]) == (["1.q"], 0)
    lost = given[Site(1, Role.Q)].norm() ** 2 / given.norm() ** 2
    assert report["dropped_energy"] == pytest.approx(lost)
    assert told == [(0, 2), (1, 2), (2, 2)]
    mapper.use(pico_pair)
    mapper.map(adapter_of(pico_pair.source, (Role.Q,)))
    assert mapper.report()["repeated_sites"] == 1


# Mappers of text.

# How far from the adapter itself a mapper between a model and itself ends: what its ridge shrinks,
# or heads with an MLP, here after a single epoch, and made linear on text.
SAME_MODEL_ERROR = {"adjoint_transport": 0.02, "cast": 0.1, "procrustes": 1e-4, "transport": 0.02}


@pytest.mark.parametrize("name", OF_TEXT)
def test_a_model_and_itself_give_the_adapter_back(
    name: str, recipe: Recipe, fit_on_text: Fit, models: ModelPair, adapter: LoraAdapter
) -> None:
    mapper = instantiate(recipe(name).mapper)
    fit_on_text(mapper, ModelPair(models.source, models.source), tokens=3000)
    assert relative_error(mapper.map(adapter), adapter) < SAME_MODEL_ERROR[name]


class Alike(Letters):
    """The same letter again and again."""

    def texts(self, split: str) -> Iterator[str]:
        return (48 * "a" for _ in super().texts(split))


@pytest.mark.parametrize("name", OF_TEXT)
def test_text_whose_tokens_are_all_alike_is_refused(
    name: str, recipe: Recipe, models: ModelPair, tmp_path: Path
) -> None:
    mapper = instantiate(recipe(name).mapper)
    mapper.learn_from(models, paired_layers(models))
    text = random_text(models)
    text.texts = Alike()
    with pytest.raises(DataError, match=r"tokens of the training text all give the same activ"):
        trained(mapper, mapper.data_module(text, tmp_path), tmp_path / "m.ckpt", max_epochs=1)


@pytest.mark.parametrize("name", OF_TEXT)
def test_report_is_of_every_site(
    name: str,
    fitted_on_text: Callable[[str], tuple[Any, Path]],
    models: ModelPair,
    adapter: LoraAdapter,
) -> None:
    mapper, _ = fitted_on_text(name)
    result = mapper.map(adapter)
    assert list(result) == list(models.target.sites.of_roles((Role.Q, Role.V)))
    report = mapper.report()
    assert list(report["sites"]) == [site.label for site in result]
    assert report["dropped_sites"] == []
    for label, facts in report["sites"].items():
        source = Site.from_label(facts["source"])
        kept = result[Site.from_label(label)].norm() / adapter[source].norm()
        assert facts["kept_norm"] == pytest.approx(kept, rel=1e-4)


@pytest.mark.parametrize("name", ["cast", "transport"])
def test_layers_that_feed_nothing_are_reported(
    name: str, recipe: Recipe, fit_on_text: Fit, models: ModelPair, adapter: LoraAdapter
) -> None:
    mapper = instantiate(recipe(name).mapper)
    fit_on_text(mapper, models, LayerPairing.one_to_one(2, (1, 1, 1)), tokens=500)
    mapper.map(adapter)
    report = mapper.report()
    assert report["dropped_sites"] == ["0.q", "0.v"]
    first = replace(adapter, sites={site: adapter[site] for site in adapter if site.layer == 0})
    assert report["dropped_energy"] == pytest.approx(first.norm() ** 2 / adapter.norm() ** 2)
