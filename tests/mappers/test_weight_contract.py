"""One contract for every mapper that needs the base models' weights alone, found by its YAML."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from loraport.adapters import LoraAdapter, Role, Site, relative_error
from loraport.evaluation.records import plain
from loraport.exceptions import AdapterError
from loraport.mappers import BasePair, WeightMapper

CONF = Path(__file__).resolve().parents[2] / "conf" / "mapper"
# Learned mappers name the data that they are trained on.
NAMES = sorted(path.stem for path in CONF.glob("*.yaml") if "- /data: " not in path.read_text())
ROLES = {
    "q_and_v": (Role.Q, Role.V),
    "mlp": (Role.GATE, Role.UP, Role.DOWN),
    "seven": tuple(Role),
}

Given = Callable[..., LoraAdapter]


@pytest.fixture(scope="module")
def pair(pico_pair: BasePair) -> BasePair:
    return pico_pair


@pytest.fixture(scope="module")
def given(adapter_of: Callable[..., LoraAdapter]) -> Given:
    """Draw an adapter for the source of a pair."""
    return lambda pair, *options: adapter_of(pair.source, *options)


def built(name: str) -> WeightMapper:
    with initialize_config_module("loraport.conf", version_base="1.3"):
        config = compose("transfer", overrides=[f"mapper={name}", "adapter=x"])
    mapper: WeightMapper = instantiate(config.mapper)
    return mapper


def ported(name: str, pair: BasePair, adapter: LoraAdapter) -> tuple[LoraAdapter, WeightMapper]:
    mapper = built(name)
    mapper.use(pair)
    return mapper.map(adapter), mapper


def test_every_yaml_is_found() -> None:
    assert {
        *("copy", "cross_lora", "rebasin", "optimal_transport"),
        *("random", "noop"),
    } <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
class TestWeightMapperContract:
    @pytest.mark.parametrize("roles", ROLES.values(), ids=ROLES)
    def test_every_paired_site_is_mapped(
        self, name: str, roles: tuple[Role, ...], pair: BasePair, given: Given
    ) -> None:
        adapter = given(pair, roles)
        result, mapper = ported(name, pair, adapter)
        expected = {s: shape for s, shape in pair.target.sites.shapes.items() if s.role in roles}
        assert {site: update.shape for site, update in result.items()} == expected
        assert result.base_model == pair.target.name
        norms = [update.norm() for update in result.values()]
        assert min(norms) > 0 if mapper.acts else max(norms) == 0

    @pytest.mark.parametrize("rank", [1, 24])
    def test_rank_is_kept(self, name: str, rank: int, pair: BasePair, given: Given) -> None:
        result, _ = ported(name, pair, given(pair, (Role.Q, Role.DOWN), rank))
        assert {update.rank for update in result.values()} == {rank}

    def test_gauge_of_the_factors_does_not_matter(
        self,
        name: str,
        pair: BasePair,
        given: Given,
        regauged: Callable[[LoraAdapter, int], LoraAdapter],
    ) -> None:
        adapter = given(pair)
        result, mapper = ported(name, pair, adapter)
        again = mapper.map(regauged(adapter, 5))
        assert not mapper.gauge_dependent
        if mapper.acts:
            assert relative_error(again, result) < 1e-4

    def test_it_is_linear_in_the_update(self, name: str, pair: BasePair, given: Given) -> None:
        adapter = given(pair)
        result, mapper = ported(name, pair, adapter)
        doubled = mapper.map(adapter.map(lambda update: update.scaled(-2.0)))
        sign = 2.0 if name == "random" else -2.0  # its size is the source's, its sign its own
        if mapper.acts:
            assert relative_error(doubled, result.map(lambda u: u.scaled(sign))) < 1e-5

    def test_again_gives_the_same_bits(self, name: str, pair: BasePair, given: Given) -> None:
        adapter = given(pair)
        hashes = {ported(name, pair, adapter)[0].content_hash() for _ in range(2)}
        assert len(hashes) == 1

    def test_report_is_plain_and_of_every_site(
        self, name: str, pair: BasePair, given: Given
    ) -> None:
        adapter = given(pair, (Role.K, Role.UP))
        result, mapper = ported(name, pair, adapter)
        report = mapper.report()
        json.dumps(plain(report))
        assert list(report["sites"]) == [site.label for site in result]
        for label, facts in report["sites"].items():
            site = Site.from_label(label)
            source = Site.from_label(facts["source"])
            assert source.role == site.role
            expected = result[site].norm() / adapter[source].norm()
            assert facts["kept_norm"] == pytest.approx(expected, rel=1e-4)

    def test_layers_without_a_partner_are_reported(
        self, name: str, pair: BasePair, given: Given
    ) -> None:
        backwards = BasePair(pair.target, pair.source)
        adapter = given(backwards, (Role.Q,))
        result, mapper = ported(name, backwards, adapter)
        assert [site.layer for site in result] == [0, 1]
        report = mapper.report()
        assert report["dropped_sites"] == ["1.q"]
        lost = adapter[Site(1, Role.Q)].norm() ** 2 / adapter.norm() ** 2
        assert report["dropped_energy"] == pytest.approx(lost)

    def test_without_models_it_says_so(self, name: str, pair: BasePair, given: Given) -> None:
        with pytest.raises(RuntimeError, match=r"Mapper has no base models yet: call use"):
            built(name).map(given(pair))

    def test_adapter_of_another_model_is_refused(
        self, name: str, pair: BasePair, given: Given
    ) -> None:
        adapter = given(BasePair(pair.target, pair.source))
        with pytest.raises(AdapterError, match=r"'pico/target', has shape .* source pico/llama"):
            ported(name, pair, adapter)

    def test_every_progress_is_told(self, name: str, pair: BasePair, given: Given) -> None:
        told: list[tuple[int, int]] = []
        mapper = built(name)
        mapper.use(pair, lambda done, total: told.append((done, total)))
        mapper.map(given(pair, (Role.V,)))
        assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
