import pytest
import torch

from loraport.adapters import LoraAdapter, LowRank, Role, Site
from loraport.adapters.combined import Combined, CombinedSite, cut, widened

Q, V = Site(0, Role.Q), Site(2, Role.V)


def drawn(ranks: dict[Site, int], dtype: torch.dtype = torch.float32) -> LoraAdapter:
    generator = torch.Generator().manual_seed(0)
    updates = {}
    for site, rank in ranks.items():
        a = torch.randn(rank, 6, generator=generator).to(dtype)
        updates[site] = LowRank(a, torch.randn(5, rank, generator=generator).to(dtype), 0.5)
    return LoraAdapter(updates, "some/base", {"r": 4})


@pytest.mark.parametrize("rank", [None, 4, 9])
def test_what_is_not_above_the_rank_is_returned_itself(rank: int | None) -> None:
    adapter = drawn({Q: 4, V: 2})
    result = cut(adapter, rank)
    assert result.adapter is adapter
    assert result.lost_energy == {Q: 0.0, V: 0.0}
    assert result.notes == {Q: {}, V: {}}


def test_only_what_is_above_the_rank_is_cut() -> None:
    adapter = drawn({Q: 4, V: 2}, torch.bfloat16)
    result = cut(adapter, 2)
    assert result.adapter[V] is adapter[V]
    exact = adapter[Q].to(torch.float32)
    near, lost = exact.truncated(2)
    assert torch.equal(result.adapter[Q].dense(), near.dense())
    assert result.lost_energy == {Q: lost, V: 0.0}
    assert lost > 0.01
    sigma = torch.linalg.svdvals(exact.dense().double())
    assert lost == pytest.approx(float(sigma[2:].square().sum() / sigma.square().sum()), rel=1e-5)


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_widened_is_float32_at_least(given: torch.dtype, got: torch.dtype) -> None:
    wide = widened(drawn({Q: 2}, given)[Q])
    assert (wide.A.dtype, wide.B.dtype) == (got, got)


def test_sites_are_gathered_in_the_order_of_the_layers() -> None:
    adapter = drawn({Q: 1, V: 1})
    sites = {V: CombinedSite(adapter[V], 0.25, {"x": 1.0}), Q: CombinedSite(adapter[Q])}
    result = Combined.of(sites, "other/base")
    assert list(result.adapter) == list(result.lost_energy) == [Q, V]
    assert result.lost_energy == {Q: 0.0, V: 0.25}
    assert result.notes == {Q: {}, V: {"x": 1.0}}
    assert result.adapter.base_model == "other/base"
