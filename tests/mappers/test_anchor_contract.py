"""What holds beyond the contract for every mapper that is fitted on anchors, in both spaces."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate

from loraport.adapters import LoraAdapter, LowRank, Role, Site, relative_error
from loraport.data import AnchorSet, ZooPairs
from loraport.exceptions import AdapterError
from loraport.mappers import LearnedMapper

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


@pytest.mark.parametrize("name", NAMES)
class TestAnchorMappers:
    def test_order_of_the_anchors_does_not_matter(
        self, name: str, fitted: Callable[..., LearnedMapper], noisy_zoo: ZooPairs
    ) -> None:
        anchors, query = anchors_of(noisy_zoo), noisy_zoo.source[HELD_OUT]
        order = torch.randperm(
            len(anchors.names), generator=torch.Generator().manual_seed(1)
        ).tolist()
        assert order != sorted(order)
        expected = fitted(name, anchors).map(query)
        oracle = noisy_zoo.target[HELD_OUT]
        assert list(expected) == list(oracle)
        assert [u.rank for u in expected.values()] == [u.rank for u in oracle.values()]
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
