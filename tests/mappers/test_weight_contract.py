"""What holds beyond the contract for every mapper that needs the base models' weights alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from loraport.adapters import LoraAdapter, Role, Site
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


@pytest.mark.parametrize("name", NAMES)
class TestWeightMappers:
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

    def test_report_is_of_every_site(self, name: str, pair: BasePair, given: Given) -> None:
        adapter = given(pair, (Role.K, Role.UP))
        result, mapper = ported(name, pair, adapter)
        report = mapper.report()
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
