from collections.abc import Callable
from typing import Any

import pytest
import torch

from loraport.adapters import LoraAdapter, LowRank, Role, Site, relative_error
from loraport.adapters.combine import Linear, Ties, WeightAverage
from loraport.adapters.sparsify import DropComponents, Magnitude
from loraport.exceptions import AdapterError, ConfigurationError
from loraport.mappers import Mapper
from loraport.mappers.base import Report
from loraport.mappers.noop import NoopMapper
from loraport.models import BaseModel, SiteTable
from loraport.workflows.porting import Porting

Q = Site(0, Role.Q)


class Passing(Mapper):
    """Gives back what it gets: the steps behind the mapper are what these tests ask about."""

    information_class = "weights only"

    def __init__(self) -> None:
        self.mapped: list[LoraAdapter] = []

    @property
    def gauge_dependent(self) -> bool:
        return False

    def map(self, adapter: LoraAdapter) -> LoraAdapter:
        self.mapped.append(adapter)
        return adapter

    def report(self) -> Report:
        return {"number": len(self.mapped)}


@pytest.fixture(scope="module")
def sites(pico_target: BaseModel) -> SiteTable:
    return pico_target.sites


@pytest.fixture
def adapters(
    pico_target: BaseModel, random_adapter: Callable[..., LoraAdapter]
) -> list[LoraAdapter]:
    return [random_adapter(pico_target, seed) for seed in (1, 2, 3)]


def dense(adapter: LoraAdapter, site: Site = Q) -> torch.Tensor:
    return adapter[site].dense().float()


def test_without_steps_the_mapped_adapter_comes_back(
    sites: SiteTable, adapters: list[LoraAdapter]
) -> None:
    done = Porting(Passing(), sites).port(adapters[:1])
    assert done.adapter.content_hash() == adapters[0].content_hash()
    assert done.mapping == ({"number": 1},)
    assert done.steps == {}


def test_the_steps_come_in_their_order(sites: SiteTable, adapters: list[LoraAdapter]) -> None:
    """Sparsify each, then merge with the others in full, then cut, then scale, then convert."""
    sparse = Magnitude(0.5, "none")
    porting = Porting(
        Passing(),
        sites,
        sparsify=sparse,
        merge=Linear(),
        weights=[1.0, 2.0, -1.0],
        output_rank=2,
        scale=3.0,
        dtype=torch.bfloat16,
    )
    done = porting.port(adapters[:2], adapters[2:])
    sites_ = {}
    for site in adapters[0]:
        one, other = (sparse(adapter).adapter[site].dense() for adapter in adapters[:2])
        u, s, vt = torch.linalg.svd((one + 2 * other - adapters[2][site].dense()).double())
        whole = u[:, :2] * s[:2] @ vt[:2]
        sites_[site] = LowRank(vt[:2].float(), (3 * u[:, :2] * s[:2]).float())
        lost = 1 - float(whole.norm() ** 2 / s.norm() ** 2)
        assert done.steps["merge"].lost_energy[site] == pytest.approx(lost, abs=1e-5)
    assert relative_error(done.adapter, LoraAdapter(sites_, "x")) < 1e-2
    assert set(done.steps) == {"sparsify 1", "sparsify 2", "merge"}
    assert {update.A.dtype for update in done.adapter.values()} == {torch.bfloat16}
    assert {update.rank for update in done.adapter.values()} == {2}
    assert done.adapter.base_model == "pico/target"
    assert len(done.mapping) == 2


def test_sparsifying_one_adapter_is_one_step(sites: SiteTable, adapters: list[LoraAdapter]) -> None:
    done = Porting(Passing(), sites, sparsify=DropComponents(0.5)).port(adapters[:1])
    assert list(done.steps) == ["sparsify"]
    assert dense(done.adapter).allclose(
        DropComponents(0.5)(adapters[0]).adapter[Q].dense(), atol=1e-6
    )


