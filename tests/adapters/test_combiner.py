from collections.abc import Callable

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from loraport.adapters import LoraAdapter, LowRank, Role, Site
from loraport.adapters.combine import Dare, DareTies, Linear, Ties, WeightAverage
from loraport.adapters.combiner import Combiner
from loraport.adapters.decoupled import Decoupled
from loraport.exceptions import AdapterError, ConfigurationError
from loraport.models import BaseModel, attached

IDS = torch.arange(24).reshape(2, 12) % 20 + 2
Q, V, UP = Site(0, Role.Q), Site(1, Role.V), Site(1, Role.UP)
SHAPES = {Q: (10, 12), V: (6, 12), UP: (14, 12)}
COMBINERS = [Linear(), WeightAverage(), Ties(), Dare(), DareTies(), Decoupled()]
ids = [type(combiner).__name__ for combiner in COMBINERS]
each = pytest.mark.parametrize("combiner", COMBINERS, ids=ids)
SUMS = [combiner for combiner in COMBINERS if not combiner.averages]
AVERAGES = [combiner for combiner in COMBINERS if combiner.averages]


def drawn(
    seed: int,
    sites: tuple[Site, ...] = (Q, V, UP),
    rank: int = 3,
    dtype: torch.dtype = torch.float32,
) -> LoraAdapter:
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for site in sites:
        out, in_ = SHAPES[site]
        a = torch.randn(rank, in_, generator=generator).to(dtype)
        updates[site] = LowRank(a, torch.randn(out, rank, generator=generator).to(dtype), 0.5)
    return LoraAdapter(updates, "some/base", {"r": rank})


@each
def test_a_single_adapter_with_weight_one_gives_the_same_logits_to_the_bit(
    combiner: Combiner, pico_source: BaseModel, random_adapter: Callable[..., LoraAdapter]
) -> None:
    adapter = random_adapter(pico_source)
    logits = []
    for one in (adapter, combiner([adapter]).adapter, combiner([adapter], [1.0]).adapter, None):
        with torch.inference_mode(), attached(pico_source.network, one):
            logits.append(pico_source.network(input_ids=IDS).logits)
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])
    assert not torch.allclose(logits[0], logits[3])


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_single_adapter_is_returned_itself(combiner: Combiner, dtype: torch.dtype) -> None:
    adapter = drawn(0, dtype=dtype)
    result = combiner([adapter])
    assert result.adapter is adapter
    assert result.lost_energy == dict.fromkeys(adapter, 0.0)


@pytest.mark.parametrize("combiner", SUMS)
def test_a_single_adapter_is_scaled_by_its_weight(combiner: Combiner) -> None:
    adapter = drawn(0)
    result = combiner([adapter], [-0.5]).adapter
    for site, update in adapter.items():
        assert result[site].A is update.A
        assert result[site].B is update.B
        assert result[site].scale == -0.25


@pytest.mark.parametrize("combiner", AVERAGES)
def test_a_single_adapter_s_weight_in_an_average_is_one(combiner: Combiner) -> None:
    adapter = drawn(0)
    assert combiner([adapter], [0.3]).adapter is adapter


@each
def test_a_single_adapter_is_cut_where_that_is_asked_for(combiner: Combiner) -> None:
    adapter = drawn(0)
    result = combiner([adapter], rank=1)
    for site, update in adapter.items():
        near, lost = update.truncated(1)
        torch.testing.assert_close(result.adapter[site].dense(), near.dense())
        assert result.lost_energy[site] == pytest.approx(lost)


@each
def test_a_site_of_one_adapter_only_is_that_times_its_weight(combiner: Combiner) -> None:
    one, other = drawn(0, (Q, V)), drawn(1, (V, UP))
    result = combiner([one, other], [1.0, 3.0]).adapter
    assert list(result) == [Q, V, UP]
    weights = (0.25, 0.75) if combiner.averages else (1.0, 3.0)
    for site, adapter, weight in ((Q, one, weights[0]), (UP, other, weights[1])):
        assert torch.equal(result[site].dense(), adapter[site].scaled(weight).dense())


