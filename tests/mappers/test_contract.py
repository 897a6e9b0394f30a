"""One contract for every mapper that is fitted on anchors, in both spaces."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from lightning import Trainer

from loraport.adapters import LoraAdapter, LowRank, Role, Site, relative_error
from loraport.data import AnchorSet, ZooPairs
from loraport.exceptions import AdapterError
from loraport.mappers import LearnedMapper, load_mapper

CONF = Path(__file__).resolve().parents[2] / "conf" / "mapper"
NAMES = sorted(
    path.stem for path in CONF.glob("*.yaml") if "/data: anchor_pairs" in path.read_text()
)
HELD_OUT = "t00"

pytestmark = [
    # Lightning 2.6 calls what torch 2.13 deprecates.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    # The places of a few anchors need no workers.
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    # A closed form has no optimizer, by design.
    pytest.mark.filterwarnings("ignore:.*this fit will run with no optimizer.*"),
    # Nor does it look at the anchors that are left out of training.
    pytest.mark.filterwarnings("ignore:.*but have no `validation_step`.*"),
]


def anchors_of(zoo: ZooPairs) -> AnchorSet:
    return AnchorSet.of(zoo, [name for name in zoo.source if name != HELD_OUT])


@pytest.fixture(params=["delta", "factors"])
def space(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def build(recipe: Callable[..., Any], space: str) -> Callable[[str], LearnedMapper]:
    """Build a mapper by its YAML; weights that start at zero are drawn, or they could not show."""

    def make(name: str) -> LearnedMapper:
        mapper: LearnedMapper = instantiate(recipe(name, f"mapper.space={space}").mapper)
        generator = torch.Generator().manual_seed(0)
        for parameter in mapper.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        return mapper

    return make


@pytest.fixture
def fitted(build: Callable[[str], LearnedMapper]) -> Callable[[str, AnchorSet], Any]:
    """Build a mapper and fit it on anchors, without a trainer."""

    def make(name: str, anchors: AnchorSet) -> Any:
        mapper: Any = build(name)
        mapper.fit(anchors)
        return mapper

    return make


def test_every_yaml_is_found() -> None:
    assert {"mean", "global_ridge", "pertensor_ridge", "pca_ridge", "pca_mlp"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
class TestMapperContract:
    def test_every_site_of_the_target_is_predicted(
        self, name: str, fitted: Callable[..., LearnedMapper], noisy_zoo: ZooPairs
    ) -> None:
        predicted = fitted(name, anchors_of(noisy_zoo)).map(noisy_zoo.source[HELD_OUT])
        oracle = noisy_zoo.target[HELD_OUT]
        assert list(predicted) == list(oracle)
        assert predicted.base_model == oracle.base_model
        assert predicted.config is None
        for site, update in predicted.items():
            assert (update.shape, update.rank) == (oracle[site].shape, oracle[site].rank)
            assert update.norm() > 0.01 * oracle[site].norm()

    def test_order_of_the_anchors_does_not_matter(
        self, name: str, fitted: Callable[..., LearnedMapper], noisy_zoo: ZooPairs
    ) -> None:
        anchors, query = anchors_of(noisy_zoo), noisy_zoo.source[HELD_OUT]
        order = torch.randperm(
            len(anchors.names), generator=torch.Generator().manual_seed(1)
        ).tolist()
        assert order != sorted(order)
        expected = fitted(name, anchors).map(query)
        assert relative_error(fitted(name, anchors.select(order)).map(query), expected) < 1e-4

    def test_gauge_of_the_factors_matters_in_factor_space_only(
        self,
        name: str,
        space: str,
        fitted: Callable[..., LearnedMapper],
        noisy_zoo: ZooPairs,
        regauged: Callable[[LoraAdapter, int], LoraAdapter],
    ) -> None:
        moved = ZooPairs(
            {n: regauged(a, seed) for seed, (n, a) in enumerate(noisy_zoo.source.items())},
            {n: regauged(a, 99 + seed) for seed, (n, a) in enumerate(noisy_zoo.target.items())},
        )
        assert relative_error(moved.source[HELD_OUT], noisy_zoo.source[HELD_OUT]) < 1e-5
        mapper = fitted(name, anchors_of(noisy_zoo))
        expected = mapper.map(noisy_zoo.source[HELD_OUT])
        change = relative_error(
            fitted(name, anchors_of(moved)).map(moved.source[HELD_OUT]), expected
        )
        assert mapper.gauge_dependent == (space == "factors")
        assert (change > 0.05) if mapper.gauge_dependent else (change < 1e-4)

    def test_planted_linear_relation_is_recovered(
        self,
        name: str,
        space: str,
        train: Callable[..., Any],
        planted_zoo: Callable[..., ZooPairs],
    ) -> None:
        zoo, held_out = planted_zoo(20), ["t00", "t01"]
        mapper = train(name, zoo, held_out, f"mapper.space={space}").best
        mean = train("mean", zoo, held_out, f"mapper.space={space}").best
        for task in held_out:
            error = relative_error(mapper.map(zoo.source[task]), zoo.target[task])
            of_mean = relative_error(mean.map(zoo.source[task]), zoo.target[task])
            assert of_mean > 0.3
            if name == "mean":
                assert error == of_mean
            else:
                assert error < {"pca_mlp": 0.5}.get(name, 0.02) * of_mean

    def test_loaded_from_its_checkpoint_it_predicts_the_same_bits(
        self, name: str, space: str, train: Callable[..., Any], noisy_zoo: ZooPairs
    ) -> None:
        mapper, checkpoint, _ = train(
            name, noisy_zoo, [HELD_OUT], f"mapper.space={space}", "trainer.max_epochs=3"
        )
        torch.load(checkpoint, weights_only=True)
        loaded = load_mapper(checkpoint)
        assert type(loaded) is type(mapper)
        expected = mapper.map(noisy_zoo.source[HELD_OUT])
        again = loaded.map(noisy_zoo.source[HELD_OUT])
        assert again.content_hash() == expected.content_hash()
        assert loaded.report() == mapper.report()
        assert dict(loaded.hparams) == dict(mapper.hparams)
        assert loaded.hparams["space"] == space

    def test_training_again_gives_the_same_bits(
        self, name: str, train: Callable[..., Any], noisy_zoo: ZooPairs
    ) -> None:
        names = list(noisy_zoo.source)[::-1]
        backwards = ZooPairs(
            {name: noisy_zoo.source[name] for name in names},
            {name: noisy_zoo.target[name] for name in names},
        )
        mappers = [
            train(name, zoo, [HELD_OUT], "trainer.max_epochs=3").last
            for zoo in (noisy_zoo, noisy_zoo, backwards)
        ]
        query = noisy_zoo.source[HELD_OUT]
        assert len({mapper.map(query).content_hash() for mapper in mappers}) == 1

    def test_unfitted_it_says_so(
        self, name: str, build: Callable[[str], LearnedMapper], noisy_zoo: ZooPairs, tmp_path: Path
    ) -> None:
        mapper = build(name)
        assert not mapper.fitted
        with pytest.raises(RuntimeError, match=r"Mapper has no anchors yet: call fit\(anchors\)"):
            mapper.map(noisy_zoo.source[HELD_OUT])
        trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.strategy.connect(mapper)
        trainer.save_checkpoint(tmp_path / "unfitted.ckpt", weights_only=True)
        assert not load_mapper(tmp_path / "unfitted.ckpt").fitted

    @pytest.mark.parametrize("case", ["missing", "extra", "shape", "target"])
    def test_adapter_that_does_not_fit_is_refused_by_name(
        self, name: str, case: str, fitted: Callable[..., LearnedMapper], noisy_zoo: ZooPairs
    ) -> None:
        query, odd = noisy_zoo.source[HELD_OUT], Site(1, Role.V)
        wider = LowRank(torch.ones(4, 13), torch.ones(6, 4))
        rest = {site: update for site, update in query.items() if site != odd}
        wrong, message = {
            "missing": (replace(query, sites=rest), r"lacks model\.layers\.1\.self_attn\.v_proj"),
            "extra": (
                replace(query, sites={**query.sites, Site(1, Role.UP): wider}),
                r"pico/source has model\.layers\.1\.mlp\.up_proj, unlike .*q_proj, v_proj",
            ),
            "shape": (
                replace(query, sites={**rest, odd: wider}),
                r"\(6, 13\) at model\.layers\.1\.self_attn\.v_proj, .*pico/source, have \(6, 12\)",
            ),
            "target": (noisy_zoo.target[HELD_OUT], r"pico/target lacks model\.layers\.2\.self"),
        }[case]
        with pytest.raises(AdapterError, match=message):
            fitted(name, anchors_of(noisy_zoo)).map(wrong)

    def test_adapter_with_nan_never_reaches_it(self, name: str, noisy_zoo: ZooPairs) -> None:
        query, site = noisy_zoo.source[HELD_OUT], Site(1, Role.V)
        broken = LowRank(query[site].A * float("nan"), query[site].B)
        with pytest.raises(AdapterError, match=r"NaN .* lora_A of model\.layers\.1\.self_attn\.v"):
            replace(query, sites={**query.sites, site: broken})

    def test_role_that_the_source_lacks_is_refused(
        self, name: str, build: Callable[[str], LearnedMapper], noisy_zoo: ZooPairs
    ) -> None:
        names = list(noisy_zoo.source)
        only_q = {
            n: replace(a, sites={s: u for s, u in a.items() if s.role == Role.Q})
            for n, a in noisy_zoo.source.items()
        }
        mapper: Any = build(name)
        with pytest.raises(AdapterError, match=r"0\.self_attn\.v_proj, .* have only \['q_proj'\]"):
            mapper.fit(AnchorSet.of(ZooPairs(only_q, noisy_zoo.target), names))