@pytest.mark.parametrize("scale", [2.5, -1.0, 1e-3])
def test_scale_multiplies_the_update_exactly(
    sites: SiteTable, adapters: list[LoraAdapter], scale: float
) -> None:
    done = Porting(Passing(), sites, scale=scale).port(adapters[:1])
    for site, update in done.adapter.items():
        assert update.scale == adapters[0][site].scale * scale
        assert torch.equal(update.A, adapters[0][site].A)


@pytest.mark.parametrize("rank", [1, 2])
def test_a_lower_output_rank_gives_the_nearest_update_and_tells_the_loss(
    sites: SiteTable, adapters: list[LoraAdapter], rank: int
) -> None:
    done = Porting(Passing(), sites, output_rank=rank).port(adapters[:1])
    for site, update in done.adapter.items():
        u, s, vt = torch.linalg.svd(adapters[0][site].dense().double(), full_matrices=False)
        nearest = u[:, :rank] * s[:rank] @ vt[:rank]
        torch.testing.assert_close(update.dense().double(), nearest, rtol=1e-4, atol=1e-5)
        lost = float(s[rank:].square().sum() / s.square().sum())
        assert done.steps["output_rank"].lost_energy[site] == pytest.approx(lost, rel=1e-4)
        assert update.rank == rank


@pytest.mark.parametrize("rank", [3, 64])
def test_an_output_rank_that_is_no_lower_changes_nothing(
    sites: SiteTable, adapters: list[LoraAdapter], rank: int
) -> None:
    done = Porting(Passing(), sites, output_rank=rank).port(adapters[:1])
    assert done.adapter.content_hash() == adapters[0].content_hash()
    assert done.steps == {}


def test_only_sites_above_the_output_rank_are_cut(
    sites: SiteTable, adapters: list[LoraAdapter]
) -> None:
    (whole,) = adapters[:1]
    mixed = LoraAdapter(
        {s: u if s == Q else u.truncated(1).matrix for s, u in whole.items()}, whole.base_model
    )
    done = Porting(Passing(), sites, output_rank=2).port([mixed])
    lost = done.steps["output_rank"].lost_energy
    assert [site for site, share in lost.items() if share > 0] == [Q]
    assert {site: u.rank for site, u in done.adapter.items() if u.rank == 2} == {Q: 2}


def test_one_adapter_is_merged_with_nothing(sites: SiteTable, adapters: list[LoraAdapter]) -> None:
    done = Porting(Passing(), sites, merge=Ties(0.1)).port(adapters[:1])
    assert done.adapter.content_hash() == adapters[0].content_hash()
    assert done.steps == {}


def test_weights_of_one_adapter_are_not_forgotten(
    sites: SiteTable, adapters: list[LoraAdapter]
) -> None:
    twice = Porting(Passing(), sites, merge=Linear(), weights=[2.0]).port(adapters[:1])
    torch.testing.assert_close(dense(twice.adapter), 2 * dense(adapters[0]))
    with pytest.raises(ConfigurationError, match=r"merge\.weights is \[2\.0, 1\.0\], but 1"):
        Porting(Passing(), sites, merge=Linear(), weights=[2.0, 1.0]).port(adapters[:1])


def test_adapters_of_the_target_are_merged_behind_the_ported_one(
    sites: SiteTable, adapters: list[LoraAdapter]
) -> None:
    porting = Porting(Passing(), sites, merge=WeightAverage(), weights=[3.0, 1.0])
    done = porting.port(adapters[:1], adapters[1:2])
    expected = 0.75 * dense(adapters[0]) + 0.25 * dense(adapters[1])
    torch.testing.assert_close(dense(done.adapter), expected, rtol=1e-4, atol=1e-5)
    assert {update.rank for update in done.adapter.values()} == {6}


def test_merge_of_noop_leaves_the_others(
    pico_source: BaseModel, adapters: list[LoraAdapter], sites: SiteTable, workspace: Any
) -> None:
    """A control that acts on nothing may make a zero, and another adapter may not."""
    porting = Porting(noop(workspace), sites, merge=Linear())
    source = LoraAdapter({Q: LowRank(torch.ones(1, 32), torch.ones(32, 1))}, pico_source.name)
    assert porting.port([source]).adapter.norm() == 0
    done = porting.port([source], adapters[:1])
    torch.testing.assert_close(dense(done.adapter), dense(adapters[0]))