@each
def test_the_rank_is_the_sum_of_the_ranks_or_as_told(combiner: Combiner) -> None:
    adapters = [drawn(0, rank=2), drawn(1, rank=3)]
    for rank, expected in ((None, 5), (4, 4), (1, 1)):
        result = combiner(adapters, rank=rank)
        assert {update.rank for update in result.adapter.values()} == {expected}
        assert result.adapter.base_model == "some/base"
        if rank == 1:
            assert all(0 < lost < 1 for lost in result.lost_energy.values())


@each
def test_the_same_input_gives_the_same_bits_from_no_global_generator(combiner: Combiner) -> None:
    before = torch.get_rng_state()
    hashes = {combiner([drawn(0), drawn(1)]).adapter.content_hash() for _ in range(2)}
    assert len(hashes) == 1
    assert torch.equal(torch.get_rng_state(), before)


@each
def test_a_site_does_not_depend_on_the_others(combiner: Combiner) -> None:
    first, second = drawn(0), drawn(1)
    whole = combiner([first, second]).adapter[V]
    part = [LoraAdapter({V: adapter[V]}, "some/base") for adapter in (first, second)]
    alone = combiner(part).adapter[V]
    assert torch.equal(whole.A, alone.A)
    assert torch.equal(whole.B, alone.B)


@each
def test_results_are_in_float32_at_least(combiner: Combiner) -> None:
    adapters = [drawn(0, dtype=torch.bfloat16), drawn(1, dtype=torch.float16)]
    wide = [adapter.map(lambda update: update.to(torch.float32)) for adapter in adapters]
    assert combiner(adapters).adapter.content_hash() == combiner(wide).adapter.content_hash()
    double = [adapter.map(lambda update: update.to(torch.float64)) for adapter in adapters]
    assert combiner(double).adapter[Q].A.dtype == torch.float64


@each
def test_a_site_of_zeros_takes_part(combiner: Combiner) -> None:
    zero = LowRank(torch.ones(2, 12), torch.zeros(6, 2))
    nothing = LoraAdapter({V: zero}, "some/base")
    result = combiner([nothing, nothing])
    assert result.adapter[V].dense().count_nonzero() == 0
    assert combiner([drawn(0, (V,)), nothing]).adapter[V].norm() > 0


@each
def test_shapes_that_differ_are_refused_by_site(combiner: Combiner) -> None:
    odd = LoraAdapter({V: LowRank(torch.ones(2, 12), torch.ones(8, 2))}, "some/base")
    message = r"adapter 3 .*\(8, 12\) at model\.layers\.1\.self_attn\.v_proj.* 2 .*\(6, 12\)"
    with pytest.raises(AdapterError, match=message):
        combiner([drawn(0, (Q,)), drawn(1), odd])


@each
@pytest.mark.parametrize("weights", [[1.0], [1.0, 2.0, 3.0], [1.0, float("nan")], []])
def test_weights_that_do_not_fit_are_refused(combiner: Combiner, weights: list[float]) -> None:
    with pytest.raises(ConfigurationError, match=r"merge\.weights is .* but 2 adapters"):
        combiner([drawn(0), drawn(1)], weights)


@pytest.mark.parametrize("combiner", AVERAGES)
@pytest.mark.parametrize("weights", [[0.0, 0.0], [2.0, -1.0]])
def test_an_average_takes_no_negative_weights(combiner: Combiner, weights: list[float]) -> None:
    with pytest.raises(ConfigurationError, match=r"merge\.weights is .*merge=linear"):
        combiner([drawn(0), drawn(1)], weights)


@each
def test_no_adapter_is_refused(combiner: Combiner) -> None:
    with pytest.raises(ConfigurationError, match="at least one"):
        combiner([])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linear", Linear()),
        ("weight_average", WeightAverage()),
        ("ties", Ties(0.2)),
        ("dare", Dare(0.9, seed=7)),
        ("dare_ties", DareTies(0.9, seed=7)),
        ("do_merge", Decoupled()),
    ],
)
def test_every_choice_composes(name: str, expected: Combiner) -> None:
    with initialize_config_module("loraport.conf", version_base="1.3"):
        config = compose("train", overrides=[f"+merge={name}", "seed=7"])
    assert (config.merge["with"], config.merge.weights) == ([], None)
    assert instantiate(config.merge.method) == expected