def noop(workspace: Any) -> NoopMapper:
    from loraport.mappers import BasePair
    from loraport.models import StreamedWeights

    models = workspace.root / "models"
    source, target = (StreamedWeights.open(models / side, side) for side in ("source", "target"))
    mapper = NoopMapper()
    mapper.use(BasePair(source, target))
    return mapper


class TestRefused:
    @pytest.mark.parametrize("rank", [0, -1])
    def test_output_rank(self, sites: SiteTable, rank: int) -> None:
        with pytest.raises(ConfigurationError, match=rf"output_rank is {rank}; it takes a whole"):
            Porting(Passing(), sites, output_rank=rank)

    @pytest.mark.parametrize("scale", [0.0, float("nan"), float("inf"), -float("inf")])
    def test_scale(self, sites: SiteTable, scale: float) -> None:
        with pytest.raises(ConfigurationError, match=rf"scale is {scale}; it takes a finite"):
            Porting(Passing(), sites, scale=scale)

    def test_no_adapter(self, sites: SiteTable) -> None:
        with pytest.raises(ConfigurationError, match="no adapter to port"):
            Porting(Passing(), sites).port([])

    def test_a_zero_that_nobody_asked_for(
        self, sites: SiteTable, adapters: list[LoraAdapter]
    ) -> None:
        """PEFT starts B at zero: an adapter that was saved before training does nothing."""
        fresh = adapters[0].map(lambda u: LowRank(u.A, torch.zeros_like(u.B), u.scale))
        with pytest.raises(AdapterError, match=r"zero at every site.*give a source adapter that"):
            Porting(Passing(), sites).port([fresh])

    @pytest.mark.parametrize(
        ("factor", "dtype", "told"),
        [(1e6, "float16", "nan%"), (1e-9, "float16", "100.0%"), (1e-6, "float16", r"\d+\.\d%")],
    )
    def test_a_dtype_that_cannot_hold_the_factors(
        self, sites: SiteTable, adapters: list[LoraAdapter], factor: float, dtype: str, told: str
    ) -> None:
        odd = adapters[0].map(lambda u: LowRank(u.A, factor * u.B, u.scale))
        message = rf"dtype={dtype} cannot hold .*q_proj: .*{told} of its norm; use dtype=float32"
        with pytest.raises(AdapterError, match=message):
            Porting(Passing(), sites, dtype=getattr(torch, dtype)).port([odd])
        for other in (torch.float32, torch.bfloat16):
            kept = Porting(Passing(), sites, dtype=other).port([odd]).adapter
            assert relative_error(kept, odd) < 5e-3

    def test_a_result_that_fits_no_module(
        self, pico_source: BaseModel, sites: SiteTable, random_adapter: Callable[..., LoraAdapter]
    ) -> None:
        stranger = random_adapter(pico_source)
        message = r"mapper's result, for 'pico/source', has shape \(32, 32\) at .*\(48, 48\) there"
        with pytest.raises(AdapterError, match=message):
            Porting(Passing(), sites).port([stranger])

    def test_adapters_to_merge_with_before_anything_is_mapped(
        self,
        pico_source: BaseModel,
        sites: SiteTable,
        adapters: list[LoraAdapter],
        random_adapter: Callable[..., LoraAdapter],
    ) -> None:
        mapper = Passing()
        with pytest.raises(AdapterError, match=r"adapter of merge\.with, for 'pico/source'"):
            Porting(mapper, sites, merge=Linear()).port(adapters[:1], [random_adapter(pico_source)])
        assert mapper.mapped == []

    def test_a_site_that_the_target_lacks(
        self, sites: SiteTable, adapters: list[LoraAdapter]
    ) -> None:
        deep = LoraAdapter({Site(7, Role.Q): adapters[0][Q]}, "pico/deeper")
        with pytest.raises(AdapterError, match=r"layers\.7.*no such module"):
            Porting(Passing(), sites).port([deep])
